"""Features as of each event: the operator."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from headrace.streams import kernels
from headrace.streams.batch import NEVER, Batch, Block, Changes, Column, Fields, Outputs, Rows, texts_of
from headrace.streams.expressions import Col, Type, canonical, evaluate
from headrace.streams.hotset import HotSet
from headrace.streams.index import Ints
from headrace.streams.inputs import WAKE
from headrace.streams.jsonrows import Piece, event_ids, joined, printed, record_keys, written
from headrace.streams.memory import Memory, Residence
from headrace.streams.plans import TOLD_AT_ONCE, Declared, Plan, entity, result, taken, told
from headrace.streams.resultrows import missing
from headrace.streams.spans import Spans
from headrace.streams.store import Shelf
from headrace.streams.tables import Table, nothing


class FeatureSet:
    """The operator of features as of each event. See `batch.Operator` for its contract.

    It adds a column `Set.feature` for each feature to the rows of its stream, and appends one record a row, of those
    that hold `where`, to `features.<Set>`, keyed as the event: {"id", <by>, "at", <public features>}. An entity that
    has been idle for longer than every window of the set, lateness and `WAKE` is forgotten; what is folded for all
    time, or over the last events, stays. Once memory is short, entities leave for the store and come back from it when
    they come again.
    """

    def __init__(self, features: Declared, memory: Memory | None = None) -> None:
        plan = self._plan = Plan(features._declaration)
        self.declared = plan.declared
        self.name = plan.name
        self.types = plan.types
        self._tables = plan.tables
        self._inputs = plan.inputs
        self._reads = plan.reads
        self._hot = HotSet(plan, memory)
        self.entities = self._hot.entities
        self._topic = f"features.{self.name}"
        self._published = self.declared.public if self.declared.publish else []
        self._behind = max(source.lateness for source in plan.streams.values()) + WAKE
        self._watermark = NEVER
        self._events = 0

    @property
    def residence(self) -> Residence:
        """What is hot."""
        return self._hot.residence

    @property
    def ignored(self) -> int:
        """Events left out of some window because their pane had left its ring."""
        gone = sum(sessions.ignored for sessions in self._plan.sessions.values())
        return gone + sum(table.ignored for table in self._tables.values())

    def process(self, batch: Batch, out: Outputs) -> None:
        streams = {name: rows for name, rows in batch.streams.items() if len(rows)}
        main = streams.get(self.declared.of.name)
        self._events += len(batch)
        if len(batch):
            self._watermark = max(self._watermark, int(batch.watermark[-1]))
        known: dict[str, Column] = {}
        slots: dict[str, Ints] = {}
        inputs: dict[str, dict[str, Column]] = {name: {} for name in streams}
        for name, table in self._tables.items():
            source = self._inputs[name][0].name
            for wanted in (source, self.declared.of.name):
                if wanted in streams and wanted not in slots:
                    slots[wanted] = self._hot.numbers(self.declared.by_in(wanted), streams[wanted])
            self._advance(name, table, batch, streams.get(source), main, slots, inputs.get(source, {}), known)
        if main is not None:
            self._add_columns(main, known)
            if self._published:
                self._publish(batch, self._kept(main, known), out)

    def _advance(
        self,
        name: str,
        table: Table,
        batch: Batch,
        source: Rows | None,
        main: Rows | None,
        slots: dict[str, Ints],
        computed: dict[str, Column],
        known: dict[str, Column],
    ) -> None:
        stream, condition, inputs = self._inputs[name]
        values, kept = taken(table, source, condition, inputs, computed)
        at, slot = (source.at, slots[stream.name]) if source is not None else (_NONE, _NONE)
        if kept is not None:
            at, slot, values = at[kept], slot[kept], np.ascontiguousarray(values[:, kept])
        events = kernels.Events(at, slot, batch.time[at], _NONE, values, values.view(np.float64))
        at, entity = (main.at, slots[self.declared.of.name]) if main is not None else (_NONE, _NONE)
        wanted = kernels.Events(at, entity, batch.time[at], _NONE, _NO_VALUES, _NO_FLOATS)
        sessions = self._plan.sessions.get(name)
        found = table.advance(events, wanted) if sessions is None else sessions.advance(table, events, wanted)
        if main is not None:
            for text, (kind, owner, reads) in self._reads.items():
                if owner is table:
                    known[text] = result(table, kind, reads, found)

    def _add_columns(self, main: Rows, known: dict[str, Column]) -> None:
        texts = texts_of(main.fields)
        for name, expression in self.declared.features.items():
            if isinstance(expression, Col) and expression.name in texts and isinstance(main.fields, Fields):
                main.fields.carry(f"{self.name}.{name}", texts[expression.name])
                continue
            column = canonical(evaluate(expression, main.fields, known, len(main)), self.types[name])
            if column.dtype == np.float64 and not np.isfinite(column).all():
                column = np.where(np.isfinite(column), column, np.nan)
            main.fields[f"{self.name}.{name}"] = column

    def _kept(self, main: Rows, known: dict[str, Column]) -> Rows:
        """The rows that are published."""
        condition = self.declared.where
        if condition is None:
            return main
        holds = canonical(evaluate(condition, main.fields, known, len(main)), Type("bool", False))
        return main if holds.all() else main.only(np.flatnonzero(holds))

    def _publish(self, batch: Batch, main: Rows, out: Outputs) -> None:
        if not len(main):
            return
        named: dict[str, Spans | Piece] = {"id": event_ids(main)}
        for name, type in self._plan.key_types.items():
            named[name] = self._entity(main, name, type)
        named["at"] = printed(batch.time[main.at], Type("time", False))
        for name in self._published:
            column = f"{self.name}.{name}"
            texts = main.texts(column)
            if texts is not None:
                named[name] = written(texts)
                continue
            named[name] = text = printed(main.fields[column], self.types[name])
            if self.types[name].kind == "float":  # as a prediction tells it too; it tells an integer as a float
                main.encoded[column] = text
        key = self.declared.key
        keys = record_keys(main, key) if key else missing(len(main))
        out.append(Block(self._topic, keys, joined(named)))

    def _entity(self, main: Rows, name: str, type: Type) -> Spans | Piece:
        """The column `name` of what tells the entities apart, as JSON."""
        expression = self.declared.by[name]
        texts = main.texts(expression.name) if isinstance(expression, Col) and not type.optional else None
        if texts is not None:
            return written(texts)
        return printed(canonical(evaluate(expression, main.fields, {}, len(main)), type), type)

    def changes(self) -> Changes:
        found: Changes = []
        for table in self._tables.values():
            table.changes(found)
        self._hot.changes(self._events, self._watermark - self._behind, found)
        self._events = 0
        return found

    def load(self, rows: Iterable[tuple[bytes, bytes]]) -> None:
        self._plan.load(rows, self.entities)

    def attach(self, shelf: Shelf) -> None:
        self._hot.attach(shelf)

    def kept(self) -> None:
        self._hot.kept()

    def told(self, at: int) -> Iterator[dict[str, Any]]:
        """Each entity with its features as of a time, without an event of its own then.

        Where a feature needs the event at hand, the aggregates that it is made of are told instead.
        """
        for slots in self._hot.every(TOLD_AT_ONCE):
            known: dict[str, Column] = {}
            for name, table in self._tables.items():
                sessions = self._plan.sessions.get(name)
                times = np.full(len(slots), at, np.int64)
                asked = kernels.Events(np.arange(len(slots)), slots, times, _NONE, _NO_VALUES, _NO_FLOATS)
                if sessions is None:
                    found = table.advance(nothing(), asked)
                else:
                    found = sessions.advance(table, nothing(), asked)
                for text, (kind, owner, reads) in self._reads.items():
                    if owner is table:
                        known[text] = result(table, kind, reads, found)
            for number, row in zip(slots.tolist(), told(self._plan, known, len(slots)), strict=True):
                yield {"entity": entity(self._plan, self.entities.value(number)), **row}

    def clear(self) -> None:
        self._watermark = NEVER
        self._events = 0
        self._hot.clear()


_NONE = np.zeros(0, np.int64)
_NO_VALUES = np.zeros((0, 0), np.int64)
_NO_FLOATS = _NO_VALUES.view(np.float64)
