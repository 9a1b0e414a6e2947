"""Rows of bytes that wait, by the offset of their event: one buffer, and no Python object for each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np
from headrace.streams import bytekernels
from headrace.streams.batch import Touched
from headrace.streams.index import Ints, grown_to
from headrace.streams.spans import Spans

ROW = 64
"""Bytes that a row takes beside its own, about."""

PACK_FROM = 65_536
"""Bytes of removed rows that are let lie; then as many as of the others, so that packing costs a constant share."""

SPARE = 65_536
"""Bytes of a buffer that are not worth giving back."""

LOADED_AT_ONCE = 10_000
"""Rows of state that are taken together: as Python's objects they take several times the room."""


class Waiting:
    """Byte strings under the numbers 0, 1, 2, ..., in the order of their offsets.

    What is removed keeps its number until `pack`.

    offset: int64[number], of the event in its partition
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.offset, self._start, self._length = (np.zeros(64, np.int64) for _ in range(3))
        self._gone = np.zeros(64, np.bool_)
        self._data = np.empty(1024, np.uint8)
        self._count = self._bytes = self._unused = 0
        self._added: list[tuple[Ints, Spans]] = []
        self._touched: list[Ints] = []

    def __len__(self) -> int:
        """Numbers given so far, those of removed rows among them."""
        return self._count

    @property
    def here(self) -> Ints:
        """The numbers of the rows that wait."""
        return np.flatnonzero(~self._gone[: self._count])

    def add(self, offset: Ints, rows: Spans) -> Ints:
        """Takes rows of offsets beyond all before, ascending; their numbers."""
        first, size, end = self._count, rows.size, self._count + len(rows)
        assert (np.diff(offset, prepend=self.offset[first - 1] if first else -1) > 0).all(), "offsets ascend"
        if end > len(self.offset):
            for name in ("offset", "_start", "_length", "_gone"):
                setattr(self, name, grown_to(getattr(self, name), 2 * end))
        if self._bytes + size > len(self._data):
            data = np.empty(2 * (self._bytes + size), np.uint8)
            data[: self._bytes] = self._data[: self._bytes]
            self._data = data
        length = np.maximum(rows.length, 0)
        start = self._bytes + np.cumsum(length) - length
        bytekernels.gather(rows.data, rows.start, rows.length, self._data, start)
        self.offset[first:end], self._start[first:end], self._length[first:end] = offset, start, length
        self._gone[first:end] = False
        self._count, self._bytes = end, self._bytes + size
        numbers = np.arange(first, end)
        self._added.append((numbers, rows))
        return numbers

    def find(self, offset: Ints) -> Ints:
        """The numbers of rows that wait."""
        numbers = np.searchsorted(self.offset[: self._count], offset)
        assert np.array_equal(self.offset[numbers], offset), "they wait"
        return numbers

    def rows(self, numbers: Ints) -> Spans:
        """Rows where they lie; they stay there until `pack`, also once they are removed."""
        return Spans(self._data, self._start[numbers], self._length[numbers])

    def stamp(self, numbers: Ints, at: int, what: Spans) -> None:
        """Overwrites so many bytes of each of these rows, from its byte `at` on."""
        bytekernels.gather(what.data, what.start, what.length, self._data, self._start[numbers] + at)
        self._touched.append(numbers)

    def remove(self, numbers: Ints) -> None:
        self._gone[numbers] = True
        self._unused += int(self._length[numbers].sum()) + ROW * len(numbers)
        self._touched.append(numbers)

    def changes(self) -> list[Touched]:
        """The rows touched since this was last asked: their offsets as 8 bytes, and what waits or None.

        Rows that nothing has happened to since they came are told as they came, without a copy.
        """
        later = np.unique(np.concatenate([np.zeros(0, np.int64), *self._touched]))
        found = []
        for numbers, rows in self._added:
            fresh = ~np.isin(numbers, later)
            found.append(Touched(self._keys(numbers[fresh]), rows.take(fresh)))
        if len(later):
            rows = Spans(self._data, self._start[later], np.where(self._gone[later], -1, self._length[later]))
            found.append(Touched(self._keys(later), rows.packed()))
        self._added.clear()
        self._touched.clear()
        return [touched for touched in found if len(touched)]

    def _keys(self, numbers: Ints) -> Spans:
        keys = self.offset[numbers].astype(">i8").view(np.uint8)
        return Spans(keys, np.arange(len(numbers)) * 8, np.full(len(numbers), 8))

    def pack(self) -> Ints | None:
        """Lets go of removed rows where they are more than the others. Call it after `changes`.

        The numbers of those that are left, ascending, which then are 0, 1, 2, ...; None where nothing was done
        """
        if 2 * self._unused <= self._bytes + ROW * self._count + PACK_FROM:
            return None
        kept = self.here
        length = self._length[kept]
        end = np.cumsum(length)
        size = int(end[-1]) if len(end) else 0
        # In the same buffer, from its begin on, and so without a place that is still to be read: memory that is asked
        # for anew costs more than the copy. Of a buffer that has become far too large it is the other way round.
        data = self._data if len(self._data) <= 8 * size + SPARE else np.empty(2 * size + 1024, np.uint8)
        bytekernels.gather(self._data, self._start[kept], length, data, end - length)
        room = max(64, 2 * len(kept))
        self.offset, self._start, self._length = (
            grown_to(column, room) for column in (self.offset[kept], end - length, length)
        )
        self._gone = np.zeros(room, np.bool_)
        self._data, self._count, self._bytes, self._unused = data, len(kept), size, 0
        return kept

    def load(self, rows: Iterable[tuple[bytes, bytes]]) -> Iterator[Ints]:
        """Takes rows of state, ascending, so many at a time; the numbers of each time."""
        rows = iter(rows)
        while some := list(islice(rows, LOADED_AT_ONCE)):
            offset = np.frombuffer(b"".join(key for key, _ in some), ">i8").astype(np.int64)
            numbers = self.add(offset, Spans.of([value for _, value in some]))
            self._added.clear()
            yield numbers
