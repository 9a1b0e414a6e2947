"""Byte strings as a column: one buffer, and where each string lies in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from headrace.streams import bytekernels
from numpy.typing import NDArray

FEW = 20
"""Strings that are sooner copied one by one than found the bounds of."""


@dataclass(slots=True, eq=False)
class Spans(Sequence[bytes | None]):
    """Byte strings of one buffer, as a sequence of them; a missing one is None.

    data:   uint8[any]
    start:  int64[n], where each begins
    length: int64[n], its bytes; -1 where it is missing
    """

    data: NDArray[np.uint8]
    start: NDArray[np.int64]
    length: NDArray[np.int64]

    @classmethod
    def of(cls, values: Sequence[bytes | None]) -> Spans:
        """These strings, one after the other."""
        if isinstance(values, Spans):
            return values
        length = np.fromiter((-1 if v is None else len(v) for v in values), np.int64, len(values))
        data = np.frombuffer(b"".join(v for v in values if v), np.uint8)
        return cls(data, np.cumsum(np.maximum(length, 0)) - np.maximum(length, 0), length)

    @classmethod
    def joined(cls, parts: Sequence[Spans]) -> Spans:
        """All of them, one after the other; bytes are copied only where they lie in several buffers."""
        if len(parts) == 1:
            return parts[0]
        length = np.concatenate([part.length for part in parts])
        if all(part.data is parts[0].data for part in parts):
            return cls(parts[0].data, np.concatenate([part.start for part in parts]), length)
        packed = [part if len(part.data) <= 2 * part.size + _SMALL else part.packed() for part in parts]
        first = np.cumsum([0, *(len(part.data) for part in packed)])
        start = np.concatenate([part.start + at for part, at in zip(packed, first[:-1], strict=True)])
        return cls(np.concatenate([part.data for part in packed]), start, length)

    def __len__(self) -> int:
        return len(self.start)

    @overload
    def __getitem__(self, at: int) -> bytes | None: ...

    @overload
    def __getitem__(self, at: slice) -> Spans: ...

    def __getitem__(self, at: int | slice) -> bytes | Spans | None:
        if isinstance(at, slice):
            return Spans(self.data, self.start[at], self.length[at])
        start, length = int(self.start[at]), int(self.length[at])
        return None if length < 0 else self.data[start : start + length].tobytes()

    def __iter__(self) -> Iterator[bytes | None]:
        return iter(self._listed())

    def _listed(self) -> list[bytes | None]:
        if len(self) < FEW:
            rows = zip(self.start.tolist(), self.length.tolist(), strict=True)
            return [None if length < 0 else self.data[start : start + length].tobytes() for start, length in rows]
        ends = self.start + self.length
        there = self.length > 0
        first = int(self.start[there].min(initial=len(self.data)))
        whole = self.data[first : int(ends[there].max(initial=first))].tobytes()
        rows = zip((self.start - first).tolist(), (ends - first).tolist(), strict=True)
        if (self.length >= 0).all():
            return [whole[start:end] for start, end in rows]
        return [None if end < start else whole[start:end] for start, end in rows]

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> Spans:
        """Those of these rows."""
        return Spans(self.data, self.start[rows], self.length[rows])

    def packed(self) -> Spans:
        """The same strings one after the other, in a buffer that holds nothing else."""
        length = np.maximum(self.length, 0)
        end = np.cumsum(length)
        data = np.empty(int(end[-1]) if len(end) else 0, np.uint8)
        start = end - length
        bytekernels.gather(self.data, self.start, self.length, data, start)
        return Spans(data, start, self.length)

    @property
    def size(self) -> int:
        """Bytes of all of them."""
        return int(np.maximum(self.length, 0).sum())


def woven(literals: Sequence[bytes], columns: Sequence[Spans]) -> Spans:
    """One string a row: literal, string of column 0, literal, string of column 1, ..., the last literal."""
    sizes = np.full(len(columns[0]), sum(len(one) for one in literals), np.int64)
    for column in columns:
        sizes += np.maximum(column.length, 0)
    ends = np.cumsum(sizes)
    at = ends - sizes
    out = Spans(np.empty(int(ends[-1]) if len(ends) else 0, np.uint8), at.copy(), sizes)
    none = np.zeros(len(sizes), np.int64)
    nothing = _NO_BYTES, none, none
    parts = [(column.data, column.start, column.length) for column in columns]
    if literals[-1]:
        parts.append(nothing)
    wide = bytekernels.TOGETHER
    for begin in range(0, len(parts), wide):
        some, texts = parts[begin : begin + wide], literals[begin : begin + wide]
        some += [nothing] * (wide - len(some))
        # Words are copied whole: those of the literals need room behind them.
        text = np.frombuffer(b"".join(texts) + bytes(8), np.uint8)
        lengths = [len(one) for one in texts]
        until = np.cumsum(lengths + [0] * (wide - len(lengths)))
        bytekernels.weave(text, until, *(array for part in some for array in part), out.data, at, ends)
    return out


def quoted(texts: Spans) -> Spans:
    """Texts as JSON, where none of them is missing or needs an escape."""
    return woven([b'"', b'"'], [texts])


_NO_BYTES = np.zeros(0, np.uint8)

_SMALL = 4_096
"""Bytes that are copied sooner than packed."""
