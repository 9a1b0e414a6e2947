"""Plans: what a declared feature set computes, worked out once.

A plan finds the tables that its aggregations share, what each aggregation reads of its table, and the types
of the features; and it turns the rows of a batch into what tables take, and what tables give into columns.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec
import numpy as np
from headrace.streams import kernels
from headrace.streams.aggregations import Aggregate, Stream, aggregates, covers_itself
from headrace.streams.batch import Changes, Column, Rows
from headrace.streams.durations import microseconds, text
from headrace.streams.errors import DeclarationError
from headrace.streams.event import Field
from headrace.streams.expressions import Col, Constant, Expression, Scope, Type, canonical, evaluate, parts
from headrace.streams.index import Index, Ints, Names
from headrace.streams.jsonrows import digits, printed
from headrace.streams.sessions import EARLIEST, LATEST, Sessions
from headrace.streams.spans import Spans, quoted, woven
from headrace.streams.store import Shelf
from headrace.streams.tables import ENTITY, ORDER, Accumulator, Read, Table, entities_of, listed, register, tags_of
from headrace.streams.windows import (
    MOST_COPIES,
    AllTime,
    LastN,
    Session,
    Sliding,
    Tumbling,
    Versions,
    Window,
)
from numpy.typing import NDArray

LOADED_AT_ONCE = 10_000
"""Rows of state that are turned into columns together: as Python's objects they take several times the room."""


class Declared(Protocol):
    """A Features class."""

    _declaration: Declaration


PUBLISHED = "published"
"""The clock of windows over the times at which events were published."""


@dataclass(frozen=True)
class Declaration:
    """What a Features class says.

    key:    the field of the stream that keys the published records; empty where none does
    beside: `by` in streams where other fields tell the entities apart, by the stream's name
    where:  which rows are published
    clock:  PUBLISHED, or None for event time
    """

    name: str
    of: Stream
    key: str
    by: Mapping[str, Expression]
    window: Window | None
    early: str | None
    publish: bool
    features: Mapping[str, Expression]
    beside: Mapping[str, Mapping[str, Expression]] = field(default_factory=dict)
    where: Expression | None = None
    clock: str | None = None

    def by_in(self, stream: str) -> Mapping[str, Expression]:
        """What tells the entities apart in the rows of a stream."""
        return self.beside.get(stream, self.by)

    @property
    def expressions(self) -> dict[str, Expression]:
        """The features, and the condition under the name by which messages call it."""
        return dict(self.features) if self.where is None else {**self.features, "where": self.where}

    @property
    def public(self) -> list[str]:
        return [name for name in self.features if not name.startswith("_")]


MOST_LATE_PANES = 4_000
"""Panes kept beyond the window for events that come late; with more, one idle second costs every entity too much."""


class Plan:
    """A declaration worked out: tables, what each aggregation reads of them, and the types of features."""

    def __init__(self, declared: Declaration) -> None:
        self.name = declared.name
        self.declared = declared
        self.tables: dict[str, Table] = {}
        self.sessions: dict[str, Sessions] = {}
        self.inputs: dict[str, tuple[Stream, Expression | None, dict[str, Expression]]] = {}
        self.reads: dict[str, tuple[str, Table, list[Read]]] = {}
        self.streams = {declared.of.name: declared.of}
        for expression in declared.expressions.values():
            for aggregate in aggregates(expression):
                source = aggregate.of or declared.of
                self.streams[source.name] = source
        if declared.window is not None or declared.early is not None or declared.clock is not None:
            _check_results(declared)
        self.scope = _scope(declared.of)
        self.key_types = {name: self._key_type(e, self.scope) for name, e in declared.by.items()}
        self.key_optional = any(type.optional for type in self.key_types.values())
        plain = self.scope.fields if declared.window is None else {}
        typed = dict(plain)
        for name, expression in declared.expressions.items():
            for aggregate in aggregates(expression):
                if aggregate.text not in self.reads:
                    try:
                        kind, optional = self._plan(aggregate)
                    except DeclarationError as error:
                        raise DeclarationError(f"{self.name}.{name}: {error}") from None
                    typed[aggregate.text] = Field(aggregate.text, kind, optional)
        over = "the result of a window" if declared.window is not None else declared.of.name
        inner = Scope(over, _Fields(typed, plain))
        self.types: dict[str, Type] = {}
        for name, expression in declared.features.items():
            try:
                self.types[name] = expression.type_in(inner)
            except DeclarationError as error:
                raise DeclarationError(f"{self.name}.{name}: {error}") from None
        if declared.where is not None and declared.where.type_in(inner).kind != "bool":
            raise DeclarationError(f"{self.name}: where={declared.where} is not a condition")

    def _key_type(self, expression: Expression, scope: Scope) -> Type:
        found = expression.type_in(scope)
        if found.kind not in ("str", "int", "bool", "time"):
            raise DeclarationError(
                f"{self.name}: by={expression} is {found.kind}; an entity is text or an int"
            )
        return found

    def _plan(self, aggregate: Aggregate) -> Type:
        declared = self.declared
        source = aggregate.of or declared.of
        scope = _scope(source)
        for name, expression in declared.by_in(source.name).items():
            theirs = self._key_type(expression, scope)
            if theirs.kind != self.key_types[name].kind:
                raise DeclarationError(
                    f"{expression} is {theirs.kind} in {source.name}, not as in {declared.of.name}"
                )
        if aggregate.where is not None and aggregate.where.type_in(scope).kind != "bool":
            raise DeclarationError(f"where={aggregate.where} is not a condition")
        value = aggregate.value
        found = Type("int", False) if value is None else value.type_in(scope)
        if aggregate.order is not None:
            order = aggregate.order.type_in(scope)
            if order.kind not in ("int", "float", "time"):
                raise DeclarationError(f"{aggregate}: order={aggregate.order} is neither a number nor a time")
            # Of events whose order is missing there may be nothing but these.
            found = Type(found.kind, found.optional or order.optional)
        name, mode, width, panes = self._grid(aggregate)
        behind = source.lateness + source.out_of_orderness
        late = -(-behind // width) if mode == kernels.BY_TIME else 0
        if late > MOST_LATE_PANES:
            raise DeclarationError(
                f"{aggregate}: its panes of {text(width)} would have to be kept for the {text(behind)} that events of "
                f"{source.name} may come late, and {MOST_LATE_PANES} is the most: take a longer window, or coarser "
                f"panes, as in sliding(..., pane=...)"
            )
        condition = "" if aggregate.where is None else f"[{zlib.crc32(aggregate.where.text.encode()):08x}]"
        full = f"{self.name}/{source.name}{condition}/{','.join(declared.by)}/{name}"
        table = self.tables.setdefault(full, Table(full, mode, width, 0, mode == kernels.GIVEN))
        table.ring = max(table.ring, panes + late)
        if declared.window is None and isinstance(aggregate.over, Session) and full not in self.sessions:
            self.sessions[full] = Sessions(aggregate.over.gap, behind)
            table.accumulators += [EARLIEST, LATEST]
        _, _, inputs = self.inputs.setdefault(full, (source, aggregate.where, {}))
        for part in (value, aggregate.order):
            if part is not None:
                inputs[part.text] = part
        alone = declared.window is None or len(self.streams) == 1
        sure = covers_itself(aggregate) and not self.key_optional and alone
        over = declared.window or aggregate.over
        type, reads = _reads(aggregate, over, found, panes, sure, self.key_optional)
        for read in reads:
            if read.accumulator not in table.accumulators:
                table.accumulators.append(read.accumulator)
            if read not in table.reads:
                table.reads.append(read)
        self.reads[aggregate.text] = (aggregate.kind, table, reads)
        return type

    def _grid(self, aggregate: Aggregate) -> tuple[str, int, int, int]:
        window = self.declared.window
        if window is None:
            return _grid(aggregate.over)
        if not isinstance(aggregate.over, AllTime) or aggregate.kind in ("since_last", "decayed"):
            raise DeclarationError(f"{aggregate} has no place in a set whose window is {window}")
        return _grid(window) if isinstance(window, LastN) else (str(window), kernels.GIVEN, 1, 1)

    @property
    def forgets(self) -> bool:
        """Whether an entity with panes can become idle; what is folded for all time never is."""
        return all(table.mode == kernels.BY_TIME or name in self.sessions for name, table in self.tables.items())

    def idle(self, horizon: int, slots: Ints) -> NDArray[np.bool_]:
        """Of each of these entities, whether no event at `horizon` or later can read anything that is held of it."""
        found = np.ones(len(slots), np.bool_)
        for name, table in self.tables.items():
            found &= self.sessions[name].idle(horizon, slots) if name in self.sessions else table.idle(horizon, slots)
        return found

    def forget(self, slots: Ints, into: Changes) -> None:
        """Drops all that is held of these entities, and appends what that changes."""
        for name, table in self.tables.items():
            table.forget(slots, into)
            if name in self.sessions:
                self.sessions[name].forget(slots)

    def evict(self, slots: Ints) -> None:
        """Leaves these entities to the store, which has all that is held of them."""
        for name, table in self.tables.items():
            table.evict(slots)
            if name in self.sessions:
                self.sessions[name].forget(slots)

    @property
    def size(self) -> int:
        """Bytes of all that is held, about."""
        tables = sum(table.size for table in self.tables.values())
        return tables + sum(sessions.size for sessions in self.sessions.values())

    def load(self, rows: Iterable[tuple[bytes, bytes]], entities: Index | Names) -> None:
        """Takes all rows of state into tables that hold none; those of tables no longer declared are left alone."""
        run: list[tuple[bytes, bytes]] = []
        for row in rows:
            if not row[0].startswith(ENTITY):
                name, _, rest = row[0].partition(b"\x00")
                self._load_texts(name.decode(), [(rest, row[1])])
                continue
            run.append(row)
            if len(run) == LOADED_AT_ONCE:
                self._load(run, entities)
                run = []
        self._load(run, entities)
        self._loaded()

    def attach(self, shelf: Shelf) -> None:
        """Takes the rows of state that belong to no entity: those of texts."""
        for table in self.tables.values():
            for name in table.text_names:
                table.load_texts(name, shelf.rows(name.encode() + b"\x00"))
        self._loaded()

    def _load_texts(self, name: str, rows: list[tuple[bytes, bytes]]) -> None:
        table = self.tables.get(name.rpartition("/")[0])
        if table is not None:
            table.load_texts(name, rows)

    def _load(self, run: list[tuple[bytes, bytes]], entities: Index | Names) -> None:
        if run:
            names, rests = entities_of(Spans.of([key for key, _ in run]))
            self.take(entities.encoded_numbers(names), rests, Spans.of([value for _, value in run]))

    def _loaded(self) -> None:
        for table in self.tables.values():
            table.loaded()

    def take(self, slots: Ints, rests: Spans, values: Spans) -> None:
        """Takes committed rows of entities of which nothing is held yet. rests: of their keys, behind the entity."""
        tags = tags_of(rests)
        for name, table in self.tables.items():
            rows = np.flatnonzero(tags == table.tag)
            if len(rows):
                panes = table.take_panes(slots[rows], values.take(rows))
                if name in self.sessions:
                    self.sessions[name].take(table, slots[rows], panes)
            for number, acc in table.entry_tags.items():
                rows = np.flatnonzero(tags == number)
                if len(rows):
                    table.take_entries(acc, slots[rows], rests.take(rows), values.take(rows))


def _check_results(declared: Declaration) -> None:
    """Refuses windows whose results cannot be published."""
    window, name = declared.window, declared.name
    if not isinstance(window, Tumbling | Sliding | Session | LastN):
        raise DeclarationError(
            f"{name}: window={window!r} has no results; write tumbling, sliding, session or last_n"
        )
    if declared.clock not in (None, PUBLISHED):
        raise DeclarationError(f"{name}: clock={declared.clock!r} is unknown; write clock={PUBLISHED!r}, or nothing")
    if isinstance(window, Sliding) and window.every is None and window.size // window.pane > MOST_COPIES:
        raise DeclarationError(
            f"{name}: every event lies in {window.size // window.pane} windows of {window}, and {MOST_COPIES} is the "
            f"most: say how often a result comes, as in sliding({text(window.size)!r}, every=...)"
        )
    if declared.early is not None and (isinstance(window, LastN) or microseconds(declared.early) <= 0):
        raise DeclarationError(
            f"{name}: early={declared.early!r} is a span above 0, for windows that end with time"
        )


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
    if isinstance(over, Versions):
        return str(over), kernels.VERSIONS, 1, over.n
    if isinstance(over, LastN):
        return str(over), kernels.BY_COUNT, 1, over.n
    return str(over), kernels.GIVEN, 1, 1


def _reads(
    aggregate: Aggregate, over: Window, of: Type, panes: int, sure: bool, keyless: bool
) -> tuple[Type, list[Read]]:
    """The type of an aggregation over values of a type, and what it reads of its table. over: its window."""
    kind, text = aggregate.kind, "" if aggregate.value is None else aggregate.value.text
    counted = kernels.FLOATED if keyless else kernels.PLAIN
    exact = of.kind in ("int", "bool", "time") and not of.optional

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
    order = "" if aggregate.order is None else aggregate.order.text
    if kind in ("first", "last") and of.kind == "str":
        operation = kernels.FIRST if kind == "first" else kernels.LAST
        return Type("str", of.optional or not sure), one(operation, kernels.PLAIN, texts=True, order=order)
    timed = kind in ("min", "max", "first", "last") and of.kind == "time"
    if not (of.number or timed):
        raise DeclarationError(f"{aggregate} needs a number, and {aggregate.value} is {of.kind}")
    if kind == "quantile":
        ranked = isinstance(over, LastN)
        operation, how = (kernels.FMIN, kernels.RANKED) if ranked else (kernels.BINS, kernels.QUANTILE)
        read = Read(Accumulator(operation, text, True), panes, how, option=aggregate.option)
        return Type("float", True), [read]
    if kind == "variance":
        return Type("float", True), one(kernels.MOMENTS, kernels.VARIANCE, floating=True)
    if kind in ("sum", "mean"):
        total = one(kernels.ISUM, counted) if exact else one(kernels.FSUM, kernels.PLAIN, floating=True)
        if kind == "sum":
            return Type("float" if of.kind == "float" else "int", keyless or not exact), total
        of_all = Accumulator(kernels.COUNT, "") if exact else Accumulator(kernels.PRESENT, text, True)
        return Type("float", True), [*total, Read(of_all, panes, counted)]
    result = Type("int" if of.kind == "bool" else of.kind, not (sure and exact))
    how = kernels.PLAIN if sure or not exact else kernels.FLOATED_OR_MISSING
    if kind in ("first", "last"):
        operation = kernels.FIRST if kind == "first" else kernels.LAST
        return result, one(operation, how, floating=not exact, order=order)
    if kind == "min":
        return result, one(kernels.IMIN if exact else kernels.FMIN, how, floating=not exact)
    return result, one(kernels.IMAX if exact else kernels.FMAX, how, floating=not exact)


def _ordered(column: Column) -> Ints:
    """Numbers that compare as these do; the least of all where one is missing."""
    if column.dtype != np.float64:
        return np.asarray(canonical(column, Type("int", False)), np.int64)
    bits = (column + 0.0).view(np.int64)
    ordered = np.where(bits < 0, bits ^ kernels.INT_MAX, bits)
    return np.where(np.isnan(column), kernels.INT_MIN, ordered)


def index(plan: Plan, told: bool = False) -> Index | Names:
    """Numbers for the entities of a plan. told: keep what `fresh` tells."""
    kinds = [type.kind for type in plan.key_types.values()]
    # A bool is also the number of one that may be missing: equal as values, not as texts.
    by_bytes = kinds in (["str"], ["int"]) or (len(kinds) > 1 and "bool" not in kinds)
    return Names(told) if by_bytes else Index(told)


def numbered(entities: Index | Names, by: Mapping[str, Expression], rows: Rows) -> Ints:
    """The number of the entity of each row; of them all where nothing tells entities apart."""
    if not by:
        return np.full(len(rows), entities.number(()))
    if isinstance(entities, Names):
        texts = _encoded_keys(by, rows)
        if texts is not None:
            return entities.numbers(texts)
        if len(by) == 1:
            [expression] = by.values()
            column = evaluate(expression, rows.fields, {}, len(rows))
            if column.dtype == np.int64:
                return entities.numbers(digits(column, b"\0"))
    return entities.numbers(keys(by, rows))


def _encoded_keys(by: Mapping[str, Expression], rows: Rows) -> Spans | None:
    """The entity of each row as `index.encoded` writes it, by columns; None where a single text came as no span."""
    if len(by) == 1:
        [expression] = by.values()
        return rows.texts(expression.name) if isinstance(expression, Col) else None
    parts = [_encoded_part(expression, rows) for expression in by.values()]
    found = woven([b"\0[", *[b","] * (len(parts) - 1), b"]"], parts)
    missing = np.logical_or.reduce([part.length < 0 for part in parts])
    return Spans(found.data, found.start, np.where(missing, -1, found.length))


def _encoded_part(expression: Expression, rows: Rows) -> Spans:
    """A part of each entity as JSON, missing where there is none."""
    texts = rows.texts(expression.name) if isinstance(expression, Col) else None
    if texts is not None:
        found, missing = quoted(texts), texts.length < 0
    else:
        column = evaluate(expression, rows.fields, {}, len(rows))
        if column.dtype == np.object_:
            return Spans.of([None if v is None else msgspec.json.encode(v) for v in column.tolist()])
        found, missing = printed(column, Type("int", True)), np.isnan(column)
    return Spans(found.data, found.start, np.where(missing, -1, found.length))


def keys(by: Mapping[str, Expression], rows: Rows) -> list[object]:
    """The entity of each row: a value, or a tuple of values; None where any of them is missing."""
    found: list[list[object]] = []
    for expression in by.values():
        column = evaluate(expression, rows.fields, {}, len(rows))
        if column.dtype == np.float64:  # ints that may be missing; an entity is the int in every stream
            found.append([None if v != v else int(v) for v in column.tolist()])
        else:
            found.append(listed(column))
    if len(found) == 1:
        return found[0]
    return [None if None in entity else entity for entity in zip(*found, strict=True)]


def taken(
    table: Table,
    rows: Rows | None,
    condition: Expression | None,
    inputs: Mapping[str, Expression],
    known: dict[str, Column],
) -> tuple[Ints, NDArray[np.bool_] | None]:
    """What a table folds, int64[column, row], the bits of floats; and which rows it takes (None: all).

    known: what has been computed of these rows, by text; what is computed joins it.
    """
    if rows is None:
        return np.zeros((len(table.columns), 0), np.int64), None
    kept = None
    if condition is not None:
        truth = evaluate(condition, rows.fields, known, len(rows))
        kept = canonical(truth, Type("bool", False)).astype(np.bool_)
    return _values(table, rows, inputs, known), kept


def _values(table: Table, rows: Rows, inputs: Mapping[str, Expression], known: dict[str, Column]) -> Ints:
    count = len(rows)
    values = np.zeros((len(table.columns), count), np.int64)
    for i, (content, floating, coded) in enumerate(table.columns):
        if content not in inputs:
            if floating:
                values[i] = _ONE_BITS
            continue
        expression = inputs[content]
        texts = rows.texts(expression.name) if isinstance(expression, Col) else None
        if texts is not None and coded in (kernels.FIRST, kernels.LAST):
            values[i] = table.hold(content, texts)
            continue
        column = evaluate(expression, rows.fields, known, count)
        if coded == ORDER:
            values[i] = _ordered(column)
        elif coded in (kernels.FIRST, kernels.LAST):
            values[i] = table.hold(content, listed(column))
        elif coded == kernels.DISTINCT:
            values[i] = table.values[content].numbers(listed(column))
        elif coded == kernels.REGISTERS:
            values[i] = [register(value) for value in listed(column)]
        elif floating:
            values[i] = column.astype(np.float64).view(np.int64)
        else:
            values[i] = canonical(column, Type("int", False))
    return values


_ONE_BITS = int(np.ones(1).view(np.int64)[0])


def _texts(index: Index, numbers: Ints) -> Column:
    found = np.empty(len(numbers), object)
    count = len(index)
    found[:] = [index.met[n] if 0 <= n < count else None for n in numbers.tolist()]
    return found


def result(table: Table, kind: str, reads: list[Read], found: Ints) -> Column:
    """The column of an aggregation, from what its table read."""
    read: list[Column] = []
    for one in reads:
        bits = found[table.read_index[one]]
        if one.accumulator.texts:
            return _texts(table.texts[one.accumulator.values], bits)
        read.append(bits.view(np.float64) if one.floating else bits)
    if kind != "mean":
        return read[0]
    total, count = read
    with np.errstate(all="ignore"):
        return np.where(count == 0, np.nan, total / count)


TOLD_AT_ONCE = 2_000
"""Rows of state told at a time: the columns of so many are nothing beside the state itself."""


def entity(plan: Plan, value: object) -> dict[str, object]:
    """An entity by the names that tell it apart."""
    names = list(plan.key_types)
    values = value if isinstance(value, tuple) else (value,)
    return dict(zip(names, values, strict=True))


def told(plan: Plan, known: dict[str, Column], rows: int) -> list[dict[str, Any]]:
    """The features of rows of state, from their aggregates; those that need an event as the aggregates in them."""
    columns: dict[str, list[Any]] = {}
    aggregated: dict[str, list[Any]] = {}
    for name, expression in plan.declared.features.items():
        if any(not part.args and not isinstance(part, Aggregate | Constant) for part in parts(expression)):
            for aggregate in aggregates(expression):
                aggregated[aggregate.text] = listed(known[aggregate.text])
        else:
            column = canonical(evaluate(expression, {}, known, rows), plan.types[name])
            if column.dtype == np.float64:
                column = np.where(np.isfinite(column), column, np.nan)
            columns[name] = [msgspec.Raw(text or b"null") for text in printed(column, plan.types[name])]
    made: list[dict[str, Any]] = []
    for i in range(rows):
        row: dict[str, Any] = {"features": {name: values[i] for name, values in columns.items()}}
        if aggregated:
            row["aggregates"] = {name: values[i] for name, values in aggregated.items()}
        made.append(row)
    return made
