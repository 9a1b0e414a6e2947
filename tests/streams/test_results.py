"""Results of windows: equal to the oracle, whatever the cuts, restarts and, within lateness, the order."""

from __future__ import annotations

import math
import types
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest
from headrace.streams import aggregations as agg
from headrace.streams.batch import Outputs, one_by_one, record_by_record
from headrace.streams.errors import DeclarationError
from headrace.streams.event import Event
from headrace.streams.expressions import col
from headrace.streams.features import Features, operator
from headrace.streams.tables import ENTITY, TAG, entity_of
from headrace.streams.windows import Window, last_n, session, sliding, tumbling
from hypothesis import given, settings
from hypothesis import strategies as st

from .columns import Told, batch
from .oracle import SECOND, Span, window_rows

START = 1_699_999_980 * SECOND


class Trade(Event, topic="trades", key="who", time="at", lateness="5s", out_of_orderness="1s"):
    who: str
    n: int
    x: float | None
    s: str | None
    at: datetime


STREAMS = [agg.stream(Trade)]
LATENESS = 5 * SECOND
VALUES = {
    "count": agg.count(), "sum": agg.sum(col.n), "total": agg.sum(col.x), "mean": agg.mean(col.x),
    "least": agg.min(col.n), "most": agg.max(col.x), "first": agg.first(col.n), "last": agg.last(col.x),
    "kinds": agg.distinct(col.s), "spread": agg.variance(col.n), "big": agg.count(where=col.n > 3),
    "half": agg.quantile(col.n, 0.5), "rough": agg.distinct(col.s, approximate=True),
}  # fmt: skip
WINDOWS: dict[str, tuple[Window, Span]] = {
    "tumbling": (tumbling("4s"), Span(4 * SECOND, 4 * SECOND)),
    "sliding": (sliding("6s", every="2s"), Span(6 * SECOND, 2 * SECOND)),
    "uneven": (sliding("5s", every="2s"), Span(5 * SECOND, 2 * SECOND)),
    "session": (session("3s"), Span(gap=3 * SECOND)),
}


def make(window: Window, lateness: str = "5s", early: str | None = None, **values: Any) -> type[Features]:
    class Told(Event, topic="trades", key="who", time="at", lateness=lateness, out_of_orderness="1s"):
        who: str
        n: int
        x: float | None
        s: str | None
        at: datetime

    chosen = values or VALUES
    options = {"of": Told, "by": "who", "window": window, "early": early}
    return types.new_class("Per", (Features,), options, lambda body: body.update(chosen))


SETS = {name: make(window) for name, (window, _) in WINDOWS.items()}
EARLY = {name: make(window, early="2s") for name, (window, _) in WINDOWS.items()}
PATIENT = {name: make(window, lateness="1h") for name, (window, _) in WINDOWS.items()}


def trade(time: float, who: str = "a", n: int = 1, x: float | None = 1.0, s: str | None = "p") -> Told:
    at = START + round(time * SECOND)
    return ("trades", at, {"who": who, "n": n, "x": x, "s": s, "at": at})


def marks(events: list[Told]) -> list[int]:
    """The watermark after each event."""
    found, newest = [], 0
    for _, time, _ in events:
        newest = max(newest, time)
        found.append(newest - SECOND)
    return found


def run(
    features: type[Features], events: list[Told], cuts: list[int] | None = None, restart: bool = False
) -> Outputs:
    step, out = operator(features), Outputs()
    state: dict[bytes, bytes] = {}
    offsets: dict[str, int] = {}
    mark = marks(events)
    cuts = cuts or []
    for begin, end in zip([0, *cuts], [*cuts, len(events)], strict=True):
        step.process(batch(STREAMS, events[begin:end], mark[begin:end], offsets), out)
        for key, value in one_by_one(step.changes()):
            if value is None:
                state.pop(key, None)
            else:
                state[key] = value
        if restart:
            step = operator(features)
            step.load(iter(sorted(state.items())))
    return list(record_by_record(out))


def values(outputs: Outputs) -> list[dict[str, Any]]:
    return [orjson.loads(record.value or b"") for record in record_by_record(outputs)]


def moment(time: int) -> str:
    text = datetime.fromtimestamp(time // SECOND, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{text}.{time % SECOND:06d}Z" if time % SECOND else f"{text}Z"


def folded(rows: list[tuple[int, dict[str, Any]]]) -> dict[str, Any]:
    ns = [row["n"] for _, row in rows]
    xs = [row["x"] for _, row in rows if row["x"] is not None]
    timed = sorted(rows, key=lambda event: event[0])
    last = [row["x"] for _, row in timed if row["x"] is not None]
    mean = sum(ns) / len(ns)
    kinds = len({row["s"] for _, row in rows if row["s"] is not None})
    return {
        "count": len(rows), "sum": sum(ns), "total": sum(xs), "mean": sum(xs) / len(xs) if xs else None,
        "least": min(ns), "most": max(xs, default=None), "first": timed[0][1]["n"],
        "last": last[-1] if last else None, "kinds": kinds,
        "spread": sum((n - mean) ** 2 for n in ns) / (len(ns) - 1) if len(ns) > 1 else None,
        "big": sum(1 for n in ns if n > 3), "half": sorted(ns)[(len(ns) - 1) // 2], "rough": kinds,
    }  # fmt: skip


def near(a: Any, b: Any, name: str) -> bool:
    if name in ("spread", "half") and a is not None and b is not None:
        return math.isclose(a, b, rel_tol=0.011 if name == "half" else 1e-9, abs_tol=1e-9)
    return bool(a == b)


@st.composite
def told(draw: st.DrawFn, behind: int = 9) -> list[Told]:
    now, events = 0.0, []
    for _ in range(draw(st.integers(1, 30))):
        now += draw(st.sampled_from([0, 0, 0.5, 1, 1, 3, 5]))
        back = draw(st.sampled_from([0] * 5 + [1, 2, 4, 6, behind]))
        n, x = draw(st.integers(-4, 9)), draw(st.none() | st.integers(-40, 40).map(lambda q: q / 4))
        events.append(
            trade(
                max(now - back, 0), draw(st.sampled_from("ab")), n, x, draw(st.sampled_from(["p", "q", None]))
            )
        )
    return events


@pytest.mark.parametrize("kind", list(WINDOWS))
def test_results_equal_the_oracle(kind: str) -> None:
    @settings(derandomize=True, max_examples=60, deadline=None)
    @given(told())
    def check(events: list[Told]) -> None:
        told_of = [(row["who"], time, row) for _, time, row in events]
        wanted = window_rows(told_of, marks(events), LATENESS, WINDOWS[kind][1])
        found = values(run(SETS[kind], events))
        assert [
            (r["who"], r["start"], r["end"], r["revision"], r.get("retracted", False)) for r in found
        ] == [
            (w["key"], moment(w["start"]), moment(w["end"]), w["revision"], "retracted" in w) for w in wanted
        ]
        for row, want in zip(found, wanted, strict=True):
            if "rows" in want:
                for name, value in folded(want["rows"]).items():
                    assert near(row[name], value, name), name

    check()


@pytest.mark.parametrize("kind", list(WINDOWS))
@pytest.mark.parametrize("early", [False, True])
def test_cuts_and_restarts_change_no_byte(kind: str, early: bool) -> None:
    @settings(derandomize=True, max_examples=25, deadline=None)
    @given(told(), st.data())
    def check(events: list[Told], data: st.DataObject) -> None:
        features = (EARLY if early else SETS)[kind]
        cuts = sorted(data.draw(st.sets(st.integers(0, len(events)), max_size=8)))
        whole = run(features, events)
        assert run(features, events, cuts) == whole
        assert run(features, events, cuts, restart=True) == whole

    check()


@pytest.mark.parametrize("kind", list(WINDOWS))
def test_any_order_within_lateness_ends_in_the_same_results(kind: str) -> None:
    def final(events: list[Told]) -> dict[tuple[str, str], dict[str, Any]]:
        held: dict[tuple[str, str], dict[str, Any]] = {}
        for row in values(run(PATIENT[kind], [*events, trade(4000, "z")])):
            held.pop((row["who"], row["start"]), None)
            if "retracted" not in row:
                held[row["who"], row["start"]] = row
        return held

    @settings(derandomize=True, max_examples=40, deadline=None)
    @given(told(), st.randoms(use_true_random=False))
    def check(events: list[Told], random: Any) -> None:
        events = [(s, t + i, r | {"at": t + i}) for i, (s, t, r) in enumerate(events)]  # no two at one time
        ordered = final(events)
        random.shuffle(events)
        shuffled = final(events)
        assert ordered.keys() == shuffled.keys()
        for key, row in ordered.items():
            for name in VALUES:
                assert near(row[name], shuffled[key][name], name), name

    check()


TUMBLING = [
    (
        "an event at the end of a window belongs to the next",
        [trade(0), trade(4), trade(10)],
        [(0, 0, 1), (4, 0, 1)],
    ),
    ("a window closes when the watermark reaches its end", [trade(0), trade(5)], [(0, 0, 1)]),
    ("a microsecond before, it does not", [trade(0), trade(4.999999)], []),
    ("an event on the watermark is in time", [trade(0), trade(3.9), trade(2.9), trade(5)], [(0, 0, 3)]),
    ("a late event corrects its window", [trade(0), trade(5), trade(1)], [(0, 0, 1), (0, 1, 2)]),
    (
        "each late event corrects it again",
        [trade(0), trade(5), trade(1), trade(1)],
        [(0, 0, 1), (0, 1, 2), (0, 2, 3)],
    ),
    ("exactly at lateness it is taken", [trade(3), trade(9), trade(3)], [(0, 0, 1), (0, 1, 2)]),
    ("a microsecond later it is not", [trade(3), trade(9), trade(2.999999)], [(0, 0, 1)]),
    ("a late event may be the first of its window", [trade(9), trade(3.5)], [(0, 0, 1)]),
    ("windows without events give nothing", [trade(0), trade(30)], [(0, 0, 1)]),
]


@pytest.mark.parametrize(("events", "wanted"), [c[1:] for c in TUMBLING], ids=[c[0] for c in TUMBLING])
def test_the_time_rule_of_tumbling_windows(events: list[Told], wanted: list[tuple[int, int, int]]) -> None:
    rows = values(run(SETS["tumbling"], events))
    assert [(r["start"], r["revision"], r["count"]) for r in rows] == [
        (moment(START + start * SECOND), revision, count) for start, revision, count in wanted
    ]


@pytest.mark.parametrize("kind", list(WINDOWS))
def test_a_batch_of_nothing_but_late_events_gives_nothing(kind: str) -> None:
    out = Outputs()
    operator(SETS[kind]).process(batch(STREAMS, [trade(0), trade(1)], [START + 100 * SECOND] * 2), out)
    assert out == []


def brief(rows: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [(r["start"][17:19], r["end"][17:19], r["revision"], r.get("count", "retracted")) for r in rows]


SESSIONS = [
    ("closes a gap after its last event", [trade(0), trade(2), trade(6)], [("00", "02", 0, 2)]),
    (
        "an event a gap later begins another",
        [trade(0), trade(3), trade(9)],
        [("00", "00", 0, 1), ("03", "03", 0, 1)],
    ),
    (
        "a late event that bridges two takes the second back",
        [trade(0), trade(4), trade(8), trade(2)],
        [("00", "00", 0, 1), ("04", "04", 0, 1), ("04", "04", 1, "retracted"), ("00", "04", 1, 3)],
    ),
    (
        "a late event before it moves its start, so it is taken back",
        [trade(4), trade(8), trade(2.5)],
        [("04", "04", 0, 1), ("04", "04", 1, "retracted"), ("02", "04", 0, 2)],
    ),
    (
        "two that were never published merge in silence",
        [trade(0), trade(3.5), trade(2), trade(9)],
        [("00", "03", 0, 3)],
    ),
]


@pytest.mark.parametrize(("events", "wanted"), [c[1:] for c in SESSIONS], ids=[c[0] for c in SESSIONS])
def test_the_time_rule_of_sessions(events: list[Told], wanted: list[Any]) -> None:
    assert brief(values(run(SETS["session"], events))) == wanted


def test_early_rows_come_as_event_time_passes_and_only_after_events() -> None:
    made = make(tumbling("10s"), early="2s", n=agg.count())
    rows = values(run(made, [trade(at) for at in (0, 3.5, 5.5, 7.5, 20)]))
    assert [(r["n"], r["final"]) for r in rows] == [(2, False), (4, False), (4, True)]


def test_last_n_results_come_with_every_kth_event() -> None:
    made = make(last_n(3, every=2), total=agg.sum(col.n), most=agg.max(col.n), half=agg.quantile(col.n, 0.5))
    rows = values(run(made, [trade(i, n=i) for i in range(6)], [1, 3], restart=True))
    assert [(r["total"], r["most"], r["half"]) for r in rows] == [(1, 1, 0.0), (6, 3, 2.0), (12, 5, 4.0)]
    assert [r["start"] for r in rows] == [None] * 3


def test_windows_that_no_event_can_correct_leave_no_state() -> None:
    for kind in WINDOWS:
        step, state = operator(SETS[kind]), dict[bytes, bytes | None]()
        events = [trade(0, s=None), trade(1, s=None), trade(100, "b", s=None)]
        for event, mark in zip(events, marks(events), strict=True):
            step.process(batch(STREAMS, [event], [mark]), [])
            state.update(one_by_one(step.changes()))
        live = {key: entity_of(key) for key, value in state.items() if value is not None and key.startswith(ENTITY)}
        assert {entity for entity, _ in live.values()} >= {b"b"}, kind
        # Values of panes that are no more are swept later.
        assert not [key for key, (entity, end) in live.items() if entity == b"a" and len(key) == end + TAG + 8], kind


@pytest.mark.parametrize("value", [agg.count("1h"), agg.since_last(), agg.decayed(half_life="1h"), col.n + 1])
def test_a_window_set_takes_aggregations_of_its_own_window_only(value: Any) -> None:
    with pytest.raises(DeclarationError):
        make(tumbling("1m"), n=value)
