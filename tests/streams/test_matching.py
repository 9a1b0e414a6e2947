"""Outcomes by columns and one at a time: the same bytes, wherever batches are cut and whatever the texts are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import msgspec
import numpy as np
import pytest
from headrace.streams import index, waiting
from headrace.streams.batch import Batch, Change, Operator, Outputs, Told
from headrace.streams.durations import when
from headrace.streams.event import Event
from headrace.streams.outcomes import Match, Outcome, Prediction, Settle
from headrace.streams.spans import Spans
from hypothesis import given, settings
from hypothesis import strategies as st

from .onebyone import MatchOneByOne, SettleOneByOne
from .stage import Stage, moment

TEXTS = ["a", "b", "", "é日", 'q"', "b\\", "n\n", "\u0000z", "},{", "\x7f\u2028"]


class Order(Event, topic="orders", key="who", time="at", out_of_orderness="5s", lateness="200s"):
    who: str
    item: str | None
    size: int | None
    quantity: int
    price: float
    gift: bool
    seen: datetime | None
    at: datetime


class TaggedOrder(Event, topic="orders", key="who", time="at", out_of_orderness="5s", lateness="200s"):
    who: str
    item: str | None
    size: int | None
    quantity: int
    tags: list[int | str | None] | None
    at: datetime


class Return(Event, topic="returns", key="who", time="at", lateness="10s"):
    who: str
    item: str | None
    size: float | None
    quantity: float
    at: datetime


class Answer:
    """Leaves a prediction beside each order, and notes what has come before it."""

    name = "answer"

    def __init__(self) -> None:
        self.noted: list[str] = []
        self.kept: list[tuple[Spans, list[bytes | None]]] = []

    def process(self, batch: Batch, out: Outputs) -> None:
        for name, seen in sorted(batch.streams.items()):
            columns = {c: seen.fields[c].tolist() for c in ("who", "item", "size", "quantity", "at")}
            more = [seen.fields[c].tolist() for c in ("price", "gift", "seen", "tags", "~offset") if c in seen.fields]
            times = batch.time[seen.at].tolist(), batch.watermark[seen.at].tolist()
            self.noted.append(repr((name, seen.at.tolist(), times, columns, more)))
            texts = seen.texts("who")
            self.kept += [(texts, list(texts))] if texts is not None else []
        rows = batch.streams.get("orders")
        if rows is None:
            return
        values = []
        for i, offset in enumerate(rows.offset.tolist()):
            who, item = str(rows.fields["who"][i]), rows.fields["item"][i]
            time, beside = when(int(batch.time[rows.at[i]])), {"base": 0.1, who: 2e17}
            features = {"x": offset / 3, "t": item, who: None}
            made = Prediction(rows.event_id(i), who, time, 1e-7 * offset, beside, who, "embedded", 1.5, features)
            values.append(msgspec.json.encode(made))
        rows.encoded["prediction"] = Spans.of(values)

    def changes(self) -> list[Change]:
        return []

    def load(self, rows: Any) -> None: ...

    def clear(self) -> None: ...


Maker = Callable[[Outcome, Answer], list[Operator]]


def by_columns(outcome: Outcome, answer: Answer) -> list[Operator]:
    return [Match(outcome), answer, Settle("m", outcome, "prediction")]


def one_by_one(outcome: Outcome, answer: Answer) -> list[Operator]:
    return [MatchOneByOne(outcome), answer, SettleOneByOne("m", outcome, "prediction")]


Published = list[tuple[str, dict[str, Any]]]


@st.composite
def trade(draw: st.DrawFn) -> Published:
    """Orders and returns of few kinds, some out of order, some beyond every horizon."""
    second, found = 300.0, Published()
    who, items, sizes = (draw(st.lists(st.sampled_from(s), min_size=1, max_size=2)) for s in (
        [t for t in TEXTS if t], [*TEXTS, None], [None, 0, 1, 7]))  # fmt: skip
    for _ in range(draw(st.integers(1, 30))):
        second += draw(st.sampled_from([0, 0, 1, 1.5, 7, 40, 120]))
        many = draw(st.integers(-2, 4))
        row: dict[str, Any] = {
            "who": draw(st.sampled_from(who)), "item": draw(st.sampled_from(items)),
            "size": draw(st.sampled_from(sizes)), "quantity": many,
            "at": moment(second - draw(st.sampled_from([0, 0, 0, 3, 150]))),
        }  # fmt: skip
        if draw(st.sampled_from("oor")) == "r":
            found.append(("returns", row | {"quantity": many / 2}))
        else:
            found.append(("orders", row))
    return found


def run(
    order: type[Event], make: Maker, told: Published, match: Sequence[str], quantity: str | None,
    limits: Sequence[int], restart: bool,
) -> tuple[list[Any], list[str], list[bytes]]:  # fmt: skip
    """The records, what was seen between the operators, and what these tell of their state at the end."""
    answer = Answer()
    outcome = Outcome(Return, of=order, match=match, within="100s", prior=0.1, quantity=quantity)
    stage = Stage([order, Return], lambda: make(outcome, answer))
    for i, (topic, row) in enumerate(told):
        if topic == "returns":
            stage.publish(Return, row)
        elif order is Order:
            stage.publish(Order, row | {"price": i / 7, "gift": i % 2 == 0, "seen": row["at"] if i % 3 else None})
        else:
            stage.publish(TaggedOrder, row | {"tags": [i, "é", None] if i % 3 else None})
    records = stage.drain(limits, restart)
    assert all(list(texts) == was for texts, was in answer.kept), "what was given away stays as it was"
    told_state = [msgspec.json.encode(list(o.told(0))) for o in stage.task.operators if isinstance(o, Told)]
    return [(r.key, r.value) for r in records if r.topic == "outcomes.m"], answer.noted, told_state


@pytest.mark.parametrize("order", [Order, TaggedOrder])
@pytest.mark.parametrize("always", [False, True], ids=["", "packed and swept at every commit"])
def test_outcomes_by_columns_are_those_of_one_event_at_a_time(order: type[Event], always: bool) -> None:
    @settings(derandomize=True, max_examples=25, deadline=None)
    @given(
        trade(),
        st.sampled_from([["who"], ["who", "item"], ["item", "size"]]),
        st.sampled_from([None, "quantity"]),
        st.lists(st.integers(1, 7), min_size=1, max_size=3),
        st.booleans(),
    )
    def check(told: Published, match: list[str], quantity: str | None, limits: list[int], restart: bool) -> None:
        wanted = run(order, one_by_one, told, match, quantity, limits, restart)
        assert run(order, by_columns, told, match, quantity, limits, restart) == wanted
        assert run(order, by_columns, told, match, quantity, [1000], False)[0] == wanted[0]

    with pytest.MonkeyPatch.context() as patch:
        if always:
            patch.setattr(waiting, "PACK_FROM", -(2**40))
            patch.setattr(index, "SWEEP_FROM", 0)
        check()


def test_what_is_settled_lets_go_of_its_room() -> None:
    outcome = Outcome(Return, of=Order, match=["who"], within="100s", prior=0.1)
    stage = Stage([Order, Return], lambda: by_columns(outcome, Answer()))
    rest = {"item": None, "size": None, "quantity": 1, "price": 1.0, "gift": False, "seen": None}
    for i in range(6_000):
        stage.publish(Order, {"who": f"someone {i}", "at": moment(1000 + 10 * i), **rest})
    stage.drain((500,))
    match, _, settle = stage.task.operators
    assert isinstance(match, Match)
    assert isinstance(settle, Settle)
    assert len(list(match.told(0))) == len(list(settle.told(0))) == 12
    assert max(len(one._waiting) for one in (match, settle)) < 3_000
    assert match._matches.used < 3_000
    assert sum(len(np.asarray(one._waiting._data)) for one in (match, settle)) < 2_000_000
