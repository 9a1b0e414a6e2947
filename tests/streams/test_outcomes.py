"""The outcome join: which event an outcome settles, and when that is known."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import msgspec
import numpy as np
import pytest
from headrace.streams.batch import Batch, Change, Operator, Outputs, Record
from headrace.streams.durations import when
from headrace.streams.errors import DeclarationError
from headrace.streams.event import Event
from headrace.streams.outcomes import Match, Outcome, Prediction, Settle
from headrace.streams.spans import Spans
from hypothesis import given, settings
from hypothesis import strategies as st

from .stage import SECOND, START, Stage, moment

HORIZON = 100


class Order(Event, topic="orders", key="who", time="at", out_of_orderness="5s"):
    who: str
    item: str | None
    quantity: int
    tags: list[int]
    at: datetime


class Return(Event, topic="returns", key="who", time="at"):
    who: str
    item: str | None
    quantity: int
    at: datetime


class SlowReturn(Event, topic="returns", key="who", time="at", lateness="10s"):
    who: str
    item: str | None
    quantity: int
    at: datetime


class Answer:
    """Stands where a scorer stands: it leaves a prediction beside each order."""

    name = "answer"

    def process(self, batch: Batch, out: Outputs) -> None:
        rows = batch.streams.get("orders")
        if rows is None:
            return
        column = np.empty(len(rows), np.object_)
        for i, at in enumerate(rows.at.tolist()):
            time = when(int(batch.time[at]))
            made = Prediction(rows.event_id(i), "a", time, 0.5, {}, "v1", "embedded", 0.0, {})
            column[i] = msgspec.json.encode(made)
        rows.encoded["prediction"] = Spans.of(column.tolist())

    def changes(self) -> list[Change]:
        return []

    def load(self, rows: Any) -> None: ...

    def clear(self) -> None: ...


def stage(by: type[Event] = Return, quantity: str | None = None, otherwise: bool = False) -> Stage:
    def operators() -> list[Operator]:
        outcome = Outcome(
            by, of=Order, match=["who", "item"], within=f"{HORIZON}s", prior=0.1, quantity=quantity,
            otherwise=otherwise,
        )  # fmt: skip
        return [Match(outcome), Answer(), Settle("m", outcome, "prediction")]

    return Stage([Order, by], operators)


def publish(at: Stage, told: str) -> None:
    """`o10x3` is an order at second 10, three of the item; `r` a return of it. One where no quantity is said."""
    for one in told.split():
        digits = "".join(c for c in one[1:] if c.isdigit() or c in ".x-")
        time, _, many = digits.partition("x")
        value = {"who": "a", "item": "x", "quantity": int(many or 1), "at": moment(float(time))}
        if one[0] == "o":
            at.publish(Order, value | {"tags": list(range(int(many or 1)))})
        else:
            at.publish(at.events[1], value)


def settled(records: list[Record]) -> list[tuple[int, bool, float]]:
    """(offset of the order, its outcome, when it was known in seconds) in the order of publication."""
    found = []
    for record in records:
        value = json.loads(record.value or b"")
        known = (datetime.fromisoformat(value["known"]) - when(START)).total_seconds()
        found.append((int(value["id"].rsplit("-", 1)[1]), value["outcome"], known))
    return found


# (what, orders and returns, what is settled). An order at 1000 moves the watermark past every horizon: 995.

ONE_EACH = [
    ("a return settles its order when it comes", "o1 r5", [(0, True, 5)]),
    ("an order without a return is settled at its horizon", "o1 o1000", [(0, False, 101)]),
    ("a return at the horizon counts", "o1 r101", [(0, True, 101)]),
    ("a return after the horizon does not", "o1 r102 o1000", [(0, False, 101)]),
    ("the horizon has come once the watermark is past it", "o1 o106 ", []),
    ("and not before", "o1 o106.000001", [(0, False, 101)]),
    ("a return before its order settles nothing", "r1 o2 o1000", [(0, False, 102)]),
    ("at one time the order goes first", "r1 o1", [(0, True, 1)]),
    ("the most recent order is taken back first", "o1 o2 r3 r4", [(1, True, 3), (0, True, 4)]),
    ("the most recent by event time, not by arrival", "o7 o4 r8", [(0, True, 8)]),
    ("of those at one time the last to come", "o1 o1 r3", [(1, True, 3)]),
    ("an order after the return is not its own", "o1 o9 r5", [(0, True, 5)]),
    ("one more return than orders settles nothing", "o1 r2 r3 o1000", [(0, True, 2)]),
]


@pytest.mark.parametrize(("told", "wanted"), [c[1:] for c in ONE_EACH], ids=[c[0] for c in ONE_EACH])
@pytest.mark.parametrize("limits", [(1000,), (1,)], ids=["one batch", "batches of one"])
@pytest.mark.parametrize("restart", [False, True], ids=["", "restarted"])
def test_a_return_takes_back_one_order(
    told: str, wanted: list[Any], limits: tuple[int, ...], restart: bool
) -> None:
    at = stage()
    publish(at, told)
    assert settled(at.drain(limits, restart)) == wanted


QUANTITIES = [
    ("a part taken back settles the order", "o1x5 r2x2", [(0, True, 2)]),
    ("the rest of it can be taken back, and tells nothing new", "o1x5 r2x2 r3x3", [(0, True, 2)]),
    ("what exceeds an order goes on to the one before", "o1x2 o2x2 r3x3", [(1, True, 3), (0, True, 3)]),
    ("what exceeds all orders is dropped", "o1x2 r3x9 o4x1 o1000", [(0, True, 3), (1, False, 104)]),
    ("an order taken back whole is passed over", "o1x2 o2x2 r3x2 r4x1", [(1, True, 3), (0, True, 4)]),
    ("an order taken back in part is met again", "o1x2 o2x2 r3x1 r4x1 r5x1",
     [(1, True, 3), (0, True, 5)]),
    ("quantities may be negative, as in cancellations", "o1x5 r2x-5", [(0, True, 2)]),
    ("a return of nothing settles nothing", "o1x5 r2x0 o1000", [(0, False, 101)]),
    ("an order of nothing cannot be taken back", "o1x0 r2x1 o1000", [(0, False, 101)]),
]  # fmt: skip


@pytest.mark.parametrize(("told", "wanted"), [c[1:] for c in QUANTITIES], ids=[c[0] for c in QUANTITIES])
@pytest.mark.parametrize("restart", [False, True], ids=["", "restarted"])
def test_quantities_are_taken_back_from_the_most_recent_orders(told: str, wanted: list[Any], restart: bool) -> None:
    at = stage(quantity="quantity")
    publish(at, told)
    assert settled(at.drain((1,) if restart else (1000,), restart)) == wanted


def test_the_outcome_of_what_expires_is_as_declared() -> None:
    at = stage(otherwise=True)
    publish(at, "o1 o2 r3 o1000")
    assert settled(at.drain()) == [(1, False, 3), (0, True, 101)]


def test_a_return_behind_the_watermark_within_lateness_still_counts() -> None:
    at = stage(SlowReturn)
    publish(at, "o1 r110")
    at.drain()
    assert settled(at.records) == []
    publish(at, "r101")
    at.drain()
    assert settled(at.records) == [(0, True, 101)]


def test_the_horizon_of_late_returns_has_come_once_their_lateness_is_over() -> None:
    for second, wanted in ((116, []), (116.000001, [(0, False, 101)])):
        at = stage(SlowReturn)
        publish(at, f"o1 o{second}")
        assert settled(at.drain()) == wanted


def test_no_outcome_matures_before_a_watermark_that_was_published_earlier() -> None:
    at = stage(SlowReturn)
    publish(at, "o1 o60 o61 r112 o130 r131 o1000")
    newest = START
    for record in at.drain((1,)):
        value = json.loads(record.value or b"")
        matures, mark = (datetime.fromisoformat(value[n]) for n in ("matures", "watermark"))
        assert (matures - when(0)).total_seconds() * SECOND >= newest
        newest = max(newest, round((mark - when(0)).total_seconds() * SECOND))


def test_what_is_missing_matches_nothing() -> None:
    at = stage()
    at.publish(Order, {"who": "a", "item": None, "quantity": 1, "tags": [], "at": moment(1)})
    at.publish(Return, {"who": "a", "item": None, "quantity": 1, "at": moment(2)})
    at.publish(Return, {"who": "a", "item": "of another order", "quantity": 1, "at": moment(3)})
    publish(at, "o1000")
    assert settled(at.drain()) == [(0, False, 101)]


def test_events_that_are_settled_or_expired_leave_no_state() -> None:
    at = stage()
    publish(at, "o1 o2 r3 o1000 o2000")
    at.drain()
    live: dict[bytes, bytes] = {}
    for key, value in at.changelog:
        if value is None:
            live.pop(key, None)
        else:
            live[key] = value
    assert sum(key.startswith(b"match.") for key in live) == 1
    assert sum(key.startswith(b"settle.") for key in live) == 1


@st.composite
def trade(draw: st.DrawFn) -> list[tuple[str, int, int]]:
    """Orders and returns of one item, in the order of time: (o or r, second, quantity)."""
    now, found = 0, []
    for _ in range(draw(st.integers(1, 25))):
        now += draw(st.sampled_from([0, 0, 1, 7, 40, 120]))
        found.append((draw(st.sampled_from("oor")), now, draw(st.integers(0, 4))))
    return sorted(found, key=lambda one: (one[1], one[0]))


def by_hand(told: list[tuple[str, int, int]]) -> dict[int, tuple[bool, float]]:
    """What becomes of each order, by a plain search through all before it."""
    left, found = [], dict[int, tuple[bool, float]]()
    for kind, second, many in told:
        if kind == "o":
            left.append([second, many])
            continue
        for n, (ordered, open_) in reversed(list(enumerate(left))):
            took = min(many, open_) if second - ordered <= HORIZON else 0
            if took:
                left[n][1] -= took
                many -= took
                found.setdefault(n, (True, second))
    return {n: found.get(n, (False, second + HORIZON)) for n, (second, _) in enumerate(left)}


@settings(derandomize=True, max_examples=50, deadline=None)
@given(trade(), st.integers(1, 9), st.booleans())
def test_any_orders_and_returns_end_as_a_plain_search_finds(told: Any, limit: int, restart: bool) -> None:
    at = stage(quantity="quantity")
    publish(at, " ".join(f"{kind}{second}x{many}" for kind, second, many in told))
    publish(at, "o9000")
    found = {offset: (outcome, known) for offset, outcome, known in settled(at.drain((limit,), restart))}
    assert found == by_hand(told)


class Loose(Event, topic="loose", key="who", time="at"):
    who: str
    item: float
    quantity: int | None
    at: datetime


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"match": []}, "match names no field"),
        ({"match": ["nothing"]}, "Return has no field 'nothing' (who, item, quantity, at)"),
        ({"prior": 0}, "prior=0 is not a share between 0 and 1"),
        ({"prior": 1.5}, "prior=1.5 is not a share"),
        ({"within": "soon"}, "'soon' is not a span of time"),
        ({"quantity": "item"}, "quantity='item' is str in Return; it must be a number that is never missing"),
        ({"quantity": "quantity", "of": Loose}, "quantity='quantity' is int in Loose"),
    ],
)
def test_an_outcome_that_cannot_be_says_why(more: dict[str, Any], says: str) -> None:
    options: dict[str, Any] = {"match": ["who"], "within": "1h", "prior": 0.1} | more
    with pytest.raises(DeclarationError) as error:
        Outcome(Return, **options)
    assert says in str(error.value)


def test_an_outcome_bound_to_another_event_says_so() -> None:
    outcome = Outcome(Return, match=["who"], within="1h", prior=0.1, of=Order)
    with pytest.raises(DeclarationError, match="cannot be the outcome of a model on Loose"):
        outcome.bind(Loose)
