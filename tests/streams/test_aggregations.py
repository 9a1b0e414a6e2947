"""What aggregations promise of numbers: missing and extreme values, rounding, and the error of sketches."""

from __future__ import annotations

import math
import types
from collections.abc import Mapping
from datetime import datetime
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from headrace.streams import aggregations as agg
from headrace.streams import kernels
from headrace.streams.batch import Outputs
from headrace.streams.errors import DeclarationError
from headrace.streams.event import Event
from headrace.streams.expressions import Expression, col
from headrace.streams.features import Features, columns, operator
from headrace.streams.windows import Window, last_n, session, sliding, tumbling

from .columns import Told, batch
from .stage import SECOND, START


class Point(Event, topic="points", key="who", time="at"):
    who: str
    n: int
    m: int | None
    x: float | None
    b: bool | None
    s: str | None
    o: list[int] | None
    at: datetime


STREAM = agg.stream(Point)


def points(values: Mapping[str, list[Any]], step: float = 1.0) -> list[Told]:
    """Events of one entity, one value each, so many seconds apart."""
    count = len(next(iter(values.values())))
    found: list[Told] = []
    for i in range(count):
        at = START + round(i * step * SECOND)
        row = {"who": "a", "n": 0, "m": None, "x": None, "b": None, "s": None, "o": None, "at": at}
        found.append(("points", at, row | {name: mine[i] for name, mine in values.items()}))
    return found


def feature_set(**features: Expression) -> type[Features]:
    return types.new_class("F", (Features,), {"of": Point, "by": "who"}, lambda body: body.update(features))


def last(features: type[Features], events: list[Told]) -> dict[str, Any]:
    """The features as of the last event; None where missing."""
    made = batch([STREAM], events)
    operator(features).process(made, Outputs())
    fields = made.streams["points"].fields
    named = {name.removeprefix("F."): column[-1] for name, column in fields.items() if name.startswith("F.")}
    return {name: None if value != value else value for name, value in named.items()}


# Every aggregation of a field whose values come and go: what is missing is left out.

SPARSE: dict[str, list[Any]] = {
    "x": [None, 2.5, None, -1.5, None],
    "m": [None, 2, None, -1, None],
    "b": [None, True, None, False, None],
    "s": [None, "q", None, "p", None],
}
WANTED = [
    (agg.count, "x", 5), (agg.sum, "x", 1.0), (agg.mean, "x", 0.5), (agg.variance, "x", 8.0), (agg.min, "x", -1.5),
    (agg.max, "x", 2.5), (agg.first, "x", 2.5), (agg.last, "x", -1.5), (agg.distinct, "x", 2),
    (agg.sum, "m", 1), (agg.mean, "m", 0.5), (agg.variance, "m", 4.5), (agg.min, "m", -1), (agg.max, "m", 2),
    (agg.first, "m", 2), (agg.last, "m", -1), (agg.distinct, "m", 2),
    (agg.sum, "b", 1), (agg.mean, "b", 0.5), (agg.min, "b", 0), (agg.max, "b", 1), (agg.first, "b", 1),
    (agg.last, "b", 0), (agg.distinct, "b", 2),
    (agg.first, "s", "q"), (agg.last, "s", "p"), (agg.distinct, "s", 2),
]  # fmt: skip
NOTHING = {"count": 3, "sum": 0, "distinct": 0}
OVER: dict[str, Window | None] = {
    "sliding": sliding("10s"), "tumbling": tumbling("1w"), "session": session("1h"), "last": last_n(9), "all": None,
}  # fmt: skip


@pytest.mark.parametrize("window", list(OVER))
@pytest.mark.parametrize(("fold", "field", "wanted"), WANTED, ids=[f"{w[0].__name__} {w[1]}" for w in WANTED])
def test_missing_values_are_left_out_and_over_none_the_value_is_missing(
    fold: Any, field: str, wanted: Any, window: str
) -> None:
    over = OVER[window]
    features = feature_set(f=fold(over) if fold is agg.count else fold(col[field], over))
    found = last(features, points({field: SPARSE[field]}))["f"]
    assert found == wanted
    none = last(features, points({field: [None, None, None]}))["f"]
    assert none == NOTHING.get(fold.__name__)


@pytest.mark.parametrize("window", list(OVER))
def test_sketches_leave_missing_values_out(window: str) -> None:
    over = OVER[window]
    features = feature_set(
        q=agg.quantile(col.x, 0.5, over), k=agg.distinct(col.s, over, approximate=True), d=agg.decayed(col.x,
        half_life="1h"),
    )  # fmt: skip
    assert last(features, points({"x": [None, 7.0, None], "s": [None, "p", None]})) == {
        "q": pytest.approx(7.0, rel=0.01), "k": 1, "d": pytest.approx(7.0 * 2 ** (-1 / 3600)),
    }  # fmt: skip
    assert last(features, points({"x": [None, None]})) == {"q": None, "k": 0, "d": 0.0}


# Extremes.


def test_what_exceeds_float64_is_missing_until_it_leaves_the_window() -> None:
    huge = {"total": agg.sum(col.x, "2s"), "mean": agg.mean(col.x, "2s"), "spread": agg.variance(col.x, "2s")}
    features = feature_set(most=agg.max(col.x, "2s"), **huge)
    found = last(features, points({"x": [1.7e308, 1.7e308]}))
    assert found == {"most": 1.7e308, "total": None, "mean": None, "spread": None}
    found = last(features, points({"x": [1.7e308, 1.7e308, 1.0, 3.0]}))
    assert found == {"most": 3.0, "total": 4.0, "mean": 2.0, "spread": 2.0}


def test_ints_are_exact_to_the_ends_of_int64() -> None:
    features = feature_set(total=agg.sum(col.n), least=agg.min(col.n), most=agg.max(col.n), mean=agg.mean(col.n))
    big = 2**53 - 1
    found = last(features, points({"n": [big, -big, big, 1, big]}))
    assert found == {"total": 2 * big + 1, "least": -big, "most": big, "mean": pytest.approx((2 * big + 1) / 5)}
    assert last(features, points({"n": [-(2**62)] * 3}))["total"] == -(2**63)
    assert last(features, points({"n": [2**62] * 3}))["total"] == 2**63 - 1


def test_negative_and_tiny_values_have_quantiles() -> None:
    xs = [-1e9, -3.0, -1e-6, 0.0, 1e-15, 1e-6, 3.0, 1e9]
    features = feature_set(**{f"q{i}": agg.quantile(col.x, i / 7, "1h") for i in range(8)})
    found = last(features, points({"x": xs}))
    for i, x in enumerate(xs):
        assert found[f"q{i}"] == pytest.approx(x, rel=kernels.ACCURACY, abs=1e-12)


# Rounding and the published errors.


@pytest.mark.parametrize("window", list(OVER))
@pytest.mark.parametrize("offset", [0.0, 1e6, 1e9, 1e12, -1e12])
def test_the_variance_of_values_far_from_zero_keeps_its_digits(offset: float, window: str) -> None:
    xs = [offset + float(x) for x in np.random.default_rng(5).normal(0, 1, 60)]
    count = {"sliding": 50, "last": 9}.get(window, 60)
    found = last(feature_set(f=agg.variance(col.x, OVER[window])), points({"x": xs}, step=0.2))["f"]
    kept = [Fraction(x) for x in xs[-count:]]
    mean = sum(kept) / count
    exact = float(sum((x - mean) ** 2 for x in kept) / (count - 1))
    # The bound of Chan, Golub and LeVeque (1983) for updating formulas: n u k, k the condition of the problem.
    bound = count * 2**-52 * math.sqrt(1 + float(mean) ** 2 / exact)
    assert abs(found / exact - 1) <= bound
    assert found == pytest.approx(float(np.var(xs[-count:], ddof=1)), rel=2 * bound)


def test_the_variance_of_one_value_is_missing_and_of_equal_ones_zero() -> None:
    features = feature_set(f=agg.variance(col.x))
    assert last(features, points({"x": [5.0]}))["f"] is None
    assert last(features, points({"x": [1e15 + 0.5] * 7}))["f"] == 0.0


@pytest.mark.parametrize("shape", ["lognormal", "uniform", "integers", "two sides", "constant", "heavy"])
def test_a_quantile_is_within_the_published_error_of_the_exact_one(shape: str) -> None:
    random = np.random.default_rng(17)
    xs = {
        "lognormal": random.lognormal(3, 2, 500), "uniform": random.uniform(1, 2, 500),
        "integers": random.integers(1, 50, 500).astype(np.float64), "two sides": random.normal(0, 100, 500),
        "constant": np.full(500, 12.5), "heavy": random.pareto(0.8, 500) + 1e-9,
    }[shape]  # fmt: skip
    qs = [0.0, 0.01, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999, 1.0]
    features = feature_set(**{f"q{i}": agg.quantile(col.x, q, "1h") for i, q in enumerate(qs)})
    found = last(features, points({"x": xs.tolist()}))
    for i, q in enumerate(qs):
        exact = float(np.sort(xs)[math.floor(q * 499)])
        assert abs(found[f"q{i}"] - exact) <= kernels.ACCURACY * abs(exact) * (1 + 1e-9)


def test_the_error_of_approximate_distinct_is_the_published_one() -> None:
    standard_error = 1.04 / math.sqrt(kernels.ALL_REGISTERS)
    features = feature_set(k=agg.distinct(col.n, approximate=True))
    off = []
    for trial in range(24):
        count = (3_000, 5_000)[trial % 2]
        found = last(features, points({"n": [trial * 1_000_000 + 17 * i for i in range(count)]}, step=0.001))["k"]
        off.append(found / count - 1)
    assert abs(np.mean(off)) < 3 * standard_error / math.sqrt(24)  # it leans to no side
    assert np.sqrt(np.mean(np.square(off))) < 1.5 * standard_error
    assert np.max(np.abs(off)) < 4 * standard_error


def test_few_distinct_values_are_counted_almost_exactly() -> None:
    features = feature_set(k=agg.distinct(col.n, "1h", approximate=True))
    made = batch([STREAM], points({"n": list(range(100))}))
    operator(features).process(made, Outputs())
    found = made.streams["points"].fields["F.k"]
    assert np.abs(found - np.arange(1, 101)).max() <= 3


def test_a_decayed_sum_halves_with_every_half_life() -> None:
    features = feature_set(total=agg.decayed(col.x, half_life="10s"), events=agg.decayed(half_life="10s"))
    found = last(features, points({"x": [8.0, -4.0, 2.0]}, step=10))
    assert found == {"total": pytest.approx(8 / 4 - 4 / 2 + 2), "events": pytest.approx(1.75)}


def test_since_last_is_in_seconds_and_negative_for_an_event_behind() -> None:
    events = points({"n": [1, 1, 1]}, step=2.5)
    made = batch([STREAM], [events[0], events[2], events[1]])
    operator(feature_set(f=agg.since_last())).process(made, Outputs())
    assert str(made.streams["points"].fields["F.f"].tolist()) == "[nan, 5.0, -2.5]"


def test_the_kinds_of_results_are_known_before_any_event() -> None:
    made = feature_set(
        a=agg.sum(col.n), b=agg.sum(col.m), c=agg.sum(col.x), d=agg.sum(col.b), e=agg.max(col.n, "1h"),
        f=agg.first(col.b), g=agg.last(col.s), h=agg.max(col.at), i=agg.count(where=col.b),
        j=agg.mean(col.n), k=agg.max(col.n, where=col.b),
    )  # fmt: skip
    assert {f.name[2:]: (f.kind, f.optional) for f in columns(made)} == {
        "a": ("int", False), "b": ("int", True), "c": ("float", True), "d": ("int", True), "e": ("int", False),
        "f": ("int", True), "g": ("str", True), "h": ("time", False), "i": ("int", False), "j": ("float", True),
        "k": ("int", True),
    }  # fmt: skip


WRONG: list[tuple[Any, str]] = [
    (lambda: agg.sum(col.price), "F.f: points has no field 'price': its fields are who, n, m, x, b, s, o, at"),
    (lambda: agg.sum(col.s), "sum(col['s'], all) needs a number, and col['s'] is str"),
    (lambda: agg.sum(col.at), "needs a number, and col['at'] is time"),
    (lambda: agg.mean(col.at), "needs a number"),
    (lambda: agg.variance(col.s), "needs a number"),
    (lambda: agg.quantile(col.s, 0.5), "needs a number"),
    (lambda: agg.decayed(col.s, half_life="1h"), "needs a number"),
    (lambda: agg.min(col.s), "needs a number, and col['s'] is str"),
    (lambda: agg.distinct(col.o), "col['o'] is neither text nor a number nor a time"),
    (lambda: agg.first(col.o), "needs a number, and col['o'] is object"),
    (lambda: agg.quantile(col.x, 1.01), "q lies between 0 and 1"),
    (lambda: agg.sum("x"), "sum('x'): aggregate an expression of fields, such as col.price"),  # type: ignore[arg-type]
    (lambda: agg.sum(agg.count()), "folds a fold"),
    (lambda: agg.count(where=agg.count() > 1), "folds a fold"),
    (lambda: agg.count(where=col.n), "where=col['n'] is not a condition"),
    (lambda: agg.count(of=3), "of=3 is not a stream: give an event class"),  # type: ignore[arg-type]
    (lambda: agg.count("1h", where="x > 1"), "aggregate an expression"),  # type: ignore[arg-type]
]  # fmt: skip


@pytest.mark.parametrize(("declare", "says"), WRONG, ids=[str(i) for i in range(len(WRONG))])
def test_an_aggregation_that_cannot_be_says_why(declare: Any, says: str) -> None:
    with pytest.raises(DeclarationError) as error:
        feature_set(f=declare())
    assert says in str(error.value)
