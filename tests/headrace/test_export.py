"""The state of a program as rows: what they tell is what the events give, told by hand."""

from __future__ import annotations

import contextlib
import json
from collections import Counter, defaultdict
from collections.abc import Coroutine
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest
from headrace.streams.batch import Record
from headrace.streams.errors import ProgramChanged
from headrace.streams.log import Partition
from headrace.streams.publisher import partition_of
from headrace.streams.runner import Runner
from headrace.streams.store import MemoryStore
from headrace.streams.task import MARK, RESETTING, Mark

import headrace as hr
from headrace import plan
from headrace.errors import ExportError, VerifyError
from headrace.export import _opened, export
from headrace.state import newest_mark
from headrace.verify import verify
from tests.headrace import returning
from tests.headrace.returning import ORDERS, T0, events
from tests.simulation.log import SimulatedLog
from tests.simulation.world import World

app = returning.app
Row = dict[str, Any]
T = TypeVar("T")


@pytest.fixture(scope="module")
def finished() -> SimulatedLog:
    return ran(app)


def ran(program: hr.App) -> SimulatedLog:
    """Four partitions, whose tasks change hands while events come: each goes on elsewhere, where nothing is stored."""
    world = World(11)
    log = SimulatedLog(world)

    async def publish() -> None:
        waiting = [(e["at"], topic, e) for topic in ("orders", "returns") for e in events(topic)]
        for _, topic, event in sorted(waiting, key=lambda w: w[:2]):
            key = event["customer"].encode()
            log.publish(Record(topic, key, json.dumps(event).encode(), partition_of(key, app.partitions)))
            await world.sleep(0.3)

    def host(worker: int) -> list[str]:
        names = []
        for stage in plan.stages(program):
            for n in range(stage.partitions):
                task, follows = stage.build(n, MemoryStore())
                names.append(f"worker {worker}: {stage.name} {n}")
                runner = Runner(task, log, world, stage.group, follows, ahead=stage.ahead, batch_rows=10)
                world.spawn(names[-1], runner.run())
        return names

    async def hand_over() -> None:
        names = host(1)
        for worker in range(2, 6):
            await world.sleep(ORDERS * 0.07)
            for name in names:
                world.kill(name)
            names = host(worker)
        await world.sleep(ORDERS)
        for name in names:
            world.kill(name)

    world.spawn("publisher", publish())
    world.spawn("workers", hand_over())
    world.run()
    return log


def alone(log: SimulatedLog, work: Coroutine[Any, Any, T]) -> T:
    """Run it in the log's world, where nothing else runs any more."""
    ended: list[T | Exception] = []

    async def main() -> None:
        try:
            ended.append(await work)
        except Exception as error:
            ended.append(error)

    log.world.spawn("alone", main())
    log.world.run()
    [what] = ended
    if isinstance(what, Exception):
        raise what
    return what


def exported(log: SimulatedLog, of: str | None = None, program: hr.App = app) -> list[Row]:
    async def main() -> list[Row]:
        return [json.loads(msgspec.json.encode(row)) async for row in export(program, log, of)]

    return alone(log, main())


def kind(rows: list[Row], name: str) -> list[Row]:
    return [row for row in rows if row["kind"] == name]


def valid() -> list[Row]:
    return [e for e in events("orders") if e["quantity"] != "many"]


def test_each_entity_has_its_features_as_of_the_last_commit(finished: SimulatedLog) -> None:
    rows = exported(finished)
    quantities: dict[str, list[int]] = defaultdict(list)
    for event in valid():
        quantities[event["customer"]].append(event["quantity"])
    back = Counter(e["customer"] for e in events("returns"))
    told = {row["entity"]["customer"]: row for row in kind(rows, "Customer")}
    assert told.keys() == quantities.keys()
    for customer, row in told.items():
        mean = sum(quantities[customer]) / len(quantities[customer])
        assert row["partition"] == partition_of(customer.encode(), app.partitions)
        assert row["features"] == {"lines": len(quantities[customer]), "usual": mean, "back": back[customer]}
        assert list(row["aggregates"].values()) == [mean], "what needs an event is told by what it is made of"


def test_a_feature_is_told_as_it_was_last_published_where_nothing_came_since(finished: SimulatedLog) -> None:
    last = {}
    for n in range(app.partitions):
        for record in finished.committed_records("features.Customer", n):
            said = json.loads(record.value or b"")
            last[said["customer"]] = said
    told = {row["entity"]["customer"]: row["features"] for row in kind(exported(finished, "Customer"), "Customer")}
    assert {c: f["usual"] for c, f in told.items()} == {c: said["usual"] for c, said in last.items()}


def test_windows_are_told_open_and_closed(finished: SimulatedLog) -> None:
    counted: Counter[tuple[str, str]] = Counter()
    most: dict[tuple[str, str], int] = {}
    for event in valid():
        hour = datetime.fromisoformat(event["at"]).replace(minute=0)
        place = event["customer"], f"{hour:%Y-%m-%dT%H:%M:%SZ}"
        counted[place] += 1
        most[place] = max(most.get(place, 0), event["quantity"])
    rows = kind(exported(finished, "Hourly"), "Hourly")
    assert rows
    open_ones = [row for row in rows if not row["closed"]]
    assert {row["start"] for row in open_ones} == {"2010-01-01T03:00:00Z"}
    for row in rows:
        place = row["entity"]["customer"], row["start"]
        assert row["features"] == {"lines": counted[place], "most": most[place]}


def test_the_position_says_what_the_rows_are_as_of(finished: SimulatedLog) -> None:
    positions = {(p["processor"], p["partition"]): p for p in kind(exported(finished), "position")}
    assert len(positions) == app.partitions + 1
    for n in range(app.partitions):
        told = positions["orders", n]
        assert told["taken"]["orders"] == len(finished.entries(Partition("orders", n)))
        assert told["offset"] == finished.stable_end(Partition("shop.orders.changelog", n))
        assert told["at"] > T0.isoformat()


def test_what_waits_and_what_was_learnt_is_told(finished: SimulatedLog) -> None:
    rows = exported(finished)
    [learner] = kind(rows, "learner.returns")
    outcomes = len(finished.committed_records("outcomes.returns"))
    waiting = len(kind(rows, "mature.returns"))
    assert learner["learnt"] == outcomes - waiting > 50
    assert "LogisticRegression" in learner["estimator"]
    assert learner["positives"] > 0
    open_lines = kind(rows, "match.returns~orders")
    settled = kind(rows, "settle.returns")
    assert len(settled) == len([line for line in open_lines if not line["known"]]) > 10
    assert {"customer"} == open_lines[0]["match"].keys()
    assert settled[0]["prediction"]["id"].startswith("orders-")
    [quality] = kind(rows, "evaluate.returns")
    assert quality["outcomes"] > 0
    assert kind(rows, "drift.returns.outcome")[0]["detector"].startswith("ADWIN('log_loss'")


def test_one_set_alone_can_be_asked_for_and_a_wrong_name_is_told(finished: SimulatedLog) -> None:
    assert {row["kind"] for row in exported(finished, "Customer")} == {"position", "Customer"}
    with pytest.raises(ExportError, match="shop has no feature set 'Custmer': it has Customer, Hourly"):
        exported(finished, "Custmer")


class Customer(hr.Features, of=returning.Order, by="customer"):
    lines = hr.count("7d")


def test_the_state_of_another_program_is_not_told_as_if_it_were_this_one(finished: SimulatedLog) -> None:
    with pytest.raises(ProgramChanged, match="another version of the program"):
        exported(finished, None, hr.App("shop", features=[Customer], partitions=4))


def test_an_application_that_never_ran_has_no_state() -> None:
    rows = exported(SimulatedLog(World(1)))
    assert {row["kind"] for row in rows} == {"position"}
    assert {row["at"] for row in rows} == {None}


def test_verify_finds_all_equal_after_tasks_changed_hands(finished: SimulatedLog) -> None:
    found = alone(finished, verify(app, finished))
    assert [c for c in found if c.different] == []
    predictions = sum(c.compared for c in found if c.what.startswith("predictions.returns"))
    assert predictions == len(valid())


def test_at_least_once_what_comes_again_is_counted_and_no_difference() -> None:
    """Every second the tasks settle what they have published; what lies between, the next owner publishes again."""
    careful = hr.App("shop", models=[returning.model], features=[returning.Hourly], partitions=4,
                     guarantee="at_least_once")  # fmt: skip
    log = ran(careful)
    found = alone(log, verify(careful, log))
    assert [c for c in found if c.different] == []
    assert sum(c.again for c in found if c.what.startswith("predictions.returns")) > 0
    assert sum(c.again for c in found if c.what.startswith("outcomes.returns")) == 0, "what is read here is exact"
    as_if_exact = alone(log, verify(app, log))
    assert sum(c.ways["published twice"] for c in as_if_exact) > 0


def test_verify_says_that_the_program_was_changed(finished: SimulatedLog) -> None:
    with pytest.raises(VerifyError, match=r"the program was changed since orders 0, orders 1, orders 2, orders 3 ran"):
        alone(finished, verify(hr.App("shop", features=[Customer], partitions=4), finished))


@pytest.mark.parametrize("behind", [0, 1, 63, 64, 65, 1500])
def test_the_newest_mark_is_found_however_far_it_lies_behind(behind: int) -> None:
    log, changelog = SimulatedLog(World(2)), Partition("shop.orders.changelog", 0)
    for offset in (7, 8):
        mark = Mark([offset], [0], 0, RESETTING)
        log.append(changelog, Record(changelog.topic, MARK, msgspec.json.encode(mark), 0), "committed")
    for _ in range(behind):
        log.append(changelog, Record(changelog.topic, b"row", b"", 0), "aborted")
    found = alone(log, newest_mark(log, changelog))
    assert found is not None
    assert found.offsets == [8]


def test_a_file_is_there_once_it_is_whole(tmp_path: Path) -> None:
    out = tmp_path / "state.ndjson"
    with contextlib.suppress(KeyboardInterrupt), _opened(out) as file:
        file.write(b"{}\n")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with _opened(out) as file:
        file.write(b"{}\n")
    assert out.read_bytes() == b"{}\n"
    with pytest.raises(ExportError, match="cannot be written"), _opened(tmp_path / "no" / "state.ndjson"):
        pass
