"""Feature sets: declared as classes, run as operators over columns.

    class Customer(Features, of=OrderLine, by="customer"):
        lines_1h = count("1h")
        returned = count("90d", of=Return) / count("90d")

Each row of the stream gets each feature as of that row: the panes of its window up to and including its own,
as they are once the row has been taken. `Customer.returned` refers to a feature from another set over the
same stream. A name with a leading underscore is computed and can be referred to, and is not published.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from headrace.streams.aggregations import Source, Stream, aggregates, stream
from headrace.streams.asof import FeatureSet
from headrace.streams.batch import Column
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
        by: str | tuple[str, ...] | Expression | None = None,
        window: Window | None = None,
        early: str | None = None,
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
        source = stream(of)
        key = of.contract.key if isinstance(of, type) and issubclass(of, Event) else source.fields[0].name
        cls._declaration = Declaration(name, source, key, _by(by), window, early, publish, features)
        Plan(cls._declaration)  # raises DeclarationError where it cannot be
        return cls

    def __getattr__(cls, name: str) -> Expression:
        if name.startswith("__") or name == "_declaration":
            raise AttributeError(name)
        if name not in cls._declaration.features:
            known = ", ".join(cls._declaration.features)
            raise AttributeError(f"{cls.__name__} has no feature {name!r}: it has {known}")
        return Reference(cls, name)  # type: ignore[arg-type]


class Features(metaclass=_FeaturesMeta):
    """The base of feature sets.

    of: the stream whose rows get the features. by: the field, fields or expression that tells its entities
    apart. window: None for features as of each event, or the window whose results are published. early: how
    often, in event time, a window's result so far is published. publish: False computes the columns and
    publishes nothing.
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
    for expression in declared.features.values():
        for aggregate in aggregates(expression):
            if aggregate.of is not None:
                found[aggregate.of.name] = aggregate.of
    return list(found.values())


def operator(features: type[Features], memory: Memory | None = None) -> FeatureSet | WindowSet:
    """The operator of a feature set: features as of each event, or the results of its window.

    memory: the bound that its hot state shares with others'; None: none
    """
    if declaration(features).window is None:
        return FeatureSet(features, memory)
    return WindowSet(features, memory)


def _by(by: str | tuple[str, ...] | Expression | None) -> dict[str, Expression]:
    if by is None:
        return {}
    if isinstance(by, Expression):
        return {by.name if isinstance(by, Col) else "key": by}
    return {name: Col(name) for name in ((by,) if isinstance(by, str) else by)}


def _all_expressions(declared: Declaration) -> Iterable[Expression]:
    yield from declared.by.values()
    for expression in declared.features.values():
        yield expression
        for aggregate in aggregates(expression):
            yield from (e for e in (aggregate.value, aggregate.where) if e is not None)


__all__ = [
    "Declaration", "FeatureSet", "Features", "Reference", "WindowSet", "columns", "declaration", "operator",
    "references", "sources",
]  # fmt: skip
