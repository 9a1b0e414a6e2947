"""How an application is laid out as stages."""

from __future__ import annotations

from datetime import datetime

import numpy as np
import pytest
from headrace.streams import aggregations as agg
from headrace.streams.errors import CannotGoOn, ProgramChanged
from headrace.streams.event import Event
from headrace.streams.features import Features
from headrace.streams.inputs import WAKE
from headrace.streams.log import Fetched
from headrace.streams.store import MemoryStore
from headrace.streams.windows import tumbling

from headrace.app import App
from headrace.plan import stages


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
