"""A log in memory that behaves as Kafka does, and fails as Kafka may."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from headrace.streams.batch import Block, Record, record_by_record
from headrace.streams.errors import Fenced, LogUnavailable, TransactionUnknown
from headrace.streams.log import NO_OFFSETS, Fetched, Partition, Reader, Sender, Turns, Writer
from headrace.streams.runner import TOMBSTONES_KEPT

from tests.simulation.world import EPOCH, World

State = Literal["committed", "open", "aborted", "marker", "compacted"]

EPOCH_MS = EPOCH * 1000

LONGEST_DELAY = 0.5
"""Seconds that a slow call takes at most."""

LONGEST_MARKING = 1.0
"""Seconds after a transaction's end was decided, until its last marker is written at the latest. With the time that
publishing takes it is less than `IDLE_AFTER`: an aborted record without its marker hides what came after it."""

LONGEST_BEHIND = 3.0
"""Seconds that what a node says of a partition's end is old at most, and for which it goes on saying so. Less than the
engine takes for the loss of data (`LOST_AFTER`)."""

TRANSACTION_WITHIN = 4.0
"""Seconds after which the log aborts a transaction that nobody ended, and fences its owner."""

ASK_AGAIN = 0.1
"""Seconds between a client's requests while the log says that the last transaction is not yet ended."""

IDS = 2
"""Of each writer, in turn, as the engine has them on Kafka."""


_NONE = np.zeros(0, np.int64)


@dataclass(slots=True)
class Entry:
    """horizon: when the mark of a deletion may go, in milliseconds, counted from its first compaction."""

    record: Record
    timestamp: int
    state: State
    horizon: int = 0


@dataclass(slots=True)
class Faults:
    """How often a call fails or is slow.

    away:    the call fails before it did anything
    unknown: a commit whose answer is lost; it has arrived, never arrives, or arrives after the client gave up
    slow:    the call takes a while, before or after it is done
    marking: a transaction's markers are written some time after its end was decided, one partition after another
    behind:  who asks for a partition's end is answered by a node that was cut off, and knows nothing newer for a while
    """

    away: float = 0.0
    unknown: float = 0.0
    slow: float = 0.0
    marking: float = 0.0
    behind: float = 0.0


@dataclass(slots=True)
class Id:
    """A transactional id.

    since:   when its open transaction began
    ending:  a transaction's end is decided, and markers are yet to be written
    """

    epoch: int = 0
    connection: Connection | None = None
    since: float | None = None
    ending: bool = False


@dataclass
class SimulatedLog:
    """Topics, transactions, fencing, groups. Time is the world's. Itself a connection without faults of its own.

    open: by transactional id, what it wrote that has no marker yet
    waiting: offsets that a group will have once the markers are written
    """

    world: World
    faults: Faults = field(default_factory=Faults)
    partitions: dict[Partition, list[Entry]] = field(default_factory=dict)
    groups: dict[str, dict[Partition, int]] = field(default_factory=dict)
    ids: dict[str, Id] = field(default_factory=dict)
    open: dict[str, dict[Partition, list[int]]] = field(default_factory=dict)
    waiting: list[tuple[str, Mapping[Partition, int]]] = field(default_factory=list)
    _late: int = 0
    _turn: int = 0
    _newest: dict[tuple[str, Partition], int] = field(default_factory=dict)
    _ends: dict[Partition, list[tuple[float, int]]] = field(default_factory=dict)

    def publish(self, record: Record) -> int:
        """Append outside any transaction; returns the offset."""
        return self.append(Partition(record.topic, record.partition or 0), record, "committed")

    def append(self, partition: Partition, record: Record, state: State) -> int:
        entries = self.entries(partition)
        timestamp = self.now_ms() if record.timestamp is None else record.timestamp
        entries.append(Entry(record, timestamp, state))
        self._note_end(partition)
        return len(entries) - 1

    def append_open(self, name: str, partition: Partition, record: Record) -> int:
        """Append in the open transaction of a transactional id."""
        # First: what is noted of the partition's end is without it.
        self.open.setdefault(name, {}).setdefault(partition, []).append(len(self.entries(partition)))
        return self.append(partition, record, "open")

    def now_ms(self) -> int:
        return int(self.world.wall() * 1000)

    def entries(self, partition: Partition) -> list[Entry]:
        found = self.partitions.get(partition)
        if found is None:
            found = self.partitions[partition] = []
        return found

    def committed_entries(self, topic: str, number: int = 0) -> list[tuple[int, Entry]]:
        """(offset, entry) of what readers see."""
        entries = self.entries(Partition(topic, number))
        return [(offset, e) for offset, e in enumerate(entries) if e.state == "committed"]

    def committed_records(self, topic: str, number: int = 0) -> list[Record]:
        return [entry.record for _, entry in self.committed_entries(topic, number)]

    def stable_end(self, partition: Partition) -> int:
        end = len(self.entries(partition))
        for written in self.open.values():
            offsets = written.get(partition)
            if offsets and offsets[0] < end:
                end = offsets[0]
        return end

    def _note_end(self, partition: Partition) -> None:
        self._ends.setdefault(partition, []).append((self.world.time, self.stable_end(partition)))

    def stable_end_at(self, partition: Partition, time: float) -> int:
        """What the end of the committed was."""
        noted = self._ends.get(partition, [])
        after = bisect_right(noted, time, key=lambda note: note[0])
        return noted[after - 1][1] if after else 0

    def connect(self) -> Connection:
        return Connection(self)

    async def reader(self, offsets: Mapping[Partition, int]) -> Reader:
        return await self.connect().reader(offsets)

    async def writer(self, owner: str) -> Writer:
        return await self.connect().writer(owner)

    async def sender(self) -> Sender:
        return await self.connect().sender()

    async def committed(self, group: str, partitions: Sequence[Partition]) -> dict[Partition, int]:
        return await self.connect().committed(group, partitions)

    async def ends(self, partitions: Sequence[Partition]) -> dict[Partition, int]:
        return await self.connect().ends(partitions)

    async def starts(self, partitions: Sequence[Partition]) -> dict[Partition, int]:
        return await self.connect().starts(partitions)

    async def close(self) -> None:
        pass

    def id(self, name: str) -> Id:
        return self.ids.setdefault(name, Id())

    def holds(self, owner: str, connection: Connection) -> bool:
        """Whether all ids of an owner are of this connection: no other has opened them since."""
        return all(self.id(f"{owner}.{n}").connection is connection for n in range(IDS))

    def end(self, name: str, state: State, group: str = "", offsets: Mapping[Partition, int] | None = None) -> None:
        """Decide the end of an id's transaction; its markers follow, at once or one after the other.

        It counts from here on, whatever dies. The id begins no other, and is not opened, until the markers are written.
        """
        one, offsets = self.id(name), offsets or {}
        one.since = None
        self._turn += 1
        turn = self._turn
        if self.world.random.random() >= self.faults.marking:
            for partition in list(self.open.get(name, ())):
                self._mark(name, partition, state)
            self._taken(group, offsets, turn)
            return
        one.ending = True
        self.waiting.append((group, offsets))

        async def mark() -> None:
            random = self.world.random
            left = list(self.open.get(name, ()))
            random.shuffle(left)
            for partition in left:
                await self.world.sleep(random.random() * LONGEST_MARKING / len(left))
                self._mark(name, partition, state)
            self._taken(group, offsets, turn)
            self.waiting.remove((group, offsets))
            one.ending = False

        self._spawn("markers", mark())

    def _taken(self, group: str, offsets: Mapping[Partition, int], turn: int) -> None:
        """Of offsets whose markers come in another order than they did, the newest count."""
        for partition, offset in offsets.items():
            if self._newest.get((group, partition), 0) < turn:
                self._newest[group, partition] = turn
                self.groups.setdefault(group, {})[partition] = offset

    def _mark(self, name: str, partition: Partition, state: State) -> None:
        for offset in self.open[name].pop(partition):
            self.entries(partition)[offset].state = state
        if not self.open[name]:
            del self.open[name]
        self.append(partition, Record("", None, None), "marker")

    def commit_later(self, name: str, epoch: int, group: str, offsets: Mapping[Partition, int]) -> None:
        """A commit that is under way still: it counts if it arrives before the id is opened again."""

        async def arrive() -> None:
            await self.world.sleep(self.world.random.random() * 2 * LONGEST_DELAY)
            if self.id(name).epoch == epoch and self.id(name).since is not None:
                self.end(name, "committed", group, offsets)

        self._spawn("late commit", arrive())

    def _spawn(self, what: str, actor: Coroutine[Any, Any, None]) -> None:
        self._late += 1
        self.world.spawn(f"{what} {self._late}", actor)

    def expire(self) -> None:
        """Abort the transactions that have been open for too long, and fence their owners."""
        for name, one in self.ids.items():
            if one.since is not None and self.world.time - one.since > TRANSACTION_WITHIN:
                one.epoch += 1
                self.end(name, "aborted")

    def compact(self, partition: Partition) -> None:
        """Keep the newest committed record of each key, as a compacted topic does; offsets stay. Marks of deletions go
        once they are old."""
        newest: set[bytes | None] = set()
        now = self.now_ms()
        for entry in reversed(self.entries(partition)[: self.stable_end(partition)]):
            if entry.state == "committed":
                if entry.record.key in newest or 0 < entry.horizon < now:
                    entry.state = "compacted"
                elif entry.record.value is None and not entry.horizon:
                    entry.horizon = now + int(TOMBSTONES_KEPT * 1000)
                newest.add(entry.record.key)


@dataclass(eq=False)
class Connection:
    """A client's way to the log: it can be cut, with all that the client has under way."""

    log: SimulatedLog
    cut_until: float = -1.0
    behind: dict[Partition, tuple[float, int]] = field(default_factory=dict)
    """By partition that it asks a node that was cut off: until when, and the end that this node knows."""

    async def reader(self, offsets: Mapping[Partition, int]) -> Reader:
        await self.call()
        return _Reader(self, dict(offsets))

    async def writer(self, owner: str) -> Writer:
        return Turns([await self.id(f"{owner}.{n}") for n in range(IDS)])

    async def id(self, name: str) -> Writer:
        """Fences whoever has the id, and waits until what that one left is ended."""
        await self.call()
        one = self.log.id(name)
        while one.since is not None or one.ending:
            if one.since is not None:
                one.epoch += 1
                self.log.end(name, "aborted")
            if one.ending:
                await self.log.world.sleep(ASK_AGAIN)
                await self.call()
        one.epoch += 1
        one.connection = self
        return _Writer(self, name, one.epoch)

    async def sender(self) -> Sender:
        await self.call()
        return _Sender(self)

    async def committed(self, group: str, partitions: Sequence[Partition]) -> dict[Partition, int]:
        await self.call()
        while any(g == group and not offsets.keys().isdisjoint(partitions) for g, offsets in self.log.waiting):
            await self.log.world.sleep(ASK_AGAIN)
            await self.call()
        return {p: o for p, o in self.log.groups.get(group, {}).items() if p in partitions}

    async def ends(self, partitions: Sequence[Partition]) -> dict[Partition, int]:
        await self.call()
        world = self.log.world
        for p in partitions:
            if world.random.random() < self.log.faults.behind:
                known = self.log.stable_end_at(p, world.time - world.random.random() * LONGEST_BEHIND)
                self.behind[p] = world.time + world.random.random() * LONGEST_BEHIND, known
        return {p: self.stable_end(p) for p in partitions}

    def stable_end(self, partition: Partition) -> int:
        """As the node says that this client asks."""
        until, known = self.behind.get(partition, (-1.0, 0))
        return known if self.log.world.time < until else self.log.stable_end(partition)

    async def starts(self, partitions: Sequence[Partition]) -> dict[Partition, int]:
        await self.call()
        return dict.fromkeys(partitions, 0)

    async def close(self) -> None:
        pass

    async def call(self) -> None:
        """What any call meets before it reaches the log. Raises LogUnavailable."""
        world, faults = self.log.world, self.log.faults
        await world.turn()
        await self.slowly()
        if self.cut or world.random.random() < faults.away:
            raise LogUnavailable("the simulated log is away")

    async def slowly(self) -> None:
        world = self.log.world
        if world.random.random() < self.log.faults.slow:
            await world.sleep(world.random.random() * LONGEST_DELAY)

    @property
    def cut(self) -> bool:
        return self.log.world.time < self.cut_until


class _Reader:
    def __init__(self, connection: Connection, offsets: dict[Partition, int]) -> None:
        self._connection = connection
        self._log = connection.log
        self._offsets = offsets

    async def fetch(self, partitions: Sequence[Partition], limit: int, wait: float) -> list[Fetched]:
        await self._connection.call()
        got = [self._read(p, limit) for p in partitions]
        if not any(len(f) for f in got) and wait:
            await self._log.world.sleep(wait)
            got = [self._read(p, limit) for p in partitions]
        for fetched in got:
            self._offsets[fetched.partition] = fetched.next_offset
        return got

    def _read(self, partition: Partition, limit: int) -> Fetched:
        entries, at = self._log.entries(partition), self._offsets[partition]
        end = self._connection.stable_end(partition)
        if at >= end:
            return Fetched(partition, _NONE, _NONE, [], [], at, end)
        # A fetch may bring less than there is, as a network does.
        random = self._log.world.random
        limit = min(limit, random.choice([1, 4, 20, random.randint(1, limit)]))
        found: list[tuple[int, Entry]] = []
        while at < end and len(found) < limit:
            if entries[at].state == "committed":
                found.append((at, entries[at]))
            at += 1
        return Fetched(
            partition,
            np.array([i for i, _ in found], np.int64),
            np.array([e.timestamp for _, e in found], np.int64),
            [e.record.key for _, e in found],
            [e.record.value for _, e in found],
            at,
            end,
        )

    async def close(self) -> None:
        pass


class _Sender:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def send(self, records: Sequence[Record | Block], home: int) -> dict[Partition, int]:
        ends: dict[Partition, int] = {}
        for record in record_by_record(records):
            if self._connection.log.world.random.random() < 0.1:
                await self._connection.call()
            partition = Partition(record.topic, home if record.partition is None else record.partition)
            ends[partition] = self._connection.log.append(partition, record, "committed") + 1
        return ends

    async def close(self) -> None:
        pass


class _Writer:
    """One transactional id, as one owner holds it until another opens it."""

    def __init__(self, connection: Connection, name: str, epoch: int) -> None:
        self._connection = connection
        self._log = connection.log
        self._name = name
        self._epoch = epoch

    def _check(self) -> Id:
        one = self._log.id(self._name)
        if one.epoch != self._epoch:
            raise Fenced(f"{self._name} has a newer owner")
        return one

    async def begin(self, group: str = "", offsets: Mapping[Partition, int] = NO_OFFSETS) -> None:
        self._takes = group, offsets
        await self._connection.call()
        while (one := self._check()).ending:
            await self._log.world.sleep(ASK_AGAIN)
            await self._connection.call()
        assert one.since is None, "a transaction is open already"
        one.since = self._log.world.time

    async def send(self, records: Sequence[Record | Block], home: int) -> dict[Partition, int]:
        ends: dict[Partition, int] = {}
        for record in record_by_record(records):
            if self._log.world.random.random() < 0.1:
                await self._connection.call()
            self._check()
            partition = Partition(record.topic, home if record.partition is None else record.partition)
            ends[partition] = self._log.append_open(self._name, partition, record) + 1
        return ends

    async def commit(self) -> None:
        group, offsets = self._takes
        log, random = self._log, self._log.world.random
        await log.world.turn()
        await self._connection.slowly()
        lost = self._connection.cut or random.random() < log.faults.unknown
        fate = random.choice(["never", "later", "arrived"]) if lost else "arrived"
        if not lost or fate == "arrived":
            self._check()
        if fate == "arrived":
            log.end(self._name, "committed", group, offsets)
            await self._connection.slowly()
        elif fate == "later":
            log.commit_later(self._name, self._epoch, group, offsets)
        if lost:
            raise TransactionUnknown(f"no answer to the commit (it has {fate})")

    async def abort(self) -> None:
        self._check()
        self._log.end(self._name, "aborted")

    async def close(self) -> None:
        pass
