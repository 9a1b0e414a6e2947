"""The windows of a set that are open, or closed and still to be corrected: one row of arrays each.

A window sleeps until the watermark comes to its `wake`. Its row of state: key = prefix, entity, number; value = start,
end, revision, whether closed, when it is told early, whether its last row stands.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
from headrace.streams import windowkernels as kernels
from headrace.streams.batch import Changes, Touched
from headrace.streams.index import Index, Ints, Names, grown_to
from headrace.streams.kernels import INT_MAX
from headrace.streams.spans import Spans, woven
from headrace.streams.windowkernels import (
    CLOSED,
    DEAD,
    DIRTY,
    FREE,
    LEAST,
    ROW,
    SHOWN,
    STORED,
    TOUCHED,
    USED,
    Windows,
)

_FACTS = np.dtype(
    [("start", ">i8"), ("end", ">i8"), ("revision", ">i8"), ("closed", "?"), ("due", ">i8"), ("shown", "?")]
)
_NUMBER = struct.Struct(">q")
_FIRST = 64
_BY_WINDOW = [f for f in Windows._fields if f not in ("buckets", "counters")]


class OpenWindows:
    """Windows of entities, by number; sessions by their entity alone, as an event may join any of them.

    prefix:  begins every row of state
    gap:     microseconds, of sessions; 0 for others
    linger:  microseconds for which a closed window can be corrected
    endless: they never close
    implied: one that is open, and of which nothing was told, has no row of state: panes say that it is
    """

    def __init__(self, prefix: bytes, gap: int, linger: int, endless: bool, implied: bool) -> None:
        self._prefix = prefix
        self._gap = gap
        self._sessions = gap > 0
        self._linger = linger
        self._endless = endless
        self._implied = implied
        self.clear()

    def clear(self) -> None:
        every = {name: np.zeros(_FIRST, np.int64) for name in _BY_WINDOW}
        counters = np.array([0, 0, 0, INT_MAX], np.int64)
        self.all = Windows(buckets=np.zeros(2 * _FIRST, np.int64), counters=counters, **every)

    @property
    def used(self) -> int:
        return int(self.all.counters[USED])

    @property
    def size(self) -> int:
        """Bytes of all of it."""
        return sum(column.nbytes for column in self.all)

    def here(self) -> Ints:
        """Every window that is."""
        return np.flatnonzero(self.all.flags[: self.used] & DEAD == 0)

    def _reserve(self, more: int) -> None:
        """Makes room, so that no kernel ever has to."""
        needed = self.used + more
        if needed > len(self.all.slot):
            self.all = self.all._replace(**{n: grown_to(getattr(self.all, n), 2 * needed) for n in _BY_WINDOW})
        if needed > len(self.all.buckets):
            self.all = self.all._replace(buckets=np.zeros(1 << (2 * needed).bit_length(), np.int64))
            kernels.rehash(self._sessions, self.all)

    def take(self, at: Ints, slot: Ints, number: Ints, step: int, size: int) -> Ints:
        """The window of each event; see the kernel."""
        self._reserve(len(at))
        which = np.empty(len(at), np.int64)
        kernels.take(at, slot, number, step, size, self.all, which)
        return which

    def join(
        self, at: Ints, slot: Ints, time: Ints, watermark: Ints
    ) -> tuple[Ints, Ints, list[tuple[int, int, int, int]]]:
        """The number of the session of each event, rows, and merges; see the kernel. at: ascending."""
        self._reserve(len(at))
        # An event tells two back and one anew; what closes on the way was to wake, or is of these events.
        ending = self.woken(int(watermark[-1]))
        self.sleep(ending, self.all.wake[ending])
        rows = np.empty((4 * len(at) + len(ending), ROW), np.int64)
        merges = np.empty((len(at), 4), np.int64)
        number, counts = np.empty(len(at), np.int64), np.zeros(2, np.int64)
        kernels.join(at, slot, time, watermark, self._gap, self._linger, self.all, number, rows, merges, counts)
        told, merged = counts.tolist()
        return number, rows[:told], [(a, b, c, d) for a, b, c, d in merges[:merged].tolist()]

    def woken(self, watermark: int) -> Ints:
        """The windows that it wakes; each is then to sleep again, or to be forgotten."""
        if self.all.counters[LEAST] > watermark:
            return np.zeros(0, np.int64)
        found = np.empty(self.used, np.int64)
        return found[: kernels.woken(watermark, self.all, found)]

    def sleep(self, which: Ints, until: Ints) -> None:
        if len(which):
            self.all.wake[which] = until
            self.all.counters[LEAST] = min(int(self.all.counters[LEAST]), int(until.min()))

    def rest(self, which: Ints) -> None:
        """Lets these sleep until they close or are told early, or leave where they are closed."""
        if self._endless:
            self.sleep(which, np.full(len(which), INT_MAX))
            return
        every = self.all
        ends = every.end[which] + self._gap
        due = np.where(every.due[which] < 0, INT_MAX, every.due[which])
        closed = every.flags[which] & CLOSED != 0
        self.sleep(which, np.where(closed, ends + self._linger, np.minimum(ends, due)))

    def forget(self, which: Ints) -> None:
        kernels.forget(which, self._sessions, self.all)

    def touch(self, which: Ints) -> None:
        """Notes that these have changed."""
        fresh = np.unique(which[self.all.flags[which] & TOUCHED == 0])
        self.all.flags[fresh] |= TOUCHED
        dirty = int(self.all.counters[DIRTY])
        self.all.dirty[dirty : dirty + len(fresh)] = fresh
        self.all.counters[DIRTY] += len(fresh)

    def changes(self, entities: Index | Names, into: Changes) -> None:
        """Appends the rows touched since the last call."""
        every = self.all
        touched = every.dirty[: every.counters[DIRTY]].copy()
        every.counters[DIRTY] = 0
        every.flags[touched] &= ~TOUCHED
        dead = every.flags[touched] & DEAD != 0
        unsaid = dead
        if self._implied:
            said = (every.flags[touched] & (CLOSED | SHOWN) != 0) | (every.revision[touched] > 0)
            unsaid = dead | ~(said | (every.due[touched] >= 0))
        told = touched[~unsaid | (every.flags[touched] & STORED != 0)]
        if len(told):
            into.append(self._rows(told, entities))
        every.flags[told[every.flags[told] & DEAD == 0]] |= STORED
        free, gone = int(every.counters[FREE]), touched[dead]
        every.free[free : free + len(gone)] = gone
        every.counters[FREE] += len(gone)

    def _rows(self, which: Ints, entities: Index | Names) -> Touched:
        every, count = self.all, len(which)
        facts = np.empty(count, _FACTS)
        for name in ("start", "end", "revision", "due"):
            facts[name] = getattr(every, name)[which]
        facts["closed"] = every.flags[which] & CLOSED != 0
        facts["shown"] = every.flags[which] & SHOWN != 0
        wide = _FACTS.itemsize
        length = np.where(every.flags[which] & DEAD != 0, -1, wide)
        values = Spans(facts.view(np.uint8), np.arange(0, wide * count, wide), length)
        numbers = Spans(every.number[which].astype(">i8").view(np.uint8), 8 * np.arange(count), np.full(count, 8))
        return Touched(woven([self._prefix, b"", b""], [entities.spans(every.slot[which]), numbers]), values)

    def load(self, rows: Sequence[tuple[bytes, bytes]], entities: Index | Names) -> None:
        """Takes rows as `changes` gave them."""
        if not rows:
            return
        begin = len(self._prefix)
        facts = np.frombuffer(b"".join(value for _, value in rows), _FACTS)
        here = slice(self.used, self.used + len(rows))
        self._reserve(len(rows))
        every = self.all
        every.slot[here] = entities.encoded_numbers([key[begin:-8] for key, _ in rows])
        every.number[here] = [_NUMBER.unpack(key[-8:])[0] for key, _ in rows]
        for name in ("start", "end", "revision", "due"):
            getattr(every, name)[here] = facts[name]
        closed = facts["closed"]
        every.flags[here] = STORED + closed * CLOSED + facts["shown"] * SHOWN
        every.closes[here], every.first[here] = np.where(closed, -1, INT_MAX), 0
        every.counters[USED] += len(rows)
        self.rest(np.arange(here.start, here.stop))
        every.buckets[:] = 0
        kernels.rehash(self._sessions, every)
