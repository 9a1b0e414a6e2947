"""The returns job by customer: all that a line needs lies in its customer's partition, of which there are eight."""

from datetime import datetime
from typing import Annotated

from msgspec import Meta
from river import linear_model, preprocessing

import headrace as hr

Positive = Annotated[float, Meta(gt=0)]


class OrderLine(hr.Event, topic="orders", key="customer", time="at"):
    invoice: str
    customer: str
    item: str
    description: str
    quantity: Annotated[int, Meta(gt=0)]
    price: Positive
    country: str
    at: datetime


class Return(hr.Event, topic="returns", key="customer", time="at"):
    invoice: str
    customer: str
    item: str
    description: str
    quantity: Annotated[int, Meta(lt=0)]
    price: Positive
    country: str
    at: datetime


taken_back = hr.Outcome(
    Return, of=OrderLine, match=["customer", "item"], quantity="quantity", within="30d", prior=0.015
)


class Customer(hr.Features, of=OrderLine, by="customer"):
    lines = hr.count()
    spent = hr.sum(hr.col.quantity * hr.col.price)
    taken = hr.count(of=taken_back)
    sent = hr.count(of=Return)
    spread = hr.fill(hr.variance(hr.col.price), 0.0)


class CustomerItem(hr.Features, of=OrderLine, by=("customer", "item")):
    bought = hr.sum(hr.col.quantity)
    dearest = hr.max(hr.col.price)
    kept = hr.count() - hr.count(of=taken_back)


returns = hr.Model(
    "returns",
    on=OrderLine,
    features=[Customer, CustomerItem],
    learner=preprocessing.StandardScaler() | linear_model.LogisticRegression(),
    outcome=taken_back,
    watch=[hr.drift.ADWIN("log_loss"), hr.drift.PageHinkley("score", threshold=1.0, mean_of=20)],
    publish_every=100,
)

app = hr.App("customers", models=[returns], partitions=8)
