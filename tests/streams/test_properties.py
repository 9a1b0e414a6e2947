"""What holds for any events, through a whole task: order, batches, restarts, lateness, and forgetting."""

from __future__ import annotations

import math
import types
from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import orjson
import pytest
from headrace.streams import aggregations as agg
from headrace.streams import hotset, index
from headrace.streams.batch import Operator, Record
from headrace.streams.event import Event
from headrace.streams.expressions import Expression, col
from headrace.streams.features import Features, operator
from headrace.streams.joins import lookup
from headrace.streams.memory import Memory
from headrace.streams.outcomes import Match, Outcome
from headrace.streams.windows import Window, last_n, session, sliding, tumbling
from hypothesis import given, settings
from hypothesis import strategies as st

from .oracle import Span
from .stage import SECOND, START, Stage, moment

LATENESS, SLACK = 6, 2


class Sale(Event, topic="sales", key="who", time="at", out_of_orderness="2s", lateness="6s"):
    who: str
    n: int
    x: float | None
    s: str | None
    at: datetime


class Refund(Event, topic="refunds", key="who", time="at", lateness="3s"):
    who: str
    n: int
    s: str | None
    at: datetime


def feature_set(name: str, features: Mapping[str, Expression], **options: Any) -> type[Features]:
    return types.new_class(name, (Features,), {"of": Sale, "by": "who"} | options, lambda body: body.update(features))


def folds(over: Window | str | None, **of: Any) -> dict[str, Expression]:
    """Every aggregation that depends on the events, and not on their order within lateness."""
    return {
        "count": agg.count(over, **of), "total": agg.sum(col.n, over, **of), "mean": agg.mean(col.n, over, **of),
        "spread": agg.variance(col.n, over, **of), "least": agg.min(col.n, over, **of),
        "first": agg.first(col.s, over, **of), "last": agg.last(col.s, over, **of),
        "kinds": agg.distinct(col.s, over, **of), "rough": agg.distinct(col.s, over, approximate=True, **of),
        "half": agg.quantile(col.n, 0.5, over, **of),
    }  # fmt: skip


INNER: dict[str, Window | None] = {
    "sliding": sliding("10s"), "tumbling": tumbling("7s"), "session": session("4s"), "all": None,
}  # fmt: skip
RESULTS: dict[str, tuple[Window, Span]] = {
    "tumbling": (tumbling("4s"), Span(4 * SECOND, 4 * SECOND)),
    "sliding": (sliding("6s", every="2s"), Span(6 * SECOND, 2 * SECOND)),
    "session": (session("3s"), Span(gap=3 * SECOND)),
}


@st.composite
def sales(draw: st.DrawFn, behind: int, keys: str = "ab", most: int = 30) -> list[dict[str, Any]]:
    """Sales at times of their own, some behind the newest by at most this much; microseconds tell them apart."""
    now, found = 0.0, []
    for i in range(draw(st.integers(1, most))):
        now += draw(st.sampled_from([0, 0, 0.5, 1, 3, 9]))
        second = max(now - draw(st.sampled_from([0, 0, 0, 1, 2, behind])), 0) + i / SECOND
        found.append(
            {"who": draw(st.sampled_from(keys)), "n": draw(st.integers(-9, 9)), "x": draw(st.none() | st.floats(-9, 9)),
             "s": draw(st.sampled_from([None, "p", "q", "r"])), "at": moment(second)}
        )  # fmt: skip
    return found


def close(a: Any, b: Any) -> bool:
    """Equal, floats to rounding."""
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-9)
    return bool(a == b)


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(close(a[name], b[name]) for name in a)


def final(stage: Stage, topic: str = "features.Per") -> dict[tuple[str, str], dict[str, Any]]:
    """The last row of each window, without those taken back."""
    held: dict[tuple[str, str], dict[str, Any]] = {}
    for record in stage.made(topic):
        row = orjson.loads(record.value or b"")
        held.pop((row["who"], row["start"]), None)
        if "retracted" not in row:
            held[row["who"], row["start"]] = row
    return held


END = {"who": "z", "n": 0, "x": None, "s": None, "at": moment(80_000)}
"""It moves the watermark past every window."""


def told(features: type[Features], events: list[dict[str, Any]], limit: int = 1000) -> Stage:
    stage = Stage([Sale], lambda: [operator(features)])
    for event in events:
        stage.publish(Sale, event)
    stage.drain((limit,))
    return stage


PER = {kind: feature_set("Per", folds(None), window=window) for kind, (window, _) in RESULTS.items()}


@pytest.mark.parametrize("kind", list(RESULTS))
def test_any_order_within_lateness_ends_in_the_same_results(kind: str) -> None:
    @settings(derandomize=True, max_examples=40, deadline=None)
    @given(sales(0), st.data())
    def check(events: list[dict[str, Any]], data: st.DataObject) -> None:
        # An event may come after any that is at most this much newer, so none is ever later than lateness.
        delays = st.floats(0, SLACK + LATENESS - 0.001)
        arrival = {e["at"]: datetime.fromisoformat(e["at"]).timestamp() + data.draw(delays) for e in events}
        shuffled = sorted(events, key=lambda e: arrival[e["at"]])
        one, other = told(PER[kind], [*events, END]), told(PER[kind], [*shuffled, END])
        assert other.made("sales.late") == []
        rows, others = final(one), final(other)
        assert rows.keys() == others.keys()
        for key, row in rows.items():
            assert same(row | {"revision": 0}, others[key] | {"revision": 0})

    check()


@pytest.mark.parametrize("kind", list(INNER))
def test_what_an_event_sees_does_not_depend_on_the_order_of_those_before_it(kind: str) -> None:
    over = INNER[kind]
    made = feature_set("Seen", folds(over) | {"float": agg.sum(col.x, over), "fspread": agg.variance(col.x, over)})

    @settings(derandomize=True, max_examples=40, deadline=None)
    @given(sales(0, "a"), st.randoms(use_true_random=False))
    def check(events: list[dict[str, Any]], random: Any) -> None:
        near = [e for e in events if e["at"] > moment(-1)][:12]
        newest = max(e["at"] for e in near)
        near = [e for e in near if datetime.fromisoformat(newest).timestamp()
                - datetime.fromisoformat(e["at"]).timestamp() < SLACK + LATENESS]  # fmt: skip
        probe = near[-1] | {"at": newest}
        shuffled = list(near)
        random.shuffle(shuffled)
        seen = []
        for order in (near, shuffled):
            stage = told(made, [*order, probe])
            assert stage.made("sales.late") == []
            seen.append(orjson.loads(stage.made("features.Seen")[-1].value or b""))
        assert same(*seen)

    check()


@pytest.mark.parametrize("kind", list(RESULTS))
def test_the_stream_and_the_late_topic_together_are_the_batch(kind: str) -> None:
    span = RESULTS[kind][1]

    @settings(derandomize=True, max_examples=40, deadline=None)
    @given(sales(40), st.integers(1, 9))
    def check(events: list[dict[str, Any]], limit: int) -> None:
        stage = told(PER[kind], [*events, END], limit)
        late = {int(dict(record.headers)["offset"]) for record in stage.made("sales.late")}
        assert [record.value for record in stage.made("sales.late")] == [
            stage.log["sales"][i][1] for i in sorted(late)
        ]
        wanted: dict[tuple[str, int], list[int]] = {}
        for who in "ab":
            mine = [(micros(e), e["n"]) for i, e in enumerate(events) if e["who"] == who and i not in late]
            for window in span.windows([time for time, _ in mine]):
                wanted[who, window[0]] = [n for time, n in mine if span.inside(time, window)]
        found = {key: row for key, row in final(stage).items() if key[0] != "z"}
        assert {(who, micros({"at": start})): (row["count"], row["total"]) for (who, start), row in found.items()} == {
            key: (len(ns), sum(ns)) for key, ns in wanted.items()
        }
        if kind == "tumbling":  # each event lies in one window, so what came late adds to what was published
            parts, whole = Counter[tuple[str, int]](), Counter[tuple[str, int]]()
            for (who, start), row in found.items():
                parts[who, micros({"at": start}) // (4 * SECOND)] += row["count"]
            for i, e in enumerate(events):
                whole[e["who"], micros(e) // (4 * SECOND)] += 1
                parts[e["who"], micros(e) // (4 * SECOND)] += i in late
            assert parts == whole

    check()


def micros(event: Mapping[str, Any]) -> int:
    text = event["at"].removesuffix("Z")
    whole, _, part = text.partition(".")
    return int(datetime.fromisoformat(whole + "+00:00").timestamp()) * SECOND + int((part or "0").ljust(6, "0"))


# A whole task: look-ups, an outcome, features as of each event, and results of every kind of window.

TAKEN_BACK = Outcome(Refund, of=Sale, match=["who", "s"], within="20s", prior=0.1)
PARTS = [
    feature_set("Sliding", folds("10s") | {"back": agg.count("8s", of=TAKEN_BACK), "r": agg.count("5s", of=Refund)}),
    feature_set("Tumbling", folds(tumbling("7s"))),
    feature_set("Session", folds(session("4s"))),
    feature_set("Last", folds(last_n(3)) | {"since": agg.since_last(), "decay": agg.decayed(col.x, half_life="5s")}),
    feature_set("Look", {"now": lookup(Refund, "s"), "then": lookup(Refund, "n", history=2)}),
    *(feature_set(f"Per{kind}", folds(None), window=window, early="1s") for kind, (window, _) in RESULTS.items()),
    feature_set("PerLast", folds(None), window=last_n(3, every=2)),
]


def whole(memory: Memory | None = None) -> list[Operator]:
    return [Match(TAKEN_BACK), *(operator(part, memory) for part in PARTS)]


@settings(derandomize=True, max_examples=20, deadline=None)
@given(sales(12, "abcdefgh"), sales(12, "abcdefgh"), st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_cuts_restarts_and_forgetting_change_no_byte(
    sold: list[dict[str, Any]], refunded: list[dict[str, Any]], limits: list[int]
) -> None:
    def run(limits: list[int], restart: bool, bound: int | None = None) -> dict[str, list[Record]]:
        stage = Stage([Sale, Refund], lambda: whole(Memory(bound)))
        for event in [*sold, END]:
            stage.publish(Sale, event)
        for event in refunded:
            stage.publish(Refund, {name: event[name] for name in ("who", "n", "s", "at")})
        found: dict[str, list[Record]] = {}
        for record in stage.drain(limits, restart):
            found.setdefault(record.topic, []).append(record)
        return found

    wanted = run([1000], False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index, "SWEEP_FROM", 0)  # looks for what can be forgotten at every commit
        assert run(limits, False) == wanted
        assert run(limits, True) == wanted
        patch.setattr(hotset, "SWEPT_AT_LEAST", 1)
        assert run(limits, False, 1) == wanted


FORGETTING = {
    **{kind: feature_set("Per", folds(over)) for kind, over in INNER.items() if over is not None},
    **{f"results, {kind}": made for kind, made in PER.items()},
}


@st.composite
def visits(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Few keys that come back after silences about as long as their windows, at times up to lateness behind."""
    now, found = 0.0, []
    for i in range(draw(st.integers(2, 14))):
        now += draw(st.sampled_from([0.5, 1, 4, 9, 9.5]))
        second = max(now - draw(st.sampled_from([0, 0, 1, 2, SLACK + LATENESS])), 0) + i / SECOND
        row = {"who": draw(st.sampled_from("abc")), "n": i, "x": None, "s": draw(st.sampled_from("pq"))}
        found.append(row | {"at": moment(second)})
    return found


@pytest.mark.parametrize("kind", list(FORGETTING))
def test_what_can_still_be_read_is_not_forgotten(kind: str) -> None:
    @settings(derandomize=True, max_examples=60, deadline=None)
    @given(visits())
    def check(events: list[dict[str, Any]]) -> None:
        wanted = told(FORGETTING[kind], [*events, END], 1).records
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(index, "SWEEP_FROM", 0)
            assert told(FORGETTING[kind], [*events, END], 1).records == wanted

    check()


def test_start_is_what_the_moments_of_these_tests_count_from() -> None:
    assert micros({"at": moment(1.5)}) == START + 1_500_000
