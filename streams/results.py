"""Window results: a row for each entity and window, once the watermark has passed the window's end.

    class PerMinute(Features, of=Trade, by="symbol", window=tumbling("1m")):
        n = count()
        high = max(col.price)

A window is [start, end) for tumbling and sliding ones, and from the first event to the last for sessions,
which end when the watermark is a gap past the last. Its first final row has revision 0. An event that comes
later, within the stream's lateness, corrects it: the whole row again, with revision 1, 2, ... A session that
another absorbs, or whose start moves, is taken back by a row with `"retracted": true` if it has been
published. Windows without events give nothing. Any order of the same events within lateness ends in the same
rows, sums of floats to rounding.
"""

from __future__ import annotations

import heapq
import struct
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from headrace.streams import kernels
from headrace.streams.batch import Batch, Changes, Column, Outputs, Record, Rows
from headrace.streams.durations import microseconds, when
from headrace.streams.expressions import Type, canonical, evaluate
from headrace.streams.index import Ints, decoded
from headrace.streams.jsonrows import joined, printed
from headrace.streams.memory import Memory, Residence
from headrace.streams.plans import TOLD_AT_ONCE, Declared, Plan, entity, index, numbered, result, taken, told
from headrace.streams.tables import nothing
from headrace.streams.windows import LastN, Session, Sliding, Tumbling

_FACTS = struct.Struct(">qqq?q?")
_NUMBER = struct.Struct(">q")
_NEVER = -1
_WINDOW_BYTES = 500
"""Of an open window, as Python's objects."""
_NO_START = kernels.INT_MIN
"""The start of the last N events; sliding windows of early 1970 begin before it, so that 0 will not do."""


@dataclass(slots=True)
class _Window:
    """A window of an entity. revision: final rows published. due: when its next early row is, or -1."""

    slot: int
    number: int
    start: int
    end: int
    revision: int = 0
    closed: bool = False
    due: int = _NEVER
    shown: bool = False  # whether any row of it, early ones included, has been published

    def facts(self) -> bytes:
        return _FACTS.pack(self.start, self.end, self.revision, self.closed, self.due, self.shown)


@dataclass(slots=True, frozen=True)
class _Row:
    """A row to publish: at which position of the batch, and what it says of the window then."""

    at: int
    end: int
    start: int
    entity: bytes
    slot: int
    number: int
    revision: int
    final: bool = True
    retracted: bool = False

    @property
    def order(self) -> tuple[int, bool, int, int, bytes]:
        return self.at, not self.retracted, self.end, self.start, self.entity


@dataclass(slots=True)
class _Taken:
    """The events of one stream that fall into windows. row: of the stream's rows; number: of the window."""

    at: Ints
    row: Ints
    slot: Ints
    time: Ints
    number: Ints


class WindowSet:
    """The operator of window results. See `batch.Operator` for its contract.

    It appends a record for each row to `features.<Set>`, keyed by the entity: {<by>, "start", "end",
    "revision", "final", <public features>}. `early` on the class adds rows with `"final": false` as event
    time passes its multiples, for open windows that have changed. Results of `last_n(n, every=k)` come with
    the events and have no start. Nothing is added to the stream's own rows. All its state is hot: a window that no
    event touches still ends.
    """

    clean = False

    def __init__(self, features: Declared, memory: Memory | None = None) -> None:
        self._memory = memory or Memory()
        plan = Plan(features._declaration)
        self.declared = plan.declared
        self.name = plan.name
        self.types = plan.types
        self.ignored = 0
        self.entities = index(plan)
        self._plan = plan
        for table in plan.tables.values():
            table.seal(self.entities)
        self._window = plan.declared.window
        self._late = {source.name: source.lateness for source in plan.streams.values()}
        self._linger = max(self._late.values())
        self._early = microseconds(plan.declared.early) if plan.declared.early else 0
        self._gap = self._window.gap if isinstance(self._window, Session) else 0
        self._prefix = f"{self.name}/windows".encode() + b"\x00"
        self.clear()

    def clear(self) -> None:
        self._memory.leave(self)
        self.entities.clear()
        for table in self._plan.tables.values():
            table.clear()
        self._windows: dict[tuple[int, int], _Window] = {}
        self._sessions: defaultdict[int, list[_Window]] = defaultdict(list)
        self._closing: list[tuple[int, int, int]] = []
        self._showing: list[tuple[int, int, int]] = []
        self._leaving: list[tuple[int, int, int]] = []
        self._touched: dict[tuple[int, int], None] = {}

    def process(self, batch: Batch, out: Outputs) -> None:
        if not len(batch):
            return
        events = {
            name: self._taken(batch, name) for name in self._plan.streams if len(batch.streams.get(name, ()))
        }
        merges: list[tuple[int, int, int, int]] = []
        if isinstance(self._window, LastN):
            rows = self._counted(batch, events)
        elif isinstance(self._window, Session):
            rows, merges = _Sessions(self, batch.watermark).take(events)
        else:
            rows = self._closed(batch.watermark, events)
        rows.sort(key=lambda row: row.order)
        known = self._advance(batch, events, rows, merges)
        self._publish(rows, known, out)
        self._leave(int(batch.watermark[-1]))

    def _taken(self, batch: Batch, name: str) -> _Taken:
        """The events of a stream that are not too late, once for each window they fall into."""
        rows = batch.streams[name]
        slots = numbered(self.entities, self.declared.by, rows)
        time = batch.time[rows.at]
        late = time < batch.watermark[rows.at] - self._late[name]
        if isinstance(self._window, LastN):
            late[:] = False
        self.ignored += int(np.count_nonzero(late))
        row = np.flatnonzero(~late & (slots >= 0))
        time = time[row]
        if isinstance(self._window, Tumbling):
            number = time // self._window.size
        elif isinstance(self._window, Sliding):
            step = self._window.every or self._window.pane
            newest, oldest = time // step, (time - self._window.size) // step + 1
            copies = newest - oldest + 1
            row, number = np.repeat(row, copies), np.repeat(newest, copies)
            number -= np.arange(len(row)) - np.repeat(np.cumsum(copies) - copies, copies)
            time = np.repeat(time, copies)
        else:
            number = np.zeros(len(row), np.int64)
        return _Taken(rows.at[row], row, slots[row], time, number)

    # Tumbling and sliding windows.

    def _span(self, number: int) -> tuple[int, int]:
        if isinstance(self._window, Sliding):
            start = number * (self._window.every or self._window.pane)
            return start, start + self._window.size
        assert isinstance(self._window, Tumbling)
        return number * self._window.size, (number + 1) * self._window.size

    def _closed(self, watermark: Ints, events: dict[str, _Taken]) -> list[_Row]:
        """Registers the windows that the events fall into; the rows that close or correct windows."""
        rows: list[_Row] = []
        touched = list(_groups(list(events.values())))
        first: dict[tuple[int, int], int] = {}
        for slot, number, positions in touched:
            if (slot, number) not in self._windows:
                start, end = self._span(number)
                self._open(_Window(slot, number, start, end))
                first[slot, number] = int(positions[0])
        closed = self._close(watermark, first)
        if self._early:
            self._show(watermark, touched, closed, rows)
        for key, at in closed.items():
            self._final(self._windows[key], at, rows)
        for slot, number, positions in touched:
            window = self._windows[slot, number]
            if window.closed:
                for at in positions[positions > closed.get((slot, number), -1)].tolist():
                    self._final(window, at, rows)
        return rows

    def _open(self, window: _Window) -> None:
        key = (window.slot, window.number)
        self._windows[key] = window
        self._touched[key] = None
        heapq.heappush(self._closing, (window.end + self._gap, *key))

    def _close(self, watermark: Ints, first: dict[tuple[int, int], int]) -> dict[tuple[int, int], int]:
        """The windows that end within the batch, and the positions at which they do."""
        found = {}
        while self._closing and self._closing[0][0] <= watermark[-1]:
            end, slot, number = heapq.heappop(self._closing)
            window = self._windows.get((slot, number))
            if window is not None and not window.closed:
                at = int(np.searchsorted(watermark, end))
                found[slot, number] = max(at, first.get((slot, number), 0))
        return found

    def _final(self, window: _Window, at: int, rows: list[_Row]) -> None:
        rows.append(self._row(window, at, window.revision))
        window.revision += 1
        if not window.closed:
            window.closed = True
            heapq.heappush(self._leaving, (window.end + self._gap, window.slot, window.number))
        window.due = _NEVER
        window.shown = True
        self._touched[window.slot, window.number] = None

    def _row(self, window: _Window, at: int, revision: int, **more: bool) -> _Row:
        entity = self.entities.encoded(window.slot)
        return _Row(at, window.end, window.start, entity, window.slot, window.number, revision, **more)

    def _show(
        self,
        watermark: Ints,
        touched: list[tuple[int, int, Ints]],
        closed: dict[tuple[int, int], int],
        rows: list[_Row],
    ) -> None:
        """Adds the early rows of open windows: one at each multiple of `early` after events have come."""
        waiting = {(slot, number): positions.tolist() for slot, number, positions in touched}
        while self._showing and self._showing[0][0] <= watermark[-1]:
            _, slot, number = heapq.heappop(self._showing)
            if (slot, number) in self._windows:
                waiting.setdefault((slot, number), [])
        for key, positions in waiting.items():
            window = self._windows[key]
            if not window.closed:
                self._show_one(window, positions, watermark, closed.get(key, len(watermark)), rows)

    def _show_one(
        self, window: _Window, positions: list[int], watermark: Ints, closes: int, rows: list[_Row]
    ) -> None:
        due, i = window.due, 0
        while True:
            if due == _NEVER:
                if i == len(positions) or positions[i] >= closes:
                    break
                due = (int(watermark[positions[i]]) // self._early + 1) * self._early
            at = int(np.searchsorted(watermark, due))
            if at >= closes:
                break
            rows.append(self._row(window, at, window.revision, final=False))
            window.shown = True
            due = _NEVER
            while i < len(positions) and positions[i] <= at:
                i += 1
        if due != window.due:
            window.due = due
            self._touched[window.slot, window.number] = None
            if due != _NEVER:
                heapq.heappush(self._showing, (due, window.slot, window.number))

    # The last N events.

    def _counted(self, batch: Batch, events: dict[str, _Taken]) -> list[_Row]:
        """A row for every `every`-th event of an entity; `start` of its window counts its events."""
        assert isinstance(self._window, LastN)
        rows: list[_Row] = []
        mine = events.get(self.declared.of.name)
        every = self._window.every or 1
        for at, slot, time in _tuples(mine.at, mine.slot, mine.time) if mine is not None else ():
            window = self._windows.setdefault((slot, 0), _Window(slot, 0, 0, 0))
            window.start += 1
            self._touched[slot, 0] = None
            if window.start % every == 0:
                rows.append(_Row(at, time, _NO_START, self.entities.encoded(slot), slot, 0, 0))
        return rows

    def told(self, at: int) -> Iterator[dict[str, Any]]:
        """Each window that is open, or closed and still to be corrected, with its result so far.

        Of the last N events there is one window, and `events` counts all that came.
        """
        windows = list(self._windows.values())
        for begin in range(0, len(windows), TOLD_AT_ONCE):
            some = windows[begin : begin + TOLD_AT_ONCE]
            slot = np.array([w.slot for w in some], np.int64)
            number = np.array([w.number for w in some], np.int64)
            asked = kernels.Events(
                np.arange(len(some)), slot, np.full(len(some), at, np.int64), number, _NO_VALUES, _NO_FLOATS
            )
            known: dict[str, Column] = {}
            for table in self._plan.tables.values():
                found = table.advance(nothing(), asked)
                for text, (kind, owner, reads) in self._plan.reads.items():
                    if owner is table:
                        known[text] = result(table, kind, reads, found)
            for window, row in zip(some, told(self._plan, known, len(some)), strict=True):
                named = entity(self._plan, self.entities.value(window.slot))
                yield {"entity": named, **self._extent(window), **row}

    def _extent(self, window: _Window) -> dict[str, Any]:
        if isinstance(self._window, LastN):
            return {"events": window.start}
        span = {"start": when(window.start), "end": when(window.end)}
        return {**span, "revision": window.revision, "closed": window.closed}

    # State and records.

    def _advance(
        self,
        batch: Batch,
        events: dict[str, _Taken],
        rows: list[_Row],
        merges: list[tuple[int, int, int, int]],
    ) -> dict[str, Column]:
        """Takes the events, and reads the windows that rows publish, in the order of their positions."""
        wanted = [row for row in rows if not row.retracted]
        at = np.array([row.at for row in wanted], np.int64)
        slot = np.array([row.slot for row in wanted], np.int64)
        number = np.array([row.number for row in wanted], np.int64)
        known: dict[str, Column] = {}
        for name, table in self._plan.tables.items():
            source, condition, inputs = self._plan.inputs[name]
            theirs = events.get(source.name)
            rows_of = batch.streams.get(source.name) if theirs is not None else None
            empty = theirs if theirs is not None else _Taken(_NONE, _NONE, _NONE, _NONE, _NONE)
            took = _events(table, rows_of, empty, condition, inputs)
            ask = kernels.Events(at, slot, at, number, _NO_VALUES, _NO_FLOATS)
            read = table.advance_merging(took, ask, merges)
            for text, (kind, owner, reads) in self._plan.reads.items():
                if owner is table:
                    known[text] = result(table, kind, reads, read)
        return known

    def _publish(self, rows: list[_Row], known: dict[str, Column], out: Outputs) -> None:
        if not rows or not self.declared.publish:
            return
        whole = [row for row in rows if not row.retracted]
        values: dict[str, Sequence[bytes | None]] = {}
        for name in self.declared.public:
            column = canonical(
                evaluate(self.declared.features[name], {}, known, len(whole)), self.types[name]
            )
            if column.dtype == np.float64:
                column = np.where(np.isfinite(column), column, np.nan)
            values[name] = printed(column, self.types[name])
        texts = iter(list(joined(self._head(whole) | values)) if whole else ())
        gone = [row for row in rows if row.retracted]
        retracted = iter(
            list(joined(self._head(gone) | {"retracted": [b"true"] * len(gone)})) if gone else ()
        )
        topic = f"features.{self.name}"
        for row in rows:
            value = next(retracted if row.retracted else texts)
            out.append(Record(topic, self._key(row.slot), value))

    def _head(self, rows: list[_Row]) -> dict[str, Sequence[bytes | None]]:
        """The printed columns that tell whose row it is and of which window."""
        found: dict[str, Sequence[bytes | None]] = {}
        entities = [self.entities.value(row.slot) for row in rows]
        for i, (name, type) in enumerate(self._plan.key_types.items()):
            single = [e[i] if isinstance(e, tuple) else e for e in entities]
            if type.kind == "time":
                found[name] = printed(np.array(single, np.int64), Type("time", False))
            else:
                found[name] = [orjson.dumps(value) for value in single]
        moments = Type("time", True)
        start = np.array([row.start if row.start != _NO_START else np.nan for row in rows], np.float64)
        found["start"] = printed(start, moments)
        found["end"] = printed(np.array([row.end for row in rows], np.int64), Type("time", False))
        found["revision"] = [str(row.revision).encode() for row in rows]
        found["final"] = [b"true" if row.final else b"false" for row in rows]
        return found

    def _key(self, slot: int) -> bytes:
        entity = self.entities.value(slot)
        if not isinstance(entity, tuple):
            return str(entity).encode()
        names = list(self.declared.by)
        if self.declared.key in names:
            return str(entity[names.index(self.declared.key)]).encode()
        return orjson.dumps(entity)

    def _leave(self, watermark: int) -> None:
        """Forgets the windows that no event can correct any more."""
        gone: list[tuple[int, int]] = []
        while self._leaving and self._leaving[0][0] + self._linger <= watermark:
            end, slot, number = heapq.heappop(self._leaving)
            window = self._windows.get((slot, number))
            if window is not None and window.closed and window.end + self._gap == end:
                gone.append((slot, number))
                self._forget(window)
        if gone:
            slots, numbers = np.array(gone, np.int64).T.copy()
            for table in self._plan.tables.values():
                table.drop(slots, numbers)

    def _forget(self, window: _Window) -> None:
        del self._windows[window.slot, window.number]
        self._touched[window.slot, window.number] = None
        if self._gap:
            mine = self._sessions[window.slot]
            mine.remove(window)
            if not mine:
                del self._sessions[window.slot]

    def changes(self) -> Changes:
        found: Changes = []
        for slot, number in self._touched:
            key = self._prefix + self.entities.encoded(slot) + _NUMBER.pack(number)
            window = self._windows.get((slot, number))
            found.append((key, window.facts() if window is not None else None))
        self._touched.clear()
        for table in self._plan.tables.values():
            table.changes(found)
        if self.entities.crowded:
            held = np.fromiter((slot for slot, _ in self._windows), np.int64, len(self._windows))
            gone = self.entities.unused(held)
            self._plan.forget(gone, found)
            self.entities.release(gone)
        return found

    @property
    def size(self) -> int:
        """Bytes of all that is held, about."""
        return self._plan.size + self.entities.size + _WINDOW_BYTES * len(self._windows)

    @property
    def residence(self) -> Residence:
        """What is hot: everything."""
        return Residence(self.size, self.entities.used)

    def kept(self) -> None:
        self._memory.settle(self)

    def shrink(self, size: int) -> None:
        """Nothing can leave."""

    def load(self, rows: Iterable[tuple[bytes, bytes]]) -> None:
        rest = []
        for key, value in rows:
            if key.startswith(self._prefix):
                slot = self.entities.number(decoded(key[len(self._prefix) : -8]))
                (number,) = _NUMBER.unpack(key[-8:])
                self._restore(_Window(slot, number, *_FACTS.unpack(value)))
            else:
                rest.append((key, value))
        self._plan.load(rest, self.entities)
        for mine in self._sessions.values():
            mine.sort(key=lambda window: window.start)

    def _restore(self, window: _Window) -> None:
        key = (window.slot, window.number)
        self._windows[key] = window
        if isinstance(self._window, LastN):
            return
        heapq.heappush(self._leaving if window.closed else self._closing, (window.end + self._gap, *key))
        if window.due != _NEVER:
            heapq.heappush(self._showing, (window.due, *key))
        if self._gap:
            self._sessions[window.slot].append(window)


class _Sessions:
    """One batch of a session set, event by event: sessions depend on every event before."""

    def __init__(self, owner: WindowSet, watermark: Ints) -> None:
        self.owner = owner
        self.gap = owner._gap
        self.watermark = watermark
        self.rows: list[_Row] = []
        self.merges: list[tuple[int, int, int, int]] = []

    def take(self, events: dict[str, _Taken]) -> tuple[list[_Row], list[tuple[int, int, int, int]]]:
        """Numbers the events by session, in place; the rows to publish and the sessions to merge."""
        order = []
        for theirs in events.values():
            for i, (at, slot, time) in enumerate(_tuples(theirs.at, theirs.slot, theirs.time)):
                order.append((at, slot, time, theirs, i))
        order.sort(key=lambda event: event[0])
        for at, slot, time, theirs, i in order:
            self._close(at)
            theirs.number[i] = self._join(at, slot, time)
        self._close(len(self.watermark))
        return self.rows, self.merges

    def _close(self, before: int) -> None:
        """Closes the sessions that end at positions before this one."""
        closing, owner = self.owner._closing, self.owner
        while before and closing and closing[0][0] <= self.watermark[before - 1]:
            end, slot, number = heapq.heappop(closing)
            session = owner._windows.get((slot, number))
            if session is None or session.closed:
                continue
            if session.end + self.gap > end:  # it has gone on since
                heapq.heappush(closing, (session.end + self.gap, slot, number))
            else:
                owner._final(session, int(np.searchsorted(self.watermark, end)), self.rows)

    def _join(self, at: int, slot: int, time: int) -> int:
        """The session of an event: a new one, the one it extends, or the first of two that it bridges."""
        owner, gap = self.owner, self.gap
        mine = owner._sessions[slot]
        near = [s for s in mine if s.start - gap < time < s.end + gap]
        if not near:
            session = _Window(slot, time, time, time)
            owner._open(session)
            mine.append(session)
            mine.sort(key=lambda one: one.start)
        else:
            session = near[0]
            for other in near[1:]:
                self._retract(other, at)
                self.merges.append((at, slot, other.number, session.number))
                session.end = max(session.end, other.end)
                owner._forget(other)
            if time < session.start:
                self._retract(session, at)
                session.start, session.revision, session.shown = time, 0, False
            session.end = max(session.end, time)
            owner._touched[slot, session.number] = None
            if session.closed:
                heapq.heappush(owner._closing, (session.end + gap, slot, session.number))
        if session.end + gap <= self.watermark[at]:
            session.closed = False
            owner._final(session, at, self.rows)
        else:
            session.closed = False
        return session.number

    def _retract(self, session: _Window, at: int) -> None:
        if session.shown:
            self.rows.append(self.owner._row(session, at, session.revision, retracted=True))


def _groups(taken: list[_Taken]) -> Iterable[tuple[int, int, Ints]]:
    """The positions of the events of each window: (entity, number, ascending positions)."""
    if not taken:
        return
    at, slot, number = (
        np.concatenate([getattr(one, field) for one in taken]) for field in ("at", "slot", "number")
    )
    if not len(at):
        return
    order = np.lexsort((at, number, slot))
    at, slot, number = at[order], slot[order], number[order]
    begins = np.flatnonzero(np.append(True, (slot[1:] != slot[:-1]) | (number[1:] != number[:-1])))[: len(at)]
    ends = np.append(begins[1:], len(at))
    for begin, end in _tuples(begins, ends):
        if begin < end:
            yield int(slot[begin]), int(number[begin]), at[begin:end]


def _tuples(*columns: Ints) -> Iterable[tuple[Any, ...]]:
    return zip(*(column.tolist() for column in columns), strict=True)


def _events(table: Any, rows: Rows | None, theirs: _Taken, condition: Any, inputs: Any) -> kernels.Events:
    """The events that a table takes, with the values it folds."""
    values, kept = taken(table, rows, condition, inputs, {})
    row = theirs.row
    if kept is not None:
        passing = kept[row]
        theirs = _Taken(
            theirs.at[passing],
            row[passing],
            theirs.slot[passing],
            theirs.time[passing],
            theirs.number[passing],
        )
        row = theirs.row
    values = np.ascontiguousarray(values[:, row])
    return kernels.Events(theirs.at, theirs.slot, theirs.time, theirs.number, values, values.view(np.float64))


_NONE = np.zeros(0, np.int64)
_NO_VALUES = np.zeros((0, 0), np.int64)
_NO_FLOATS = _NO_VALUES.view(np.float64)
