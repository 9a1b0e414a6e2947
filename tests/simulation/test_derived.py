"""Sets over the rows of other sets, each in a stage of its own, on the simulated log."""

from __future__ import annotations

import json
from collections import defaultdict
from datetime import UTC, datetime
from typing import Any

import pytest
from headrace.streams import aggregations as agg
from headrace.streams.batch import Record
from headrace.streams.event import Event
from headrace.streams.expressions import col
from headrace.streams.features import Features
from headrace.streams.log import Partition
from headrace.streams.windows import sliding, tumbling

from headrace.app import App
from headrace.plan import Stage, stages
from headrace.verify import Comparison, verify
from tests.simulation.fleet import Chaos, Fleet
from tests.simulation.log import SimulatedLog
from tests.simulation.source import publish
from tests.simulation.state import from_source, other_bytes, unequal
from tests.simulation.world import World
from tests.streams.oracle import SECOND, Span, window_rows

START = 1_262_304_000 * SECOND  # 2010-01-01
SEEDS = range(1, 13)


class Bid(Event, topic="bids", key="item", time="at", out_of_orderness="1s"):
    item: str
    price: int
    at: datetime


class Counts(Features, of=Bid, by="item", window=sliding("4s", every="2s")):
    n = agg.count()


class Hot(Features, of=Counts, window=tumbling("2s")):
    item = agg.last(col.item, order=col.n)
    n = agg.max(col.n)


class Hotter(Features, of=Hot, where=col.n > 2):
    item = col.item
    so_far = agg.count(where=col.n > 2)


APP = App("hot", features=[Hotter])


def event(time: int, item: str, price: int) -> Record:
    at = datetime.fromtimestamp(time / SECOND, UTC).isoformat()
    return Record("bids", item.encode(), json.dumps({"item": item, "price": price, "at": at}).encode(), 0)


def scenario(world: World) -> dict[Partition, list[Record]]:
    random, now, found = world.random, START, []
    for _ in range(random.choice([5, 30, 60])):
        now += int(random.choice([0, 0, 0.5, 1, 2, 5]) * SECOND)
        behind = random.choice([0] * 6 + [1, 3]) * SECOND
        found.append(event(max(START, now - behind), random.choice("abc"), random.randint(1, 9)))
    return {Partition("bids", 0): found}


def simulate(seed: int) -> Fleet:
    world = World(seed)
    fleet = Fleet(world, SimulatedLog(world), stages(APP), Chaos.drawn(world))
    world.spawn("clients", publish(fleet, scenario(world)))
    world.spawn("supervisor", fleet.supervise())
    world.run()
    return fleet


def hot(log: SimulatedLog) -> list[tuple[int, str, int]]:
    """The end, item and count of the greatest count of every window, one event at a time."""
    events: list[tuple[Any, int, dict[str, Any]]] = []
    marks: list[int] = []
    newest = 0
    for record in log.committed_records("bids", 0):
        row = json.loads(record.value or b"")
        at = micros(row["at"])
        if at >= newest - SECOND:
            newest = max(newest, at)
            events.append((row["item"], at, row))
            marks.append(newest - SECOND)
    counts = defaultdict(list)
    for row in window_rows(events, marks, 0, Span(4 * SECOND, 2 * SECOND)):
        counts[row["end"]].append((len(row["rows"]), row["key"]))
    return [(end, max(counts[end])[1], max(counts[end])[0]) for end in sorted(counts)[:-1]]


def micros(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * SECOND)


def rows(log: SimulatedLog, topic: str) -> list[dict[str, Any]]:
    return [json.loads(record.value or b"") for record in log.committed_records(topic, 0)]


def probe(stage: Stage) -> dict[str, list[Record]]:
    """What closes every window of the events; of derived rows the state itself is compared."""
    if stage.name != "bids":
        return {}
    return {"bids": [event(START + second * SECOND, item, 1) for second in (500, 9_000) for item in "abc"]}


def wrong(fleet: Fleet) -> list[str]:
    wanted = hot(fleet.log)
    found = [(micros(r["end"]), r["item"], r["n"]) for r in rows(fleet.log, "features.Hot")]
    told = [] if found == wanted else [f"features.Hot: {found}, not {wanted}"]
    dear = [item for _, item, n in wanted if n > 2]
    hotter = [(r["item"], r["so_far"]) for r in rows(fleet.log, "features.Hotter")]
    if hotter != [(item, i) for i, item in enumerate(dear, 1)]:
        told.append(f"features.Hotter: {hotter}, not {dear}")
    for stage in fleet.stages:
        source = from_source(fleet, stage, 0)
        told += other_bytes(fleet.log, stage.outputs, 0, source)
        told += unequal(fleet, (stage.name, 0), source, probe(stage))
    return told


@pytest.mark.parametrize("seed", SEEDS)
def test_sets_over_results_are_a_function_of_the_events_whatever_dies(seed: int) -> None:
    assert wrong(simulate(seed)) == []


def test_each_set_over_results_is_a_stage_that_is_verified_from_what_it_read() -> None:
    log = simulate(SEEDS[0]).log
    assert [(s.name, s.inputs, s.outputs) for s in stages(APP)] == [
        ("bids", ("bids",), ("bids.rejected", "bids.late", "features.Counts")),
        ("features.Counts", ("features.Counts",), ("features.Hot",)),
        ("features.Hot", ("features.Hot",), ("features.Hotter",)),
    ]
    found: dict[str, Comparison] = {}

    async def check() -> None:
        found.update({one.what: one for one in await verify(APP, log)})

    log.world.spawn("verify", check())
    log.world.run()
    assert all(not one.different for one in found.values()), found
    assert found["features.Counts"].compared == len(rows(log, "features.Counts")) > 0
    assert found["features.Hot"].compared == len(rows(log, "features.Hot"))
