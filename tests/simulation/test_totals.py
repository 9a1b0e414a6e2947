"""The smallest pipeline, a running total: cheap, so that many seeds go through the five steps and their failures."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from headrace.streams.batch import Record
from headrace.streams.log import Partition
from headrace.streams.runner import Follow
from headrace.streams.store import Store
from headrace.streams.task import Task

from headrace.plan import Stage
from tests.simulation.fleet import Chaos, Fleet
from tests.simulation.log import SimulatedLog
from tests.simulation.seeds import BLOCKS, check
from tests.simulation.source import publish
from tests.simulation.state import from_source, other_bytes, unequal
from tests.simulation.world import World
from tests.streams import totals

T0 = datetime(2010, 1, 1, tzinfo=UTC)


def build(number: int, store: Store) -> tuple[Task, list[Follow]]:
    return totals.task(store, number), []


OUTPUTS = ("totals", "payments.rejected", "payments.late", "refunds.rejected", "refunds.late")
STAGE = Stage("totals", "totals", 1, ("payments", "refunds"), OUTPUTS, build)
AHEAD = frozenset({"totals", "payments.rejected"})
"""At least once: totals may come again, with the same event and the same value."""


def event(kind: str, who: str, amount: int, second: int, partition: int = 0) -> Record:
    value = {"who": who, "amount": amount, "at": (T0 + timedelta(seconds=second)).isoformat()}
    return Record(kind, who.encode(), json.dumps(value).encode(), partition)


def scenario(world: World, partitions: int) -> dict[Partition, list[Record]]:
    """Payments out of order by up to 8 s (some late), refunds in order, some of them not to be read.

    Some amounts bring a total back to 0, where it is no longer kept.
    """
    found: dict[Partition, list[Record]] = {}
    random = world.random
    amounts = random.choice([[1], [1, 2, 7, 99]])
    for second in range(random.randint(1, 60)):
        shift, partition = random.choice([0, 0, 0, 1, 2, 4, 8]), random.randrange(partitions)
        paid = event("payments", random.choice("abc"), random.choice(amounts), max(0, second - shift), partition)
        found.setdefault(Partition("payments", partition), []).append(paid)
        refunds = found.setdefault(Partition("refunds", partition), [])
        if random.random() < 0.6:
            refunds.append(event("refunds", random.choice("abc"), random.choice(amounts), second, partition))
        if random.random() < 0.05:
            refunds.append(Record("refunds", b"a", b'{"who": "a", "amount": "many"}', partition))
    return found


def oracle(fleet: Fleet, number: int) -> tuple[list[list[object]], list[bytes], dict[str, list[bytes]]]:
    """(totals, rejected values, late ones by topic): one event at a time, by the rules as the documents state them."""
    rows = []
    rejected = []
    late: dict[str, list[bytes]] = {"payments": [], "refunds": []}
    slack, allowed = {"payments": 2, "refunds": 0}, {"payments": 3, "refunds": 0}
    for place, topic in enumerate(late):
        high = T0
        for offset, entry in fleet.log.committed_entries(topic, number):
            record = entry.record
            assert record.value is not None
            value = json.loads(record.value)
            if isinstance(value["amount"], str):
                rejected.append(record.value)
                continue
            at = datetime.fromisoformat(value["at"])
            behind = at < high - timedelta(seconds=slack[topic] + allowed[topic])
            high = max(high, at)
            age = fleet.age(Partition(topic, number), offset)
            rows.append((age, high, place, offset, topic, at, behind, value, record.value))
    total: dict[str, int] = {}
    out: list[list[object]] = []
    newest = T0
    for _, high, _, offset, topic, at, behind, value, published in sorted(rows, key=lambda row: row[:4]):
        newest = max(newest, high)
        watermark = newest - timedelta(seconds=max(slack.values()))
        if behind or at < watermark - timedelta(seconds=allowed[topic]):
            late[topic].append(published)
            continue
        who = value["who"]
        total[who] = total.get(who, 0) + (1 if topic == "payments" else -1) * value["amount"]
        out.append([f"{topic}-{number}-{offset}", total[who]])
    return out, rejected, late


def simulate(seed: int) -> Fleet:
    world = World(seed)
    random = world.random
    stage = replace(STAGE, partitions=random.choice([1, 2, 3]), ahead=random.choice([frozenset(), AHEAD]))
    fleet = Fleet(world, SimulatedLog(world), [stage], Chaos.drawn(world))
    world.spawn("clients", publish(fleet, scenario(world, stage.partitions)))
    world.spawn("supervisor", fleet.supervise())
    world.run()
    return fleet


def wrong(fleet: Fleet) -> list[str]:
    stage = fleet.stages[0]
    return [said for number in range(stage.partitions) for said in wrong_in(fleet, stage, number)]


def wrong_in(fleet: Fleet, stage: Stage, number: int) -> list[str]:
    """What is wrong of one partition."""
    log = fleet.log
    out, rejected, late = oracle(fleet, number)
    found = []
    for topic, wanted in (("refunds.rejected", rejected), *((f"{t}.late", values) for t, values in late.items())):
        got = [r.value for r in log.committed_records(topic, number)]
        found += [f"{topic}-{number}: {got}, not {wanted}"] if got != wanted else []
    told = [json.loads(r.value or b"") for r in log.committed_records("totals", number)]
    if stage.ahead:
        told = first_of_each(told)
    found += [f"totals-{number}: {told}, not {out}"] if told != out else []
    source = from_source(fleet, stage, number)
    found += other_bytes(log, [t for t in stage.outputs if t not in stage.ahead], number, source)
    probe = [event("payments", who, 1, 1_000, number) for who in "abc"]
    return found + unequal(fleet, ("totals", number), source, {"payments": probe})


def first_of_each(told: list[list[object]]) -> list[list[object]]:
    """Without what was published again word by word. Another total of an event published before stays, and is wrong."""
    return list({tuple(one): one for one in told}.values())


@pytest.mark.parametrize("block", range(BLOCKS))
def test_totals_equal_the_oracle_whatever_dies(block: int) -> None:
    check("totals", block, lambda seed: wrong(simulate(seed)))
