"""Who works, from what workers told last."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest
from headrace.streams import roster
from headrace.streams.roster import Crew, Roster
from headrace.streams.topics import Processor
from headrace.streams.workers import GONE_AFTER, TaskState, TaskStatus, WorkerStatus

from tests.scene import DEEP

NOW = 1_700_000_000_000.0
ORDERS = Processor("orders", "shop.orders", ("orders",), (), 3)
LEARN = Processor("learn.returns", "shop.learn.returns", ("outcomes.returns",), ())


def told(worker: str, *tasks: TaskStatus, ago: float = 0.0, app: str = "shop", **more: Any) -> tuple[str, bytes]:
    status = WorkerStatus(
        worker=worker, app=app, host="h", pid=7, started=1, time=int(NOW - ago * 1000), state="running", tasks=tasks,
        **more,
    )  # fmt: skip
    return worker, msgspec.json.encode(status)


def task(partition: int, state: TaskState = "running", stage: str = "orders", **more: int) -> TaskStatus:
    return TaskStatus(stage=stage, partition=partition, state=state, **more)


def crew(*records: tuple[str, bytes | None], processors: tuple[Processor, ...] = (ORDERS, LEARN)) -> Crew:
    made = Roster("shop", processors)
    for worker, value in records:
        made.take(worker, value)
    return made.crew(NOW)


def owners(found: Crew) -> dict[tuple[str, int], str | None]:
    return {(p.processor, p.partition): p.worker.status.worker if p.worker else None for p in found.places}


def test_every_task_of_the_program_is_told_and_those_of_nobody_as_such() -> None:
    found = crew(told("a", task(0), task(2)), told("b", task(0, stage="learn.returns")))
    assert owners(found) == {("orders", 0): "a", ("orders", 1): None, ("orders", 2): "a", ("learn.returns", 0): "b"}
    assert [p.state for p in found.places] == ["running", "unowned", "running", "running"]
    assert found.trouble() == "nobody runs orders 1"


def test_a_worker_that_is_silent_too_long_is_gone_and_so_is_what_it_ran() -> None:
    silent = GONE_AFTER + 0.1
    found = crew(told("a", task(0), task(1), task(2), ago=silent), told("b", task(0, stage="learn.returns")))
    assert {w.status.worker: w.state for w in found.workers} == {"a": "gone", "b": "running"}
    assert found.trouble() == "nobody runs orders 0-2"
    last = crew(told("a", task(0), ago=GONE_AFTER - 0.1))
    assert last.workers[0].state == "running"


def test_no_worker_at_all_is_told_with_what_to_do() -> None:
    assert crew().trouble() == "no worker runs any of the 4 tasks: start one with `headrace worker PROGRAM`"
    assert "1 of them are silent" not in crew().trouble()
    assert crew(processors=()).trouble() == ""


def test_a_worker_that_ends_in_order_is_forgotten_at_once() -> None:
    assert crew(told("a", task(0)), ("a", None)).workers == ()


def test_a_standby_is_no_owner() -> None:
    found = crew(told("a", task(0, "standby")), told("b", task(0)))
    assert owners(found)["orders", 0] == "b"
    assert found.places[0].standbys == 1
    assert owners(crew(told("a", task(0, "standby"))))["orders", 0] is None


@pytest.mark.parametrize("order", [1, -1])
def test_of_two_that_claim_a_task_the_later_generation_has_it(order: int) -> None:
    zombie, heir = told("zombie", task(0), generation=3), told("heir", task(0), generation=4)
    assert owners(crew(*[zombie, heir][::order]))["orders", 0] == "heir"


def test_a_task_that_is_being_handed_over_belongs_to_who_takes_it() -> None:
    leaving, coming = told("a", task(0, "stopping"), generation=9), told("b", task(0, "starting"), generation=9)
    assert owners(crew(leaving, coming))["orders", 0] == "b"


def test_a_restore_tells_its_progress() -> None:
    restoring = task(0, "restoring", restored=30, to_restore=120)
    waiting = task(1, "restoring")
    found = crew(told("a", restoring, waiting, task(2)))
    assert [p.restored for p in found.places] == [0.25, 0.0, None, None]
    assert found.places[0].row()["restored"] == 0.25
    assert found.trouble() == "nobody runs learn.returns 0"


def test_workers_of_another_application_and_what_is_no_record_are_passed_over() -> None:
    _, good = told("g", task(0))
    found = crew(
        told("a", task(0), app="bank"),
        ("b", b"{"),
        ("c", b'{"worker": 1}'),
        ("d", b"\xff"),
        ("e", DEEP),
        ("f", good[:-1] + b',"more":' + DEEP + b"}"),
        ("g", re.sub(rb'"time":\d+', b'"time":' + b"9" * 400, good)),
        ("h", good.replace(b'"watermark":0', b'"watermark":%d' % 2**60)),
        ("i", good.replace(b'"shop"', b'"sh\xffop"')),
    )
    assert found.workers == ()


def test_without_a_program_the_tasks_are_those_that_workers_tell_of() -> None:
    everyone = Roster(None, ())
    for worker, value in (told("a", task(1), task(0)), told("b", task(5, stage="deals"), app="bank")):
        everyone.take(worker, value)
    assert list(owners(everyone.crew(NOW))) == [("deals", 5), ("orders", 0), ("orders", 1)]


def test_what_comes_just_now_counts_from_now_whatever_the_clock_of_its_worker() -> None:
    made = Roster("shop", (ORDERS,))
    worker, value = told("a", task(0), ago=1000)
    made.take(worker, value)
    assert made.crew(NOW).workers[0].gone
    made.take(worker, value, heard=NOW - 500)
    assert not made.crew(NOW).workers[0].gone


def test_memory_is_bounded_and_the_most_silent_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roster, "MOST_WORKERS", 3)
    made = Roster("shop", (ORDERS,))
    for n, ago in enumerate((50, 10, 40, 20, 30)):
        made.take(*told(f"w{n}", ago=ago))
    assert sorted(w.status.worker for w in made.crew(NOW).workers) == ["w1", "w3", "w4"]
    made.take(*told("old", ago=0))
    assert made.crew(NOW + 3_700_000).workers == (), "after an hour nobody asks any more"
