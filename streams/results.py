"""Window results: a row for each entity and window, once the watermark has passed the window's end.

    class PerMinute(Features, of=Trade, by="symbol", window=tumbling("1m")):
        n = count()
        high = max(col.price)

A window is [start, end) for tumbling and sliding ones, and from the first event to the last for sessions,
which end when the watermark is a gap past the last. Its first final row has revision 0. An event that comes
later, within the stream's lateness, corrects it: the whole row again, with revision 1, 2, ... A session that
another absorbs, or whose start moves, is taken back by a row with `"retracted": true` if it has been
published; so is a window whose row no longer holds what `where` asks. Windows without events give nothing. Any
order of the same events within lateness ends in the same rows, sums of floats to rounding.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from headrace.streams import kernels, resultrows, windowkernels
from headrace.streams.batch import NEVER, Batch, Block, Changes, Column, Outputs, Rows
from headrace.streams.durations import microseconds, when
from headrace.streams.expressions import Type, canonical, evaluate
from headrace.streams.index import Ints
from headrace.streams.jsonrows import Piece, digits, joined, printed
from headrace.streams.memory import Memory, Residence
from headrace.streams.openwindows import OpenWindows
from headrace.streams.plans import PUBLISHED, TOLD_AT_ONCE, Declared, Plan, entity, index, numbered, result, taken, told
from headrace.streams.spans import Spans
from headrace.streams.tables import Table, nothing
from headrace.streams.windowkernels import BACK, CLOSED, SHOWN, WHOLE
from headrace.streams.windows import LastN, Session, Sliding, Tumbling
from numpy.typing import NDArray

_NUMBER = struct.Struct(">q")
_NOT_DUE = -1

Merge = tuple[int, int, int, int]


class _Rows(NamedTuple):
    """Rows to publish: at which position of the batch, of which window, and what they say of it then.

    early, back: 1 for rows before the window's end, and for those that take one back
    """

    at: Ints
    window: Ints
    slot: Ints
    number: Ints
    start: Ints
    end: Ints
    revision: Ints
    early: Ints
    back: Ints

    def of(self, rows: Ints | NDArray[np.bool_]) -> _Rows:
        return _Rows(*(column[rows] for column in self))


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
    the events and have no start. With `where` only rows of which it is true are published. Nothing is added to
    the stream's own rows. All its state is hot: a window that no event touches still ends.

    With clock="published" windows are of the times at which events were published, where none of them goes back:
    the greatest so far in the partition. So no event that the task takes is late, the results are a function of the
    log, and a window closes with the next event that was published after its end.
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
        self._published = plan.declared.clock == PUBLISHED
        self._late = {source.name: 0 if self._published else source.lateness for source in plan.streams.values()}
        self._early = microseconds(plan.declared.early) if plan.declared.early else 0
        self._gap = self._window.gap if isinstance(self._window, Session) else 0
        self._prefix = f"{self.name}/windows".encode() + b"\x00"
        self._clock_key = f"{self.name}/clock".encode() + b"\x00"
        linger, endless = max(self._late.values()), isinstance(self._window, LastN)
        self._implying = self._tables_of_all()
        self._windows = OpenWindows(self._prefix, self._gap, linger, endless, bool(self._implying))
        self.clear()

    def _tables_of_all(self) -> list[Table]:
        """Tables in which every tumbling or sliding window has a pane in one or another; none where there are none."""
        if not isinstance(self._window, Tumbling | Sliding):
            return []
        of = {self._plan.inputs[n][0].name: t for n, t in self._plan.tables.items() if self._plan.inputs[n][1] is None}
        return list(of.values()) if of.keys() == self._plan.streams.keys() else []

    def clear(self) -> None:
        self._memory.leave(self)
        self.entities.clear()
        for table in self._plan.tables.values():
            table.clear()
        self._windows.clear()
        self._clock = self._clock_told = NEVER

    def process(self, batch: Batch, out: Outputs) -> None:
        if not len(batch):
            return
        if self._published:
            batch = self._by_publication(batch)
        events = {name: self._taken(batch, name) for name in self._plan.streams if len(batch.streams.get(name, ()))}
        merges: list[Merge] = []
        if isinstance(self._window, LastN):
            rows = self._counted(events)
        elif isinstance(self._window, Session):
            rows, merges = self._joined(batch.watermark, events)
        else:
            rows = self._closed(batch.watermark, events)
        if len(rows.at) > 1:
            keys = [rows.at, 1 - rows.back, rows.end, rows.start]
            rows = rows.of(resultrows.ascending(keys, self.entities.spans(rows.slot)))
        known = self._advance(batch, events, rows, merges)
        self._publish(rows, known, out)
        self._leave(int(batch.watermark[-1]))

    def _by_publication(self, batch: Batch) -> Batch:
        """The batch by the times at which its events were published."""
        said = np.full(len(batch), self._clock)
        for name in self._plan.streams:
            rows = batch.streams.get(name)
            if rows is not None:
                said[rows.at] = np.maximum(rows.published, 0)
        said[0] = max(said[0], self._clock)
        clock = np.maximum.accumulate(said)
        self._clock = int(clock[-1])
        return Batch(clock, clock, batch.streams)

    def _taken(self, batch: Batch, name: str) -> _Taken:
        """The events of a stream that are not too late, once for each window they fall into."""
        rows = batch.streams[name]
        slots = numbered(self.entities, self.declared.by_in(name), rows)
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

    @property
    def _step(self) -> tuple[int, int]:
        """How far apart windows begin, and how long they are."""
        if isinstance(self._window, Sliding):
            return self._window.every or self._window.pane, self._window.size
        assert isinstance(self._window, Tumbling)
        return self._window.size, self._window.size

    def _closed(self, watermark: Ints, events: dict[str, _Taken]) -> _Rows:
        """Opens the windows that the events fall into; the rows that close or correct windows."""
        at, slot, number = (_all(events, name) for name in ("at", "slot", "number"))
        which = self._windows.take(at, slot, number, *self._step)
        every, last = self._windows.all, int(watermark[-1])
        woken = self._windows.woken(last)
        ends = woken[(every.flags[woken] & CLOSED == 0) & (every.end[woken] <= last)]
        closes = np.maximum(np.searchsorted(watermark, every.end[ends]), every.first[ends])
        every.closes[ends] = closes
        early = self._shown(watermark, at, which, woken) if self._early else _NO_ROWS
        final = self._final(ends, closes)
        # Woken without an end: closed before, or told early.
        self._windows.rest(woken)
        late = at > every.closes[which]
        corrected = self._corrected(which[late], at[late])
        every.closes[ends] = -1
        every.first[which] = 0
        return _concatenated([early, final, corrected])

    def _rows(self, which: Ints, at: Ints, early: bool = False) -> _Rows:
        every = self._windows.all
        slot, number, revision = every.slot[which], every.number[which], every.revision[which]
        none = np.zeros(len(which), np.int64)
        return _Rows(at, which, slot, number, every.start[which], every.end[which], revision, none + early, none)

    def _final(self, which: Ints, at: Ints) -> _Rows:
        """The first final rows of windows that close."""
        every = self._windows.all
        rows = self._rows(which, at)
        every.revision[which] += 1
        every.flags[which] |= CLOSED
        every.due[which] = _NOT_DUE
        self._windows.rest(which)
        self._windows.touch(which)
        return rows

    def _corrected(self, which: Ints, at: Ints) -> _Rows:
        """A row for each event that came after its window had closed."""
        order = np.lexsort((at, which))
        which, at = which[order], at[order]
        rows = self._rows(which, at)
        rank = np.arange(len(which)) - np.searchsorted(which, which)
        np.add.at(self._windows.all.revision, which, 1)
        self._windows.touch(which)
        return rows._replace(revision=rows.revision + rank)

    def _shown(self, watermark: Ints, at: Ints, which: Ints, woken: Ints) -> _Rows:
        """The early rows of open windows: one at each multiple of `early` after events have come."""
        every = self._windows.all
        order = np.lexsort((at, which))
        waiting: dict[int, list[int]] = {w: [] for w in woken.tolist()}
        for w, position in zip(which[order].tolist(), at[order].tolist(), strict=True):
            waiting.setdefault(w, []).append(position)
        found = [
            (w, moment)
            for w, positions in waiting.items()
            if every.closes[w] >= 0
            for moment in self._show_one(w, positions, watermark, min(int(every.closes[w]), len(watermark)))
        ]
        rows = np.array(found, np.int64).reshape(-1, 2)
        return self._rows(rows[:, 0], rows[:, 1], early=True)

    def _show_one(self, w: int, positions: list[int], watermark: Ints, closes: int) -> Iterator[int]:
        """The positions at which one window is told early."""
        every = self._windows.all
        due, i = int(every.due[w]), 0
        while True:
            if due == _NOT_DUE:
                if i == len(positions) or positions[i] >= closes:
                    break
                due = (int(watermark[positions[i]]) // self._early + 1) * self._early
            at = int(np.searchsorted(watermark, due))
            if at >= closes:
                break
            yield at
            due = _NOT_DUE
            while i < len(positions) and positions[i] <= at:
                i += 1
        if due != every.due[w]:
            one = np.array([w])
            every.due[w] = due
            self._windows.touch(one)
            self._windows.rest(one)

    # Sessions.

    def _joined(self, watermark: Ints, events: dict[str, _Taken]) -> tuple[_Rows, list[Merge]]:
        """Numbers the events by session, in place; the rows to publish and the sessions to merge."""
        at, slot, time = (_all(events, name) for name in ("at", "slot", "time"))
        order = np.argsort(at)
        found, rows, merges = self._windows.join(at[order], slot[order], time[order], watermark)
        number = np.empty(len(at), np.int64)
        number[order] = found
        done = 0
        for theirs in events.values():
            theirs.number = number[done : done + len(theirs.at)]
            done += len(theirs.at)
        at, which, slot, number, start, end, revision, back = rows.T.copy()
        inner = _Rows(at, which, slot, number, start, end, revision, np.zeros(len(rows), np.int64), back)
        last = int(watermark[-1])
        woken = self._windows.woken(last)
        self._windows.rest(woken)
        every = self._windows.all
        ends = woken[every.flags[woken] & CLOSED == 0]
        closes = np.searchsorted(watermark, every.end[ends] + self._gap)
        return _concatenated([inner, self._final(ends, closes)]), merges

    # The last N events.

    def _counted(self, events: dict[str, _Taken]) -> _Rows:
        """A row for every `every`-th event of an entity; `start` of its window counts its events."""
        assert isinstance(self._window, LastN)
        mine = events.get(self.declared.of.name)
        if mine is None:
            return _NO_ROWS
        which = self._windows.take(mine.at, mine.slot, mine.number, 0, 0)
        every = self._windows.all
        order = np.argsort(which, kind="stable")
        sorted_which = which[order]
        rank = np.empty(len(which), np.int64)
        rank[order] = np.arange(len(which)) - np.searchsorted(sorted_which, sorted_which) + 1
        full = (every.start[which] + rank) % (self._window.every or 1) == 0
        np.add.at(every.start, which, 1)
        self._windows.touch(which)
        every.first[which] = 0
        return self._rows(which[full], mine.at[full])._replace(end=mine.time[full])

    def told(self, at: int) -> Iterator[dict[str, Any]]:
        """Each window that is open, or closed and still to be corrected, with its result so far.

        Of the last N events there is one window, and `events` counts all that came.
        """
        every, here = self._windows.all, self._windows.here()
        for begin in range(0, len(here), TOLD_AT_ONCE):
            some = here[begin : begin + TOLD_AT_ONCE]
            slot, number = every.slot[some], every.number[some]
            times = np.full(len(some), at, np.int64)
            asked = kernels.Events(np.arange(len(some)), slot, times, number, _NO_VALUES, _NO_FLOATS)
            known: dict[str, Column] = {}
            for table in self._plan.tables.values():
                found = table.advance(nothing(), asked)
                for text, (kind, owner, reads) in self._plan.reads.items():
                    if owner is table:
                        known[text] = result(table, kind, reads, found)
            for w, row in zip(some.tolist(), told(self._plan, known, len(some)), strict=True):
                named = entity(self._plan, self.entities.value(int(every.slot[w])))
                yield {"entity": named, **self._extent(w), **row}

    def _extent(self, w: int) -> dict[str, Any]:
        every = self._windows.all
        if isinstance(self._window, LastN):
            return {"events": int(every.start[w])}
        span = {"start": when(int(every.start[w])), "end": when(int(every.end[w]))}
        return {**span, "revision": int(every.revision[w]), "closed": bool(every.flags[w] & CLOSED)}

    # State and records.

    def _advance(self, batch: Batch, events: dict[str, _Taken], rows: _Rows, merges: list[Merge]) -> dict[str, Column]:
        """Takes the events, and reads the windows that rows publish, in the order of their positions."""
        wanted = rows.of(rows.back == 0)
        known: dict[str, Column] = {}
        for name, table in self._plan.tables.items():
            source, condition, inputs = self._plan.inputs[name]
            theirs = events.get(source.name)
            rows_of = batch.streams.get(source.name) if theirs is not None else None
            empty = theirs if theirs is not None else _Taken(_NONE, _NONE, _NONE, _NONE, _NONE)
            took = _events(table, rows_of, empty, condition, inputs)
            ask = kernels.Events(wanted.at, wanted.slot, wanted.at, wanted.number, _NO_VALUES, _NO_FLOATS)
            read = table.advance_merging(took, ask, merges)
            for text, (kind, owner, reads) in self._plan.reads.items():
                if owner is table:
                    known[text] = result(table, kind, reads, read)
        return known

    def _publish(self, rows: _Rows, known: dict[str, Column], out: Outputs) -> None:
        if not len(rows.at) or not self.declared.publish:
            return
        verdict = self._verdict(rows, known)
        whole = verdict[rows.back == 0] == WHOLE
        told, gone = rows.of(verdict == WHOLE), rows.of(verdict == BACK)
        columns = self._head(told)
        kept = known if whole.all() else {text: column[whole] for text, column in known.items()}
        for name in self.declared.public:
            column = canonical(evaluate(self.declared.features[name], {}, kept, len(told.at)), self.types[name])
            if column.dtype == np.float64:
                column = np.where(np.isfinite(column), column, np.nan)
            columns[name] = printed(column, self.types[name])
        values, slots = joined(columns), told.slot
        if len(gone.at):
            back = joined(self._head(gone) | {"retracted": Spans.of([b"true"] * len(gone.at))})
            place = np.empty(len(verdict), np.int64)
            place[verdict == WHOLE], place[verdict == BACK] = np.arange(len(values)), len(values) + np.arange(len(back))
            place = place[verdict != windowkernels.NOTHING]
            values, slots = Spans.joined([values, back]).take(place), np.concatenate([slots, gone.slot])[place]
        if len(slots):
            keys = resultrows.keys(self.entities, self._plan.key_types, self.declared.key, slots)
            out.append(Block(f"features.{self.name}", keys, values))

    def _verdict(self, rows: _Rows, known: dict[str, Column]) -> Ints:
        """What becomes of each row: it is published, takes back what was, or neither."""
        condition = self.declared.where
        if condition is None and not rows.back.any():
            self._windows.touch(rows.window[self._windows.all.flags[rows.window] & SHOWN == 0])
            self._windows.all.flags[rows.window] |= SHOWN
            return np.full(len(rows.at), WHOLE)
        holds = np.ones(len(rows.at), np.bool_)
        if condition is not None:
            whole = np.flatnonzero(rows.back == 0)
            holds[whole] = canonical(evaluate(condition, {}, known, len(whole)), Type("bool", False))
        verdict = np.empty(len(rows.at), np.int64)
        windowkernels.settle(rows.window, rows.back, holds, self._windows.all, verdict)
        return verdict

    def _head(self, rows: _Rows) -> dict[str, Spans | Piece]:
        """The printed columns that tell whose row it is and of which window."""
        found = resultrows.named(self.entities, self._plan.key_types, rows.slot)
        time = Type("time", False)
        nothing = Spans.of([b"null"] * len(rows.at))
        found["start"] = nothing if isinstance(self._window, LastN) else printed(rows.start, time)
        found["end"] = printed(rows.end, time)
        found["revision"] = digits(rows.revision)
        found["final"] = printed(rows.early == 0, Type("bool", False))
        return found

    def _leave(self, watermark: int) -> None:
        """Forgets the windows that no event can correct any more."""
        every, woken = self._windows.all, self._windows.woken(watermark)
        gone = woken[every.flags[woken] & CLOSED != 0]
        self._windows.forget(gone)
        self._windows.sleep(woken, every.wake[woken])
        if len(gone):
            for table in self._plan.tables.values():
                table.drop(every.slot[gone], every.number[gone])

    def changes(self) -> Changes:
        found: Changes = []
        if self._clock != self._clock_told:
            found.append((self._clock_key, _NUMBER.pack(self._clock)))
            self._clock_told = self._clock
        self._windows.changes(self.entities, found)
        for table in self._plan.tables.values():
            table.changes(found)
        if self.entities.crowded:
            gone = self.entities.unused(self._windows.all.slot[self._windows.here()])
            self._plan.forget(gone, found)
            self.entities.release(gone)
        return found

    @property
    def size(self) -> int:
        """Bytes of all that is held, about."""
        return self._plan.size + self.entities.size + self._windows.size

    @property
    def residence(self) -> Residence:
        """What is hot: everything."""
        return Residence(self.size, self.entities.used)

    def kept(self) -> None:
        self._memory.settle(self)

    def shrink(self, size: int) -> None:
        """Nothing can leave."""

    def load(self, rows: Iterable[tuple[bytes, bytes]]) -> None:
        mine, rest = [], []
        for key, value in rows:
            if key.startswith(self._prefix):
                mine.append((key, value))
            elif key == self._clock_key:
                (self._clock,) = _NUMBER.unpack(value)
                self._clock_told = self._clock
            else:
                rest.append((key, value))
        self._windows.load(mine, self.entities)
        self._plan.load(rest, self.entities)
        for table in self._implying:
            slots, numbers, _ = table.panes()
            self._windows.take(np.zeros(len(slots), np.int64), slots, numbers, *self._step)


def _all(events: dict[str, _Taken], name: str) -> Ints:
    """A column of the events of all streams."""
    return np.concatenate([_NONE, *(getattr(theirs, name) for theirs in events.values())])


def _concatenated(parts: list[_Rows]) -> _Rows:
    some = [part for part in parts if len(part.at)] or [_NO_ROWS]
    return some[0] if len(some) == 1 else _Rows(*map(np.concatenate, zip(*some, strict=True)))


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
_NO_ROWS = _Rows(*[_NONE] * 9)
_NO_VALUES = np.zeros((0, 0), np.int64)
_NO_FLOATS = _NO_VALUES.view(np.float64)
