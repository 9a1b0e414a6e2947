"""Expressions over columns: values, missing values, types, and messages."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from headrace.streams.errors import DeclarationError
from headrace.streams.event import Field
from headrace.streams.expressions import (
    Expression,
    Scope,
    canonical,
    clip,
    col,
    day_of_month,
    day_of_week,
    evaluate,
    exp,
    fill,
    hour_of_day,
    is_missing,
    length,
    log,
    log1p,
    maximum,
    minimum,
    month,
    seconds_between,
    sqrt,
    where,
)  # fmt: skip

from .columns import column

FIELDS = [
    Field("n", "int", False), Field("m", "int", True), Field("x", "float", False), Field("s", "str", True),
    Field("b", "bool", False), Field("c", "bool", True), Field("at", "time", False), Field("seen", "time",
    True),
    Field("o", "object", False), Field("l", "object", True),
]  # fmt: skip
NOON = 1_709_209_800_000_000  # Thursday 2024-02-29 12:30
VALUES: dict[str, list[Any]] = {
    "n": [1, -2, 0], "m": [3, None, 0], "x": [0.5, None, -4.0], "s": ["Cat", None, "dog"], "b": [True,
    False, True],
    "c": [True, None, False], "at": [NOON, NOON, 0], "seen": [NOON - 500_000, None, 0], "o": [1, 2, 3],
    "l": [1, [2], {"a": 3}],
}  # fmt: skip
COLUMNS = {field.name: column(field, VALUES[field.name]) for field in FIELDS}
SCOPE = Scope("orders", {field.name: field for field in FIELDS})


def value(expression: Expression) -> list[Any]:
    found = canonical(evaluate(expression, COLUMNS, {}, 3), expression.type_in(SCOPE)).tolist()
    return [None if isinstance(v, float) and math.isnan(v) else v for v in found]


CASES = [
    (col.n + 1, [2, -1, 1]),
    (2 * col.n - col.n, [1, -2, 0]),
    (col.m + col.n, [4, None, 0]),
    (col.x * 2, [1.0, None, -8.0]),
    (1 / col.n, [1.0, -0.5, None]),
    (col.n / col.n, [1.0, 1.0, None]),
    (col.n // 2, [0, -1, 0]),
    (col.n % 2, [1, 0, 0]),
    (7 // col.n, [7, -4, None]),
    (col.n**2, [1.0, 4.0, 0.0]),
    (col.n**-1, [1.0, -0.5, None]),
    (col.x**0.5, [0.5**0.5, None, None]),
    (-col.n, [-1, 2, 0]),
    (abs(col.x), [0.5, None, 4.0]),
    (col["n"] > 0, [True, False, False]),
    (col.x < 1, [True, False, True]),
    (col.x != 0.5, [False, False, True]),
    (col.s == "dog", [False, False, True]),
    (col.s != "dog", [True, False, False]),
    (col.o == 2, [False, True, False]),
    ((col.n > 0) & col.b, [True, False, False]),
    ((col.n < 0) | col.c, [True, True, False]),
    (~col.c, [False, True, True]),
    (log(col.n), [0.0, None, None]),
    (log1p(col.n), [math.log1p(1), None, 0.0]),
    (exp(col.n * 1000), [None, 0.0, 1.0]),
    (sqrt(col.n), [1.0, None, 0.0]),
    (clip(col.n, 0, 1), [1, 0, 0]),
    (minimum(col.n, col.x), [0.5, None, -4.0]),
    (maximum(col.n, 0), [1, 0, 0]),
    (where(col.b, col.n, 9), [1, 9, 0]),
    (where(col.b, "yes", "no"), ["yes", "no", "yes"]),
    (fill(col.x, 7), [0.5, 7.0, -4.0]),
    (fill(col.m, 7), [3, 7, 0]),
    (fill(col.s, "none"), ["Cat", "none", "dog"]),
    (is_missing(col.m), [False, True, False]),
    (is_missing(col.s), [False, True, False]),
    (hour_of_day(col.at), [12, 12, 0]),
    (day_of_week(col.at), [3, 3, 3]),
    (day_of_month(col.at), [29, 29, 1]),
    (month(col.seen), [2, None, 1]),
    (seconds_between(col.at, col.seen), [0.5, None, 0.0]),
    (col.s.isin(["Cat", "cow"]), [True, False, False]),
    (col.n.isin([1, 0]), [True, False, True]),
    (col.s.startswith("C"), [True, False, False]),
    (length(col.s), [3, None, 3]),
    (col.n + 2**62 + 2**62, [2**63 - 1, 2**63 - 2, 2**63 - 1]),
    ((col.n - 2) * 2**62, [-(2**62), -(2**63), -(2**63)]),
    ((col.n - 2**62 - 2**62 - 2) // -1, [2**63 - 1, 2**63 - 1, 2**63 - 1]),
    (col.n % -1, [0, 0, 0]),
    (fill(col.m, 0) + 2**62 + 2**62, [2**63 - 1, 2**63 - 1, 2**63 - 1]),
    (-(fill(col.m, 0) + 2**62 + 2**62), [-(2**63), -(2**63), -(2**63)]),
    (col.c == True, [True, False, False]),  # noqa: E712
    (col.c != True, [False, False, True]),  # noqa: E712
    (is_missing(col.c), [False, True, False]),
    (fill(col.c, True), [True, True, False]),
    (where(col.c, 1, 2), [1, 2, 2]),
    (col.c + 1, [2, None, 1]),
    (col.o.isin([2, "a"]), [False, True, False]),
    (col.l.isin([1, "a"]), [True, False, False]),
    (col.l == "a", [False, False, False]),
    (col.m.isin([3]), [True, False, False]),
    (col.x.isin([-4]), [False, False, True]),
]


@pytest.mark.parametrize(("expression", "wanted"), CASES, ids=[str(c[0]) for c in CASES])
def test_an_expression_gives(expression: Expression, wanted: list[Any]) -> None:
    assert value(expression) == wanted
    assert [type(v) for v in value(expression)] == [type(w) for w in wanted] or None in wanted


WRONG = [
    (col.price + 1, "orders has no field 'price': its fields are n, m, x, s, b, c, at, seen, o, l"),
    (col.s + 1, "needs a number, and col['s'] is str"),
    (col.s > 1, "compares str with int"),
    (col.n & col.b, "needs a condition (a comparison or a bool), and col['n'] is int"),
    (hour_of_day(col.n), "needs a time (a datetime field), and col['n'] is int"),
    (where(col.b, col.n, "no"), "mixes int with str"),
    (minimum(col.s, "a"), "needs numbers or times"),
    (length(col.n), "needs a text"),
    (col.n.isin(["a"]), "is never one of these values"),
    (col.n.startswith("a"), "needs str"),
]


@pytest.mark.parametrize(("expression", "says"), WRONG, ids=[str(c[0]) for c in WRONG])
def test_a_wrong_expression_says_why(expression: Expression, says: str) -> None:
    with pytest.raises(DeclarationError) as error:
        expression.type_in(SCOPE)
    assert says in str(error.value)


def test_a_condition_cannot_be_asked_before_there_are_events() -> None:
    with pytest.raises(DeclarationError, match=r"write & \| ~"):
        bool(col.n > 1)
    with pytest.raises(DeclarationError, match="cannot be part"):
        col.n + None  # type: ignore[operator]


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1, 10**30])
def test_an_int_beyond_int64_is_refused_where_it_is_written(number: int) -> None:
    with pytest.raises(DeclarationError, match=f"{number} is beyond int64: write it as a float"):
        col.n + number
    assert value(col.n * 0 + float(number)) == [float(number)] * 3


@pytest.mark.parametrize("function", [log, exp, sqrt, lambda x: x**1.7, lambda x: x / 3, log1p])
def test_a_row_has_the_same_bits_alone_and_among_others(function: Any) -> None:
    xs = np.random.default_rng(3).random(257) * 40
    expression = function(col.x)
    whole = evaluate(expression, {"x": xs}, {}, len(xs))
    alone = np.concatenate([evaluate(expression, {"x": xs[i : i + 1]}, {}, 1) for i in range(len(xs))])
    assert whole.tobytes() == alone.tobytes()
