"""Predictions with their outcomes as the operators of models see them, made from a seed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta

import msgspec
import numpy as np
from headrace.models.drift import Watch
from headrace.models.maturity import MatureRows
from headrace.models.model import Model
from headrace.streams.batch import Batch, Operator, Outputs, Record, one_by_one, record_by_record
from headrace.streams.outcomecolumns import OutcomeColumns
from headrace.streams.outcomes import Settled
from headrace.streams.spans import Spans
from headrace.streams.store import MemoryStore
from river import base, compose

import headrace as hr

T0 = datetime(2010, 1, 1, tzinfo=UTC)
HORIZON = timedelta(days=30)
PRIOR = 0.1


class Order(hr.Event, topic="orders", key="customer", time="at"):
    customer: str
    item: str
    amount: int
    country: str
    at: datetime


class Return(hr.Event, topic="returns", key="customer", time="at"):
    customer: str
    item: str
    at: datetime


class Customer(hr.Features, of=Order, by="customer"):
    orders = hr.count()
    amount = hr.log1p(hr.col.amount)
    country = hr.last(hr.col.country)
    _rate = hr.count() / 100.0


Learner = base.Classifier | compose.Pipeline


def model(learner: Learner, *, watch: Sequence[Watch] = (), publish_every: int = 50) -> Model:
    return Model(
        "returns",
        on=Order,
        features=[Customer],
        learner=learner,
        outcome=hr.Outcome(Return, match=["customer", "item"], within="30d", prior=PRIOR),
        baselines={"customer": Customer._rate},
        watch=watch,
        publish_every=publish_every,
    )


def settled(n: int, outcome: bool = False, score: float = PRIOR, **features: float | str | None) -> Settled:
    """The outcome of the nth order; one order a minute."""
    at = T0 + timedelta(minutes=n)
    return Settled(
        id=f"orders-0-{n}",
        key="a",
        at=at,
        known=at + HORIZON,
        matures=at + HORIZON,
        watermark=at + HORIZON,
        outcome=outcome,
        score=score,
        baselines={"base": PRIOR, "customer": PRIOR},
        version="returns@0",
        features=dict(features),
    )


def stream(seed: int, count: int, texts: bool = False) -> list[Settled]:
    """Outcomes that follow from their features with noise; a tenth of the values is missing."""
    made = []
    chance = random.Random(seed)
    for n in range(count):
        a, b = chance.gauss(0, 1), chance.gauss(0, 1)
        outcome = chance.random() < 1 / (1 + 2.718 ** (1 - 2 * a))
        features: dict[str, float | str | None] = {"a": a, "b": None if chance.random() < 0.1 else b}
        if texts:
            features["country"] = chance.choice(["France", "Norway", "Peru", "Chad"])
        made.append(settled(n, outcome, chance.random(), **features))
    return made


def columns_of(outcomes: Sequence[Settled]) -> OutcomeColumns:
    """That of all features that the outcomes have."""
    features = {name: value for one in outcomes for name, value in one.features.items() if value is not None}
    return OutcomeColumns([(name, isinstance(v, str)) for name, v in features.items()], ["base", "customer"])


def batches(
    outcomes: Sequence[Settled], sizes: Iterator[int], columns: OutcomeColumns | None = None
) -> Iterator[Batch]:
    """Mature outcomes, cut into batches. columns: how they were read"""
    columns = columns or columns_of(outcomes)
    done = 0
    while done < len(outcomes):
        part = columns.read(Spans.of(encoded(outcomes[done : done + next(sizes)])))
        at, zeros = np.arange(len(part)), np.zeros(len(part), np.int64)
        rows = MatureRows(at, {}, outcomes=part, seen=done + at + 1)
        yield Batch(zeros, zeros, {"mature.returns": rows})
        done += len(part)


def run(
    operator: Operator,
    outcomes: Sequence[Settled],
    cut: int | None = None,
    restart: int = 0,
    columns: OutcomeColumns | None = None,
) -> list[Record]:
    """What an operator makes of mature outcomes.

    cut:     the seed of the batches' sizes; None: one batch
    restart: after every so many batches its hot state is thrown away and loaded from what it wrote
    columns: how the outcomes were read
    """
    sizes = random.Random(cut)
    store = MemoryStore()
    out: Outputs = []
    cuts = iter(lambda: len(outcomes) if cut is None else sizes.choice([1, 1, 2, 7, 40]), 0)
    for n, batch in enumerate(batches(outcomes, cuts, columns), 1):
        operator.process(batch, out)
        store.write(one_by_one(operator.changes()))
        if restart and n % restart == 0:
            operator.clear()
            operator.load(store.rows(b""))
    return list(record_by_record(out))


def encoded(outcomes: Sequence[Settled]) -> list[bytes]:
    return [msgspec.json.encode(one) for one in outcomes]
