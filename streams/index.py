"""Numbers for values: 0, 1, 2, ..., in the order in which they are met; a missing value is `kernels.UNKNOWN`.

Numbers that are no longer used go to the values met next. An `Index` takes values of any kind; `Names` takes texts,
without a Python value for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from headrace.streams import bytekernels, kernels
from headrace.streams.spans import Spans
from numpy.typing import NDArray

Ints = NDArray[np.int64]

SWEEP_FROM = 1024
"""Values that an index, or entries that a table, takes in before it looks for those that are no longer used; then
as many as it kept, so that looking costs a constant share of taking in, and at most about half is unused."""


VALUE_BYTES = 250
"""Bytes of a value of Python's with its number, about: what is held is bounded by a sum of such guesses."""

_NONE = np.zeros(0, np.int64)


class Index:
    """Numbers values of any kind. told: keep what `fresh` tells."""

    class _Numbers(dict[object, int]):
        def __init__(self, told: bool) -> None:
            self.met: list[object] = []
            self.free: list[int] = []
            self.fresh: list[int] = []
            self.told = told
            self[None] = kernels.UNKNOWN

        def __missing__(self, value: object) -> int:
            if self.free:
                number = self.free.pop()
                self.met[number] = value
            else:
                number = len(self.met)
                self.met.append(value)
            self[value] = number
            if self.told:
                self.fresh.append(number)
            return number

    def __init__(self, told: bool = False) -> None:
        self._numbers = self._Numbers(told)
        self.met = self._numbers.met
        self._free = self._numbers.free
        self._fresh = self._numbers.fresh
        self._encoded: dict[int, bytes] = {}
        self._kept = 0

    def __len__(self) -> int:
        """Numbers given so far, those in use and those that are free."""
        return len(self.met)

    @property
    def used(self) -> int:
        """Values it knows."""
        return len(self.met) - len(self._free)

    @property
    def crowded(self) -> bool:
        """Whether so many values have come that those no longer used are worth looking for."""
        return self.used >= 2 * self._kept + SWEEP_FROM

    def numbers(self, values: Sequence[object]) -> Ints:
        return np.fromiter(map(self._numbers.__getitem__, values), np.int64, len(values))

    def clear(self) -> None:
        self._numbers.clear()
        self._numbers[None] = kernels.UNKNOWN
        for part in (self.met, self._free, self._fresh, self._encoded):
            part.clear()
        self._kept = 0

    def number(self, value: object) -> int:
        return self._numbers[value]

    def encoded_numbers(self, texts: Sequence[bytes | None]) -> Ints:
        """The numbers of values as `encoded` writes them, none of them missing."""
        return self.numbers([decoded(text or b"") for text in texts])

    def value(self, number: int) -> object:
        """The value that a number stands for."""
        return self.met[number]

    def in_use(self) -> list[int]:
        """The numbers that stand for a value."""
        free = set(self._free)
        return [number for number in range(len(self.met)) if number not in free]

    @property
    def size(self) -> int:
        """Bytes that it takes, about."""
        return VALUE_BYTES * self.used

    def fresh(self) -> list[int]:
        """The numbers given since this was last asked."""
        given = self._fresh.copy()
        self._fresh.clear()
        return given

    def unused(self, used: Ints) -> Ints:
        """The numbers in use beside these."""
        idle = np.ones(len(self.met), np.bool_)
        idle[used] = False
        idle[self._free] = False
        return np.flatnonzero(idle)

    def known(self, texts: Sequence[bytes]) -> Ints:
        """The numbers of values as `encoded` writes them; -1 of those it does not know."""
        return np.array([self._numbers.get(decoded(text), -1) for text in texts], np.int64)

    def release(self, numbers: Ints) -> None:
        """Forgets the values of these numbers."""
        for number in numbers.tolist():
            del self._numbers[self.met[number]]
            self.met[number] = None
            self._encoded.pop(number, None)
        self._free.extend(numbers.tolist())
        self._kept = self.used

    def restore(self, values: dict[int, object]) -> None:
        """Takes values under the numbers that they had, into an empty index."""
        self.met.extend(values.get(number) for number in range(max(values, default=-1) + 1))
        self._free.extend(number for number in range(len(self.met)) if number not in values)
        self._numbers.update((value, number) for number, value in values.items())
        self._kept = self.used

    def encoded(self, number: int) -> bytes:
        """The value as bytes that `decoded` reads."""
        found = self._encoded.get(number)
        if found is None:
            found = self._encoded[number] = encoded(self.met[number])
        return found

    def spans(self, numbers: Ints) -> Spans:
        """`encoded` of each."""
        return Spans.of([self.encoded(number) for number in numbers.tolist()])


class Names:
    """Numbers texts. told: keep what `fresh` tells."""

    def __init__(self, told: bool = False) -> None:
        self._told = told
        self.clear()

    def clear(self) -> None:
        self._state = bytekernels.Names(
            buckets=np.zeros(128, np.int64),
            hash=np.zeros(64, np.int64),
            start=np.zeros(64, np.int64),
            length=np.full(64, -1, np.int64),
            arena=np.zeros(1024, np.uint8),
            free=np.zeros(64, np.int64),
            counters=np.zeros(3, np.int64),
        )
        self._kept = 0
        self._fresh: list[Ints] = []

    def __len__(self) -> int:
        return int(self._state.counters[bytekernels.USED])

    @property
    def size(self) -> int:
        """Bytes that it takes."""
        return 32 * len(self) + int(self._state.counters[bytekernels.BYTES]) + 8 * len(self._state.buckets)

    @property
    def used(self) -> int:
        return len(self) - int(self._state.counters[bytekernels.FREE])

    @property
    def crowded(self) -> bool:
        return self.used >= 2 * self._kept + SWEEP_FROM

    def numbers(self, values: Spans | Sequence[object]) -> Ints:
        """The number of each: of texts, or of spans that hold texts as `encoded` writes them."""
        if not isinstance(values, Spans):
            values = Spans.of([None if value is None else encoded(value) for value in values])
        self._reserve(len(values), values.size)
        found = np.empty(len(values), np.int64)
        used, free, _ = self._state.counters.tolist()
        bytekernels.number(values.data, values.start, values.length, self._state, found)
        if self._told:
            used_now, free_now, _ = self._state.counters.tolist()
            if used_now > used or free_now < free:
                self._fresh += [np.arange(used, used_now), self._state.free[free_now:free].copy()]
        return found

    def fresh(self) -> Ints:
        """The numbers given since this was last asked."""
        given = np.concatenate([_NONE, *self._fresh])
        self._fresh.clear()
        return given

    def known(self, texts: Sequence[bytes]) -> Ints:
        """The numbers of texts; -1 of those it does not know."""
        spans = Spans.of(texts)
        found = np.empty(len(spans), np.int64)
        bytekernels.find(spans.data, spans.start, spans.length, self._state, found)
        return found

    def number(self, value: object) -> int:
        return int(self.numbers([value])[0])

    def encoded_numbers(self, texts: Sequence[bytes | None]) -> Ints:
        """The numbers of texts as `encoded` writes them, none of them missing."""
        return self.numbers(Spans.of(texts))

    def value(self, number: int) -> object:
        return decoded(self.encoded(number))

    def encoded(self, number: int) -> bytes:
        """The text as bytes that `decoded` reads."""
        start, length = int(self._state.start[number]), int(self._state.length[number])
        found: bytes = self._state.arena[start : start + length].tobytes()
        return found

    def spans(self, numbers: Ints) -> Spans:
        return Spans(self._state.arena, self._state.start[numbers], self._state.length[numbers])

    def in_use(self) -> list[int]:
        found: list[int] = np.flatnonzero(self._state.length[: len(self)] >= 0).tolist()
        return found

    def unused(self, used: Ints) -> Ints:
        idle = self._state.length[: len(self)] >= 0
        idle[used] = False
        return np.flatnonzero(idle)

    def release(self, numbers: Ints) -> None:
        """Forgets the texts of these numbers, and packs those of the others."""
        state = self._state
        state.length[numbers] = -1
        free = int(state.counters[bytekernels.FREE])
        state.free[free : free + len(numbers)] = numbers
        state.counters[bytekernels.FREE] += len(numbers)
        self._kept = self.used
        here = np.flatnonzero(state.length[: len(self)] >= 0)
        kept = self.spans(here).packed()
        state.start[here] = kept.start
        state.counters[bytekernels.BYTES] = len(kept.data)
        arena = np.zeros(max(1024, 2 * len(kept.data)), np.uint8)
        arena[: len(kept.data)] = kept.data
        buckets = 1 << max(7, (2 * self.used).bit_length())
        self._state = state._replace(arena=arena, buckets=np.zeros(buckets, np.int64))
        bytekernels.rehash(self._state)

    def _reserve(self, texts: int, size: int) -> None:
        """Makes room, so that the kernel never has to."""
        state = self._state
        needed = len(self) + texts
        if needed > len(state.hash):
            grown = {name: grown_to(getattr(state, name), 2 * needed) for name in ("hash", "start", "length", "free")}
            grown["length"][len(state.length) :] = -1
            self._state = state = state._replace(**grown)
        taken = int(state.counters[bytekernels.BYTES]) + size
        if taken > len(state.arena):
            self._state = state = state._replace(arena=grown_to(state.arena, 2 * taken))
        if 2 * (self.used + texts) > len(state.buckets):
            buckets = np.zeros(1 << (4 * (self.used + texts)).bit_length(), np.int64)
            self._state = state._replace(buckets=buckets)
            bytekernels.rehash(self._state)


def grown_to(array: NDArray[Any], size: int) -> NDArray[Any]:
    """A larger copy, with zeros behind."""
    grown = np.zeros((size, *array.shape[1:]), array.dtype)
    grown[: len(array)] = array
    return grown


def encoded(value: object) -> bytes:
    """A value as bytes that `decoded` reads."""
    plain = isinstance(value, str) and not value.startswith("\0")
    return str(value).encode() if plain else b"\0" + msgspec.json.encode(value)


def decoded(value: bytes) -> object:
    """What `encoded` wrote: text as it is, anything else as JSON behind a zero byte."""
    if value[:1] != b"\x00":
        return value.decode()
    found = msgspec.json.decode(value[1:])
    return tuple(found) if isinstance(found, list) else found
