"""Tables: the state of aggregations, one pane of one entity a row.

A table belongs to one stream, one condition and one grid of panes; every aggregation over these shares it.
Its rows in the changelog are small: key = table name, 0, entity, number of the pane; value = which
accumulators, then their cells. An accumulator is known by what it computes, so that a program that adds one
finds the others' state.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from headrace.streams import kernels
from headrace.streams.batch import Change, Column
from headrace.streams.errors import StateError
from numpy.typing import NDArray

Key = str | int | tuple[str | int | None, ...] | None
Ints = NDArray[np.int64]

_NUMBER = struct.Struct(">q")
_LENGTH = struct.Struct(">I")


class Index:
    """Numbers the values it meets: 0, 1, 2, ... A missing value is `kernels.UNKNOWN`."""

    class _Numbers(dict[object, int]):
        def __init__(self) -> None:
            self.met: list[object] = []
            self[None] = kernels.UNKNOWN

        def __missing__(self, value: object) -> int:
            number = self[value] = len(self.met)
            self.met.append(value)
            return number

    def __init__(self) -> None:
        self._numbers = self._Numbers()
        self.met = self._numbers.met
        self._encoded: list[bytes] = []

    def __len__(self) -> int:
        return len(self.met)

    def numbers(self, values: Sequence[object]) -> Ints:
        return np.fromiter(map(self._numbers.__getitem__, values), np.int64, len(values))

    def clear(self) -> None:
        self._numbers.clear()
        self._numbers[None] = kernels.UNKNOWN
        self.met.clear()
        self._encoded.clear()

    def number(self, value: object) -> int:
        return self._numbers[value]

    def encoded(self, number: int) -> bytes:
        """The value as bytes that `decoded` reads."""
        while len(self._encoded) < len(self.met):
            value = self.met[len(self._encoded)]
            plain = isinstance(value, str) and not value.startswith("\0")
            self._encoded.append(str(value).encode() if plain else b"\0" + msgspec.json.encode(value))
        return self._encoded[number]


def decoded(value: bytes) -> object:
    """What `Index.encoded` wrote: text as it is, anything else as JSON behind a zero byte."""
    if value[:1] != b"\x00":
        return value.decode()
    found = msgspec.json.decode(value[1:])
    return tuple(found) if isinstance(found, list) else found


def listed(column: Column) -> list[object]:
    """A column as Python values, None where missing."""
    values: list[object] = column.tolist()
    if column.dtype == np.float64:
        return [None if v != v else v for v in values]
    return values


@dataclass(frozen=True)
class Accumulator:
    """What a pane folds of one column: an operation of `kernels`, over the column `values`, by its text."""

    operation: int
    values: str
    floating: bool = False
    rate: float = 0.0

    @property
    def column(self) -> tuple[str, bool, bool]:
        """Its column of values: the text, whether as floats, and whether as numbers of an index."""
        return self.values, self.floating, self.operation == kernels.DISTINCT

    @property
    def width(self) -> int:
        return kernels.WIDTH[self.operation]

    @property
    def id(self) -> bytes:
        """Four bytes: 24 bits of what it computes, and its width in cells."""
        name = f"{kernels.NAMES[self.operation]} {self.values} {self.floating} {self.rate!r}"
        return (zlib.crc32(name.encode()) & 0xFFFFFF00 | self.width).to_bytes(4, "big")

    def init(self) -> list[int]:
        nan = _bits(np.nan)
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

    @property
    def floating(self) -> bool:
        """Whether the value is the bits of a float."""
        carried = self.accumulator.operation in (kernels.FIRST, kernels.LAST) and self.accumulator.floating
        return self.how != kernels.PLAIN or self.accumulator.operation in _FLOATS or carried


_FLOATS = (kernels.FSUM, kernels.FMIN, kernels.FMAX)


@dataclass
class Table:
    """The panes of all entities, and one pass over a batch that folds and reads them.

    name:  begins every state row; it tells set, stream, condition and panes, not the order of declarations
    mode:  how an event's pane is numbered (`kernels.BY_TIME`, ...)
    width: microseconds of a pane
    ring:  panes that an entity keeps, counted back from its newest
    """

    name: str
    mode: int
    width: int
    ring: int
    accumulators: list[Accumulator] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)

    def seal(self, entities: Index) -> None:
        """Fixes accumulators and reads, and makes the empty state."""
        self.entities = entities
        self.columns = list(dict.fromkeys(a.column for a in self.accumulators))
        first, spec = 0, []
        for a in self.accumulators:
            spec.append((a.operation, self.columns.index(a.column), first, a.floating))
            first += a.width
        self.cells_wide = first
        self._spec = np.array(spec, np.int64).reshape(-1, 4)
        self._rates = np.array([a.rate for a in self.accumulators], np.float64)
        self._init = np.array([c for a in self.accumulators for c in a.init()], np.int64)
        self._reads = np.array(
            [(self.accumulators.index(r.accumulator), r.panes, r.how, r.before) for r in self.reads], np.int64
        ).reshape(-1, 4)
        self._scratch = np.zeros(4 * max(len(self.reads), 1), np.int64)
        before = any(r.before for r in self.reads)
        self._shape = np.array([self.mode, self.width, self.ring, before], np.int64)
        self._header = bytes([len(self.accumulators)]) + b"".join(a.id for a in self.accumulators)
        self._prefix = self.name.encode() + b"\x00"
        self._distinct = [i for i, a in enumerate(self.accumulators) if a.operation == kernels.DISTINCT]
        self._value_prefix = {
            i: self.name.encode() + b"/" + self.accumulators[i].id.hex().encode() + b"\x00"
            for i in self._distinct
        }
        self.clear()

    def clear(self) -> None:
        self.counters = np.zeros(6, np.int64)
        self._head = np.full(64, -1, np.int64)
        self._rows(64)
        self.values = {self.accumulators[i].values: Index() for i in self._distinct}
        self._entries = np.zeros((64, 5), np.int64)
        self._buckets = np.zeros(128, np.int64)
        self._touched = np.zeros(0, np.int64)
        self._swept = 0

    def _rows(self, size: int) -> None:
        self._owner, self._pane, self._prev, self._free, self._dirty = np.zeros((5, size), np.int64)
        self._flag = np.zeros(size, np.uint8)
        self._cells = np.zeros((size, self.cells_wide), np.int64)

    def _reserve(self, events: int) -> None:
        """Makes room, so that the kernel never has to."""
        entities = len(self.entities)
        if entities > len(self._head):
            grown = np.full(2 * entities, -1, np.int64)
            grown[: len(self._head)] = self._head
            self._head = grown
        needed = int(self.counters[kernels.USED]) + events
        if needed > len(self._pane):
            size = 2 * needed
            for name in ("_owner", "_pane", "_prev", "_free", "_dirty", "_flag", "_cells"):
                setattr(self, name, _grown(getattr(self, name), size))
        if self._distinct:
            self._reserve_entries(events * len(self._distinct))

    def _reserve_entries(self, more: int) -> None:
        needed = int(self.counters[kernels.ENTRIES]) + more
        if needed > len(self._entries):
            self._entries = _grown(self._entries, 2 * needed)
        if 2 * needed > len(self._buckets):
            self._buckets = np.zeros(1 << (4 * needed).bit_length(), np.int64)
            kernels.rehash(self._entries, self._buckets, int(self.counters[kernels.ENTRIES]))
        touched = int(self.counters[kernels.ENTRIES_TOUCHED]) + more
        if touched > len(self._touched):
            self._touched = _grown(self._touched, 2 * touched)

    def advance(
        self, at: Ints, slots: Ints, time: Ints, values: Ints, r_at: Ints, r_slots: Ints, r_time: Ints
    ) -> Ints:
        """Folds the events at positions `at` and reads rows at positions `r_at`: int64[read, row].

        values: int64[column of `columns`, event], the bits of floats.
        """
        self._reserve(len(at))
        out = np.empty((len(self.reads), len(r_at)), np.int64)
        kernels.advance(
            self._shape, at, slots, time, values, values.view(np.float64), r_at, r_slots, r_time, self._spec,
            self._rates, self._init, self._reads, self._head, self._owner, self._pane, self._prev, self._flag,
            self._cells, self._cells.view(np.float64), self._free, self._dirty, self._entries, self._buckets,
            self._touched, self.counters, self._scratch, self._scratch.view(np.float64), out,
            out.view(np.float64),
        )  # fmt: skip
        return out

    @property
    def ignored(self) -> int:
        """Events that came after their pane had left the ring."""
        return int(self.counters[kernels.IGNORED])

    def changes(self, into: list[Change]) -> None:
        """Appends the rows touched since the last call."""
        touched = self._dirty[: self.counters[kernels.TOUCHED]]
        if len(touched):
            self._pane_changes(touched, into)
        if self._distinct:
            self._value_changes(into)

    def _pane_changes(self, touched: Ints, into: list[Change]) -> None:
        dead = self._flag[touched] & kernels.DEAD != 0
        numbers, panes = self._pane[touched], self._pane[touched]
        if self.mode == kernels.BY_NUMBER:
            numbers = panes % self.ring  # a later pane takes the row of the one that left the ring
        rows = np.column_stack((panes, self._cells[touched])).tobytes()
        wide = 8 * (1 + self.cells_wide)
        prefix, header, encoded = self._prefix, self._header, self.entities.encoded
        positions = numbers.astype(">i8").tobytes()
        slots = self._owner[touched].tolist()
        for k, (slot, gone) in enumerate(zip(slots, dead.tolist(), strict=True)):
            key = prefix + encoded(slot) + positions[8 * k : 8 * k + 8]
            if not gone:
                into.append((key, header + rows[wide * k : wide * k + wide]))
            elif self.mode != kernels.BY_NUMBER:
                into.append((key, None))
        self._flag[touched] = 0
        gone_rows = touched[dead]
        free = int(self.counters[kernels.FREE])
        self._free[free : free + len(gone_rows)] = gone_rows
        self.counters[kernels.FREE] += len(gone_rows)
        self.counters[kernels.TOUCHED] = 0

    def _value_changes(self, into: list[Change]) -> None:
        touched = np.unique(self._touched[: self.counters[kernels.ENTRIES_TOUCHED]])
        self.counters[kernels.ENTRIES_TOUCHED] = 0
        for slot, number, acc, value, last in self._entries[touched].tolist():
            into.append((self._value_key(slot, number, acc, value), _NUMBER.pack(last)))
        self._sweep(into)

    def _value_key(self, slot: int, number: int, acc: int, value: int) -> bytes:
        entity = self.entities.encoded(slot)
        content = self.values[self.accumulators[acc].values].encoded(value)
        return b"".join(
            (self._value_prefix[acc], entity, content, _NUMBER.pack(number), _LENGTH.pack(len(entity)))
        )

    def _sweep(self, into: list[Change]) -> None:
        """Drops the values last seen in a pane that has left the ring, once they may be half of all."""
        count = int(self.counters[kernels.ENTRIES])
        if self.mode == kernels.ALL_TIME or count < 2 * self._swept + 1024:
            return
        entries = self._entries[:count]
        heads = self._head[entries[:, 0]]
        gone = entries[:, 4] <= self._pane[heads] - self.ring
        for slot, number, acc, value, _ in entries[gone].tolist():
            into.append((self._value_key(slot, number, acc, value), None))
        kept = entries[~gone]
        self._entries[: len(kept)] = kept
        self.counters[kernels.ENTRIES] = self._swept = len(kept)
        self._buckets[:] = 0
        kernels.rehash(self._entries, self._buckets, len(kept))

    def load(self, rows: Iterable[tuple[bytes, bytes]]) -> None:
        """Takes rows of this table as `changes` gave them, into an empty table.

        Raises StateError where a row is none of this table's.
        """
        panes: list[bytes] = []
        slots: list[int] = []
        values: list[tuple[int, ...]] = []
        by_prefix = {prefix: i for i, prefix in self._value_prefix.items()}
        wide = len(self._header) + 8 * (1 + self.cells_wide)
        for key, value in rows:
            cut = key.index(b"\x00") + 1
            if key[:cut] == self._prefix:
                slots.append(self.entities.number(decoded(key[cut:-8])))
                plain = len(value) == wide and value.startswith(self._header)
                panes.append(value[len(self._header) :] if plain else self._converted(value))
            elif key[:cut] in by_prefix:
                values.append(self._read_value(by_prefix[key[:cut]], key[cut:], value))
        self._load_panes(slots, np.frombuffer(b"".join(panes), np.int64).reshape(-1, 1 + self.cells_wide))
        self._load_values(values)

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
        return pane + b"".join(
            found.get(a.id, np.array(a.init(), np.int64).tobytes()) for a in self.accumulators
        )

    def _load_panes(self, slots: list[int], rows: Ints) -> None:
        self._reserve(len(slots))
        count = len(slots)
        order = np.lexsort((rows[:, 0], np.array(slots, np.int64)))
        owner, pane = np.array(slots, np.int64)[order], rows[order, 0]
        self._owner[:count], self._pane[:count] = owner, pane
        self._cells[:count] = rows[order, 1:]
        last = np.append(owner[1:] != owner[:-1], True)[:count]
        first = np.append(True, owner[1:] != owner[:-1])[:count]
        self._prev[:count] = np.where(first, -1, np.arange(count) - 1)
        self._head[owner[last]] = np.flatnonzero(last)
        self.counters[kernels.USED] = count

    def _read_value(self, acc: int, key: bytes, value: bytes) -> tuple[int, ...]:
        (length,) = _LENGTH.unpack(key[-4:])
        (number,) = _NUMBER.unpack(key[-12:-4])
        slot = self.entities.number(decoded(key[:length]))
        content = self.values[self.accumulators[acc].values].number(decoded(key[length:-12]))
        return slot, number, acc, content, *_NUMBER.unpack(value)

    def _load_values(self, values: list[tuple[int, ...]]) -> None:
        self._reserve(0)
        self._reserve_entries(len(values))
        self._entries[: len(values)] = np.array(values, np.int64).reshape(-1, 5)
        self.counters[kernels.ENTRIES] = len(values)
        self._buckets[:] = 0
        kernels.rehash(self._entries, self._buckets, len(values))


def _grown(array: NDArray[Any], size: int) -> NDArray[Any]:
    grown = np.zeros((size, *array.shape[1:]), array.dtype)
    grown[: len(array)] = array
    return grown


def _bits(number: float) -> int:
    return int(np.array([number]).view(np.int64)[0])
