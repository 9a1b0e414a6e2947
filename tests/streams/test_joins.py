"""Look-ups: the row of a table that holds now, and the one that held at the event's time."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest
from headrace.streams.aggregations import stream
from headrace.streams.batch import one_by_one
from headrace.streams.errors import DeclarationError
from headrace.streams.event import Event
from headrace.streams.expressions import col
from headrace.streams.features import Features, columns, operator
from headrace.streams.joins import lookup
from hypothesis import given, settings
from hypothesis import strategies as st

from .columns import Told, batch

SECOND = 1_000_000
START = 1_700_000_000 * SECOND


class Order(Event, topic="orders", key="item", time="at"):
    item: str
    quantity: int
    at: datetime


class Price(Event, topic="prices", key="item", time="at"):
    item: str
    amount: float | None
    kind: str | None
    at: datetime


class Item(Features, of=Order, by="item"):
    kind = lookup(Price, "kind")
    amount = lookup(Price, "amount")
    then = lookup(Price, "kind", history=3)
    held = lookup(Price, "amount", history=3)
    dear = lookup(Price, "kind") == "gold"
    worth = col.quantity * lookup(Price, "amount", history=3)


STREAMS = [stream(Order), stream(Price)]


def order(time: float, item: str = "a") -> Told:
    at = START + round(time * SECOND)
    return ("orders", at, {"item": item, "quantity": 2, "at": at})


def price(time: float, amount: float | None, kind: str | None = None, item: str = "a") -> Told:
    at = START + round(time * SECOND)
    return ("prices", at, {"item": item, "amount": amount, "kind": kind, "at": at})


def run(events: list[Told], cuts: list[int] | None = None, restart: bool = False) -> list[tuple[Any, ...]]:
    step, found = operator(Item), list[tuple[Any, ...]]()
    state: dict[bytes, bytes] = {}
    for begin, end in zip([0, *(cuts or [])], [*(cuts or []), len(events)], strict=True):
        made = batch(STREAMS, events[begin:end])
        step.process(made, [])
        if "orders" in made.streams:
            fields = made.streams["orders"].fields
            names = ("kind", "amount", "then", "held", "dear", "worth")
            found += zip(*(fields[f"Item.{name}"].tolist() for name in names), strict=True)
        for key, value in one_by_one(step.changes()):
            if value is None:
                state.pop(key, None)
            else:
                state[key] = value
        if restart:
            step = operator(Item)
            step.load(iter(sorted(state.items())))
    return [tuple(None if v != v else v for v in row) for row in found]


def test_a_lookup_gives_the_latest_row_of_the_key_and_its_history_the_one_valid_then() -> None:
    events = [
        order(0), price(1, 5.0, "tin"), price(5, 7.0, "gold"), order(6), order(3), order(0.5), order(6, "b"),
        price(6, 8.0, "tin"), order(6),
    ]  # fmt: skip
    assert run(events) == [
        (None, None, None, None, False, None),
        ("gold", 7.0, "gold", 7.0, True, 14.0),
        ("gold", 7.0, "tin", 5.0, True, 10.0),
        ("gold", 7.0, None, None, True, None),
        (None, None, None, None, False, None),
        ("tin", 8.0, "tin", 8.0, False, 16.0),
    ]


def test_a_version_older_than_those_kept_is_gone() -> None:
    rows = run([price(t, float(t)) for t in (1, 2, 3, 4)] + [order(1.5), order(2), price(0, 9.0), order(1.5)])
    assert [row[3] for row in rows] == [None, 2.0, None]


def test_a_late_version_takes_its_place_among_the_others() -> None:
    rows = run([price(1, 1.0), price(5, 5.0), price(3, 3.0), order(4), price(3, 4.0), order(4), order(1)])
    assert [row[3] for row in rows] == [3.0, 4.0, 1.0]


def test_a_version_replaces_another_of_its_time_with_what_it_lacks() -> None:
    rows = run([price(1, 1.0, "tin"), price(1, None, "gold"), order(2), price(1, 3.0, None), order(2)], [1, 3], True)
    assert [row[2:4] for row in rows] == [("gold", None), (None, 3.0)]


@settings(derandomize=True, max_examples=60, deadline=None)
@given(st.data())
def test_any_events_give_what_a_plain_search_gives(data: st.DataObject) -> None:
    events, wanted = [], []
    held: dict[str, list[tuple[float, float, str]]] = {}
    for _ in range(data.draw(st.integers(1, 25))):
        time, item = data.draw(st.integers(0, 9)), data.draw(st.sampled_from("ab"))
        mine = held.setdefault(item, [])
        if data.draw(st.booleans()):
            amount, kind = float(data.draw(st.integers(0, 5))), data.draw(st.sampled_from(["tin", "gold"]))
            events.append(price(time, amount, kind, item))
            if len(mine) < 3 or time >= mine[0][0]:
                held[item] = sorted([v for v in mine if v[0] != time] + [(time, amount, kind)])[-3:]
        else:
            events.append(order(time, item))
            valid = [version for version in mine if version[0] <= time]
            wanted.append((valid[-1][2], valid[-1][1]) if valid else (None, None))
    cuts = sorted(data.draw(st.sets(st.integers(0, len(events)), max_size=4)))
    for restart in (False, True):
        assert [row[2:4] for row in run(events, cuts, restart)] == wanted
    assert run(events, cuts, True) == run(events)


def test_the_columns_have_the_kinds_of_the_fields_and_may_be_missing() -> None:
    kinds = {field.name: (field.kind, field.optional) for field in columns(Item)}
    assert kinds["Item.kind"] == ("str", True)
    assert kinds["Item.amount"] == ("float", True)
    assert kinds["Item.dear"] == ("bool", False)


def test_a_history_has_a_bound() -> None:
    with pytest.raises(DeclarationError, match="may keep 1 to"):
        lookup(Price, "amount", history=0)
