"""A log in memory that behaves as Kafka does, and fails as Kafka may."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from headrace.streams.batch import Record
from headrace.streams.errors import Fenced, LogUnavailable, TransactionUnknown
from headrace.streams.log import Fetched, Partition, Reader, Writer

from tests.simulation.world import World

State = Literal["committed", "open", "aborted", "marker"]


@dataclass(slots=True)
class Entry:
    record: Record
    timestamp: int
    state: State


@dataclass(slots=True)
class Faults:
    """How often a call fails: `away`, before it did anything; `unknown`, a commit whose answer was lost."""

    away: float = 0.0
    unknown: float = 0.0


@dataclass
class SimulatedLog:
    """Topics, transactions, fencing, groups. Time is the world's."""

    world: World
    faults: Faults = field(default_factory=Faults)
    partitions: dict[Partition, list[Entry]] = field(default_factory=dict)
    groups: dict[str, dict[Partition, int]] = field(default_factory=dict)
    epochs: dict[str, int] = field(default_factory=dict)
    open: dict[str, list[tuple[Partition, Entry]]] = field(default_factory=dict)

    def publish(self, record: Record) -> int:
        """Append outside any transaction; returns the offset."""
        entries = self.entries(Partition(record.topic, record.partition or 0))
        timestamp = record.timestamp if record.timestamp is not None else self.now_ms()
        entries.append(Entry(record, timestamp, "committed"))
        return len(entries) - 1

    def now_ms(self) -> int:
        """The wall clock of the simulated log: the world's time, begun in 2020."""
        return 1_577_836_800_000 + int(self.world.time * 1000)

    def entries(self, partition: Partition) -> list[Entry]:
        return self.partitions.setdefault(partition, [])

    def committed_records(self, topic: str, number: int = 0) -> list[Record]:
        return [e.record for e in self.entries(Partition(topic, number)) if e.state == "committed"]

    def stable_end(self, partition: Partition) -> int:
        entries = self.entries(partition)
        return next((i for i, e in enumerate(entries) if e.state == "open"), len(entries))

    async def reader(self, offsets: Mapping[Partition, int]) -> Reader:
        await self.fail()
        return _Reader(self, dict(offsets))

    async def writer(self, owner: str) -> Writer:
        await self.fail()
        self.epochs[owner] = self.epochs.get(owner, 0) + 1
        self.end(owner, "aborted")
        return _Writer(self, owner, self.epochs[owner])

    async def committed(self, group: str, partitions: Sequence[Partition]) -> dict[Partition, int]:
        await self.fail()
        return {p: o for p, o in self.groups.get(group, {}).items() if p in partitions}

    async def ends(self, partitions: Sequence[Partition]) -> dict[Partition, int]:
        await self.fail()
        return {p: self.stable_end(p) for p in partitions}

    async def close(self) -> None:
        pass

    def end(self, owner: str, state: State) -> None:
        """End the owner's open transaction with a marker in every partition it wrote to."""
        written = self.open.pop(owner, [])
        for _, entry in written:
            entry.state = state
        for partition in dict.fromkeys(p for p, _ in written):
            self.entries(partition).append(Entry(Record("", None, None), self.now_ms(), "marker"))

    async def fail(self) -> None:
        await self.world.turn()
        if self.world.random.random() < self.faults.away:
            raise LogUnavailable("the simulated log is away")


class _Reader:
    def __init__(self, log: SimulatedLog, offsets: dict[Partition, int]) -> None:
        self._log = log
        self._offsets = offsets

    async def fetch(self, partitions: Sequence[Partition], limit: int, wait: float) -> list[Fetched]:
        await self._log.fail()
        got = [f for p in partitions if (f := self._read(p, limit)) is not None]
        if not any(len(f) for f in got) and wait:
            await self._log.world.sleep(wait)
            got = [f for p in partitions if (f := self._read(p, limit)) is not None]
        for fetched in got:
            self._offsets[fetched.partition] = fetched.next_offset
        return got

    def _read(self, partition: Partition, limit: int) -> Fetched | None:
        entries, at = self._log.entries(partition), self._offsets[partition]
        end = self._log.stable_end(partition)
        # A fetch may bring less than there is, as a network does.
        limit = self._log.world.random.randint(1, limit)
        found: list[tuple[int, Entry]] = []
        while at < end and len(found) < limit:
            if entries[at].state == "committed":
                found.append((at, entries[at]))
            at += 1
        if not found and at < end:
            return None
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


class _Writer:
    def __init__(self, log: SimulatedLog, owner: str, epoch: int) -> None:
        self._log = log
        self._owner = owner
        self._epoch = epoch

    def _check(self) -> None:
        if self._log.epochs[self._owner] != self._epoch:
            raise Fenced(f"{self._owner} has a newer owner")

    async def begin(self) -> None:
        await self._log.fail()
        self._check()
        assert self._owner not in self._log.open, "a transaction is open already"
        self._log.open[self._owner] = []

    async def send(self, records: Sequence[Record], home: int) -> dict[Partition, int]:
        ends: dict[Partition, int] = {}
        for record in records:
            if self._log.world.random.random() < 0.1:
                await self._log.fail()
            self._check()
            partition = Partition(record.topic, home if record.partition is None else record.partition)
            entry = Entry(record, self._log.now_ms(), "open")
            self._log.entries(partition).append(entry)
            self._log.open[self._owner].append((partition, entry))
            ends[partition] = len(self._log.entries(partition))
        return ends

    async def commit(self, group: str, offsets: Mapping[Partition, int]) -> None:
        await self._log.world.turn()
        self._check()
        lost = self._log.world.random.random() < self._log.faults.unknown
        if lost and self._log.world.random.random() < 0.5:
            raise TransactionUnknown("the commit did not arrive")
        self._log.end(self._owner, "committed")
        self._log.groups.setdefault(group, {}).update(offsets)
        if lost:
            raise TransactionUnknown("the commit arrived, its answer did not")

    async def abort(self) -> None:
        self._check()
        self._log.end(self._owner, "aborted")

    async def close(self) -> None:
        pass
