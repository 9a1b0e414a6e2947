"""Sessions as of each event: which session of its entity an event belongs to, while events still come."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from headrace.streams import kernels
from headrace.streams.index import Ints
from headrace.streams.tables import Accumulator, Table
from numpy.typing import NDArray

EARLIEST = Accumulator(kernels.FIRST, "")
LATEST = Accumulator(kernels.LATEST, "")
"""Every session table folds the times of its first and last events: from these sessions are found again."""


SESSION_BYTES = 400
"""Of an entity's sessions, as Python's objects."""


@dataclass(slots=True)
class _Session:
    number: int
    start: int
    end: int


class Sessions:
    """The sessions of a table's entities.

    An event joins a session less than a gap away; one that bridges two merges them. An entity keeps the
    sessions that an event within lateness of its newest one could still join; an older event is left out.
    """

    def __init__(self, gap: int, late: int) -> None:
        self.gap = gap
        self.late = late
        self.clear()

    def clear(self) -> None:
        self._of: defaultdict[int, list[_Session]] = defaultdict(list)
        self.ignored = 0

    def idle(self, horizon: int, slots: Ints) -> NDArray[np.bool_]:
        """Of each of these entities, whether no event at `horizon` or later can be in a session that it has."""
        held = (self._of.get(slot) for slot in slots.tolist())
        idle = (not mine or mine[-1].end + self.gap <= horizon for mine in held)
        return np.fromiter(idle, np.bool_, len(slots))

    def forget(self, slots: Ints) -> None:
        """Drops the sessions of these entities."""
        for slot in slots.tolist():
            self._of.pop(slot, None)

    @property
    def size(self) -> int:
        """Bytes that it takes, about: most entities have one session."""
        return SESSION_BYTES * len(self._of)

    def take(self, table: Table, slots: Ints, panes: Ints) -> None:
        """Finds the sessions in panes that the table has taken, each its number and its cells."""
        start, end = panes[:, 1 + table.cell(EARLIEST)], panes[:, 1 + table.cell(LATEST)]
        for slot, *session in zip(slots.tolist(), panes[:, 0].tolist(), start.tolist(), end.tolist(), strict=True):
            mine = self._of[slot]
            mine.append(_Session(*session))
            if len(mine) > 1:
                mine.sort(key=lambda one: one.start)

    def advance(self, table: Table, events: kernels.Events, wanted: kernels.Events) -> Ints:
        """`Table.advance`, events and wanted rows numbered by session, sessions merged as they meet."""
        number = np.full(len(events.at), -1, np.int64)
        asked = np.full(len(wanted.at), -1, np.int64)
        merges: list[tuple[int, int, int, int]] = []
        gone: list[tuple[int, int]] = []
        steps = [(at, 0, i) for i, at in enumerate(events.at.tolist())]
        steps += [(at, 1, j) for j, at in enumerate(wanted.at.tolist())]
        for at, asks, i in sorted(steps):
            if asks:
                asked[i] = self._find(int(wanted.slot[i]), int(wanted.time[i]))
            elif events.slot[i] >= 0:
                number[i] = self._join(at, int(events.slot[i]), int(events.time[i]), merges, gone)
        kept = number >= 0
        events = kernels.Events(
            events.at[kept], events.slot[kept], events.time[kept], number[kept],
            *_columns(events.values[:, kept]),
        )  # fmt: skip
        found = table.advance_merging(events, wanted._replace(number=asked), merges)
        if gone:
            table.drop(*np.array(gone, np.int64).T.copy())
        return found

    def _find(self, slot: int, time: int) -> int:
        for session in self._of.get(slot, ()):
            if session.start - self.gap < time < session.end + self.gap:
                return session.number
        return -1

    def _join(
        self,
        at: int,
        slot: int,
        time: int,
        merges: list[tuple[int, int, int, int]],
        gone: list[tuple[int, int]],
    ) -> int:
        mine, gap = self._of[slot], self.gap
        near = [one for one in mine if one.start - gap < time < one.end + gap]
        if near:
            session = near[0]
            for other in near[1:]:
                merges.append((at, slot, other.number, session.number))
                session.end = other.end
                mine.remove(other)
            session.start, session.end = min(session.start, time), max(session.end, time)
        elif mine and time < mine[-1].end - self.late - gap:
            self.ignored += 1
            return -1
        else:
            session = _Session(time, time, time)
            mine.append(session)
            mine.sort(key=lambda one: one.start)
        while mine[0].end < mine[-1].end - self.late - 2 * gap:
            gone.append((slot, mine.pop(0).number))
        return session.number


def _columns(values: Ints) -> tuple[Ints, np.ndarray[tuple[int, ...], np.dtype[np.float64]]]:
    whole = np.ascontiguousarray(values)
    return whole, whole.view(np.float64)
