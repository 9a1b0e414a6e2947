"""Feature sets: declared as classes, run as operators over columns.

    class Customer(Features, of=OrderLine, by="customer"):
        lines_1h = count("1h")
        returned = count("90d", of=Return) / count("90d")

Each row of the stream gets each feature as of that row: the panes of its window up to and including its own,
as they are once the row has been taken. `Customer.returned` refers to a feature from another set over the
same stream. A name with a leading underscore is computed and can be referred to, and is not published.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from headrace.streams import kernels
from headrace.streams.aggregations import Aggregate, Source, Stream, aggregates, covers_itself, stream
from headrace.streams.batch import Batch, Change, Column, Outputs, Record, Rows
from headrace.streams.durations import text
from headrace.streams.errors import DeclarationError
from headrace.streams.event import Event, Field
from headrace.streams.expressions import Col, Expression, Scope, Type, canonical, evaluate, parts
from headrace.streams.tables import Accumulator, Index, Ints, Read, Table, listed, register
from headrace.streams.windows import AllTime, LastN, Sliding, Tumbling, Window


@dataclass(frozen=True)
class Declaration:
    """What a Features class says. key: the field of the stream that keys the published records."""

    name: str
    of: Stream
    key: str
    by: Mapping[str, Expression]
    window: Window | None
    early: str | None
    publish: bool
    features: Mapping[str, Expression]

    @property
    def public(self) -> list[str]:
        return [name for name in self.features if not name.startswith("_")]


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
            raise DeclarationError(f"feature set {name} lacks its stream: write class {name}(hr.Features, of=<Event>)")
        features = {k: v for k, v in namespace.items() if k not in plain}
        for feature, value in features.items():
            if not isinstance(value, Expression):
                raise DeclarationError(f"{name}.{feature} = {value!r} is not a feature: give an expression")
        source = stream(of)
        key = of.contract.key if isinstance(of, type) and issubclass(of, Event) else source.fields[0].name
        cls._declaration = Declaration(name, source, key, _by(by), window, early, publish, features)
        _check(cls._declaration)
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
    plan = _Plan(declaration(features))
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


def _check(declared: Declaration) -> None:
    if declared.window is None:
        _Plan(declared)


_MOST_LATE_PANES = 4_000
"""Panes kept beyond the window for events that come late: more lateness than that reads short of its tail."""


class _Plan:
    """A declaration worked out: tables, what each aggregation reads of them, and the types of features."""

    def __init__(self, declared: Declaration) -> None:
        self.name = declared.name
        self.declared = declared
        self.tables: dict[str, Table] = {}
        self.inputs: dict[str, tuple[Stream, Expression | None, dict[str, Expression]]] = {}
        self.reads: dict[str, tuple[str, Table, list[Read]]] = {}
        self.scope = _scope(declared.of)
        self.key_optional = any(self._key_type(e, self.scope).optional for e in declared.by.values())
        typed = dict(self.scope.fields)
        for name, expression in declared.features.items():
            for aggregate in aggregates(expression):
                if aggregate.text not in self.reads:
                    try:
                        kind, optional = self._plan(aggregate)
                    except DeclarationError as error:
                        raise DeclarationError(f"{self.name}.{name}: {error}") from None
                    typed[aggregate.text] = Field(aggregate.text, kind, optional)
        inner = Scope(declared.of.name, _Fields(typed, self.scope.fields))
        self.types: dict[str, Type] = {}
        for name, expression in declared.features.items():
            try:
                self.types[name] = expression.type_in(inner)
            except DeclarationError as error:
                raise DeclarationError(f"{self.name}.{name}: {error}") from None

    def _key_type(self, expression: Expression, scope: Scope) -> Type:
        found = expression.type_in(scope)
        if found.kind not in ("str", "int", "bool", "time"):
            raise DeclarationError(f"{self.name}: by={expression} is {found.kind}; an entity is text or an int")
        return found

    def _plan(self, aggregate: Aggregate) -> Type:
        declared = self.declared
        if not declared.by:
            raise DeclarationError(f"{aggregate} needs entities: add by=<field> to the class")
        source = aggregate.of or declared.of
        scope = _scope(source)
        for expression in declared.by.values():
            theirs = self._key_type(expression, scope)
            if theirs.kind != self._key_type(expression, self.scope).kind:
                raise DeclarationError(f"{expression} is {theirs.kind} in {source.name}, not as in {declared.of.name}")
        if aggregate.where is not None and aggregate.where.type_in(scope).kind != "bool":
            raise DeclarationError(f"where={aggregate.where} is not a condition")
        value = aggregate.value
        found = Type("int", False) if value is None else value.type_in(scope)
        name, mode, width, panes = _grid(aggregate.over)
        late = min(-(-source.lateness // width), _MOST_LATE_PANES) if mode == kernels.BY_TIME else 0
        condition = "" if aggregate.where is None else f"[{zlib.crc32(aggregate.where.text.encode()):08x}]"
        full = f"{self.name}/{source.name}{condition}/{','.join(declared.by)}/{name}"
        table = self.tables.setdefault(full, Table(full, mode, width, 0))
        table.ring = max(table.ring, panes + late)
        _, _, inputs = self.inputs.setdefault(full, (source, aggregate.where, {}))
        if value is not None:
            inputs[value.text] = value
        sure = covers_itself(aggregate) and not self.key_optional
        type, reads = _reads(aggregate, found, panes, sure, self.key_optional)
        for read in reads:
            if read.accumulator not in table.accumulators:
                table.accumulators.append(read.accumulator)
            if read not in table.reads:
                table.reads.append(read)
        self.reads[aggregate.text] = (aggregate.kind, table, reads)
        return type


class _Fields(dict[str, Field]):
    """Fields and aggregations by name; iterates over the fields alone, as messages list them."""

    def __init__(self, all: Mapping[str, Field], plain: Mapping[str, Field]) -> None:
        super().__init__(all)
        self._plain = plain

    def __iter__(self) -> Any:
        return iter(self._plain)


def _scope(of: Stream) -> Scope:
    return Scope(of.name, {f.name: f for f in of.fields})


def _grid(over: Window) -> tuple[str, int, int, int]:
    """The name of the panes, how they are numbered, their microseconds, and how many a window has."""
    if isinstance(over, AllTime):
        return "all", kernels.ALL_TIME, 1, 1
    if isinstance(over, Sliding):
        return text(over.pane), kernels.BY_TIME, over.pane, over.size // over.pane
    if isinstance(over, Tumbling):
        return text(over.size), kernels.BY_TIME, over.size, 1
    if isinstance(over, LastN):
        return str(over), kernels.BY_COUNT, 1, over.n
    raise DeclarationError(f"{over} cannot be read as of each event")


def _reads(aggregate: Aggregate, of: Type, panes: int, sure: bool, keyless: bool) -> tuple[Type, list[Read]]:
    """The type of an aggregation over values of a type, and what it reads of its table."""
    kind, text = aggregate.kind, "" if aggregate.value is None else aggregate.value.text
    counted = kernels.FLOATED if keyless else kernels.PLAIN
    exact = of.kind in ("int", "bool", "time") and not (of.optional and of.kind != "bool")

    def one(operation: int, how: int, **more: Any) -> list[Read]:
        return [Read(Accumulator(operation, text, **more), panes, how)]

    if kind == "count":
        return Type("int", keyless), one(kernels.COUNT, counted)
    if kind == "distinct":
        if of.kind == "object":
            raise DeclarationError(f"{aggregate}: {aggregate.value} is neither text nor a number nor a time")
        return Type("int", keyless), one(kernels.DISTINCT, counted)
    if kind == "approximate":
        return Type("int", True), one(kernels.REGISTERS, kernels.CARDINALITY)
    if kind == "since_last":
        return Type("float", True), [Read(Accumulator(kernels.LATEST, text), 1, kernels.SINCE, True)]
    if kind == "decayed":
        if not of.number:
            raise DeclarationError(f"{aggregate} needs a number, and {aggregate.value} is {of.kind}")
        return Type("float", True), one(kernels.DECAYED, kernels.FADED, floating=True, rate=aggregate.option)
    timed = kind in ("min", "max", "first", "last") and of.kind == "time"
    if not (of.number or timed):
        raise DeclarationError(f"{aggregate} needs a number, and {aggregate.value} is {of.kind}")
    if kind == "quantile":
        ranked = isinstance(aggregate.over, LastN)
        operation, how = (kernels.FMIN, kernels.RANKED) if ranked else (kernels.BINS, kernels.QUANTILE)
        read = Read(Accumulator(operation, text, True), panes, how, option=aggregate.option)
        return Type("float", True), [read]
    if kind == "variance":
        return Type("float", True), one(kernels.MOMENTS, kernels.VARIANCE, floating=True)
    if kind in ("sum", "mean"):
        total = one(kernels.ISUM, counted) if exact else one(kernels.FSUM, kernels.PLAIN, floating=True)
        if kind == "sum":
            return Type("int" if exact or of.kind == "int" else "float", keyless or not exact), total
        of_all = Accumulator(kernels.COUNT, "") if exact else Accumulator(kernels.PRESENT, text, True)
        return Type("float", True), [*total, Read(of_all, panes, counted)]
    result = Type("int" if of.kind == "bool" else of.kind, not (sure and exact))
    how = kernels.PLAIN if sure or not exact else kernels.FLOATED_OR_MISSING
    if kind in ("first", "last"):
        return result, one(kernels.FIRST if kind == "first" else kernels.LAST, how, floating=not exact)
    if kind == "min":
        return result, one(kernels.IMIN if exact else kernels.FMIN, how, floating=not exact)
    return result, one(kernels.IMAX if exact else kernels.FMAX, how, floating=not exact)


class FeatureSet:
    """The operator of features as of each event. See `batch.Operator` for its contract.

    It adds a column `Set.feature` for each feature to the rows of its stream, and appends one record a row to
    `features.<Set>`, keyed as the event: {"id", <by>, "at", <public features>}.
    """

    def __init__(self, features: type[Features]) -> None:
        plan = _Plan(declaration(features))
        self.declared = plan.declared
        self.name = plan.name
        self.types = plan.types
        self.entities = Index()
        self._tables = plan.tables
        self._inputs = plan.inputs
        self._reads = plan.reads
        for table in self._tables.values():
            table.seal(self.entities)
        self._topic = f"features.{self.name}"
        self._published = self.declared.public if self.declared.publish else []

    @property
    def ignored(self) -> int:
        """Events left out of some window because their pane had left its ring."""
        return sum(table.ignored for table in self._tables.values())

    def process(self, batch: Batch, out: Outputs) -> None:
        streams = {name: rows for name, rows in batch.streams.items() if len(rows)}
        main = streams.get(self.declared.of.name)
        known: dict[str, Column] = {}
        slots: dict[str, Ints] = {}
        for name, table in self._tables.items():
            source = self._inputs[name][0].name
            for wanted in (source, self.declared.of.name):
                if wanted in streams and wanted not in slots:
                    slots[wanted] = self._slots(streams[wanted])
            self._advance(name, table, batch, streams.get(source), main, slots, known)
        if main is not None:
            self._add_columns(main, known)
            if self._published:
                self._publish(batch, main, out)

    def _slots(self, rows: Rows) -> Ints:
        return self.entities.numbers(keys(self.declared.by, rows))

    def _advance(
        self,
        name: str,
        table: Table,
        batch: Batch,
        source: Rows | None,
        main: Rows | None,
        slots: dict[str, Ints],
        known: dict[str, Column],
    ) -> None:
        stream, condition, inputs = self._inputs[name]
        rows, taken, slot = source, _NONE, _NONE
        if rows is not None:
            taken, slot = rows.at, slots[stream.name]
        values = _values(table, rows, inputs)
        if rows is not None and condition is not None:
            kept = canonical(evaluate(condition, rows.fields, {}, len(rows)), Type("bool", False))
            taken, slot, values = taken[kept], slot[kept], np.ascontiguousarray(values[:, kept])
        at, entity = (main.at, slots[self.declared.of.name]) if main is not None else (_NONE, _NONE)
        found = table.advance(
            kernels.Events(taken, slot, batch.time[taken], _NONE, values, values.view(np.float64)),
            kernels.Events(at, entity, batch.time[at], _NONE, _NO_VALUES, _NO_FLOATS),
        )
        if main is not None:
            for text, (kind, owner, reads) in self._reads.items():
                if owner is table:
                    known[text] = result(table, kind, reads, found)

    def _add_columns(self, main: Rows, known: dict[str, Column]) -> None:
        for name, expression in self.declared.features.items():
            column = canonical(evaluate(expression, main.fields, known, len(main)), self.types[name])
            if column.dtype == np.float64 and not np.isfinite(column).all():
                column = np.where(np.isfinite(column), column, np.nan)
            main.fields[f"{self.name}.{name}"] = column

    def _publish(self, batch: Batch, main: Rows, out: Outputs) -> None:
        count = len(main)
        named: dict[str, list[bytes] | list[str]] = {
            "id": [f'"{main.topic}-{main.partition}-{offset}"'.encode() for offset in main.offset.tolist()]
        }
        for name, expression in self.declared.by.items():
            scope = _scope(self.declared.of)
            type = expression.type_in(scope)
            named[name] = printed(canonical(evaluate(expression, main.fields, {}, count), type), type)
        named["at"] = printed(batch.time[main.at], Type("time", False))
        for name in self._published:
            named[name] = printed(main.fields[f"{self.name}.{name}"], self.types[name])
        topic = self._topic
        names = [str(k).encode() for k in main.fields[self.declared.key].tolist()]
        for key, value in zip(names, joined(named), strict=True):
            out.append(Record(topic, key, value))

    def changes(self) -> list[Change]:
        found: list[Change] = []
        for table in self._tables.values():
            table.changes(found)
        return found

    def load(self, rows: Iterable[tuple[bytes, bytes]]) -> None:
        by_table: dict[str, list[tuple[bytes, bytes]]] = {name: [] for name in self._tables}
        for key, value in rows:
            name = key[: key.find(b"\x00")].decode()
            found = by_table.get(name)
            if found is None:
                found = by_table.get(name.rpartition("/")[0])
            if found is not None:  # a table that the program no longer declares stays as it is
                found.append((key, value))
        for name, theirs in by_table.items():
            self._tables[name].load(theirs)

    def clear(self) -> None:
        self.entities.clear()
        for table in self._tables.values():
            table.clear()


_NONE = np.zeros(0, np.int64)
_NO_VALUES = np.zeros((0, 0), np.int64)
_NO_FLOATS = _NO_VALUES.view(np.float64)


def operator(features: type[Features]) -> FeatureSet:
    """The operator of a feature set."""
    return FeatureSet(features)


def keys(by: Mapping[str, Expression], rows: Rows) -> list[object]:
    """The entity of each row: a value, or a tuple of values; None where any of them is missing."""
    found = [listed(evaluate(e, rows.fields, {}, len(rows))) for e in by.values()]
    if len(found) == 1:
        return found[0]
    return [None if None in entity else entity for entity in zip(*found, strict=True)]


def _values(table: Table, rows: Rows | None, inputs: Mapping[str, Expression]) -> Ints:
    """The columns that a table folds, as the bits of their values: int64[column, row]."""
    count = 0 if rows is None else len(rows)
    values = np.zeros((len(table.columns), count), np.int64)
    if rows is None:
        return values
    known: dict[str, Column] = {}
    for i, (content, floating, coded) in enumerate(table.columns):
        if content not in inputs:
            if floating:
                values[i] = _ONE_BITS
            continue
        column = evaluate(inputs[content], rows.fields, known, count)
        if coded == kernels.DISTINCT:
            values[i] = table.values[content].numbers(listed(column))
        elif coded == kernels.REGISTERS:
            values[i] = [register(value) for value in listed(column)]
        elif floating:
            values[i] = column.astype(np.float64).view(np.int64)
        else:
            values[i] = column
    return values


_ONE_BITS = int(np.ones(1).view(np.int64)[0])


def result(table: Table, kind: str, reads: list[Read], found: Ints) -> Column:
    """The column of an aggregation, from what its table read."""
    read: list[Column] = []
    for one in reads:
        bits = found[table.reads.index(one)]
        read.append(bits.view(np.float64) if one.floating else bits)
    if kind != "mean":
        return read[0]
    total, count = read
    with np.errstate(all="ignore"):
        return np.where(count == 0, np.nan, total / count)


def printed(column: Column, type: Type) -> list[bytes]:
    """Each value as JSON; missing as null, times as RFC 3339 in UTC."""
    if column.dtype == object:
        return [orjson.dumps(value) for value in column.tolist()]
    if type.kind in ("int", "time") and column.dtype == np.float64:
        missing = np.isnan(column)
        texts = printed(np.where(missing, 0, column).astype(np.int64), Type(type.kind, False))
        for i in np.flatnonzero(missing).tolist():
            texts[i] = b"null"
        return texts
    if type.kind == "time":
        column = column.view("datetime64[us]")
    return orjson.dumps(np.ascontiguousarray(column), option=_PRINT)[1:-1].split(b",")


_PRINT = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NAIVE_UTC | orjson.OPT_UTC_Z


def joined(named: Mapping[str, Any]) -> Iterable[bytes]:
    """One JSON object a row from printed columns by name."""
    fields = (orjson.dumps(name).replace(b"%", b"%%") + b":%b" for name in named)
    template = b"{" + b",".join(fields) + b"}"
    return map(template.__mod__, zip(*named.values(), strict=True))


__all__ = [
    "Declaration", "FeatureSet", "Features", "Reference", "columns", "declaration", "operator",
    "references", "sources",
]  # fmt: skip
