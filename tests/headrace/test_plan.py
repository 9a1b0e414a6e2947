"""How an application is laid out as stages."""

from __future__ import annotations

import types
from datetime import datetime
from typing import Any

import numpy as np
import pytest
from headrace.streams import aggregations as agg
from headrace.streams.errors import CannotGoOn, DeclarationError, ProgramChanged
from headrace.streams.event import Event
from headrace.streams.expressions import col
from headrace.streams.features import Features
from headrace.streams.inputs import WAKE
from headrace.streams.log import Fetched, Partition
from headrace.streams.store import MemoryStore
from headrace.streams.windows import tumbling

from headrace.app import App
from headrace.plan import events, stages


class Order(Event, topic="orders", key="who", time="at"):
    who: str
    at: datetime


class Refund(Event, topic="refunds", key="who", time="at"):
    who: str
    at: datetime


class Visit(Event, topic="visits", key="who", time="at"):
    who: str
    at: datetime


class Orders(Features, of=Order, by="who"):
    refunded = agg.count(of=Refund)
    visited = agg.count(of=Visit)


class Refunds(Features, of=Refund, by="who"):
    visited = agg.count(of=Visit)


def test_of_a_topic_that_several_stages_read_one_publishes_what_is_refused() -> None:
    laid = stages(App("shop", features=[Orders, Refunds]))
    assert {s.name: s.inputs for s in laid} == {
        "orders": ("orders", "refunds", "visits"),
        "refunds": ("refunds", "visits"),
    }
    refused = {s.name: [t for t in s.outputs if t.endswith((".rejected", ".late"))] for s in laid}
    assert refused == {
        "orders": ["orders.rejected", "orders.late", "visits.rejected", "visits.late"],
        "refunds": ["refunds.rejected", "refunds.late"],
    }


class PerMinute(Features, of=Order, by="who", window=tumbling("1m")):
    visited = agg.count(of=Visit)


@pytest.mark.parametrize(("sets", "strict"), [([Orders], set()), ([Orders, PerMinute], {"orders", "visits"})])
def test_only_what_windows_are_made_of_may_not_wake_behind_them(
    sets: list[type[Features]], strict: set[str]
) -> None:
    [stage] = stages(App("shop", features=sets))
    task, _ = stage.build(0, MemoryStore())
    assert {i.source.topic: i.source.wake for i in task.inputs} == {
        topic: 0 if topic in strict else WAKE for topic in ("orders", "refunds", "visits")
    }


def test_state_of_other_declarations_is_refused_for_good() -> None:
    store = MemoryStore()
    for sets in ([Orders], [Orders], [Orders, PerMinute]):
        [stage] = stages(App("shop", features=sets))
        task, _ = stage.build(0, store)
        if PerMinute in sets:
            with pytest.raises(ProgramChanged, match="the state of orders was made by another version of the program"):
                task.resume()
            assert issubclass(ProgramChanged, CannotGoOn), "the worker is not started again"
            return
        task.resume()
        at = task.inputs[0].position
        value = b'{"who": "a", "at": "2026-01-01T00:00:00Z"}'
        one = np.array([at], np.int64)
        task.feed(Fetched(task.inputs[0].partition, one, one * 0 + 1_800_000_000_000, [b"a"], [value], at + 1, at + 1))
        work = task.work(10, frozenset(range(3)))
        assert work is not None
        task.keep(work, at + 1)


class Sums(Features, of=Order, by="who", window=tumbling("1m")):
    n = agg.count()


class Best(Features, of=Sums, window=tumbling("1m")):
    most = agg.max(col.n)


class Dear(Features, of=Sums, by="who", where=col.n > 3):
    n = col.n


class Everyone(Features, of=Order):
    who = col.who


class All(Features, of=Order):
    n = agg.count()


class Back(Event, topic="back", key="id", time="at"):
    id: str
    by: str
    at: datetime


class Returned(Features, of=Order, by={Order: "who", Back: "by"}):
    n = agg.count(of=Back)


def test_a_set_over_results_is_a_stage_after_theirs() -> None:
    laid = stages(App("shop", features=[Best, Dear]))
    assert [(s.name, s.group, s.inputs, s.outputs) for s in laid] == [
        ("orders", "shop.orders", ("orders",), ("orders.rejected", "orders.late", "features.Sums")),
        ("features.Sums", "shop.features.Sums", ("features.Sums",), ("features.Best", "features.Dear")),
    ]
    assert [e.contract.topic for e in events(App("shop", features=[Best]))] == ["orders"]
    # At least once is for what nobody here folds again.
    lax = stages(App("shop", features=[Dear], guarantee="at_least_once"))
    assert [s.ahead & {"features.Sums", "features.Dear"} for s in lax] == [set(), {"features.Dear"}]


@pytest.mark.parametrize(
    ("one", "says"),
    [
        (Best, "Best is by nothing, so it is of all events of features.Sums: over 2 partitions"),
        (All, "All is by nothing"),
        (Returned, "Returned finds its who in back by col['by'], but back is partitioned by id"),
    ],
)
def test_what_needs_every_partition_is_refused_over_several(one: type[Features], says: str) -> None:
    stages(App("shop", features=[one]))
    with pytest.raises(DeclarationError) as error:
        stages(App("shop", features=[one], partitions=2))
    assert says in str(error.value)


def test_over_several_partitions_results_are_read_where_they_lie() -> None:
    [_, stage] = stages(App("shop", features=[Dear, Everyone], partitions=2))
    task, _ = stage.build(1, MemoryStore())
    assert [i.partition for i in task.inputs] == [Partition("features.Sums", 1)]


def test_the_fingerprint_of_a_program_covers_conditions_clocks_orders_and_the_set_above() -> None:
    def program(of: Any = Order, **options: Any) -> str:
        value = options.pop("value", agg.last(col.at))
        one = types.new_class("One", (Features,), {"of": of, "by": "who", **options}, lambda body: body.update(v=value))
        stage = stages(App("shop", features=[one]))[-1]
        return stage.build(0, MemoryStore())[0].program

    def above(**options: Any) -> Any:
        options = {"of": Order, "by": "who", "window": tumbling("1m"), **options}
        return types.new_class("Above", (Features,), options, lambda body: body.update(at=agg.last(col.at)))

    minute = tumbling("1m")
    programs = [
        program(),
        program(where=agg.count() > 1),
        program(value=agg.last(col.at, order=col.at)),
        program(window=minute),
        program(window=minute, clock="published"),
        program(above()),
        program(above(clock="published")),
        program(above(where=agg.count() > 1)),
    ]
    assert len(set(programs)) == len(programs)
