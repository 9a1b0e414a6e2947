"""Byte strings as a column: one buffer, and where each string lies in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import NDArray


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
        if not len(self):
            return
        first = int(self.start.min())
        whole = self.data[first : int((self.start + self.length).max())].tobytes()
        for start, length in zip((self.start - first).tolist(), self.length.tolist(), strict=True):
            yield None if length < 0 else whole[start : start + length]

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> Spans:
        """Those of these rows."""
        return Spans(self.data, self.start[rows], self.length[rows])

    @property
    def size(self) -> int:
        """Bytes of all of them."""
        return int(np.maximum(self.length, 0).sum())
