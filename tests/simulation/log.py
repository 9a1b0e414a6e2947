"""A log in memory that behaves as Kafka does, and fails as Kafka may."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from headrace.streams.batch import Record
from headrace.streams.errors import Fenced, LogUnavailable, TransactionUnknown
from headrace.streams.log import Fetched, Partition, Reader, Sender, Writer

from tests.simulation.world import World

State = Literal["committed", "open", "aborted", "marker", "compacted"]

EPOCH_MS = 1_577_836_800_000
"""The wall clock of the simulated log begins in 2020."""

LONGEST_DELAY = 0.5
"""Seconds that a slow call takes at most."""


_NONE = np.zeros(0, np.int64)


@dataclass(slots=True)
class Entry:
    record: Record
    timestamp: int
    state: State


@dataclass(slots=True)
class Faults:
    """How often a call fails or is slow.

    away:    the call fails before it did anything
    unknown: a commit whose answer is lost; it has arrived, never arrives, or arrives after the client gave up
    slow:    the call takes a while
    """

    away: float = 0.0
    unknown: float = 0.0
    slow: float = 0.0


@dataclass
class SimulatedLog:
    """Topics, transactions, fencing, groups. Time is the world's. Itself a connection without faults of its own."""

    world: World
    faults: Faults = field(default_factory=Faults)
    partitions: dict[Partition, list[Entry]] = field(default_factory=dict)
    groups: dict[str, dict[Partition, int]] = field(default_factory=dict)
    epochs: dict[str, int] = field(default_factory=dict)
    owners: dict[str, Connection] = field(default_factory=dict)
    open: dict[str, list[tuple[Partition, int]]] = field(default_factory=dict)
    _late: int = 0

    def publish(self, record: Record) -> int:
        """Append outside any transaction; returns the offset."""
        return self.append(Partition(record.topic, record.partition or 0), record, "committed")

    def append(self, partition: Partition, record: Record, state: State) -> int:
        entries = self.entries(partition)
        timestamp = self.now_ms() if record.timestamp is None else record.timestamp
        entries.append(Entry(record, timestamp, state))
        return len(entries) - 1

    def now_ms(self) -> int:
        return EPOCH_MS + int(self.world.time * 1000)

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
            for opened, offset in written:
                if opened == partition and offset < end:
                    end = offset
        return end

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

    def end(self, owner: str, state: State) -> None:
        """End the owner's open transaction with a marker in every partition it wrote to."""
        written = self.open.pop(owner, [])
        for partition, offset in written:
            self.entries(partition)[offset].state = state
        for partition in dict.fromkeys(p for p, _ in written):
            self.append(partition, Record("", None, None), "marker")

    def commit(self, owner: str, group: str, offsets: Mapping[Partition, int]) -> None:
        self.end(owner, "committed")
        self.groups.setdefault(group, {}).update(offsets)

    def commit_later(self, owner: str, epoch: int, group: str, offsets: Mapping[Partition, int]) -> None:
        """A commit that is under way still: it counts if it arrives before a newer owner opens."""

        async def arrive() -> None:
            await self.world.sleep(self.world.random.random() * 2 * LONGEST_DELAY)
            if self.epochs[owner] == epoch and owner in self.open:
                self.commit(owner, group, offsets)

        self._late += 1
        self.world.spawn(f"late commit {self._late}", arrive())

    def compact(self, partition: Partition) -> None:
        """Keep the newest committed record of each key, as a compacted topic does; offsets stay."""
        newest: set[bytes | None] = set()
        for entry in reversed(self.entries(partition)[: self.stable_end(partition)]):
            if entry.state == "committed":
                if entry.record.key in newest:
                    entry.state = "compacted"
                newest.add(entry.record.key)


@dataclass(eq=False)
class Connection:
    """A client's way to the log: it can be cut, with all that the client has under way."""

    log: SimulatedLog
    cut_until: float = -1.0

    async def reader(self, offsets: Mapping[Partition, int]) -> Reader:
        await self.call()
        return _Reader(self, dict(offsets))

    async def writer(self, owner: str) -> Writer:
        await self.call()
        log = self.log
        log.epochs[owner] = log.epochs.get(owner, 0) + 1
        log.owners[owner] = self
        log.end(owner, "aborted")
        return _Writer(self, owner, log.epochs[owner])

    async def sender(self) -> Sender:
        await self.call()
        return _Sender(self)

    async def committed(self, group: str, partitions: Sequence[Partition]) -> dict[Partition, int]:
        await self.call()
        return {p: o for p, o in self.log.groups.get(group, {}).items() if p in partitions}

    async def ends(self, partitions: Sequence[Partition]) -> dict[Partition, int]:
        await self.call()
        return {p: self.log.stable_end(p) for p in partitions}

    async def starts(self, partitions: Sequence[Partition]) -> dict[Partition, int]:
        await self.call()
        return dict.fromkeys(partitions, 0)

    async def close(self) -> None:
        pass

    async def call(self) -> None:
        """What any call meets before it reaches the log. Raises LogUnavailable."""
        world, faults = self.log.world, self.log.faults
        await world.turn()
        if world.random.random() < faults.slow:
            await world.sleep(world.random.random() * LONGEST_DELAY)
        if self.cut or world.random.random() < faults.away:
            raise LogUnavailable("the simulated log is away")

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
        end = self._log.stable_end(partition)
        if at == end:
            return Fetched(partition, _NONE, _NONE, [], [], end, end)
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

    async def send(self, records: Sequence[Record], home: int) -> dict[Partition, int]:
        ends: dict[Partition, int] = {}
        for record in records:
            if self._connection.log.world.random.random() < 0.1:
                await self._connection.call()
            partition = Partition(record.topic, home if record.partition is None else record.partition)
            ends[partition] = self._connection.log.append(partition, record, "committed") + 1
        return ends

    async def close(self) -> None:
        pass


class _Writer:
    def __init__(self, connection: Connection, owner: str, epoch: int) -> None:
        self._connection = connection
        self._log = connection.log
        self._owner = owner
        self._epoch = epoch

    def _check(self) -> None:
        if self._log.epochs[self._owner] != self._epoch:
            raise Fenced(f"{self._owner} has a newer owner")

    async def begin(self) -> None:
        await self._connection.call()
        self._check()
        assert self._owner not in self._log.open, "a transaction is open already"
        self._log.open[self._owner] = []

    async def send(self, records: Sequence[Record], home: int) -> dict[Partition, int]:
        ends: dict[Partition, int] = {}
        for record in records:
            if self._log.world.random.random() < 0.1:
                await self._connection.call()
            self._check()
            partition = Partition(record.topic, home if record.partition is None else record.partition)
            offset = self._log.append(partition, record, "open")
            self._log.open[self._owner].append((partition, offset))
            ends[partition] = offset + 1
        return ends

    async def commit(self, group: str, offsets: Mapping[Partition, int]) -> None:
        log, random = self._log, self._log.world.random
        await log.world.turn()
        lost = self._connection.cut or random.random() < log.faults.unknown
        fate = random.choice(["never", "later", "arrived"]) if lost else "arrived"
        if not lost or fate == "arrived":
            self._check()
        if fate == "arrived":
            log.commit(self._owner, group, offsets)
        elif fate == "later":
            log.commit_later(self._owner, self._epoch, group, offsets)
        if lost:
            raise TransactionUnknown(f"no answer to the commit (it has {fate})")

    async def abort(self) -> None:
        self._check()
        self._log.end(self._owner, "aborted")

    async def close(self) -> None:
        pass
