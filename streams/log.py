"""The log as the engine sees it: one small protocol that Kafka, the local broker and the simulator fulfil.

Reading is of committed records only. Writing is in transactions that carry the consumed offsets. A conformance
suite (tests/streams/test_log.py) states what every implementation keeps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple, Protocol

import numpy as np
from headrace.streams.batch import Block, Record
from numpy.typing import NDArray


class Partition(NamedTuple):
    topic: str
    number: int


NO_OFFSETS: Mapping[Partition, int] = MappingProxyType({})


@dataclass(slots=True)
class Fetched:
    """Consecutive committed records of one partition, as columns of length n.

    next_offset: where reading goes on; it passes over aborted records and markers
    end:         the end of what is committed, as far as this fetch knows; next_offset == end means caught up
    timestamp:   int64[n], milliseconds, when the record was published
    keys, values: `Spans` where whole batches were read, lists where a few records
    """

    partition: Partition
    offset: NDArray[np.int64]
    timestamp: NDArray[np.int64]
    keys: Sequence[bytes | None]
    values: Sequence[bytes | None]
    next_offset: int
    end: int

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def caught_up(self) -> bool:
        return self.next_offset >= self.end


class Reader(Protocol):
    """Reads partitions from given offsets on; an offset before the log's beginning starts at the beginning."""

    async def fetch(self, partitions: Sequence[Partition], limit: int, wait: float) -> list[Fetched]:
        """What is there for these partitions, at most `limit` records of each; waits up to `wait` seconds for
        a first record. A partition known to be caught up is reported even without records.

        Raises LogUnavailable.
        """

    async def close(self) -> None: ...


class Sender(Protocol):
    """Sends records that are there for every reader once they are stored: no transaction, no owner."""

    async def send(self, records: Sequence[Record | Block], home: int) -> dict[Partition, int]:
        """Send records in order per partition, each once; they are stored when it returns.

        home: the partition of those that name none: a task writes to its own.

        Returns the offset after the last record, per partition. Raises RecordTooLarge or LogUnavailable: then they may
        be stored or not, in part too.
        """

    async def close(self) -> None: ...


class Writer(Sender, Protocol):
    """One transaction after the other, under one owner's name. Opening it fences every earlier owner. What is sent
    belongs to the open transaction, and a writer that was fenced raises Fenced."""

    async def begin(self, group: str = "", offsets: Mapping[Partition, int] = NO_OFFSETS) -> None:
        """Open a transaction. offsets: the group's, set by its commit."""

    async def commit(self) -> None:
        """Commit the records and the offsets, all or nothing.

        Raises Fenced, or TransactionUnknown where the log did not answer: then the writer is opened again
        before anything else is done.
        """

    async def abort(self) -> None: ...


class Log(Protocol):
    """A log with topics, partitions, groups and transactions."""

    async def reader(self, offsets: Mapping[Partition, int]) -> Reader: ...

    async def writer(self, owner: str) -> Writer: ...

    async def sender(self) -> Sender: ...

    async def committed(self, group: str, partitions: Sequence[Partition]) -> dict[Partition, int]:
        """The group's committed offsets; a partition without one is absent. Waits out an open transaction."""

    async def ends(self, partitions: Sequence[Partition]) -> dict[Partition, int]:
        """The end of what is committed in each partition."""

    async def starts(self, partitions: Sequence[Partition]) -> dict[Partition, int]:
        """Where each partition begins: what lay before has been deleted."""

    async def close(self) -> None: ...


class Turns:
    """A writer with several ids, each a writer of its own, that take its transactions in turn.

    They are opened one after the other, and the first transaction is on the one opened first. Of two owners that open
    at once, each may come to hold some of the ids; the one whose first id has been taken since fails in its first
    transaction, before it has done anything on a state that the other is moving on.
    """

    def __init__(self, writers: Sequence[Writer]) -> None:
        self._writers = writers
        self._turn = 0

    async def begin(self, group: str = "", offsets: Mapping[Partition, int] = NO_OFFSETS) -> None:
        await self._writers[self._turn].begin(group, offsets)

    async def send(self, records: Sequence[Record | Block], home: int) -> dict[Partition, int]:
        return await self._writers[self._turn].send(records, home)

    async def commit(self) -> None:
        await self._writers[self._turn].commit()
        self._next()

    async def abort(self) -> None:
        await self._writers[self._turn].abort()
        self._next()

    def _next(self) -> None:
        # Where a transaction did not end the turn stays: one that is fenced stays fenced.
        self._turn = (self._turn + 1) % len(self._writers)

    async def close(self) -> None:
        for writer in self._writers:
            await writer.close()
