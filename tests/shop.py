"""A program without features or models: the topics and processors of a small shop, told by hand."""

from __future__ import annotations

from datetime import datetime

from headrace.streams.event import Event
from headrace.streams.topics import Processor, Topic

from headrace.app import App


class OrderLine(Event, topic="orders", key="customer", time="at"):
    invoice: str
    customer: str
    item: str
    quantity: int
    price: float
    at: datetime


ORDERS = Topic("orders", "event", 2, OrderLine)
PREDICTIONS = Topic("predictions.returns", "predictions", 1)
METRICS = Topic("metrics.returns", "metrics", 1)
DRIFT = Topic("drift.returns", "drift", 1)
REJECTED = Topic("orders.rejected", "rejected", 1)
LATE = Topic("orders.late", "late", 1)
OUTCOMES = Topic("outcomes.returns", "outcomes", 1)
TOPICS = (ORDERS, REJECTED, LATE, PREDICTIONS, OUTCOMES, METRICS, DRIFT)
PROCESSORS = (
    Processor(
        "orders",
        "shop.orders",
        ("orders",),
        ("orders.rejected", "orders.late", "predictions.returns", "outcomes.returns"),
    ),
    Processor("learn.returns", "shop.learn", ("outcomes.returns",), ("metrics.returns", "drift.returns")),
)


class Shop(App):
    def __init__(self) -> None:
        self.name = "shop"

    @property
    def events(self) -> tuple[type[Event], ...]:
        return (OrderLine,)

    def topics(self) -> tuple[Topic, ...]:
        return TOPICS

    def processors(self) -> tuple[Processor, ...]:
        return PROCESSORS


app = Shop()
