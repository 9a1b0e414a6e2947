"""A program whose learner fails on one outcome."""

from __future__ import annotations

from collections.abc import Hashable
from datetime import datetime
from typing import Any

from river import linear_model

import headrace as hr


class Order(hr.Event, topic="orders", key="customer", time="at"):
    customer: str
    quantity: int
    at: datetime


class Return(hr.Event, topic="returns", key="customer", time="at"):
    customer: str
    at: datetime


class Customer(hr.Features, of=Order, by="customer"):
    quantity = hr.sum(hr.col.quantity)


class Delicate(linear_model.LogisticRegression):
    def learn_one(self, x: dict[Hashable, Any], y: bool | str | int, w: float = 1.0) -> None:
        if x["quantity"] == 13:
            raise ZeroDivisionError("unlucky")
        super().learn_one(x, y, w)


model = hr.Model(
    "returns",
    on=Order,
    features=[Customer],
    learner=Delicate(),
    outcome=hr.Outcome(Return, match=["customer"], within="1h", prior=0.1),
)
app = hr.App("poison", models=[model])
