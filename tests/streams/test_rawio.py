"""Whole batches in place of aiokafka's records: the same records, positions and omissions, batch by batch."""

from __future__ import annotations

import inspect
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.consumer import fetcher
from aiokafka.consumer.fetcher import READ_COMMITTED, Fetcher, FetchResult, PartitionRecords
from aiokafka.errors import CorruptRecordException
from aiokafka.producer.message_accumulator import BatchBuilder, MessageAccumulator, MessageBatch
from aiokafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from crc32c import crc32c
from headrace.streams import rawio, recordbatches
from headrace.streams.broker.batches import keep_records, marker, read_batch, stamp
from headrace.streams.errors import MalformedBatch
from headrace.streams.recordbatches import RECORDS, Columns, build, seal
from headrace.streams.spans import Spans
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.streams.pinned import assert_read

TP = TopicPartition("t", 3)

RELIED_ON = {
    "Fetcher._proc_fetch_request": (Fetcher._proc_fetch_request, "59bf948f"),
    "Fetcher.fetched_records": (Fetcher.fetched_records, "be434889"),
    "FetchResult": (FetchResult, "d7db13f0"),
    "PartitionRecords": (PartitionRecords, "94aa0da0"),
    "AIOKafkaConsumer.getmany": (AIOKafkaConsumer.getmany, "bc6d248e"),
    "BatchBuilder": (BatchBuilder, "8050802c"),
    "MessageBatch": (MessageBatch, "36a7b1da"),
    "MessageAccumulator._pop_batch": (MessageAccumulator._pop_batch, "41cc98a2"),
    "MessageAccumulator._append_batch": (MessageAccumulator._append_batch, "4762abfc"),
    "MessageAccumulator.add_batch": (MessageAccumulator.add_batch, "5ed1c5b1"),
    "AIOKafkaProducer.send_batch": (AIOKafkaProducer.send_batch, "bf42b0f0"),
}
"""What streams/rawio.py stands in for or is called by, and the sums of it as it was read."""


@pytest.mark.parametrize("name", RELIED_ON)
def test_aiokafka_is_the_one_that_was_read(name: str) -> None:
    part, known = RELIED_ON[name]
    instead = "aiokafka's public classes alone"
    assert_read(name, part, known, "streams/rawio.py", "tests/streams/test_transport.py", instead)


def test_the_names_that_are_given_other_meanings_are_used() -> None:
    assert {"MemoryRecords", "PartitionRecords", "FetchResult"} <= set(Fetcher._proc_fetch_request.__code__.co_names)
    assert "FetchResult" in Fetcher.fetched_records.__code__.co_names


def test_what_stands_in_for_a_builder_has_all_that_is_called_of_one() -> None:
    public = {n for n, _ in inspect.getmembers(BatchBuilder, inspect.isfunction) if n not in ("__init__", "_serialize")}
    assert public <= {n for n, _ in inspect.getmembers(rawio.Built, inspect.isfunction)}


def test_other_consumers_of_the_process_are_as_they_were() -> None:
    assert fetcher.MemoryRecords is MemoryRecords
    assert fetcher.PartitionRecords is PartitionRecords
    assert Fetcher.fetched_records.__globals__["FetchResult"] is FetchResult


@pytest.fixture(autouse=True, scope="module")
def warm() -> None:
    """Compiling takes longer than a test of one example may."""
    recordbatches.warm()


# A log of one partition, as a broker has it.

STRINGS = st.none() | st.binary(max_size=20)


@dataclass
class Log:
    """aborted: (producer, first offset) as a fetch tells them."""

    batches: list[bytes]
    aborted: list[tuple[int, int]]
    end: int

    def fetched(self, offset: int) -> bytes:
        """From the batch on that has the offset."""
        return b"".join(b for b in self.batches if read_batch(b).last_offset >= offset)


@st.composite
def logs(draw: st.DrawFn) -> Log:
    """Transactions of several producers among each other, committed or not, compacted here and there."""
    batches: list[bytes] = []
    open_since: dict[int, int] = {}
    aborted: list[tuple[int, int]] = []
    end = draw(st.integers(0, 1_000))

    def add(data: bytes, count: int) -> None:
        nonlocal end
        batches.append(b"".join(stamp(read_batch(data), end)))
        end += count

    for _ in range(draw(st.integers(0, 12))):
        producer = draw(st.integers(1, 3))
        if producer in open_since and draw(st.booleans()):
            good, first = draw(st.booleans()), open_since.pop(producer)
            if not good:
                aborted.append((producer, first))
            add(marker(producer, 0, good, 5).data, 1)
            if draw(st.integers(0, 4)) == 0:  # compaction took the marker
                batches[-1] = emptied(batches[-1])
            continue
        transactional = draw(st.booleans()) or producer in open_since
        builder = DefaultRecordBatchBuilder(2, draw(st.integers(0, 4)), int(transactional), producer, 0, 0, 1 << 20)
        count = draw(st.integers(1, 8))
        for n in range(count):
            headers = draw(st.lists(st.tuples(st.text(max_size=3), STRINGS), max_size=2))
            builder.append(n, draw(st.integers(0, 10**13)), draw(STRINGS), draw(STRINGS), headers)
        if transactional:
            open_since.setdefault(producer, end)
        add(bytes(builder.build()), count)
        if draw(st.booleans()):
            batch = read_batch(batches[-1])
            kept = [r for r in DefaultRecordBatch(batch.data) if draw(st.booleans())]
            batches[-1] = keep_records(batch, kept, None) if kept else emptied(batches[-1])
    # Those that are open still are not read: their batches lie behind the last stable offset.
    aborted += open_since.items()
    return Log(batches, aborted, end)


def emptied(batch: bytes) -> bytes:
    """What compaction leaves where it keeps no record but the producer's last sequence."""
    data = bytearray(batch[:61])
    struct.pack_into(">i", data, 8, 49)
    struct.pack_into(">i", data, 57, 0)
    data[22] &= ~0x07
    struct.pack_into(">I", data, 17, crc32c(bytes(data[21:])))
    return bytes(data)


def few(data: bytes, aborted: Sequence[tuple[int, int]], offset: int) -> rawio._Few:
    return rawio._Few(TP, MemoryRecords(data), list(aborted), offset, None, None, True, READ_COMMITTED)


def partition(data: bytes, aborted: Sequence[tuple[int, int]], offset: int) -> rawio._Partition:
    return rawio._Partition(TP, rawio._Fetched(data), list(aborted), offset, None, None, True, READ_COMMITTED)


Row = tuple[int, int, bytes | None, bytes | None]


def rows(found: Columns) -> list[Row]:
    return list(zip(found.offset.tolist(), found.timestamp.tolist(), found.keys, found.values, strict=True))


@given(logs(), st.data())
def test_the_same_records_are_taken_and_the_same_positions_left(log: Log, data: st.DataObject) -> None:
    offset = data.draw(st.integers(0, log.end))
    whole = log.fetched(offset)
    some = whole[: data.draw(st.integers(0, len(whole)))]
    theirs = few(some, log.aborted, offset)
    ours = partition(some, log.aborted, offset)
    assert ours._records.has_next() == MemoryRecords(some).has_next()
    expected = [(r.offset, r.timestamp, r.key, r.value) for r in theirs]
    found: list[Row] = []
    while not ours.finished:
        limit = data.draw(st.integers(1, 20))
        taken = rows(ours.take(limit))
        assert len(taken) == limit or ours.exhausted
        assert len(taken) <= limit
        found += taken
        if not ours.finished and taken:
            assert ours.next_fetch_offset > taken[-1][0]
            assert not [row for row in expected if taken[-1][0] < row[0] < ours.next_fetch_offset]
    assert found == expected
    assert ours.next_fetch_offset == max(theirs.next_fetch_offset, offset)


def block(count: int) -> bytes:
    spans = Spans.of([b"%d" % n for n in range(count)])
    [(data, _)] = build(spans, spans, np.arange(count), 1 << 20)
    seal(data, 1, 0, 0, False)
    return bytes(data)


def test_what_finds_no_room_is_kept_and_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    real = recordbatches.columns

    def counting(data: NDArray[np.uint8], table: NDArray[np.int64], first: int) -> Columns:
        reads.append(int(table[:, RECORDS].sum()))
        return real(data, table, first)

    monkeypatch.setattr(recordbatches, "columns", counting)
    one = partition(block(100), [], 0)
    for n in range(100):
        assert rows(one.take(1)) == [(n, n, b"%d" % n, b"%d" % n)]
        assert one.next_fetch_offset == n + 1
    assert reads == [100]
    assert one.finished


def test_a_batch_that_does_not_match_its_sum_is_told_and_fetched_again() -> None:
    good, bad = block(3), bytearray(b"".join(stamp(read_batch(block(3)), 3)))
    bad[-1] ^= 1
    one = partition(good + bad, [], 0)
    assert rows(one.take(5)) == rows(partition(good, [], 0).take(5))  # what lies before it is good
    with pytest.raises(MalformedBatch, match="t, partition 3: the batch at offset 3 does not match its sum"):
        one.take(5)
    assert one.next_fetch_offset == -1  # no position of the reader's: it is thrown away
    with pytest.raises(CorruptRecordException):
        list(PartitionRecords(TP, MemoryRecords(good + bad), [], 0, None, None, True, READ_COMMITTED))


def test_old_message_formats_are_told() -> None:
    old = bytearray(block(1))
    old[16] = 1
    with pytest.raises(MalformedBatch, match="t, partition 3: a record batch is of message format 1"):
        partition(bytes(old), [], 0).take(1)


@pytest.mark.parametrize("transactional", [True, False])
def test_a_built_batch_goes_out_as_its_producer_and_is_the_same_when_it_is_sent_again(transactional: bool) -> None:
    spans = Spans.of([b"1", b"2"])
    [(data, count)] = build(spans, spans, np.array([5, 6]), 1000)
    built = rawio.Built(data, count, transactional)
    assert (built.record_count(), built.size(), built.closed()) == (2, len(data), True)
    built._set_producer_state(2**33, 4, 77)
    batch = DefaultRecordBatch(bytes(built._build()))
    assert batch.validate_crc()
    assert (batch.producer_id, batch.producer_epoch, batch.base_sequence) == (2**33, 4, 77)
    assert batch.is_transactional == transactional
    assert built._build() is built._build()
