"""A program whose learner fails on an outcome without a quantity: it cannot select what is missing."""

from __future__ import annotations

from datetime import datetime

from river import compose, linear_model

import headrace as hr


class Order(hr.Event, topic="orders", key="customer", time="at"):
    customer: str
    quantity: int | None
    at: datetime


class Return(hr.Event, topic="returns", key="customer", time="at"):
    customer: str
    at: datetime


class Customer(hr.Features, of=Order, by="customer"):
    quantity = hr.mean(hr.col.quantity)


model = hr.Model(
    "returns",
    on=Order,
    features=[Customer],
    learner=compose.Select("quantity") | linear_model.LogisticRegression(),
    outcome=hr.Outcome(Return, match=["customer"], within="1h", prior=0.1),
)
app = hr.App("poison", models=[model])
