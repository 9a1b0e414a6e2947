"""Committed rows of one task on local disk. It is a view: the changelog can always rebuild it."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

from headrace.streams.batch import Change, Touched, one_by_one


class Found(NamedTuple):
    """Rows of many prefixes, prefix after prefix.

    counts: rows of each prefix
    keys:   what follows the prefix in each
    """

    counts: list[int]
    keys: list[bytes]
    values: list[bytes]


class Store(Protocol):
    """Rows by key, written atomically."""

    def get(self, key: bytes) -> bytes | None: ...

    def rows(self, prefix: bytes, begin: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """The rows whose key begins with the prefix, in key order, it taken off. begin: the first rest of one."""

    def many(self, prefixes: Iterable[bytes]) -> Found:
        """The rows of many prefixes, best in key order themselves."""

    def write(self, changes: Iterable[Change | Touched]) -> None:
        """All of them or none."""

    def empty(self) -> None:
        """Remove every row, all or none."""

    def ordering(self, on: bool) -> None:
        """Whether what is written is put in order in the background. While a large state is read in, most of that work
        would be for nothing: what comes next disorders it."""

    def rest(self) -> None:
        """Nothing is written just now: time for what was put off."""

    def close(self) -> None: ...


class MemoryStore:
    """Rows in a dict, for the simulator and tests; what was written survives its task."""

    def __init__(self) -> None:
        self._rows: dict[bytes, bytes] = {}

    def get(self, key: bytes) -> bytes | None:
        return self._rows.get(key)

    def rows(self, prefix: bytes, begin: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        for key in sorted(self._rows):
            if key.startswith(prefix) and key >= prefix + begin:
                yield key[len(prefix) :], self._rows[key]

    def many(self, prefixes: Iterable[bytes]) -> Found:
        found, ordered = Found([], [], []), sorted(self._rows)
        for prefix in prefixes:
            before = len(found.keys)
            for key in ordered[bisect.bisect_left(ordered, prefix) :]:
                if not key.startswith(prefix):
                    break
                found.keys.append(key[len(prefix) :])
                found.values.append(self._rows[key])
            found.counts.append(len(found.keys) - before)
        return found

    def write(self, changes: Iterable[Change | Touched]) -> None:
        for key, value in one_by_one(changes):
            if value is None:
                self._rows.pop(key, None)
            else:
                self._rows[key] = value

    def empty(self) -> None:
        self._rows.clear()

    def ordering(self, on: bool) -> None:
        pass

    def rest(self) -> None:
        pass

    def close(self) -> None:
        pass


class Shelf:
    """The rows of one operator in the store of its task, as they were committed last."""

    def __init__(self, store: Store, prefix: bytes) -> None:
        self._store = store
        self._prefix = prefix

    def rows(self, prefix: bytes = b"", begin: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """The rows whose key begins with a prefix, in key order, it taken off. begin: the first rest of one."""
        return self._store.rows(self._prefix + prefix, begin)

    def many(self, prefixes: Iterable[bytes]) -> Found:
        """The rows of many prefixes, best in key order themselves."""
        return self._store.many(self._prefix + prefix for prefix in prefixes)
