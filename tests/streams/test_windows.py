"""What each kind of window covers, as of each event; and what may be declared."""

from __future__ import annotations

import types
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import orjson
import pytest
from headrace.streams import aggregations as agg
from headrace.streams.durations import microseconds
from headrace.streams.errors import DeclarationError
from headrace.streams.event import Event
from headrace.streams.expressions import Expression, col
from headrace.streams.features import Features, operator
from headrace.streams.windows import Window, last_n, session, sliding, tumbling, window

from .stage import START, Stage, moment

ALIGNED = -(START // 1_000_000 % 3600)
"""A second that begins an hour: tumbling windows and panes of up to an hour begin there."""


class Sale(Event, topic="sales", key="who", time="at", lateness="30s"):
    who: str
    n: int
    at: datetime


def feature_set(features: Mapping[str, Expression], **options: Any) -> type[Features]:
    options = {"of": Sale, "by": "who"} | options
    return types.new_class("Per", (Features,), options, lambda body: body.update(features))


def sums(over: Window | str | None, told: list[tuple[float, int]], limit: int, restart: bool) -> list[list[int]]:
    """The amounts that the window covers as of each event (second, amount); amounts are powers of two."""
    made = feature_set({"total": agg.sum(col.n, over)})
    stage = Stage([Sale], lambda: [operator(made)])
    for second, n in told:
        stage.publish(Sale, {"who": "a", "n": n, "at": moment(ALIGNED + second)})
    totals = [orjson.loads(record.value or b"")["total"] for record in stage.drain((limit,), restart)]
    return [[n for _, n in told if total & n] for total in totals]


# (window, events (second, amount), the amounts covered as of each)

Case = tuple[str, Window | str | None, list[tuple[float, int]], list[list[int]]]

SLIDING: list[Case] = [
    ("covers the event itself", "10s", [(0, 1)], [[1]]),
    ("keeps an event as long as its pane lies in the window", "10s", [(0, 1), (9.999999, 2)], [[1], [1, 2]]),
    ("drops it at the size, to the edge of a pane", "10s", [(0.9, 1), (10, 2)], [[1], [2]]),
    ("keeps what the tail's pane began before", sliding("10s", pane="5s"), [(4.9, 1), (9.9, 2), (10, 4)],
     [[1], [1, 2], [2, 4]]),
    ("of one pane begins anew at its edge", sliding("10s", pane="10s"), [(9.9, 1), (10, 2)], [[1], [2]]),
    ("takes events of one time in turn", "10s", [(3, 1), (3, 2), (3, 4)], [[1], [1, 2], [1, 2, 4]]),
    ("sees as of a late event what lay before it", "10s", [(20, 1), (5, 2), (22, 4)], [[1], [2], [1, 4]]),
    ("gives a late event to those after it", "10s", [(20, 1), (15, 2), (22, 4)], [[1], [2], [1, 2, 4]]),
    ("does not see from a late event what came later in time", "10s", [(20, 1), (15, 2)], [[1], [2]]),
    ("takes an event exactly at lateness", "40s", [(35, 1), (5, 2), (36, 4)], [[1], [2], [1, 2, 4]]),
    ("is empty again after a long silence", "10s", [(0, 1), (1, 2), (500_000, 4)], [[1], [1, 2], [4]]),
]  # fmt: skip
TUMBLING: list[Case] = [
    ("begins at its edge", tumbling("10s"), [(9.999999, 1), (10, 2), (19.999999, 4), (20, 8)],
     [[1], [2], [2, 4], [8]]),
    ("takes a late event into its own window", tumbling("10s"), [(9, 1), (11, 2), (8, 4), (12, 8)],
     [[1], [2], [1, 4], [2, 8]]),
    ("is aligned with 1970", tumbling("1h"), [(-0.000001, 1), (0, 2), (3599.9, 4), (3600, 8)], [[1], [2], [2, 4], [8]]),
]  # fmt: skip
SESSION: list[Case] = [
    ("goes on while gaps are shorter", session("10s"), [(0, 1), (9.999999, 2), (19, 4)], [[1], [1, 2], [1, 2, 4]]),
    ("ends at the gap", session("10s"), [(0, 1), (10, 2)], [[1], [2]]),
    ("takes a late event before its start", session("10s"), [(20, 1), (11, 2), (21, 4)], [[1], [1, 2], [1, 2, 4]]),
    ("is bridged by a late event", session("10s"), [(0, 1), (18, 2), (9, 4), (19, 8)],
     [[1], [2], [1, 2, 4], [1, 2, 4, 8]]),
    ("is not bridged over a gap", session("10s"), [(0, 1), (20, 2), (10, 4)], [[1], [2], [4]]),
]  # fmt: skip
LAST: list[Case] = [
    ("holds n events, the own one too", last_n(2), [(0, 1), (1, 2), (2, 4)], [[1], [1, 2], [2, 4]]),
    ("counts in the order of coming", last_n(2), [(9, 1), (8, 2), (10, 4)], [[1], [1, 2], [2, 4]]),
    ("of one is the event itself", last_n(1), [(0, 1), (1, 2)], [[1], [2]]),
    ("knows no time", last_n(3), [(0, 1), (500_000, 2)], [[1], [1, 2]]),
]  # fmt: skip
ALL: list[Case] = [("forgets nothing", None, [(0, 1), (500_000, 2), (499_970, 4)], [[1], [1, 2], [1, 2, 4]])]
KINDS: dict[str, list[Case]] = {
    "sliding": SLIDING, "tumbling": TUMBLING, "session": SESSION, "last_n": LAST, "all time": ALL,
}  # fmt: skip
CASES = [(f"{kind} {case[0]}", *case[1:]) for kind, cases in KINDS.items() for case in cases]


@pytest.mark.parametrize(("over", "told", "covered"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
@pytest.mark.parametrize(("limit", "restart"), [(1000, False), (1, True)], ids=["", "restarted"])
def test_a_window_covers(
    over: Window | str | None, told: list[tuple[float, int]], covered: list[list[int]], limit: int, restart: bool
) -> None:
    assert sums(over, told, limit, restart) == covered


@pytest.mark.parametrize(
    ("span", "pane"),
    [("30d", "1d"), ("12d", "1d"), ("36h", "1h"), ("12h", "1h"), ("1h", "5m"), ("90s", "7500ms"), ("11s", "1s"),
     ("1ms", "100us"), ("7us", "1us")],
)  # fmt: skip
def test_panes_are_finer_for_shorter_windows(span: str, pane: str) -> None:
    assert sliding(span).pane == microseconds(pane)


WRONG: list[tuple[Any, str]] = [
    (lambda: window("soon"), "'soon' is not a span of time: write \"90s\""),
    (lambda: window("10"), "is not a span of time"),
    (lambda: window("-5m"), "is not a span of time"),
    (lambda: window(""), "is not a span of time"),
    (lambda: tumbling("0s"), "a window of '0s' holds nothing"),
    (lambda: agg.count(5), "5 is no window"),  # type: ignore[arg-type]
    (lambda: tumbling(5), "5 is not a span of time"),  # type: ignore[arg-type]
    (lambda: sliding("10s", pane="3s"), "the size must be 1 to 4000 whole panes"),
    (lambda: sliding("1h", pane="1ms"), "the size must be 1 to 4000 whole panes"),
    (lambda: sliding("10s", every="11s"), "`every` may be the size to a 256th of it"),
    (lambda: sliding("1h", every="1s"), "`every` may be the size to a 256th of it"),
    (lambda: last_n(0), "n is 1 to 10000"),
    (lambda: last_n(10_001), "n is 1 to 10000"),
    (lambda: last_n(3, every=0), "every is at least 1"),
    (lambda: agg.decayed(half_life="0s"), "half_life='0s' must be longer than nothing"),
    (lambda: feature_set({"n": agg.count()}, window="1m"), "window='1m' has no results; write tumbling"),
    (lambda: feature_set({"n": agg.count()}, early="1s"), "window=None has no results"),
    (lambda: feature_set({"n": agg.count()}, window=tumbling("1m"), early="0s"), "early='0s' is a span above 0"),
    (lambda: feature_set({"n": agg.count()}, window=last_n(3), early="1s"), "for windows that end with time"),
    (lambda: feature_set({"n": agg.count()}, window=sliding("1h", pane="1s")),
     "every event lies in 3600 windows of 1h in 1s, and 256 is the most"),
    (lambda: feature_set({"n": agg.count(sliding("1s", pane="1ms"))}),
     "panes of 1ms would have to be kept for the 30s that events of sales may come late, and 4000 is the most"),
    (lambda: feature_set({"n": agg.count("1m")}, window=tumbling("1m")), "has no place in a set whose window is"),
]  # fmt: skip


@pytest.mark.parametrize(("declare", "says"), WRONG, ids=[str(i) for i in range(len(WRONG))])
def test_a_window_that_cannot_be_says_why(declare: Any, says: str) -> None:
    with pytest.raises(DeclarationError) as error:
        declare()
    assert says in str(error.value)


def test_a_window_that_reaches_before_1970_says_when_it_begins() -> None:
    made = feature_set({"n": agg.count()}, window=sliding("1h", every="30m"))
    stage = Stage([Sale], lambda: [operator(made)])
    for at in ("1970-01-01T00:00:00Z", "1970-01-02T00:00:00Z"):
        stage.publish(Sale, {"who": "a", "n": 1, "at": at})
    assert [orjson.loads(r.value or b"")["start"] for r in stage.drain()] == [
        "1969-12-31T23:30:00Z", "1970-01-01T00:00:00Z",
    ]  # fmt: skip


def test_a_missing_entity_has_no_window_and_an_optional_int_is_an_int() -> None:
    class Visit(Event, topic="visits", key="who", time="at"):
        who: str
        place: int | None
        at: datetime

    made = types.new_class(
        "At", (Features,), {"of": Visit, "by": "place", "window": tumbling("10s")}, lambda b: b.update(n=agg.count())
    )
    stage = Stage([Visit], lambda: [operator(made)])
    for place, second in ((7, 0), (None, 1), (7, 2), (8, 30)):
        stage.publish(Visit, {"who": "a", "place": place, "at": moment(ALIGNED + second)})
    [record] = stage.drain()
    assert orjson.loads(record.value or b"")["place"] == 7
    assert b'"place":7,' in (record.value or b"")
