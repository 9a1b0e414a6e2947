"""A program with everything that leaves state: features, windows, a model that learns, drift, and four partitions.

And its events: orders a minute apart, some of them wrong, some taken back ten minutes later.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from river import linear_model, preprocessing

import headrace as hr


class Order(hr.Event, topic="orders", key="customer", time="at"):
    customer: str
    quantity: int
    at: datetime


class Return(hr.Event, topic="returns", key="customer", time="at"):
    customer: str
    quantity: int
    at: datetime


back = hr.Outcome(Return, of=Order, match=["customer"], within="1h", prior=0.1)


class Customer(hr.Features, of=Order, by="customer"):
    lines = hr.count("1d")
    usual = hr.mean(hr.col.quantity)
    more = hr.col.quantity - hr.mean(hr.col.quantity)
    back = hr.count(of=back)


class Hourly(hr.Features, of=Order, by="customer", window=hr.tumbling("1h")):
    lines = hr.count()
    most = hr.max(hr.col.quantity)


model = hr.Model(
    "returns",
    on=Order,
    features=[Customer],
    learner=preprocessing.StandardScaler() | linear_model.LogisticRegression(),
    outcome=back,
    publish_every=20,
    watch=[hr.drift.ADWIN("log_loss")],
)
app = hr.App("shop", models=[model], features=[Hourly], partitions=4)

T0 = datetime(2010, 1, 1, tzinfo=UTC)
ORDERS = 240


def events(topic: str) -> list[dict[str, Any]]:
    """Orders by eleven customers, a tenth of them wrong; a seventh of the others is taken back."""
    made = []
    for n in range(ORDERS):
        at, customer = T0 + timedelta(minutes=n), f"c{n * 7 % 11}"
        if topic == "orders":
            made.append({"customer": customer, "quantity": "many" if n % 10 == 9 else n % 5 + 1, "at": at.isoformat()})
        elif n % 7 == 0 and n % 10 != 9:
            made.append({"customer": customer, "quantity": 1, "at": (at + timedelta(minutes=10)).isoformat()})
    return made
