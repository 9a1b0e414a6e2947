"""Both ways through aiokafka, on the local broker and on Apache Kafka: whatever lies on a log is read as aiokafka's own
consumer reads it, from any offset and at any limit, and whatever is sent arrives in order."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.client import AIOKafkaClient
from headrace.streams import kip890
from headrace.streams.address import Address
from headrace.streams.batch import Block, Record, record_by_record
from headrace.streams.errors import BadSetting, RecordTooLarge
from headrace.streams.kafka import IDS, TRANSPORT, TRANSPORTS, KafkaLog, whole_batches
from headrace.streams.log import Partition, Reader
from headrace.streams.spans import Spans

from tests.stack.kafka import kafka

CODECS = (None, "gzip", "snappy", "lz4", "zstd")

TRIES = 300
"""Fetches of a test before it says that nothing comes."""

_numbers = itertools.count(1)

Row = tuple[int, int, bytes | None, bytes | None]
"""offset, timestamp, key, value."""


@pytest.fixture(params=["broker", pytest.param("apache", marks=pytest.mark.stack)])
def address(request: pytest.FixtureRequest) -> Address:
    found: Address = request.getfixturevalue(request.param)
    return found


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(TRANSPORT, request.param)
    name: str = request.param
    return name


@pytest.fixture(params=["2", "1", "1 by records"])
def version(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Of transactions: 1 where a cluster is older."""
    name: str = request.param
    monkeypatch.setenv(TRANSPORT, TRANSPORTS["records" in name])
    if name == "1":
        monkeypatch.setattr(kip890, "LEVEL", 99)
    return name


async def topic(address: Address, **configs: str) -> Partition:
    """A new one's only partition; underscores in the names of its configuration stand for dots."""
    name = f"transport-{next(_numbers)}"
    admin = AIOKafkaAdminClient(bootstrap_servers=address.bootstrap)
    await admin.start()
    try:
        dotted = {"retention.ms": "-1"} | {key.replace("_", "."): value for key, value in configs.items()}
        await admin.create_topics([NewTopic(name, 1, 1, topic_configs=dotted)])
        for _ in range(TRIES):
            if (await admin.describe_topics([name]))[0]["partitions"]:
                return Partition(name, 0)
            await asyncio.sleep(0.05)
    finally:
        await admin.close()
    raise AssertionError(f"{name} does not come to be")


async def theirs(address: Address, partition: Partition) -> list[Row]:
    """What aiokafka's own consumer reads, to the end of what is committed."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=address.bootstrap, isolation_level="read_committed", enable_auto_commit=False
    )
    await consumer.start()
    found: list[Row] = []
    try:
        tp = TopicPartition(*partition)
        consumer.assign([tp])
        consumer.seek(tp, 0)
        for _ in range(TRIES):
            for got in (await consumer.getmany(tp, timeout_ms=100)).values():
                assert isinstance(got, list)
                found += [(r.offset, r.timestamp, r.key, r.value) for r in got]
            end = consumer.last_stable_offset(tp)
            if end is not None and await consumer.position(tp) >= end:
                return found
    finally:
        await consumer.stop()
    raise AssertionError(f"{partition} is not read to its end")


async def ours(reader: Reader, partition: Partition, limit: int) -> list[Row]:
    """What a reader reads, to the end of what is committed."""
    found: list[Row] = []
    position = -1
    for _ in range(TRIES):
        for f in await reader.fetch([partition], limit, 0.1):
            assert len(f) <= limit
            assert f.next_offset >= position
            rows = list(zip(f.offset.tolist(), f.timestamp.tolist(), f.keys, f.values, strict=True))
            assert all(position <= row[0] < f.next_offset for row in rows)
            position = f.next_offset
            found += rows
            if f.caught_up:
                return found
    raise AssertionError(f"{partition} is not read to its end; so far {len(found)} records")


async def same_from_everywhere(address: Address, partition: Partition, some: int = 25) -> list[Row]:
    """Compare from the beginning, and from some offsets drawn at random, at several limits."""
    expected = await theirs(address, partition)
    log = KafkaLog(address)
    end = (await log.ends([partition]))[partition]
    dice = random.Random(5)
    starts = [0, *(dice.randint(0, end) for _ in range(some))]
    for start, limit in zip(starts, itertools.cycle([1_000, 1, 7, 50]), strict=False):
        if limit == 1:
            start = max(start, end - 60)
        reader = await log.reader({partition: start})
        try:
            assert await ours(reader, partition, limit) == [row for row in expected if row[0] >= start]
        finally:
            await reader.close()
    await log.close()
    return expected


async def produced(address: Address, partition: Partition, batches: int, dice: random.Random, **settings: Any) -> None:
    """Batches of a producer of aiokafka's, with headers; of a transactional one each commits or aborts."""
    producer = AIOKafkaProducer(bootstrap_servers=address.bootstrap, **settings)
    await producer.start()
    try:
        for _ in range(batches):
            transactional = "transactional_id" in settings
            if transactional:
                await producer.begin_transaction()
            batch = producer.create_batch()
            for _ in range(dice.randint(1, 12)):
                headers = [("h", b"x" * dice.randint(0, 5)), ("h", None)][: dice.choice([0, 0, 1, 2])]
                key = dice.choice([b"a", b"b", b"c", b"", None])
                value = dice.choice([None, b"", b"v" * dice.randint(1, 300)]) if key else b"v"
                batch.append(key=key, value=value, timestamp=dice.randint(0, 1_700_000_000_000), headers=headers)
            await (await producer.send_batch(batch, partition.topic, partition=partition.number))
            if transactional:
                await (producer.commit_transaction() if dice.random() < 0.6 else producer.abort_transaction())
    finally:
        await producer.stop()


@pytest.mark.timeout(240)
async def test_whatever_lies_on_a_log_is_read_as_aiokafka_reads_it(address: Address, transport: str) -> None:
    partition = await topic(address)
    dice = random.Random(3)
    for codec in CODECS:
        await produced(address, partition, 6, dice, compression_type=codec)
    await asyncio.gather(
        *(
            produced(address, partition, 8, dice, compression_type=codec, transactional_id=f"{partition.topic}-{codec}")
            for codec in CODECS
        )
    )
    found = await same_from_everywhere(address, partition)
    assert 200 < len(found) < found[-1][0]


async def test_times_that_the_log_gave_are_those_that_are_read(address: Address, transport: str) -> None:
    partition = await topic(address, message_timestamp_type="LogAppendTime")
    await produced(address, partition, 5, random.Random(4))
    found = await same_from_everywhere(address, partition, 5)
    assert min(time for _, time, _, _ in found) > 1_500_000_000_000


@pytest.fixture(scope="module")
def cleaned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    """A Kafka that compacts at once."""
    with kafka(tmp_path_factory.mktemp("cleaned"), log_cleaner_backoff_ms="200") as cluster:
        yield cluster.address


@pytest.mark.stack
@pytest.mark.timeout(240)
async def test_what_compaction_left_on_kafka_is_read_as_aiokafka_reads_it(cleaned: Address, transport: str) -> None:
    quick = {"segment_ms": "500", "min_cleanable_dirty_ratio": "0.01", "delete_retention_ms": "0"}
    partition = await topic(cleaned, cleanup_policy="compact", **quick)
    dice = random.Random(6)

    async def full(codec: str | None, transactional: bool) -> None:
        settings: dict[str, Any] = {"transactional_id": f"{partition.topic}-{codec}"} if transactional else {}
        producer = AIOKafkaProducer(
            bootstrap_servers=cleaned.bootstrap, enable_idempotence=True, compression_type=codec, **settings
        )
        await producer.start()
        for turn in range(6):
            if transactional:
                await producer.begin_transaction()
            batch = producer.create_batch()
            for _ in range(20):
                value = dice.choice([None, b"v" * dice.randint(1, 99)])
                batch.append(key=b"k%d" % dice.randrange(40), value=value, timestamp=turn + 1, headers=[("h", b"1")])
            await (await producer.send_batch(batch, partition.topic, partition=0))
            if transactional:
                await (producer.commit_transaction() if dice.random() < 0.6 else producer.abort_transaction())
        await producer.stop()

    for codec in CODECS:
        await full(codec, False)
        await full(codec, True)
    before, quiet = 0, 0
    while before > 120 or quiet < 5:
        await _last(cleaned, partition)
        await asyncio.sleep(0.6)
        there = len(await theirs(cleaned, partition))
        quiet = quiet + 1 if there == before else 0
        before = there
    found = await same_from_everywhere(cleaned, partition)
    gaps = [b - a for (a, *_), (b, *_) in itertools.pairwise(found)]
    assert max(gaps) > 1


async def _last(address: Address, partition: Partition) -> None:
    """One record more, so that the segment before it is closed, and may be compacted."""
    producer = AIOKafkaProducer(bootstrap_servers=address.bootstrap)
    await producer.start()
    await producer.send_and_wait(partition.topic, b"last", b"last", partition.number)
    await producer.stop()


# Sending.


def block(partition: Partition, *pairs: tuple[bytes | None, bytes | None], at: int | None = None) -> Block:
    keys, values = Spans.of([k for k, _ in pairs]), Spans.of([v for _, v in pairs])
    return Block(partition.topic, keys, values, partition.number, at)


async def sent(log: KafkaLog, outputs: Sequence[Record | Block], transactional: bool) -> dict[Partition, int]:
    if not transactional:
        sender = await log.sender()
        try:
            return await sender.send(outputs, 0)
        finally:
            await sender.close()
    writer = await log.writer(f"writer-{next(_numbers)}")
    try:
        await writer.begin()
        ends = await writer.send(outputs, 0)
        await writer.commit()
        return ends
    finally:
        await writer.close()


@pytest.mark.parametrize("transactional", [True, False])
async def test_blocks_and_records_go_in_order_in_as_many_batches_as_it_takes(
    address: Address, transport: str, transactional: bool
) -> None:
    partition = await topic(address, max_message_bytes=str(8 << 20))
    many = [(b"%d" % n, b"m" * 300) for n in range(9_000)]
    outputs: list[Record | Block] = [
        block(partition, (b"a", b"1"), (None, b"2"), (b"", b""), (b"d", None), at=7),
        Record(partition.topic, b"k", b"3", 0, 8),
        Record(partition.topic, None, b"4", None, 9),
        block(partition),
        block(partition, *many, at=10),
        Record(partition.topic, b"h", b"5", 0, 11, (("h", b"x"),)),
        block(partition, (b"large", b"L" * (3 << 20)), (b"e", b"6"), at=12),
        block(partition, (b"f", b"7"), at=13)
    ]  # fmt: skip
    log = KafkaLog(address)
    ends = await sent(log, outputs, transactional)
    expected = [(n, r.timestamp, r.key, r.value) for n, r in enumerate(record_by_record(outputs))]
    assert ends == {partition: len(expected)}
    assert await theirs(address, partition) == expected
    reader = await log.reader({partition: 0})
    assert await ours(reader, partition, 5_000) == expected
    await reader.close()
    await log.close()


async def test_a_transaction_takes_as_few_requests_as_the_cluster_allows_and_its_offsets_after_its_records(
    address: Address, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two, source = await topic(address), await topic(address), await topic(address)
    log = KafkaLog(address)
    writer = await log.writer(f"writer-{next(_numbers)}")
    for _ in range(IDS):  # each of its ids learns of the topics
        await writer.begin("warm", {source: 1})
        await writer.send([Record(p.topic, b"k", b"v", 0) for p in (one, two)], 0)
        await writer.commit()
    asked: list[str] = []
    send = AIOKafkaClient.send

    async def told(self: AIOKafkaClient, node: int, request: Any, **more: Any) -> Any:
        kind = type(request).__name__
        asked.append(kind)
        answer = await send(self, node, request, **more)
        asked.append(f"{kind} answered")
        return answer

    monkeypatch.setattr(AIOKafkaClient, "send", told)
    await writer.begin("told", {source: 7})
    await writer.send([block(one, (b"a", b"1"), at=5), Record(two.topic, b"b", b"2", 0, 6)], 0)
    await writer.commit()
    if version == "2":
        assert [kind for kind in asked if " " not in kind] == ["ProduceV12", "TxnOffsetCommitV5", "EndTxnV5"]
    else:
        assert asked.count("AddPartitionsToTxnRequest") == 1
        assert asked.count("ProduceRequest") == 1
        assert asked.index("ProduceRequest answered") < asked.index("TxnOffsetCommitRequest")
    await writer.close()
    assert await log.committed("told", [source]) == {source: 7}
    assert [row[1:] for row in await theirs(address, two)][-1] == (6, b"b", b"2")
    await log.close()


async def test_a_block_without_a_time_has_the_time_at_which_it_was_sent(address: Address, transport: str) -> None:
    partition = await topic(address)
    log = KafkaLog(address)
    await sent(log, [block(partition, (b"a", b"1"))], False)
    [(_, time, _, _)] = await theirs(address, partition)
    assert time > 1_500_000_000_000
    await log.close()


async def test_a_record_of_a_block_that_is_too_large_is_named(address: Address, transport: str) -> None:
    partition = await topic(address, max_message_bytes="1000")
    log = KafkaLog(address)
    with pytest.raises(RecordTooLarge, match="a record of 2,000 bytes, key b'big'"):
        await sent(log, [block(partition, (b"a", b"1"), (b"big", b"x" * 2_000))], False)
    await log.close()


async def test_a_consumer_of_others_gets_records_beside_one_of_ours(address: Address, transport: str) -> None:
    partition = await topic(address)
    log = KafkaLog(address)
    await sent(log, [block(partition, (b"a", b"1"), at=1)], False)
    reader = await log.reader({partition: 0})
    assert await ours(reader, partition, 9) == await theirs(address, partition) == [(0, 1, b"a", b"1")]
    await reader.close()
    await log.close()


def test_a_transport_that_there_is_not_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TRANSPORT, "pigeons")
    with pytest.raises(BadSetting, match="HEADRACE_TRANSPORT='pigeons' is not one of batches, records"):
        KafkaLog(Address("127.0.0.1", 1))
    monkeypatch.setenv(TRANSPORT, "")
    assert whole_batches()
