"""Tables: the state of aggregations, one pane of one entity a row.

A table belongs to one stream, one condition and one grid of panes; every aggregation over these shares it.
Its rows in the changelog are small: key = 1, length of the entity, entity, tag of the table, number of the pane;
value = which accumulators, then their cells. So all rows of an entity, of whatever table, lie beside each other in
the store. An accumulator is known by what it computes, so that a program that adds one finds the others' state.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
from headrace.streams import bytekernels, kernels
from headrace.streams import index as numbering
from headrace.streams.batch import Changes, Column, Touched
from headrace.streams.errors import StateError
from headrace.streams.index import Index, Ints, Names, decoded, grown_to
from headrace.streams.spans import Spans, woven
from numpy.typing import NDArray

Key = str | int | tuple[str | int | None, ...] | None
_NUMBER = struct.Struct(">q")
_LENGTH = struct.Struct(">I")

ENTITY = b"\x01"
"""Begins the keys of rows that belong to an entity; those of other rows begin with a name."""
LAYOUT = 2
"""Of the keys of state rows: what another layout wrote cannot be read."""
_HEAD = len(ENTITY) + _LENGTH.size
"""Bytes of a key before its entity."""
TAG = 8
"""Bytes of a key that tell the table, or the accumulator of entries: no two names share them."""


def tag(name: str) -> bytes:
    """What stands for a name in a key."""
    return hashlib.blake2b(name.encode(), digest_size=TAG).digest()


def entity_keys(names: Spans) -> Spans:
    """How the keys of all rows of each of these entities begin."""
    return woven([ENTITY, b"", b""], [_lengths(names), names])


def entity_of(key: bytes) -> tuple[bytes, int]:
    """The entity of a row, and where the rest of its key begins."""
    end = _HEAD + _LENGTH.unpack_from(key, len(ENTITY))[0]
    return key[_HEAD:end], end


def entities_of(keys: Spans) -> tuple[Spans, Spans]:
    """The entities of rows, and the rest of their keys."""
    length = _integers(keys.data, keys.start + len(ENTITY), _LENGTH.size)
    rest = keys.start + _HEAD + length
    return Spans(keys.data, keys.start + _HEAD, length), Spans(keys.data, rest, keys.start + keys.length - rest)


def tags_of(rests: Spans) -> Ints:
    """The tag of each row, as an integer."""
    return _integers(rests.data, rests.start, TAG)


def _lengths(names: Spans) -> Spans:
    lengths = names.length.astype(">u4").view(np.uint8)
    return Spans(lengths, 4 * np.arange(len(names)), np.full(len(names), 4, np.int64))


def _integers(data: NDArray[np.uint8], start: Ints, width: int) -> Ints:
    found = np.empty(len(start), np.int64)
    bytekernels.numbers(data, start, width, found)
    return found


def register(value: object) -> int:
    """The HyperLogLog register of a value and its rank, as register * 64 + rank; -1 where it is missing."""
    if value is None:
        return -1
    text = value.encode() if isinstance(value, str) else b"\0" + msgspec.json.encode(value)
    hash = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest())
    rest = 64 - kernels.REGISTER_BITS
    rank = rest - (hash & ((1 << rest) - 1)).bit_length() + 1
    return (hash >> rest) * 64 + rank


def listed(column: Column) -> list[object]:
    """A column as Python values, None where missing."""
    values: list[object] = column.tolist()
    if column.dtype == np.float64:
        return [None if v != v else v for v in values]
    return values


@dataclass(frozen=True)
class Accumulator:
    """What a pane folds of one column: an operation of `kernels`, over the column `values`, by its text.

    order: the column by which it finds the first or last, by its text; empty for the events' times
    """

    operation: int
    values: str
    floating: bool = False
    rate: float = 0.0
    texts: bool = False
    order: str = ""

    @property
    def column(self) -> tuple[str, bool, int]:
        """Its column of values: the text, whether floats, and the operation where it folds codes of them."""
        return self.values, self.floating, self.operation if self.operation in _CODED or self.texts else 0

    @property
    def width(self) -> int:
        return kernels.WIDTH[self.operation]

    @property
    def id(self) -> bytes:
        """Four bytes: 24 bits of what it computes, and its width in cells."""
        kind = "text" if self.texts else self.floating
        order = f" by {self.order}" if self.order else ""
        name = f"{kernels.NAMES[self.operation]} {self.values} {kind} {self.rate!r}{order}"
        return (zlib.crc32(name.encode()) & 0xFFFFFF00 | self.width).to_bytes(4, "big")

    def init(self) -> list[int]:
        nan = -1 if self.texts else _bits(np.nan)
        empty: dict[int, list[int]] = {
            kernels.MOMENTS: [0, 0, 0],
            kernels.IMIN: [kernels.INT_MAX],
            kernels.IMAX: [kernels.INT_MIN],
            kernels.FMIN: [nan],
            kernels.FMAX: [nan],
            kernels.FIRST: [kernels.INT_MAX, nan],
            kernels.LAST: [kernels.INT_MIN, nan],
            kernels.LATEST: [kernels.INT_MIN],
            kernels.DECAYED: [0, kernels.INT_MIN],
        }
        return empty.get(self.operation, [0])


@dataclass(frozen=True)
class Read:
    """A value of an accumulator over the last `panes` panes. before: without the event at hand."""

    accumulator: Accumulator
    panes: int
    how: int
    before: bool = False
    option: float = 0.0

    @property
    def floating(self) -> bool:
        """Whether the value is the bits of a float."""
        carried = self.accumulator.operation in (kernels.FIRST, kernels.LAST) and self.accumulator.floating
        return self.how != kernels.PLAIN or self.accumulator.operation in _FLOATS or carried


ORDER = -1
"""Stands for the operation of a column that orders events."""

_CODED = (kernels.DISTINCT, kernels.REGISTERS)
_TIMED = (kernels.FIRST, kernels.LAST)
_FLOATS = (kernels.FSUM, kernels.FMIN, kernels.FMAX)


@dataclass
class Table:
    """The panes of all entities, and one pass over a batch that folds and reads them.

    name:  begins every state row; it tells set, stream, condition and panes, not the order of declarations
    mode:  how an event's pane is numbered (`kernels.BY_TIME`, ...)
    width: microseconds of a pane
    ring:  panes that an entity keeps, counted back from its newest
    alone: a value covers one pane, never several

    whole: whether it holds every entity's panes; else some are in the store alone
    """

    name: str
    mode: int
    width: int
    ring: int
    alone: bool = False
    accumulators: list[Accumulator] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)

    def seal(self, entities: Index | Names) -> None:
        """Fixes accumulators and reads, and makes the empty state."""
        self.entities = entities
        orders = {a.order: (a.order, False, ORDER) for a in self.accumulators if a.order}
        self.columns = list(dict.fromkeys([*(a.column for a in self.accumulators), *orders.values()]))
        first, spec = 0, []
        for a in self.accumulators:
            by = self.columns.index(orders[a.order]) if a.order else -1
            spec.append((a.operation, self.columns.index(a.column), first, 2 if a.texts else a.floating, by))
            first += a.width
        self.cells_wide = first
        self.read_index = {read: i for i, read in enumerate(self.reads)}
        before = any(r.before for r in self.reads)
        scratch = np.zeros(4 * max(len(self.reads), 1), np.int64)
        reads = [(self.accumulators.index(r.accumulator), r.panes, r.how, r.before) for r in self.reads]
        self._plan = kernels.Plan(
            shape=np.array([self.mode, self.width, self.ring, before, self.alone], np.int64),
            spec=np.array(spec, np.int64).reshape(-1, 5),
            rates=np.array([a.rate for a in self.accumulators], np.float64),
            init=np.array([c for a in self.accumulators for c in a.init()], np.int64),
            reads=np.array(reads, np.int64).reshape(-1, 4),
            options=np.array([r.option for r in self.reads], np.float64),
            scratch=scratch,
            fscratch=scratch.view(np.float64),
            sketch=np.zeros(max(kernels.ALL_BINS, self.ring + 1), np.int64),
        )
        self._header = bytes([len(self.accumulators)]) + b"".join(a.id for a in self.accumulators)
        self._tag = tag(self.name)
        self.tag = _NUMBER.unpack(self._tag)[0]
        self._text_prefix = {
            a.values: f"{self.name}/text-{zlib.crc32(a.values.encode()):08x}".encode() + b"\x00"
            for a in self.accumulators
            if a.texts
        }
        operations = [a.operation for a in self.accumulators]
        self._distinct = [i for i, o in enumerate(operations) if o == kernels.DISTINCT]
        self._keyed = [i for i, o in enumerate(operations) if o >= kernels.DISTINCT]
        self._lists = [spec[i][2] for i, o in enumerate(operations) if o >= kernels.FIRST_SKETCH]
        self._entry_tag = {i: tag(f"{self.name}/{self.accumulators[i].id.hex()}") for i in self._keyed}
        self.entry_tags = {_NUMBER.unpack(mine)[0]: i for i, mine in self._entry_tag.items()}
        self._row_bytes = 41 + 8 * self.cells_wide
        self.clear()

    def clear(self) -> None:
        self.values = {self.accumulators[i].values: Index() for i in self._distinct}
        self.texts = {content: Index(told=True) for content in self._text_prefix}
        self._held: dict[str, Sequence[object]] = {}
        self._loaded_texts: dict[str, dict[int, object]] = {content: {} for content in self._text_prefix}
        self._marks: dict[str, NDArray[np.bool_]] | None = None
        self.whole = True
        self._swept = 0
        cells = np.zeros((64, self.cells_wide), np.int64)
        owner, pane, prev, free, dirty = np.zeros((5, 64), np.int64)
        self._state = kernels.State(
            head=np.full(64, -1, np.int64),
            owner=owner,
            pane=pane,
            prev=prev,
            flag=np.zeros(64, np.uint8),
            cells=cells,
            fcells=cells.view(np.float64),
            free=free,
            dirty=dirty,
            entries=np.zeros((64, 6), np.int64),
            buckets=np.zeros(128, np.int64),
            touched=np.zeros(64, np.int64),
            counters=np.zeros(6, np.int64),
        )

    @property
    def _rows_used(self) -> int:
        return int(self._state.counters[kernels.USED])

    @property
    def _entries_used(self) -> int:
        return int(self._state.counters[kernels.ENTRIES])

    def _reserve(self, events: int) -> None:
        """Makes room, so that the kernel never has to."""
        state = self._state
        if len(self.entities) > len(state.head):
            head = np.full(2 * len(self.entities), -1, np.int64)
            head[: len(state.head)] = state.head
            self._state = state = state._replace(head=head)
        needed = self._rows_used + max(0, events - int(state.counters[kernels.FREE]))
        if needed > len(state.pane):
            grown = {k: grown_to(getattr(state, k), 2 * needed) for k in _BY_ROW}
            self._state = state._replace(**grown, fcells=grown["cells"].view(np.float64))
        if self._keyed:
            self._reserve_entries(events * len(self._keyed))

    def _reserve_entries(self, more: int) -> None:
        state, needed = self._state, self._entries_used + more
        touched = int(state.counters[kernels.ENTRIES_TOUCHED]) + more
        if touched > len(state.touched):
            state = state._replace(touched=grown_to(state.touched, 2 * touched))
        if needed > len(state.entries):
            state = state._replace(entries=grown_to(state.entries, 2 * needed))
        self._state = state
        if 2 * needed > len(state.buckets):
            self._state = state._replace(buckets=np.zeros(1 << (4 * needed).bit_length(), np.int64))
            kernels.reindex(self._plan, self._state)

    def advance(self, events: kernels.Events, wanted: kernels.Events) -> Ints:
        """Takes the events and reads the wanted rows: int64[read, wanted row], the bits of floats."""
        self._reserve(len(events.at))
        out = np.empty((len(self.reads), len(wanted.at)), np.int64)
        kernels.advance(self._plan, self._state, events, wanted, out, out.view(np.float64))
        if self._held and len(events.at):
            self._number_texts(events, out)
        return out

    def advance_merging(
        self, events: kernels.Events, wanted: kernels.Events, merges: Iterable[tuple[int, int, int, int]]
    ) -> Ints:
        """`advance`, but before position `at` is taken, pane `gone` of an entity is absorbed by pane `into`.

        merges: (at, slot, gone, into), ascending.
        """
        found, begin = [], -1
        for at, slot, gone, into in merges:
            found.append(self.advance(between(events, begin, at), between(wanted, begin, at)))
            self.absorb(slot, gone, into)
            begin = at
        found.append(self.advance(between(events, begin), between(wanted, begin)))
        return found[0] if len(found) == 1 else np.ascontiguousarray(np.concatenate(found, axis=1))

    def hold(self, content: str, texts: Sequence[object]) -> Ints:
        """What stands for these texts until `advance` has taken them; `kernels.UNKNOWN` where one is missing.

        texts: spans, or None where missing
        """
        self._held[content] = texts
        numbers = kernels.HELD + np.arange(len(texts))
        if isinstance(texts, Spans):
            return np.where(texts.length < 0, kernels.UNKNOWN, numbers)
        missing = np.fromiter((text is None for text in texts), np.bool_, len(texts))
        return np.where(missing, kernels.UNKNOWN, numbers)

    def _number_texts(self, events: kernels.Events, out: Ints) -> None:
        """Gives numbers to the texts that became a pane's, in the order of the events, in panes and in what was read.

        Most texts of `last(..., order=...)` never do: each would be a row of state.
        """
        touched = self._state.dirty[: self._state.counters[kernels.TOUCHED]]
        for content, held in self._held.items():
            columns = [i for i, (text, _, coded) in enumerate(self.columns) if text == content and coded in _TIMED]
            taken = events.values[columns]
            rows = np.unique(taken[taken >= kernels.WON]) - kernels.WON - kernels.HELD
            if not len(rows):
                continue
            if isinstance(held, Spans):
                texts: list[object] = [text and text.decode() for text in held.take(rows)]
            else:
                texts = [held[row] for row in rows.tolist()]
            numbers = self.texts[content].numbers(texts)
            for a, spec in zip(self.accumulators, self._plan.spec, strict=True):
                if a.texts and a.values == content:
                    cell = int(spec[2]) + 1
                    some = touched[self._state.cells[touched, cell] >= kernels.HELD]
                    found = self._state.cells[some, cell] - kernels.HELD
                    self._state.cells[some, cell] = numbers[np.searchsorted(rows, found)]
            for read, i in self.read_index.items():
                if read.accumulator.texts and read.accumulator.values == content:
                    some = out[i] >= kernels.HELD
                    out[i][some] = numbers[np.searchsorted(rows, out[i][some] - kernels.HELD)]

    def cell(self, accumulator: Accumulator) -> int:
        """The first cell of an accumulator."""
        return int(self._plan.spec[self.accumulators.index(accumulator), 2])

    def absorb(self, slot: int, gone: int, into: int) -> None:
        """Merges one pane of an entity into another, and deletes it."""
        entries = self._state.entries[: self._entries_used]
        held = int(np.count_nonzero((entries[:, 0] == slot) & (entries[:, 1] == gone)))
        self._reserve(1)
        self._reserve_entries(held)
        kernels.absorb(slot, gone, into, self._plan, self._state)

    def drop(self, slots: Ints, numbers: Ints) -> None:
        """Deletes these panes."""
        self._reserve(0)
        kernels.drop(slots, numbers, self._state)

    def panes(self) -> tuple[Ints, Ints, Ints]:
        """Entity, number and cells of every pane."""
        rows = np.flatnonzero((self._state.flag[: self._rows_used] & kernels.DEAD == 0) & self._in_use())
        return self._state.owner[rows], self._state.pane[rows], self._state.cells[rows]

    def _in_use(self) -> NDArray[np.bool_]:
        held = np.ones(self._rows_used, np.bool_)
        held[self._state.free[: self._state.counters[kernels.FREE]]] = False
        return held

    def newest(self, slots: Ints) -> Ints:
        """The number of each entity's newest pane, -1 where it has none."""
        self._reserve(0)
        head = self._state.head[slots]
        return np.where(head < 0, -1, self._state.pane[head])

    @property
    def ignored(self) -> int:
        """Events that came after their pane had left the ring."""
        return int(self._state.counters[kernels.IGNORED])

    def changes(self, into: Changes) -> None:
        """Appends the rows touched since the last call."""
        for content, index in self.texts.items():
            for number in index.fresh():
                into.append((self._text_prefix[content] + _NUMBER.pack(number), index.encoded(number)))
        self._pane_changes(into)
        if self._keyed:
            self._entry_changes(into)
        for content, index in self.texts.items():
            if index.crowded and self.whole:
                self._forget_texts(content, self._codes(content, self.panes()[2]), into)

    def _codes(self, content: str, cells: Ints) -> Ints:
        """The texts that panes hold."""
        held = [int(s[2]) + 1 for a, s in zip(self.accumulators, self._plan.spec, strict=True) if a.values == content
                and a.texts]  # fmt: skip
        codes: Ints = cells[:, held]
        return codes[codes >= 0]

    def _forget_texts(self, content: str, held: Ints, into: Changes) -> None:
        """Drops the texts that no pane holds."""
        index = self.texts[content]
        gone = index.unused(held)
        into += [(self._text_prefix[content] + _NUMBER.pack(number), None) for number in gone.tolist()]
        index.release(gone)

    @property
    def crowded(self) -> bool:
        """Whether so many texts have come that those no pane holds are worth looking for."""
        return any(index.crowded for index in self.texts.values())

    def mark(self) -> None:
        """Begins to mark the texts of panes: of those that leave for the store, and of those that `mark_held` tells."""
        self._marks = {content: np.zeros(len(index), np.bool_) for content, index in self.texts.items()}

    def mark_held(self, cells: Ints) -> None:
        """Marks the texts of panes."""
        marks = self._marks or {}
        for content, marked in marks.items():
            if len(marked) < len(self.texts[content]):
                marked = marks[content] = grown_to(marked, 2 * len(self.texts[content]))
            marked[self._codes(content, cells)] = True

    def unmarked(self, into: Changes) -> None:
        """Drops the texts of no pane, now that each pane of the store has been told or has left for it since `mark`."""
        if self._marks is not None:
            self.mark_held(self.panes()[2])
            for content, marked in self._marks.items():
                self._forget_texts(content, np.flatnonzero(marked[: len(self.texts[content])]), into)
            self._marks = None

    def idle(self, horizon: int, slots: Ints) -> NDArray[np.bool_]:
        """Of each of these entities, whether no event at `horizon` or later can read what this table holds of it."""
        self._reserve(0)
        head = self._state.head[slots]
        idle: NDArray[np.bool_] = head < 0
        if self.mode == kernels.BY_TIME:
            idle |= (self._state.pane[head] + self.ring) * self.width <= horizon
        return idle

    def forget(self, slots: Ints, into: Changes) -> None:
        """Drops all that is held of these entities, and appends what that changes."""
        self._reserve(0)
        kernels.forget(slots, self._state)
        self._pane_changes(into)
        if self._keyed:
            self._drop_entries(self._entries_of(slots), into)

    def evict(self, slots: Ints) -> None:
        """Leaves these entities to the store, which has all that is held of them."""
        self._reserve(0)
        if self._marks:
            owners, _, cells = self.panes()
            mine = np.zeros(len(self.entities), np.bool_)
            mine[slots] = True
            self.mark_held(cells[mine[owners]])
        kernels.evict(slots, self._state)
        if self._keyed:
            self._cut_entries(self._entries_of(slots))

    def _entries_of(self, slots: Ints) -> NDArray[np.bool_]:
        mine = np.zeros(len(self.entities), np.bool_)
        mine[slots] = True
        found: NDArray[np.bool_] = mine[self._state.entries[: self._entries_used, 0]]
        return found

    @property
    def size(self) -> int:
        """Bytes that its content takes, about."""
        rows = self._rows_used - int(self._state.counters[kernels.FREE])
        held = rows * self._row_bytes + 8 * len(self.entities) + ENTRY_BYTES * self._entries_used
        return held + sum(index.size for index in (*self.values.values(), *self.texts.values()))

    def _pane_changes(self, into: Changes) -> None:
        state = self._state
        touched = state.dirty[: state.counters[kernels.TOUCHED]]
        if not len(touched):
            return
        dead = state.flag[touched] & kernels.DEAD != 0
        panes, cells = state.pane[touched], state.cells[touched]
        cells[:, self._lists] = 0
        # Where panes are numbered by count, a later one takes the row of the one that left the ring.
        numbers = panes % self.ring if self.mode == kernels.BY_COUNT else panes
        slots = state.owner[touched]
        kept = ~dead if self.mode == kernels.BY_COUNT else slice(None)
        header = np.broadcast_to(np.frombuffer(self._header, np.uint8), (len(touched), len(self._header)))
        rows = np.concatenate((header, np.column_stack((panes, cells)).view(np.uint8)), axis=1)
        wide = rows.shape[1]
        start = np.arange(0, wide * len(touched), wide)
        values = Spans(rows.reshape(-1), start[kept], np.where(dead, -1, wide)[kept])
        positions = Spans(numbers.astype(">i8").view(np.uint8), 8 * np.arange(len(touched)), _eight(len(touched)))
        names = self.entities.spans(slots)
        keys = woven([ENTITY, b"", self._tag, b""], [_lengths(names), names, positions])
        into.append(Touched(Spans(keys.data, keys.start[kept], keys.length[kept]), values))
        state.flag[touched] = 0
        gone_rows = touched[dead]
        free = int(state.counters[kernels.FREE])
        state.free[free : free + len(gone_rows)] = gone_rows
        state.counters[kernels.FREE] += len(gone_rows)
        state.counters[kernels.TOUCHED] = 0

    def _entry_changes(self, into: Changes) -> None:
        state = self._state
        touched = np.unique(state.touched[: state.counters[kernels.ENTRIES_TOUCHED]])
        state.counters[kernels.ENTRIES_TOUCHED] = 0
        for entry in state.entries[touched].tolist():
            into.append((self._entry_key(entry), _NUMBER.pack(entry[4])))
        self._sweep(into)

    def _entry_key(self, entry: list[int]) -> bytes:
        slot, number, acc, value = entry[:4]
        entity = self.entities.encoded(slot)
        index = self.values.get(self.accumulators[acc].values) if acc in self._distinct else None
        content = _NUMBER.pack(value) if index is None else index.encoded(value)
        head = ENTITY, _LENGTH.pack(len(entity)), entity
        return b"".join((*head, self._entry_tag[acc], content, _NUMBER.pack(number)))

    def _sweep(self, into: Changes) -> None:
        """Drops the entries of panes that are no more, once they may be half of all."""
        count = self._entries_used
        crowded = any(index.crowded for index in self.values.values())
        if count < 2 * self._swept + numbering.SWEEP_FROM and not crowded:
            return
        state, entries = self._state, self._state.entries[:count]
        if self.mode == kernels.ALL_TIME:
            gone = np.zeros(count, np.bool_)
        elif self.mode == kernels.GIVEN:
            owners, numbers, _ = self.panes()
            live = set(zip(owners.tolist(), numbers.tolist(), strict=True))
            pairs = zip(entries[:, 0].tolist(), entries[:, 1].tolist(), strict=True)
            gone = np.fromiter((pair not in live for pair in pairs), np.bool_, count)
        else:
            moving = np.isin(entries[:, 2], self._distinct)
            last = np.where(moving, entries[:, 4], entries[:, 1])
            gone = last <= state.pane[state.head[entries[:, 0]]] - self.ring
        self._drop_entries(gone, into)

    def _drop_entries(self, gone: NDArray[np.bool_], into: Changes) -> None:
        """Drops these entries, and the values that no other one has."""
        for entry in self._state.entries[: len(gone)][gone].tolist():
            into.append((self._entry_key(entry), None))
        self._cut_entries(gone)

    def _cut_entries(self, gone: NDArray[np.bool_]) -> None:
        state, entries = self._state, self._state.entries[: len(gone)]
        kept = entries[~gone]
        state.entries[: len(kept)] = kept
        state.counters[kernels.ENTRIES] = self._swept = len(kept)
        state.buckets[:] = 0
        kernels.reindex(self._plan, state)
        for i in self._distinct:
            index = self.values[self.accumulators[i].values]
            index.release(index.unused(kept[kept[:, 2] == i, 3]))

    def load_texts(self, name: str, rows: Iterable[tuple[bytes, bytes]]) -> None:
        """Takes the rows of texts of this name, their keys without it, as `changes` gave them; then `loaded`."""
        for content, prefix in self._text_prefix.items():
            if prefix[:-1] == name.encode():
                self._loaded_texts[content].update((_NUMBER.unpack(k)[0], decoded(v)) for k, v in rows)

    @property
    def text_names(self) -> list[str]:
        """What the keys of its texts begin with, before a zero byte."""
        return [prefix[:-1].decode() for prefix in self._text_prefix.values()]

    def loaded(self) -> None:
        """Puts what was taken in order, once that is all there is."""
        for content, texts in self._loaded_texts.items():
            self.texts[content].restore(texts)
        self._loaded_texts = {content: {} for content in self._text_prefix}
        self._swept = self._entries_used
        if self._keyed:  # entries may have come before their panes
            self._state.buckets[:] = 0
            kernels.reindex(self._plan, self._state)

    def take_panes(self, slots: Ints, values: Spans) -> Ints:
        """Takes committed panes of entities that it holds nothing of; number and cells of each.

        Raises StateError where a row is none of this table's.
        """
        wide, header = len(self._header) + 8 * (1 + self.cells_wide), np.frombuffer(self._header, np.uint8)
        rows = values.packed().data.reshape(-1, wide) if (values.length == wide).all() else None
        if rows is None or not (rows[:, : len(header)] == header).all():
            whole = [self._header + self._converted(value or b"") for value in values]
            rows = np.frombuffer(b"".join(whole), np.uint8).reshape(-1, wide)
        panes: Ints = np.ascontiguousarray(rows[:, len(header) :]).view(np.int64)
        self._reserve(len(slots))
        kernels.admit(slots, panes, self._plan, self._state)
        return panes

    def take_entries(self, acc: int, slots: Ints, rests: Spans, values: Spans) -> None:
        """Takes committed entries of an accumulator, after the panes that they belong to. rests: of their keys."""
        begin, count = self._entries_used, len(slots)
        self._reserve(0)
        self._reserve_entries(count)
        entries = self._state.entries[begin : begin + count]
        content = Spans(rests.data, rests.start + TAG, rests.length - TAG - 8)
        entries[:, 0], entries[:, 2], entries[:, 5] = slots, acc, 0
        entries[:, 1] = _integers(rests.data, rests.start + rests.length - 8, 8)
        if acc in self._distinct:
            entries[:, 3] = self.values[self.accumulators[acc].values].encoded_numbers(content)
        else:
            entries[:, 3] = _integers(content.data, content.start, 8)
        entries[:, 4] = _integers(values.data, values.start, 8)
        self._state.counters[kernels.ENTRIES] += count
        kernels.admit_entries(begin, self._plan, self._state)

    def _converted(self, value: bytes) -> bytes:
        """A row of other accumulators: what is known is kept, what is new begins empty."""
        try:
            ids = [value[1 + 4 * i : 5 + 4 * i] for i in range(value[0])]
            at = 1 + 4 * len(ids)
            pane, at, found = value[at : at + 8], at + 8, {}
            for id in ids:
                found[id] = value[at : at + 8 * id[3]]
                at += 8 * id[3]
            if at != len(value):
                raise ValueError("its length does not fit its header")
        except (IndexError, ValueError) as error:
            raise StateError(
                f"a row of table {self.name} cannot be read ({error}): rebuild the state from the log"
            ) from error
        return pane + b"".join(found.get(a.id, np.array(a.init(), np.int64).tobytes()) for a in self.accumulators)


ENTRY_BYTES = 90
"""Of an entry, with its buckets."""

_BY_ROW = ("owner", "pane", "prev", "flag", "cells", "free", "dirty")


def _eight(count: int) -> Ints:
    return np.full(count, 8, np.int64)


def nothing() -> kernels.Events:
    """No events."""
    none, values = np.zeros(0, np.int64), np.zeros((1, 0), np.int64)
    return kernels.Events(none, none, none, none, values, values.view(np.float64))


def between(events: kernels.Events, begin: int, end: int | None = None) -> kernels.Events:
    """The events at positions from `begin` up to and without `end`."""
    low = int(np.searchsorted(events.at, begin))
    high = len(events.at) if end is None else int(np.searchsorted(events.at, end))
    if low == 0 and high == len(events.at):
        return events
    number = events.number[low:high] if len(events.number) else events.number
    values = np.ascontiguousarray(events.values[:, low:high])
    cut = events.at[low:high], events.slot[low:high], events.time[low:high]
    return kernels.Events(*cut, number, values, values.view(np.float64))


def _bits(number: float) -> int:
    return int(np.array([number]).view(np.int64)[0])
