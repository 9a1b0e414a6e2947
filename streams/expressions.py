"""Expressions over columns: what a feature computes from the fields of an event.

`col.price * col.quantity` is a tree. It is checked against the event's fields once, where it is declared, and
evaluated over whole columns. A missing number is NaN and a missing text is None; what has no value (x / 0,
the log of a number that is not positive, a result beyond 1e308) is missing, never infinite. A comparison with
a missing value is false, `!=` included. Integer + - * // saturates at the ends of int64. Every function gives
the same bits for a row whatever rows lie around it, so where batches are cut changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple, NoReturn

import numpy as np
from headrace.streams import kernels
from headrace.streams.batch import Column
from headrace.streams.errors import DeclarationError
from headrace.streams.event import Field, Kind
from numpy.typing import NDArray

Value = int | float | bool | str
Array = NDArray[Any]
Over = Callable[..., Array]
INT_MAX = 2**63 - 1
INT_MIN = -(2**63)


class Type(NamedTuple):
    """The kind of a column, and whether a value may be missing. An int that may be missing is float64."""

    kind: Kind
    optional: bool

    @property
    def number(self) -> bool:
        return self.kind in ("int", "float", "bool")


class Scope(NamedTuple):
    """What an expression may name: the fields of one stream, and the features beside them."""

    stream: str
    fields: Mapping[str, Field]


class Expression:
    """A value for each row. `str(expression)` is its canonical text: equal texts compute equal columns."""

    args: tuple[Expression, ...] = ()

    @cached_property
    def text(self) -> str:
        return self.described()

    def described(self) -> str:
        """The canonical text; `text` keeps it."""
        raise NotImplementedError

    def __str__(self) -> str:
        return self.text

    def type_in(self, scope: Scope) -> Type:
        """The type of the column. Raises DeclarationError where the expression does not fit the fields."""
        raise NotImplementedError

    def compute(self, fields: Mapping[str, Column], known: dict[str, Column], rows: int) -> Column:
        raise NotImplementedError

    def isin(self, values: Iterable[Value]) -> Expression:
        """Whether the value is one of these."""
        return IsIn(self, tuple(values))

    def startswith(self, prefix: str) -> Expression:
        """Whether the text begins so."""
        return StartsWith(self, prefix)

    def __add__(self, other: Expression | Value) -> Expression:
        return Call("+", self, other)

    def __radd__(self, other: Value) -> Expression:
        return Call("+", other, self)

    def __sub__(self, other: Expression | Value) -> Expression:
        return Call("-", self, other)

    def __rsub__(self, other: Value) -> Expression:
        return Call("-", other, self)

    def __mul__(self, other: Expression | Value) -> Expression:
        return Call("*", self, other)

    def __rmul__(self, other: Value) -> Expression:
        return Call("*", other, self)

    def __truediv__(self, other: Expression | Value) -> Expression:
        return Call("/", self, other)

    def __rtruediv__(self, other: Value) -> Expression:
        return Call("/", other, self)

    def __floordiv__(self, other: Expression | Value) -> Expression:
        return Call("//", self, other)

    def __rfloordiv__(self, other: Value) -> Expression:
        return Call("//", other, self)

    def __mod__(self, other: Expression | Value) -> Expression:
        return Call("%", self, other)

    def __rmod__(self, other: Value) -> Expression:
        return Call("%", other, self)

    def __pow__(self, other: Expression | Value) -> Expression:
        return Call("**", self, other)

    def __rpow__(self, other: Value) -> Expression:
        return Call("**", other, self)

    def __neg__(self) -> Expression:
        return Call("-", 0, self)

    def __abs__(self) -> Expression:
        return Call("abs", self)

    def __lt__(self, other: Expression | Value) -> Expression:
        return Call("<", self, other)

    def __le__(self, other: Expression | Value) -> Expression:
        return Call("<=", self, other)

    def __gt__(self, other: Expression | Value) -> Expression:
        return Call(">", self, other)

    def __ge__(self, other: Expression | Value) -> Expression:
        return Call(">=", self, other)

    def __eq__(self, other: Expression | Value) -> Expression:  # type: ignore[override]
        return Call("==", self, other)

    def __ne__(self, other: Expression | Value) -> Expression:  # type: ignore[override]
        return Call("!=", self, other)

    __hash__ = None  # type: ignore[assignment]

    def __and__(self, other: Expression) -> Expression:
        return Call("&", self, other)

    def __or__(self, other: Expression) -> Expression:
        return Call("|", self, other)

    def __invert__(self) -> Expression:
        return Call("~", self)

    def __bool__(self) -> NoReturn:
        raise DeclarationError(f"{self} has a value for each event, not now: write & | ~ for and, or, not")


class Col(Expression):
    """A field of the event."""

    def __init__(self, name: str) -> None:
        self.name = name

    def described(self) -> str:
        return f"col[{self.name!r}]"

    def type_in(self, scope: Scope) -> Type:
        field = scope.fields.get(self.name)
        if field is None:
            plain = ", ".join(scope.fields)
            raise DeclarationError(f"{scope.stream} has no field {self.name!r}: its fields are {plain}")
        return Type(field.kind, field.optional or field.kind == "float")

    def compute(self, fields: Mapping[str, Column], known: dict[str, Column], rows: int) -> Column:
        return fields[self.name]


class Columns:
    """The fields of the event at hand: `col.price`, or `col["price"]` for a name that Python reserves."""

    def __getattr__(self, name: str) -> Expression:
        if name.startswith("__"):
            raise AttributeError(name)
        return Col(name)

    def __getitem__(self, name: str) -> Expression:
        return Col(name)


col = Columns()


class Constant(Expression):
    def __init__(self, value: Value) -> None:
        if isinstance(value, int) and not INT_MIN <= value <= INT_MAX:
            raise DeclarationError(f"{value} is beyond int64: write it as a float")
        self.value = value

    def described(self) -> str:
        return repr(self.value)

    def type_in(self, scope: Scope) -> Type:
        if isinstance(self.value, bool):
            return Type("bool", False)
        if isinstance(self.value, int):
            return Type("int", False)
        return Type("float", True) if isinstance(self.value, float) else Type("str", False)

    def compute(self, fields: Mapping[str, Column], known: dict[str, Column], rows: int) -> Column:
        if isinstance(self.value, str):
            return np.full(rows, self.value, dtype=object)
        return np.full(rows, self.value)


class IsIn(Expression):
    def __init__(self, of: Expression, values: tuple[Value, ...]) -> None:
        self.args = (of,)
        self.values = frozenset(values)

    def described(self) -> str:
        return f"{self.args[0]}.isin({sorted(self.values, key=repr)!r})"

    def type_in(self, scope: Scope) -> Type:
        kind = self.args[0].type_in(scope).kind
        text = kind == "str"
        if any(isinstance(v, str) != text for v in self.values) and kind != "object":
            raise DeclarationError(f"{self}: {self.args[0]} is {kind}, so it is never one of these values")
        return Type("bool", False)

    def compute(self, fields: Mapping[str, Column], known: dict[str, Column], rows: int) -> Column:
        column = evaluate(self.args[0], fields, known, rows)
        values = column.tolist()
        try:
            return np.fromiter(map(self.values.__contains__, values), np.bool_, rows)
        except TypeError:  # a list or an object, which is none of the values
            return np.fromiter((isinstance(v, Hashable) and v in self.values for v in values), np.bool_, rows)


class StartsWith(Expression):
    def __init__(self, of: Expression, prefix: str) -> None:
        self.args = (of,)
        self.prefix = prefix

    def described(self) -> str:
        return f"{self.args[0]}.startswith({self.prefix!r})"

    def type_in(self, scope: Scope) -> Type:
        _want(self, self.args[0], scope, "str")
        return Type("bool", False)

    def compute(self, fields: Mapping[str, Column], known: dict[str, Column], rows: int) -> Column:
        column = evaluate(self.args[0], fields, known, rows)
        prefix = self.prefix
        return np.fromiter((v is not None and v.startswith(prefix) for v in column.tolist()), np.bool_, rows)


class Call(Expression):
    """An operation of `OPERATIONS` on operands."""

    def __init__(self, operation: str, *args: Expression | Value) -> None:
        self.operation = operation
        self.args = tuple(_expression(a) for a in args)

    def described(self) -> str:
        if self.operation[0].isalpha():
            return f"{self.operation}({', '.join(map(str, self.args))})"
        if len(self.args) == 1:
            return f"{self.operation}{self.args[0]}"
        return f"({self.args[0]} {self.operation} {self.args[1]})"

    def type_in(self, scope: Scope) -> Type:
        return OPERATIONS[self.operation].type_of(self, [a.type_in(scope) for a in self.args])

    def compute(self, fields: Mapping[str, Column], known: dict[str, Column], rows: int) -> Column:
        columns = [evaluate(a, fields, known, rows) for a in self.args]
        return OPERATIONS[self.operation].over(*columns)


def evaluate(expression: Expression, fields: Mapping[str, Column], known: dict[str, Column], rows: int) -> Column:
    """The expression over the rows. known: columns already computed, by text; what is computed joins them."""
    if isinstance(expression, Col):
        return expression.compute(fields, known, rows)
    text = expression.text
    column = known.get(text)
    if column is None:
        with np.errstate(all="ignore"):
            column = expression.compute(fields, known, rows)
        known[text] = column
    return column


def canonical(column: Column, type: Type) -> Column:
    """The column in the dtype of its type: bool; int64; float64 with NaN for missing; else object."""
    if type.kind == "bool":
        return column if column.dtype == np.bool_ else np.equal(column, True).astype(np.bool_)
    if type.kind == "float" or (type.optional and type.kind in ("int", "time")):
        return _float(column)
    if type.kind in ("int", "time"):
        return column if column.dtype == np.int64 else _integers(column)
    return column


def _expression(value: Expression | Value) -> Expression:
    if isinstance(value, Expression):
        return value
    if isinstance(value, bool | int | float | str):
        return Constant(value)
    raise DeclarationError(f"{value!r} cannot be part of an expression: use fields, numbers, text or features")


def _float(column: Array) -> Array:
    return column if column.dtype == np.float64 else column.astype(np.float64)


def _integers(column: Array) -> Array:
    """int64 of bools, or of floats without NaN, held at the ends of int64."""
    if column.dtype != np.float64:
        return column.astype(np.int64)
    whole = np.clip(column, INT_MIN, 2.0**62).astype(np.int64)
    whole[column > 2.0**62] = np.fromiter((min(int(v), INT_MAX) for v in column[column > 2.0**62].tolist()), np.int64)
    return whole


def _finite(column: Array) -> Array:
    return np.where(np.isfinite(column), column, np.nan)


# The functions of the operations. Each takes and gives whole columns.


def _saturating(operation: Over, exact: Callable[[int, int], int]) -> Over:
    def over(a: Array, b: Array) -> Array:
        if a.dtype == np.bool_ and b.dtype == np.bool_:
            a = a.astype(np.int64)
        result = operation(a, b)
        if result.dtype == np.int64:
            near = np.abs(operation(_float(a), _float(b))) >= 2.0**62
            for i in np.flatnonzero(near):
                result[i] = min(max(exact(int(a[i]), int(b[i])), INT_MIN), INT_MAX)
            return result
        return _finite(result)

    return over


def _divide(a: Array, b: Array) -> Array:
    return _finite(_float(a) / _float(b))


def _whole(operation: Over) -> Over:
    def over(a: Array, b: Array) -> Array:
        a = a.astype(np.int64) if a.dtype == np.bool_ else a
        b = b.astype(np.int64) if b.dtype == np.bool_ else b
        if a.dtype != np.int64 or b.dtype != np.int64:
            return _finite(operation(_float(a), _float(b)))
        result = operation(a, np.where(b == 0, 1, b))
        if operation is np.floor_divide:
            result[(a == INT_MIN) & (b == -1)] = INT_MAX
        return result if b.all() else np.where(b == 0, np.nan, result)

    return over


def _compare(operation: Over) -> Over:
    def over(a: Array, b: Array) -> Array:
        if a.dtype == object or b.dtype == object:
            both = ~(_missing(a) | _missing(b))
            result = np.zeros(len(a), np.bool_)
            result[both] = operation(a[both], b[both])
            return result
        result = operation(a, b)
        if operation is np.not_equal:
            result &= ~(_missing(a) | _missing(b))
        return result

    return over


def _missing(column: Array) -> Array:
    if column.dtype == object:
        return np.fromiter((v is None for v in column.tolist()), np.bool_, len(column))
    return np.isnan(column)


def _elementwise(kernel: Callable[..., None]) -> Over:
    def over(*columns: Array) -> Array:
        out = np.empty(len(columns[0]), np.float64)
        kernel(*(np.ascontiguousarray(_float(c)) for c in columns), out)
        return out

    return over


def _absolute(a: Array) -> Array:
    if a.dtype == np.int64:
        return np.where(a == INT_MIN, INT_MAX, np.abs(a))
    magnitude: Array = np.abs(a.astype(np.int64) if a.dtype == np.bool_ else a)
    return magnitude


def _logical(operation: Over) -> Over:
    def over(*conditions: Array) -> Array:
        return operation(*(canonical(c, Type("bool", False)) for c in conditions))

    return over


def _either(condition: Array, a: Array, b: Array) -> Array:
    return np.where(canonical(condition, Type("bool", False)), a, b)


def _fill(a: Array, value: Array) -> Array:
    return np.where(_missing(a), value, a)


def _seconds(a: Array, b: Array) -> Array:
    return (_float(a) - _float(b)) / 1e6


def _sqrt(a: Array) -> Array:
    return _finite(np.sqrt(_float(a)))


def _length(a: Array) -> Array:
    found = [None if v is None else len(v) for v in a.tolist()]
    return np.array(found, np.float64 if None in found else np.int64)


HOUR = 3_600_000_000
DAY = 24 * HOUR


def _part(of: Over) -> Over:
    def over(time: Array) -> Array:
        if time.dtype == np.int64:
            return of(time)
        lost = _missing(time)
        whole = np.where(lost, 0, time).astype(np.int64)
        return np.where(lost, np.nan, of(whole))

    return over


def _hour(time: Array) -> Array:
    return time // HOUR % 24


def _weekday(time: Array) -> Array:
    return (time // DAY + 3) % 7  # 1970-01-01 was a Thursday; Monday is 0


def _month(time: Array) -> Array:
    months: Array = time.view("datetime64[us]").astype("datetime64[M]").astype(np.int64)
    return months % 12 + 1


def _day(time: Array) -> Array:
    moments = time.view("datetime64[us]")
    days = moments.astype("datetime64[D]") - moments.astype("datetime64[M]").astype("datetime64[D]")
    whole: Array = days.astype(np.int64) + 1
    return whole


# The types of the operations.


def _want(call: Expression, operand: Expression, scope: Scope, *kinds: Kind) -> Type:
    found = operand.type_in(scope)
    if found.kind not in kinds:
        raise _unfit(call, operand, found, " or ".join(kinds))
    return found


def _unfit(call: Expression, operand: Expression, found: Type, wanted: str) -> DeclarationError:
    return DeclarationError(f"{call} needs {wanted}, and {operand} is {found.kind}")


def _numbers(call: Call, types: Sequence[Type]) -> None:
    for operand, found in zip(call.args, types, strict=True):
        if not found.number:
            raise _unfit(call, operand, found, "a number")


def _arithmetic(call: Call, types: Sequence[Type]) -> Type:
    _numbers(call, types)
    if any(t.kind == "float" for t in types):
        return Type("float", True)
    return Type("int", any(t.optional for t in types))


def _quotient(call: Call, types: Sequence[Type]) -> Type:
    found = _arithmetic(call, types)
    divisor = call.args[1]
    certain = isinstance(divisor, Constant) and bool(divisor.value)
    return found if certain else Type(found.kind, True)


def _real(call: Call, types: Sequence[Type]) -> Type:
    _numbers(call, types)
    return Type("float", True)


def _comparison(call: Call, types: Sequence[Type]) -> Type:
    a, b = types
    ordered = call.operation not in ("==", "!=")
    same = (a.number and b.number) or a.kind == b.kind or (not ordered and "object" in (a.kind, b.kind))
    if not same or (ordered and a.kind == "object"):
        raise DeclarationError(f"{call} compares {a.kind} with {b.kind}")
    return Type("bool", False)


def _logic(call: Call, types: Sequence[Type]) -> Type:
    for operand, found in zip(call.args, types, strict=True):
        if found.kind != "bool":
            raise _unfit(call, operand, found, "a condition (a comparison or a bool)")
    return Type("bool", False)


def _same(call: Call, types: Sequence[Type]) -> Type:
    first, second = types[-2:]
    optional = first.optional or second.optional
    if first.number and second.number and first.kind != second.kind:
        return Type("float", True) if "float" in (first.kind, second.kind) else Type("int", optional)
    if first.kind != second.kind:
        raise DeclarationError(f"{call} mixes {first.kind} with {second.kind}: give both the same kind")
    return Type(first.kind, optional)


def _ordered(call: Call, types: Sequence[Type]) -> Type:
    found = _same(call, types)
    if not (found.number or found.kind == "time"):
        raise _unfit(call, call.args[0], types[0], "numbers or times")
    return found


def _between(call: Call, types: Sequence[Type]) -> Type:
    for operand, found in zip(call.args, types, strict=True):
        if found.kind != "time":
            raise _unfit(call, operand, found, "times (datetime fields)")
    return Type("float", True)


def _choice(call: Call, types: Sequence[Type]) -> Type:
    if types[0].kind != "bool":
        raise _unfit(call, call.args[0], types[0], "a condition (a comparison or a bool)")
    return _same(call, types)


def _filled(call: Call, types: Sequence[Type]) -> Type:
    return Type(_same(call, types).kind, types[1].optional)


def _anything(call: Call, types: Sequence[Type]) -> Type:
    return Type("bool", False)


def _moment(call: Call, types: Sequence[Type]) -> Type:
    if types[0].kind != "time":
        raise _unfit(call, call.args[0], types[0], "a time (a datetime field)")
    return Type("int", types[0].optional)


def _text(call: Call, types: Sequence[Type]) -> Type:
    if types[0].kind != "str":
        raise _unfit(call, call.args[0], types[0], "a text")
    return Type("int", types[0].optional)


class Operation(NamedTuple):
    type_of: Callable[[Call, Sequence[Type]], Type]
    over: Callable[..., Column]


OPERATIONS: dict[str, Operation] = {
    "+": Operation(_arithmetic, _saturating(np.add, lambda a, b: a + b)),
    "-": Operation(_arithmetic, _saturating(np.subtract, lambda a, b: a - b)),
    "*": Operation(_arithmetic, _saturating(np.multiply, lambda a, b: a * b)),
    "/": Operation(_real, _divide),
    "//": Operation(_quotient, _whole(np.floor_divide)),
    "%": Operation(_quotient, _whole(np.remainder)),
    "**": Operation(_real, _elementwise(kernels.power)),
    "abs": Operation(_arithmetic, _absolute),
    "<": Operation(_comparison, _compare(np.less)),
    "<=": Operation(_comparison, _compare(np.less_equal)),
    ">": Operation(_comparison, _compare(np.greater)),
    ">=": Operation(_comparison, _compare(np.greater_equal)),
    "==": Operation(_comparison, _compare(np.equal)),
    "!=": Operation(_comparison, _compare(np.not_equal)),
    "&": Operation(_logic, _logical(np.logical_and)),
    "|": Operation(_logic, _logical(np.logical_or)),
    "~": Operation(_logic, _logical(np.logical_not)),
    "log": Operation(_real, _elementwise(kernels.log)),
    "log1p": Operation(_real, _elementwise(kernels.log1p)),
    "exp": Operation(_real, _elementwise(kernels.exp)),
    "sqrt": Operation(_real, _sqrt),
    "minimum": Operation(_ordered, np.minimum),
    "maximum": Operation(_ordered, np.maximum),
    "where": Operation(_choice, _either),
    "fill": Operation(_filled, _fill),
    "is_missing": Operation(_anything, _missing),
    "hour_of_day": Operation(_moment, _part(_hour)),
    "day_of_week": Operation(_moment, _part(_weekday)),
    "day_of_month": Operation(_moment, _part(_day)),
    "month": Operation(_moment, _part(_month)),
    "seconds_between": Operation(_between, _seconds),
    "length": Operation(_text, _length),
}


def log(x: Expression) -> Expression:
    """The natural logarithm; missing where x is not positive."""
    return Call("log", x)


def log1p(x: Expression) -> Expression:
    """log(1 + x), exact for small x; missing where x is not above -1."""
    return Call("log1p", x)


def exp(x: Expression) -> Expression:
    """e to the power x; missing beyond 1e308."""
    return Call("exp", x)


def sqrt(x: Expression) -> Expression:
    """The square root; missing where x is negative."""
    return Call("sqrt", x)


def minimum(a: Expression | Value, b: Expression | Value) -> Expression:
    """The lesser of two values of one row; missing where either is."""
    return Call("minimum", a, b)


def maximum(a: Expression | Value, b: Expression | Value) -> Expression:
    """The greater of two values of one row; missing where either is."""
    return Call("maximum", a, b)


def clip(x: Expression, low: Expression | Value, high: Expression | Value) -> Expression:
    """x, but no less than low and no more than high."""
    return minimum(maximum(x, low), high)


def where(condition: Expression, a: Expression | Value, b: Expression | Value) -> Expression:
    """a where the condition holds, else b."""
    return Call("where", condition, a, b)


def fill(x: Expression, value: Expression | Value) -> Expression:
    """x, or the value where x is missing."""
    return Call("fill", x, value)


def is_missing(x: Expression) -> Expression:
    """Whether the value is missing."""
    return Call("is_missing", x)


def hour_of_day(time: Expression) -> Expression:
    """0 to 23, UTC."""
    return Call("hour_of_day", time)


def day_of_week(time: Expression) -> Expression:
    """0 (Monday) to 6, UTC."""
    return Call("day_of_week", time)


def day_of_month(time: Expression) -> Expression:
    """1 to 31, UTC."""
    return Call("day_of_month", time)


def month(time: Expression) -> Expression:
    """1 to 12, UTC."""
    return Call("month", time)


def seconds_between(later: Expression, earlier: Expression) -> Expression:
    """The seconds from one time to another, negative where `later` is the earlier."""
    return Call("seconds_between", later, earlier)


def length(text: Expression) -> Expression:
    """The number of characters of a text."""
    return Call("length", text)


def parts(expression: Expression) -> Iterable[Expression]:
    """The expression and everything below it, operands first."""
    for operand in expression.args:
        yield from parts(operand)
    yield expression
