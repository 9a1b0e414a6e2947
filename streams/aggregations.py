"""Aggregations: what a feature folds of an entity's events in a window.

Each takes the value to fold, a window ("7d" slides, None is all time), `of`: another stream of the same
entity, and `where`: a condition on that stream's events. Missing values are left out. Over no events count,
sum and distinct are 0 and everything else is missing. Sums of ints are exact in int64 and saturate at its
ends; sums of floats fold in the order in which events were taken, pane by pane.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Protocol

import msgspec
from headrace.streams.batch import Column
from headrace.streams.durations import microseconds
from headrace.streams.errors import DeclarationError
from headrace.streams.event import Event, Field
from headrace.streams.event import fields as event_fields
from headrace.streams.expressions import Expression, Scope, Type
from headrace.streams.windows import AllTime, LastN, Window, window


class Stream(msgspec.Struct, frozen=True):
    """Rows that features can be made of: those of a topic, or of another operator under a name of its own.

    out_of_orderness, lateness: microseconds that a row may be behind the newest, and then behind the
    watermark. origin: the event class, or what makes the rows
    """

    name: str
    fields: tuple[Field, ...]
    lateness: int = 0
    out_of_orderness: int = 0
    origin: object = None


class Streamed(Protocol):
    """Anything that stands for a stream of rows."""

    @property
    def stream(self) -> Stream: ...


class Derived(Protocol):
    """A feature set, which stands for the rows that it publishes."""

    @property
    def __stream__(self) -> Stream: ...


Source = type[Event] | Stream | Streamed | Derived


def stream(of: Source) -> Stream:
    """The stream of an event class, of a feature set's rows, or of anything with a `.stream`."""
    if isinstance(of, Stream):
        return of
    derived = getattr(of, "__stream__", None)
    if derived is not None:
        found: Stream = derived
        return found
    if isinstance(of, type):
        if issubclass(of, Event) and hasattr(of, "contract"):
            contract = of.contract
            return Stream(contract.topic, event_fields(of), contract.lateness, contract.out_of_orderness, of)
    else:
        made = getattr(of, "stream", None)
        if isinstance(made, Stream):
            return made
    raise DeclarationError(f"of={of!r} is not a stream: give an event class, or an object with a `.stream`")


class Aggregate(Expression):
    """A fold over the events of an entity in a window; a value for each row of the feature set's stream."""

    def __init__(
        self,
        kind: str,
        value: Expression | None,
        over: Window,
        of: Source | None,
        where: Expression | None,
        option: float = 0.0,
        order: Expression | None = None,
    ) -> None:
        for part in (value, where, order):
            if part is not None and not isinstance(part, Expression):
                raise DeclarationError(
                    f"{kind}({part!r}): aggregate an expression of fields, such as col.price"
                )
            if part is not None and any(True for _ in aggregates(part)):
                raise DeclarationError(
                    f"{kind}({part}) folds a fold: aggregate fields, not other aggregations"
                )
        self.kind = kind
        self.value = value
        self.over = over
        self.of = None if of is None else stream(of)
        self.where = where
        self.option = option
        self.order = order

    def described(self) -> str:
        inner = "" if self.value is None else f"{self.value}, "
        of = f", of {self.of.name}" if self.of else ""
        where = f", where {self.where}" if self.where is not None else ""
        order = f", order {self.order}" if self.order is not None else ""
        option = f", {self.option!r}" if self.kind in ("quantile", "decayed") else ""
        return f"{self.kind}({inner}{self.over}{of}{where}{option}{order})"

    def type_in(self, scope: Scope) -> Type:
        declared = scope.fields.get(self.text)
        if declared is None:
            raise DeclarationError(
                f"{self} has no place here: features aggregate, fields and conditions do not"
            )
        return Type(declared.kind, declared.optional)

    def compute(self, fields: Mapping[str, Column], known: dict[str, Column], rows: int) -> Column:
        raise AssertionError(f"{self} is computed before the expressions above it")


def aggregates(expression: Expression) -> Iterator[Aggregate]:
    """The aggregations in an expression."""
    if isinstance(expression, Aggregate):
        yield expression
    for operand in expression.args:
        yield from aggregates(operand)


Span = str | Window | None


def count(over: Span = None, *, of: Source | None = None, where: Expression | None = None) -> Aggregate:
    """How many events; int."""
    return Aggregate("count", None, window(over), of, where)


def sum(
    value: Expression, over: Span = None, *, of: Source | None = None, where: Expression | None = None
) -> Aggregate:
    """The sum of a number; int for ints (saturating at the ends of int64), else float."""
    return Aggregate("sum", value, window(over), of, where)


def mean(
    value: Expression, over: Span = None, *, of: Source | None = None, where: Expression | None = None
) -> Aggregate:
    """The arithmetic mean; float."""
    return Aggregate("mean", value, window(over), of, where)


def variance(
    value: Expression, over: Span = None, *, of: Source | None = None, where: Expression | None = None
) -> Aggregate:
    """The sample variance (n - 1); float, missing under two values.

    Within a pane by Welford's recurrence (Technometrics 4, 1962), across panes by Chan, Golub and LeVeque's
    (The American Statistician 37, 1983), from the newest pane to the oldest and then the event's own.
    """
    return Aggregate("variance", value, window(over), of, where)


def min(
    value: Expression, over: Span = None, *, of: Source | None = None, where: Expression | None = None
) -> Aggregate:
    """The least number or time."""
    return Aggregate("min", value, window(over), of, where)


def max(
    value: Expression, over: Span = None, *, of: Source | None = None, where: Expression | None = None
) -> Aggregate:
    """The greatest number or time."""
    return Aggregate("max", value, window(over), of, where)


def first(
    value: Expression,
    over: Span = None,
    *,
    order: Expression | None = None,
    of: Source | None = None,
    where: Expression | None = None,
) -> Aggregate:
    """The value of the earliest event; of those at one time, the one taken first. A number, bool, time or text.

    order: a number or time in whose place the event's time is; so `first(col.shop, order=col.price)` is the
    cheapest event's shop. Events that have none are left out.
    """
    return Aggregate("first", value, window(over), of, where, order=order)


def last(
    value: Expression,
    over: Span = None,
    *,
    order: Expression | None = None,
    of: Source | None = None,
    where: Expression | None = None,
) -> Aggregate:
    """The value of the latest event; of those at one time, the one taken last. A number, bool, time or text.

    order: as in `first`; so `last(col.bidder, order=col.price)` is the bidder of the highest bid.
    """
    return Aggregate("last", value, window(over), of, where, order=order)


def distinct(
    value: Expression,
    over: Span = None,
    *,
    approximate: bool = False,
    of: Source | None = None,
    where: Expression | None = None,
) -> Aggregate:
    """How many different values; int, exact.

    Every value is kept with the pane where it was last seen. For an event behind its entity's newest pane, an
    as-of value also counts what was seen since. approximate: HyperLogLog (Flajolet, Fusy, Gandouet, Meunier:
    AofA 2007) with 1024 registers a pane, a standard error of 3.3%, so that memory is bounded whatever comes.
    """
    window_of = window(over)
    rough = approximate and not isinstance(window_of, LastN)
    return Aggregate("approximate" if rough else "distinct", value, window_of, of, where)


def quantile(
    value: Expression,
    q: float,
    over: Span = None,
    *,
    of: Source | None = None,
    where: Expression | None = None,
) -> Aggregate:
    """The value at rank floor(q (n - 1)) of n in ascending order; float.

    Exact over last-N windows. Else within 1% of it: DDSketch (Masson, Rim, Lee: PVLDB 12, 2019) over sizes
    from 1e-12 (less counts as 0) to 1e12 (more counts as that). The order of the events changes nothing.
    """
    if not 0.0 <= q <= 1.0:
        raise DeclarationError(f"quantile(..., {q}): q lies between 0 and 1")
    return Aggregate("quantile", value, window(over), of, where, float(q))


def since_last(*, of: Source | None = None, where: Expression | None = None) -> Aggregate:
    """Seconds since the entity's latest event before this one; missing at the first; float.

    Negative for an event that comes after one of a later time.
    """
    return Aggregate("since_last", None, AllTime(), of, where)


def decayed(
    value: Expression | None = None,
    *,
    half_life: str,
    of: Source | None = None,
    where: Expression | None = None,
) -> Aggregate:
    """The sum of a number, or the count of events, each weighing half after every half-life; float.

    An event behind the latest one is added with the weight of its age, and read as of the latest.
    """
    span = microseconds(half_life)
    if span <= 0:
        raise DeclarationError(f"half_life={half_life!r} must be longer than nothing")
    return Aggregate("decayed", value, AllTime(), of, where, math.log(2.0) / span)


def covers_itself(aggregate: Aggregate) -> bool:
    """Whether the event at hand always lies in what is folded."""
    return aggregate.of is None and aggregate.where is None and aggregate.kind != "since_last"


__all__ = [
    "Aggregate", "Stream", "aggregates", "count", "covers_itself", "decayed", "distinct", "first", "last",
    "max", "mean", "min", "quantile", "since_last", "stream", "sum", "variance",
]  # fmt: skip
