"""Whole record batches through aiokafka: columns in, built batches out, in place of one object for each record.

aiokafka has no way for them, so private classes of it are stood in for, in the one consumer and the one batch that are
given here; no other client of the process sees a change. What is relied on is pinned in tests/streams/test_rawio.py.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from types import FunctionType
from typing import Any

import numpy as np
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.consumer.fetcher import READ_COMMITTED, Fetcher, FetchResult, PartitionRecords
from aiokafka.record.control_record import ABORT_MARKER, ControlRecord
from aiokafka.record.memory_records import MemoryRecords
from headrace.streams import recordbatches
from headrace.streams.errors import MalformedBatch
from headrace.streams.recordbatches import (
    ATTRIBUTES,
    BASE,
    CONTROL,
    END,
    NEXT,
    PRODUCER,
    TRANSACTIONAL,
    Columns,
    intact,
)
from headrace.streams.spans import Spans

_NO_BYTES = np.zeros(0, np.uint8)
_NO_NUMBERS = np.zeros(0, np.int64)
_NO_STRINGS = Spans(_NO_BYTES, _NO_NUMBERS, _NO_NUMBERS)

NOTHING = Columns(_NO_NUMBERS, _NO_NUMBERS, _NO_STRINGS, _NO_STRINGS)

AHEAD = 200
"""Records that are read at least: one at a time costs as much each as a hundred at one go."""

SMALL = 4 << 10
"""Bytes of a fetch whose few records are sooner taken one by one: a lone record came 60 us later by columns."""


def take_columns(consumer: AIOKafkaConsumer) -> None:
    """From here on the consumer's getmany() gives `Columns` for a partition, and a list of records only where a fetch
    brought a few.

    The consumer is started, and nothing is assigned to it yet. getone() works no more.
    """
    assert type(consumer._fetcher) is Fetcher, "a consumer that was started, and not yet given"
    consumer._fetcher.__class__ = _Fetcher


def announce(producer: AIOKafkaProducer, partitions: Iterable[tuple[str, int]]) -> None:
    """Have a producer's open transaction take these partitions, by one request; those it knows nothing of, later."""
    transaction = producer._txn_manager
    if not transaction.is_in_transaction():
        return  # it has failed, as whoever sends will hear
    for topic, number in partitions:
        if number in (producer._metadata.partitions_for_topic(topic) or ()):
            transaction.maybe_add_partition_to_txn(TopicPartition(topic, number))


class Built:
    """A batch that was built already, in the place of aiokafka's BatchBuilder: for producer.send_batch()."""

    def __init__(self, data: bytearray, count: int, transactional: bool) -> None:
        self._data = data
        self._count = count
        self._transactional = transactional

    def append(self, **_: object) -> None:
        """Nothing finds room in it any more."""

    def close(self) -> None:
        pass

    def closed(self) -> bool:
        return True

    def record_count(self) -> int:
        return self._count

    def size(self) -> int:
        return len(self._data)

    def _set_producer_state(self, producer_id: int, producer_epoch: int, base_sequence: int) -> None:
        recordbatches.seal(self._data, producer_id, producer_epoch, base_sequence, self._transactional)

    def _build(self) -> bytearray:
        return self._data


class _Fetched:
    """What a fetch brought of one partition, for aiokafka's MemoryRecords."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        # One array: what is read of it at several times is joined without a copy.
        self.array = np.frombuffer(self.data, np.uint8)

    def has_next(self) -> bool:
        """Whether there is a whole batch: a fetch may end inside one."""
        return recordbatches.whole(self.data)

    def size_in_bytes(self) -> int:
        return len(self.data)


class _Few(PartitionRecords):  # type: ignore[misc]  # aiokafka is untyped
    """The records of a small fetch, as aiokafka reads them."""

    def _contains_abort_marker(self, next_batch: Any) -> bool:
        # A marker that compaction took leaves an empty batch, at which aiokafka's own stops for good.
        marker = next(next_batch, None)
        return marker is not None and bool(ControlRecord.parse(marker.key) == ABORT_MARKER)


class _Partition(PartitionRecords):  # type: ignore[misc]  # aiokafka is untyped
    """The records of one fetch, by columns: what is aborted is left out as aiokafka leaves it out."""

    _records: _Fetched
    next_fetch_offset: int

    def _unpack_records(self) -> None:
        self._at = 0
        self._rest = NOTHING
        self._given = 0
        self._passed: int = self.next_fetch_offset
        self._broken: MalformedBatch | None = None
        self.exhausted = not self._records.has_next()

    def take(self, limit: int) -> Columns:
        """The next records, at most so many. What was read and finds no room is kept for the next time.

        Raises MalformedBatch, once what lies before that batch was taken.
        """
        left = len(self._rest) - self._given
        while left < limit and not self.exhausted and self._broken is None:
            found = self._read(max(limit - left, AHEAD))
            self._rest = Columns.joined([self._rest[self._given :], found]) if left else found
            self._given, left = 0, len(self._rest)
        if self._broken is not None and not left:
            # No position: what lies here is thrown away, and fetched again.
            self.next_fetch_offset = -1
            raise MalformedBatch(f"{self._tp.topic}, partition {self._tp.partition}: {self._broken}")
        if left <= limit:
            taken = self._rest[self._given :] if self._given else self._rest
            self._rest, self._given, self.next_fetch_offset = NOTHING, 0, self._passed
        else:
            taken = self._rest[self._given : self._given + limit]
            self._given += limit
            self.next_fetch_offset = int(taken.offset[-1]) + 1
        return taken

    @property
    def finished(self) -> bool:
        return self.exhausted and not len(self._rest)

    def _read(self, wanted: int) -> Columns:
        """The records of as many batches as it takes to have so many, or of all that are left."""
        data, kept = self._records.array, []
        try:
            table = recordbatches.heads(data, self._at, wanted)
            heads = table.tolist()
            for n, head in enumerate(heads):
                if self._check_crcs and not intact(self._records.data, head):
                    self._broken = MalformedBatch(f"the batch at offset {head[BASE]:,} does not match its sum")
                    heads = heads[:n]
                    break
                if self._readable(head):
                    kept.append(n)
            found = NOTHING
            if kept:
                found = recordbatches.columns(data, table if len(kept) == len(table) else table[kept], self._passed)
        except MalformedBatch as error:
            self._broken = error
            return NOTHING
        if heads:
            self._at = heads[-1][END]
            self._passed = max(self._passed, heads[-1][NEXT])
        self.exhausted = not recordbatches.whole(self._records.data, self._at)
        return found

    def _readable(self, head: Sequence[int]) -> bool:
        """Whether a batch is neither a marker nor aborted."""
        attributes, producer = head[ATTRIBUTES], head[PRODUCER]
        if self._isolation_level == READ_COMMITTED:
            self._consume_aborted_up_to(head[BASE])
            if attributes & TRANSACTIONAL and producer in self._aborted_producers:
                if attributes & CONTROL and self._aborts(head):
                    self._aborted_producers.discard(producer)
                return False
        return not attributes & CONTROL

    def _aborts(self, marker: Sequence[int]) -> bool:
        # Empty where compaction took it.
        keys = recordbatches.columns(self._records.array, np.array([marker], np.int64), 0).keys
        return len(keys) > 0 and bool(ControlRecord.parse(keys[0]) == ABORT_MARKER)


def _fetched(data: bytes | None) -> MemoryRecords | _Fetched:
    return _Fetched(data) if data is not None and len(data) > SMALL else MemoryRecords(data or b"")


def _partition(tp: TopicPartition, fetched: MemoryRecords | _Fetched, *rest: Any) -> _Few | _Partition:
    return (_Partition if isinstance(fetched, _Fetched) else _Few)(tp, fetched, *rest)


class _Result(FetchResult):  # type: ignore[misc]  # aiokafka is untyped
    """What waits to be taken of one partition."""

    _partition_records: _Few | _Partition | None

    def getall(self, max_records: int | None = None) -> Columns | list[Any]:
        if not isinstance(self._partition_records, _Partition):
            few: list[Any] = super().getall(max_records)
            return few
        if not self.check_assignment(self._topic_partition):
            return NOTHING
        columns = self._partition_records.take(max_records or sys.maxsize)
        self._update_position()
        if self._partition_records.finished:
            self._partition_records = None
        return columns


def over(function: Callable[..., Any], **names: object) -> Callable[..., Any]:
    """The same function, coroutine or not, for which these names of its module mean these."""
    assert isinstance(function, FunctionType)
    made = FunctionType(function.__code__, {**function.__globals__, **names}, function.__name__, function.__defaults__)
    made.__kwdefaults__ = function.__kwdefaults__
    return made


class _Fetcher(Fetcher):  # type: ignore[misc]  # aiokafka is untyped
    """aiokafka's own, over other classes: its handling of positions, errors and replicas stays."""

    _proc_fetch_request = over(
        Fetcher._proc_fetch_request, MemoryRecords=_fetched, PartitionRecords=_partition, FetchResult=_Result
    )
    fetched_records = over(Fetcher.fetched_records, FetchResult=_Result)
