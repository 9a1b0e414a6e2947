"""Customers by their orders of 30 days: the program of recovery.

PARTITIONS and STANDBY of the environment are the app's.
"""

import os
from datetime import UTC, datetime

import headrace as hr

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
"""The time of the first order."""


class Order(hr.Event, topic="orders", key="customer", time="at"):
    customer: str
    quantity: int
    price: float
    at: datetime


value = hr.col.quantity * hr.col.price


class Customer(hr.Features, of=Order, by="customer"):
    orders = hr.count("30d")
    quantity = hr.sum(hr.col.quantity, "30d")
    fewest = hr.min(hr.col.quantity, "30d")
    most = hr.max(hr.col.quantity, "30d")
    spent = hr.sum(value, "30d")
    mean = hr.mean(value, "30d")
    deviation = hr.sqrt(hr.variance(value, "30d"))
    cheapest = hr.min(hr.col.price, "30d")
    dearest = hr.max(hr.col.price, "30d")
    price = hr.mean(hr.col.price, "30d")
    first = hr.first(hr.col.price, "30d")
    last = hr.last(hr.col.price, "30d")


app = hr.App(
    "recovery",
    features=[Customer],
    partitions=int(os.environ.get("PARTITIONS", "1")),
    standby=int(os.environ.get("STANDBY", "0")),
)
