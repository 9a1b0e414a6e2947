"""How an application is laid out as stages."""

from __future__ import annotations

from datetime import datetime

from headrace.streams import aggregations as agg
from headrace.streams.event import Event
from headrace.streams.features import Features

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
