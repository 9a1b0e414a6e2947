"""Feature sets: declared as classes, run as operators over columns.

    class Customer(Features, of=OrderLine, by="customer"):
        lines_1h = count("1h")
        returned = count("90d", of=Return) / count("90d")

Each row of the stream gets each feature as of that row: the panes of its window up to and including its own,
as they are once the row has been taken. `Customer.returned` refers to a feature from another set over the
same stream. A name with a leading underscore is computed and can be referred to, and is not published.

A set can be of another set's rows, as `derived` tells, and choose which of its own are published:

    class Dear(Features, of=Customer, where=col.lines_1h > 3):
        lines = col.lines_1h
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from headrace.streams.aggregations import Aggregate, Source, Stream, aggregates, stream
from headrace.streams.asof import FeatureSet
from headrace.streams.batch import Column
from headrace.streams.derived import rows_of
from headrace.streams.errors import DeclarationError
from headrace.streams.event import Event, Field
from headrace.streams.expressions import Col, Expression, Scope, Type, parts
from headrace.streams.memory import Memory
from headrace.streams.plans import Declaration, Plan
from headrace.streams.results import WindowSet
from headrace.streams.windows import Window


class Reference(Expression):
    """A feature of another set over the same stream, as a column beside the fields."""

    def __init__(self, set: type[Features], feature: str) -> None:
        self.set = set
        self.name = f"{set.__name__}.{feature}"

    def described(self) -> str:
        return self.name

    def type_in(self, scope: Scope) -> Type:
        theirs = declaration(self.set)
        if theirs.of.name != scope.stream:
            raise DeclarationError(
                f"{self.name} is a feature of {theirs.of.name}; events of {scope.stream} have none of it"
            )
        if theirs.window is not None:
            raise DeclarationError(f"{self.name} is the result of a window, not a value as of each event")
        found = next(f for f in columns(self.set) if f.name == self.name)
        return Type(found.kind, found.optional)

    def compute(self, fields: Mapping[str, Column], known: dict[str, Column], rows: int) -> Column:
        return fields[self.name]


class _FeaturesMeta(type):
    _declaration: Declaration

    def __new__(
        mcls,
        name: str,
        bases: tuple[type, ...],
        namespace: dict[str, Any],
        *,
        of: Source | None = None,
        by: By | Mapping[Source, By] | None = None,
        window: Window | None = None,
        clock: str | None = None,
        early: str | None = None,
        where: Expression | None = None,
        publish: bool = True,
    ) -> _FeaturesMeta:
        plain = {k: v for k, v in namespace.items() if k.startswith("__")}
        cls = super().__new__(mcls, name, bases, plain)
        if not bases:
            return cls
        if of is None:
            raise DeclarationError(
                f"feature set {name} lacks its stream: write class {name}(hr.Features, of=<Event>)"
            )
        features = {k: v for k, v in namespace.items() if k not in plain}
        for feature, value in features.items():
            if not isinstance(value, Expression):
                raise DeclarationError(f"{name}.{feature} = {value!r} is not a feature: give an expression")
        if where is not None and not isinstance(where, Expression):
            raise DeclarationError(f"{name}: where={where!r} is not a condition: give an expression")
        source = stream(of)
        mine, beside = _entities(name, by, source)
        cls._declaration = Declaration(
            name, source, _key(source), mine, window, early, publish, features, beside, where, clock
        )
        _check_streams(cls._declaration)
        Plan(cls._declaration)  # raises DeclarationError where it cannot be
        return cls

    @property
    def __stream__(cls) -> Stream:
        """What it publishes, for sets that are of it."""
        if "_declaration" not in cls.__dict__:
            raise AttributeError("__stream__")
        return rows_of(cls._declaration, cls)

    def __getattr__(cls, name: str) -> Expression:
        if name.startswith("__") or name == "_declaration":
            raise AttributeError(name)
        if name not in cls._declaration.features:
            known = ", ".join(cls._declaration.features)
            raise AttributeError(f"{cls.__name__} has no feature {name!r}: it has {known}")
        return Reference(cls, name)  # type: ignore[arg-type]


class Features(metaclass=_FeaturesMeta):
    """The base of feature sets.

    of: the stream whose rows get the features: an event class, or another set, for the rows that it publishes.
    by: the field, fields or expression that tells its entities apart; one for each stream where they are called
    otherwise, by={Person: "id", Auction: "seller"}; left out, all is one. window: None for features as of each event,
    or the window whose results are published. clock: "published" for windows of the times at which events were
    published. early: how often a window's result so far is published. where: a condition on the row, which is
    published where it is true; what is folded is the same. publish: False computes the columns and publishes nothing.
    """


def declaration(features: type[Features]) -> Declaration:
    """What a Features class declares."""
    return features._declaration


def columns(features: type[Features]) -> tuple[Field, ...]:
    """The columns the set adds to its stream's rows, `Set.feature`, underscored ones too, and their kinds."""
    plan = Plan(declaration(features))
    return tuple(Field(f"{plan.name}.{n}", t.kind, t.optional) for n, t in plan.types.items())


def references(features: type[Features]) -> list[type[Features]]:
    """The sets whose columns this one reads; their operators run before its own."""
    declared = declaration(features)
    found: dict[str, type[Features]] = {}
    for expression in _all_expressions(declared):
        for one in parts(expression):
            if isinstance(one, Reference):
                found[one.set.__name__] = one.set
    return list(found.values())


def sources(features: type[Features]) -> list[Stream]:
    """The streams whose rows the set reads, its own first."""
    declared = declaration(features)
    found = {declared.of.name: declared.of}
    for aggregate in _aggregates(declared):
        if aggregate.of is not None:
            found[aggregate.of.name] = aggregate.of
    return list(found.values())


def upstream(features: type[Features]) -> type[Features] | None:
    """The set whose rows it is of, where it is of one."""
    return _set_of(declaration(features).of)


def operator(features: type[Features], memory: Memory | None = None) -> FeatureSet | WindowSet:
    """The operator of a feature set: features as of each event, or the results of its window.

    memory: the bound that its hot state shares with others'; None: none
    """
    if declaration(features).window is None:
        return FeatureSet(features, memory)
    return WindowSet(features, memory)


By = str | tuple[str, ...] | Expression


def _set_of(source: Stream) -> type[Features] | None:
    made = source.origin
    return made if isinstance(made, _FeaturesMeta) else None  # type: ignore[return-value]


def _key(source: Stream) -> str:
    """The field that keys the stream's records; empty where no field does."""
    above = _set_of(source)
    if above is not None:
        key = declaration(above).key
        return key if any(f.name == key for f in source.fields) else ""
    if isinstance(source.origin, type) and issubclass(source.origin, Event):
        return source.origin.contract.key
    return source.fields[0].name


def _check_streams(declared: Declaration) -> None:
    """A set of another's rows reads nothing beside them: how far two topics are apart would change its values."""
    others = [s for s in (a.of for a in _aggregates(declared)) if s is not None and s.name != declared.of.name]
    if others and any(_set_of(s) is not None for s in (declared.of, *others)):
        raise DeclarationError(
            f"{declared.name} is of {declared.of.name} and reads {others[0].name} beside it: results are read alone, "
            f"as they come when the events before them have been worked on, and not in one order with others"
        )
    for name in declared.beside:
        if name not in {declared.of.name, *(s.name for s in others)}:
            raise DeclarationError(f"{declared.name}: by names {name}, of which it reads nothing")


def _entities(
    name: str, by: By | Mapping[Source, By] | None, source: Stream
) -> tuple[dict[str, Expression], dict[str, dict[str, Expression]]]:
    """What tells entities apart in the set's own stream, and in those where it is called otherwise."""
    if not isinstance(by, Mapping):
        return _by(by), {}
    each = {stream(of).name: _by(one) for of, one in by.items()}
    if source.name not in each:
        raise DeclarationError(f"{name}: by={{...}} says nothing of {source.name}, the stream of the set")
    mine = each.pop(source.name)
    beside = {}
    for other, theirs in each.items():
        if len(theirs) != len(mine):
            raise DeclarationError(f"{name}: by has {len(mine)} for {source.name} and {len(theirs)} for {other}")
        beside[other] = dict(zip(mine, theirs.values(), strict=True))
    return mine, beside


def _by(by: By | None) -> dict[str, Expression]:
    if by is None:
        return {}
    if isinstance(by, Expression):
        return {by.name if isinstance(by, Col) else "key": by}
    return {name: Col(name) for name in ((by,) if isinstance(by, str) else by)}


def _all_expressions(declared: Declaration) -> Iterable[Expression]:
    yield from declared.by.values()
    yield from declared.expressions.values()
    for aggregate in _aggregates(declared):
        yield from (e for e in (aggregate.value, aggregate.where, aggregate.order) if e is not None)


def _aggregates(declared: Declaration) -> Iterable[Aggregate]:
    for expression in declared.expressions.values():
        yield from aggregates(expression)


__all__ = [
    "Declaration", "FeatureSet", "Features", "Reference", "WindowSet", "columns", "declaration", "operator",
    "references", "sources", "upstream",
]  # fmt: skip
