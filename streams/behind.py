"""A store whose writes are held back: rows that many commits touch are written once for all of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import cast

import numpy as np
from headrace.streams.batch import Change, Touched, one_by_one
from headrace.streams.errors import StateError
from headrace.streams.index import Names
from headrace.streams.rocks import RocksStore
from headrace.streams.spans import Spans
from headrace.streams.store import Found, Store

HELD_BYTES = 2 << 20
"""Held of one store before it is written: some 20,000 rows, for which RocksDB needs some 30 ms."""

FEW = 200
"""Rows that are sooner merged one by one than as columns."""


def on_disk(path: Path) -> Store:
    """The rows under a folder. Raises StateError, as `RocksStore` does."""
    return Behind(RocksStore(path))


class Behind:
    """Holds committed rows until they are many, somebody reads, or nothing more comes.

    What a crash takes of them the changelog has: the position goes with the rows that it tells of.
    """

    def __init__(self, store: Store, most: int = HELD_BYTES) -> None:
        self._store = store
        self._most = most
        self._held: list[Change | Touched] = []
        self._bytes = 0

    def get(self, key: bytes) -> bytes | None:
        self._settle()
        return self._store.get(key)

    def rows(self, prefix: bytes, begin: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        self._settle()
        return self._store.rows(prefix, begin)

    def many(self, prefixes: Iterable[bytes]) -> Found:
        self._settle()
        return self._store.many(prefixes)

    def write(self, changes: Iterable[Change | Touched]) -> None:
        for change in changes:
            if isinstance(change, Touched):
                change = Touched(_tight(change.keys), _tight(change.values))
                self._bytes += change.keys.size + change.values.size
            else:
                self._bytes += len(change[0]) + len(change[1] or b"")
            self._held.append(change)
        if self._bytes > self._most:
            self._settle()

    def empty(self) -> None:
        self._held.clear()
        self._bytes = 0
        self._store.empty()

    def ordering(self, on: bool) -> None:
        self._store.ordering(on)

    def rest(self) -> None:
        self._settle()
        self._store.rest()

    def close(self) -> None:
        # What a full disk does not take now is in the changelog.
        with contextlib.suppress(StateError):
            self._settle()
        self._store.close()

    def _settle(self) -> None:
        if self._held:
            # Emptied once written: where the disk is full, they are tried again.
            self._store.write(newest(self._held))
            self._held.clear()
            self._bytes = 0


def newest(changes: Sequence[Change | Touched]) -> list[Change] | list[Touched]:
    """The last change of each key, of many as columns."""
    if sum([len(c) if isinstance(c, Touched) else 1 for c in changes]) < FEW:
        return list(dict(one_by_one(changes)).items())
    whole = list(_columns(changes))
    keys, values = Spans.joined([c.keys for c in whole]), Spans.joined([c.values for c in whole])
    numbers = Names().numbers(keys)
    last = np.empty(int(numbers.max()) + 1, np.int64)
    last[numbers] = np.arange(len(numbers))  # of several for one place, the last stays
    return [Touched(keys.take(last), values.take(last))]


def _columns(changes: Sequence[Change | Touched]) -> Iterator[Touched]:
    """The changes, what stands by itself together: a column for each row costs twenty times the row."""
    for columns, some in groupby(changes, lambda change: isinstance(change, Touched)):
        if columns:
            yield from cast(Iterator[Touched], some)
        else:
            keys, values = zip(*cast(Iterator[Change], some), strict=True)
            yield Touched(Spans.of(keys), Spans.of(values))


def _tight(spans: Spans) -> Spans:
    """The same without a buffer that is mostly of others: it may be a whole fetch."""
    return spans if len(spans.data) <= 2 * spans.size else spans.packed()
