"""Which entities of a feature set are hot: their rows in arrays. Those of the others lie in the store alone.

An entity that comes is fetched before the batch is processed. Once memory is short, those that were used least recently
leave; only between cycles, when the store has all that is held of them. A slow sweep through the store finds what an
entity that never comes again has left there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from headrace.streams import index as numbering
from headrace.streams.batch import Changes, Rows
from headrace.streams.expressions import Expression
from headrace.streams.filter import Filter
from headrace.streams.index import Ints, grown_to
from headrace.streams.memory import Memory, Residence
from headrace.streams.plans import Plan, index, numbered
from headrace.streams.spans import Spans
from headrace.streams.store import Shelf
from headrace.streams.tables import ENTITY, entities_of, entity_keys, entity_of

SWEPT_AN_EVENT = 2
"""Entities that the sweep looks at for each event: more than can come with it, so that it ends."""
SWEPT_AT_LEAST = 64
"""Entities that a step of the sweep looks at; fewer are not worth a step."""


@dataclass(slots=True)
class _Read:
    """Entities as the store has them, in the order of their keys.

    counts: rows of each
    rests:  of the keys, behind the entity
    after:  where the next entity's rows begin; None at the end
    """

    names: list[bytes]
    counts: Ints
    keys: list[bytes]
    rests: Spans
    values: Spans
    after: bytes | None


class HotSet:
    """The entities of a plan, by number, hot ones alone.

    whole: whether all entities there are are hot: then nothing need be looked for in the store; else a filter knows
           most of those that are not there, once all that are have passed by
    """

    def __init__(self, plan: Plan, memory: Memory | None) -> None:
        self.entities = index(plan, told=True)
        self._plan = plan
        self._memory = memory or Memory()
        self.told = Residence()
        for table in plan.tables.values():
            table.seal(self.entities)
        self.clear()

    def clear(self) -> None:
        """Throw everything away but what is counted."""
        self._memory.leave(self)
        self.entities.clear()
        for table in self._plan.tables.values():
            table.clear()
        for sessions in self._plan.sessions.values():
            sessions.clear()
        self._shelf: Shelf | None = None
        self._aside: Plan | None = None
        self._whole(True)
        self.clean = False
        self._turn, self._turns = 0, np.zeros(64, np.int64)
        self._cursor: bytes | None = None
        self._known: Filter | None = Filter()
        self._knowing = Filter()
        self._born = self._counted = self._met = self._due = 0

    def attach(self, shelf: Shelf) -> None:
        """Begin with what is committed: rows that entities share are read, those of entities when they come."""
        self._shelf = shelf
        self._plan.attach(shelf)
        self._whole(next(shelf.rows(ENTITY), None) is None)
        if not self.whole:
            self._known = None

    def _whole(self, whole: bool) -> None:
        self.whole = whole
        for table in self._plan.tables.values():
            table.whole = whole

    @property
    def size(self) -> int:
        """Bytes of all that is hot, about."""
        filters = self._knowing.size + (self._known.size if self._known is not None else 0)
        return self._plan.size + self.entities.size + self._turns.nbytes + filters

    @property
    def residence(self) -> Residence:
        return self.told + Residence(self.size, self.entities.used)

    def numbers(self, by: Mapping[str, Expression], rows: Rows) -> Ints:
        """The number of the entity of each row, after all that is held of it has become hot."""
        found = numbered(self.entities, by, rows)
        fresh = np.asarray(self.entities.fresh(), np.int64)
        if len(fresh):
            self._fetch(fresh)
        self.told.hits += len(found) - len(fresh)
        if len(self.entities) > len(self._turns):
            self._turns = grown_to(self._turns, 2 * len(self.entities))
        self._turn += 1
        self._turns[found[found >= 0]] = self._turn
        self.clean = False
        return found

    def _fetch(self, fresh: Ints) -> None:
        if self.whole or self._shelf is None:
            self._born += len(fresh)
            return
        if self._known is not None:
            may = self._known.may_hold(self.entities.spans(fresh))
            self._born += len(fresh) - int(np.count_nonzero(may))
            fresh = fresh[may]
        self.told.misses += len(fresh)
        keys = [key or b"" for key in entity_keys(self.entities.spans(fresh))]
        order = sorted(range(len(keys)), key=keys.__getitem__)
        counts, rests, values = self._shelf.many(keys[i] for i in order)
        self._born += counts.count(0)
        if values:
            self._plan.take(np.repeat(fresh[order], counts), Spans.of(rests), Spans.of(values))

    def changes(self, events: int, horizon: int, found: Changes) -> None:
        """Forgets who has been idle since before the horizon, and appends what that changes."""
        if self.entities.crowded:
            here = np.array(self.entities.in_use(), np.int64)
            self._forget(here[self._plan.idle(horizon, here)], found)
        if not self.whole:
            self._sweep(events, horizon, found)

    def _forget(self, slots: Ints, found: Changes) -> None:
        # Until this is committed the store has their rows still, and who comes again reads them: rows that are idle, of
        # which no event reads anything.
        self._plan.forget(slots, found)
        self.entities.release(slots)

    def kept(self) -> None:
        """What `changes` told is in the store: memory may be given back."""
        self.clean = self._shelf is not None
        self._memory.settle(self)

    def shrink(self, size: int) -> None:
        """Leave the least recently used to the store, until so many bytes are left or no entity is."""
        while self.entities.used and (now := self.size) > size:
            here = np.array(self.entities.in_use(), np.int64)
            count = min(len(here), 1 + int(len(here) * (1 - size / now)))
            self._whole(False)
            self._evict(here[np.argpartition(self._turns[here], count - 1)[:count]])
            self.told.evictions += count

    def _evict(self, slots: Ints) -> None:
        names = self.entities.spans(slots)
        if self._known is not None:
            self._known.note(names)
        if self._cursor is not None:
            self._knowing.note(names)
        self._plan.evict(slots)
        self.entities.release(slots)

    # The store.

    def _sweep(self, events: int, horizon: int, found: Changes) -> None:
        """Once as many entities have come as there were, look at all that the store has, a few for each event."""
        if self._cursor is None:
            of_use = self._plan.forgets or self._known is None
            grown = of_use and self._born >= self._counted + numbering.SWEEP_FROM
            if not (grown or any(table.crowded for table in self._plan.tables.values())):
                return
            self._cursor, self._met, self._born, self._due = b"", 0, 0, 0
            for table in self._plan.tables.values():
                table.mark()
        self._due += SWEPT_AN_EVENT * events
        if self._due < SWEPT_AT_LEAST:
            return
        read, self._due = self._read(self._cursor, self._due), 0
        self._met += len(read.names) - self._judge(read, horizon, found)
        self._cursor = read.after
        if self._cursor is None:
            self._counted, self._known, self._knowing = self._met, self._knowing, Filter()
            for table in self._plan.tables.values():
                table.unmarked(found)

    def _judge(self, read: _Read, horizon: int, found: Changes) -> int:
        """Forgets those of the store that are idle and not hot, and notes the others; how many were forgotten.

        They are looked at aside: to take them among those that are hot, and away again, would cost as much as all of
        these.
        """
        if self._aside is None:
            self._aside = Plan(self._plan.declared)
            self._apart = index(self._aside)
            for table in self._aside.tables.values():
                table.seal(self._apart)
        cold = self.entities.known(read.names) < 0
        names = Spans.of(read.names).take(cold)
        rows = np.flatnonzero(np.repeat(cold, read.counts))
        if not len(rows):
            return 0
        slots, owners = self._apart.encoded_numbers(names), np.repeat(np.arange(len(names)), read.counts[cold])
        self._aside.take(slots[owners], read.rests.take(rows), read.values.take(rows))
        idle = self._aside.idle(horizon, slots)
        for name, table in self._aside.tables.items():
            owner, _, cells = table.panes()
            live = np.ones(len(self._apart), np.bool_)
            live[slots[idle]] = False
            self._plan.tables[name].mark_held(cells[live[owner]])
            table.clear()
            if name in self._aside.sessions:
                self._aside.sessions[name].clear()
        self._apart.clear()
        self._knowing.note(names.take(~idle))
        found += [(read.keys[row], None) for row in rows[idle[owners]].tolist()]
        return int(np.count_nonzero(idle))

    def _read(self, begin: bytes, most: int) -> _Read:
        """The next entities of the store."""
        assert self._shelf is not None
        names: list[bytes] = []
        counts: list[int] = []
        keys: list[bytes] = []
        values: list[bytes] = []
        head, after = b"", None
        for rest, value in self._shelf.rows(ENTITY, begin):
            key = ENTITY + rest
            if not head or not key.startswith(head):
                name, end = entity_of(key)
                head = key[:end]
                if len(names) == most:
                    after = rest[: end - len(ENTITY)]
                    break
                names.append(name)
                counts.append(0)
            counts[-1] += 1
            keys.append(key)
            values.append(value)
        _, rests = entities_of(Spans.of(keys))
        return _Read(names, np.array(counts, np.int64), keys, rests, Spans.of(values), after)

    def _take(self, read: _Read) -> Ints:
        """The numbers of those that were not hot, and are now."""
        known = self.entities.known(read.names)
        cold = known < 0
        names = [name for name, is_cold in zip(read.names, cold.tolist(), strict=True) if is_cold]
        slots = self.entities.encoded_numbers(names)
        self.entities.fresh()
        if len(self.entities) > len(self._turns):
            self._turns = grown_to(self._turns, 2 * len(self.entities))
        self._turns[slots] = 0
        rows = np.flatnonzero(np.repeat(cold, read.counts))
        if len(rows):
            self._plan.take(np.repeat(slots, read.counts[cold]), read.rests.take(rows), read.values.take(rows))
        return slots

    def every(self, at_once: int) -> Iterator[Ints]:
        """All entities, so many at a time: those that are hot, then those of the store, each hot while it is given."""
        here = np.array(self.entities.in_use(), np.int64)
        for begin in range(0, len(here), at_once):
            yield here[begin : begin + at_once]
        after = None if self.whole else b""
        while after is not None:
            read = self._read(after, at_once)
            cold = self._take(read)
            yield cold
            self._evict(cold)
            after = read.after
