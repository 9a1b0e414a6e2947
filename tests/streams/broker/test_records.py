"""Records go in and come out as they were."""

import asyncio
import time

import pytest
from aiokafka import TopicPartition, codec
from aiokafka.errors import KafkaError, MessageSizeTooLargeError
from kio.schema.errors import ErrorCode

from tests.streams.broker.clients import (
    DELETE_RECORDS,
    FETCH,
    LIST_OFFSETS,
    PRODUCE,
    Clients,
    batch,
    fetch_fields,
    only,
    produce_fields,
    read,
)

LEADER_EPOCH = 23
CODECS = [
    name
    for name, has in {
        "gzip": codec.has_gzip,
        "snappy": codec.has_snappy,
        "lz4": codec.has_lz4,
        "zstd": codec.has_zstd,
    }.items()
    if has()
]


async def test_keys_values_headers_times_and_tombstones_come_back(clients: Clients) -> None:
    await clients.topic("t")
    producer = await clients.producer()
    await producer.send_and_wait("t", b"v", key=b"k", headers=[("h", b"x"), ("e", None)], timestamp_ms=123)
    await producer.send_and_wait("t", None, key=b"k")
    first, second = await read(await clients.consumer("t"), 2)
    assert (first.key, first.value, first.timestamp, first.offset) == (b"k", b"v", 123, 0)
    assert first.headers == (("h", b"x"), ("e", None))
    assert (second.key, second.value, second.offset) == (b"k", None, 1)


@pytest.mark.parametrize("compression", CODECS)
async def test_compressed_records_come_back(clients: Clients, compression: str) -> None:
    await clients.topic("t")
    producer = await clients.producer(compression_type=compression, linger_ms=20)
    await asyncio.gather(*[producer.send_and_wait("t", b"x%d" % n * 50) for n in range(50)])
    records = await read(await clients.consumer("t"), 50)
    assert [record.value for record in records] == [b"x%d" % n * 50 for n in range(50)]


@pytest.mark.parametrize("acks", [0, 1, "all"])
async def test_every_kind_of_acknowledgement_is_kept(clients: Clients, acks: int | str) -> None:
    await clients.topic("t")
    producer = await clients.producer(acks=acks)
    for number in range(3):
        await producer.send_and_wait("t", b"%d" % number)
    assert [r.value for r in await read(await clients.consumer("t"), 3)] == [b"0", b"1", b"2"]


async def test_partitions_have_offsets_of_their_own(clients: Clients) -> None:
    await clients.topic("t", 3)
    producer = await clients.producer()
    sent = [await producer.send_and_wait("t", b"v", partition=n % 3) for n in range(6)]
    assert [(s.partition, s.offset) for s in sent] == [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1)]


async def test_a_long_poll_wakes_when_a_record_arrives(clients: Clients) -> None:
    await clients.topic("t")
    consumer = await clients.consumer("t", fetch_max_wait_ms=5_000)
    producer = await clients.producer()
    waiting = asyncio.create_task(consumer.getone())
    await asyncio.sleep(0.3)
    started = time.perf_counter()
    await producer.send_and_wait("t", b"v")
    assert (await waiting).value == b"v"
    assert time.perf_counter() - started < 1


async def test_a_fetch_waits_for_min_bytes_but_not_beyond_max_wait(clients: Clients) -> None:
    await clients.topic("t")
    wire = await clients.wire()
    await wire.ask(PRODUCE, 9, **produce_fields("t", batch(b"v")))
    started = time.perf_counter()
    answer = await wire.ask(FETCH, 11, **fetch_fields("t", wait_ms=200, min_bytes=10_000))
    assert only(answer).records
    assert 0.15 < time.perf_counter() - started < 1


async def test_a_fetch_gives_whole_batches_within_its_bound_and_at_least_one(local: Clients) -> None:
    await local.topic("t")
    wire = await local.wire()
    size = len(batch(b"x" * 1000))
    for _ in range(4):
        await wire.ask(PRODUCE, 9, **produce_fields("t", batch(b"x" * 1000)))
    two = only(await wire.ask(FETCH, 11, **fetch_fields("t", partition_max=2 * size + 10)))
    one = only(await wire.ask(FETCH, 11, **fetch_fields("t", partition_max=1)))
    assert (len(two.records), len(one.records)) == (2 * size, size)


async def test_a_fetch_outside_the_log_is_out_of_range(clients: Clients) -> None:
    await clients.topic("t")
    wire = await clients.wire()
    assert only(await wire.ask(FETCH, 11, **fetch_fields("t", 1))).error_code is ErrorCode.offset_out_of_range
    assert only(await wire.ask(FETCH, 11, **fetch_fields("u"))).error_code is ErrorCode.unknown_topic_or_partition


async def test_fetch_sessions_are_declined(local: Clients) -> None:
    await local.topic("t")
    wire = await local.wire()
    begun = await wire.ask(FETCH, 11, **fetch_fields("t", session_id=0, session_epoch=0))
    assert begun.session_id == 0
    continued = await wire.ask(FETCH, 11, **fetch_fields("t", session_id=7, session_epoch=1))
    assert continued.error_code is ErrorCode.fetch_session_id_not_found


async def test_a_damaged_batch_is_refused(clients: Clients) -> None:
    await clients.topic("t")
    wire = await clients.wire()
    good = batch(b"value")
    old_magic = good[:16] + b"\1" + good[17:]
    corrupt, invalid = ErrorCode.corrupt_message, ErrorCode.invalid_record
    for bad, code in (
        (good[:-1] + b"X", corrupt),
        (good[:-3], invalid),
        (good[:30], invalid),
        (b"", invalid),
        (good + good, invalid),
        (old_magic, invalid),
    ):
        answer = await wire.ask(PRODUCE, 9, **produce_fields("t", bad))
        assert answer.responses[0].partition_responses[0].error_code is code
    assert only(await wire.ask(FETCH, 11, **fetch_fields("t"))).high_watermark == 0


async def test_a_batch_above_the_topics_bound_is_refused(clients: Clients) -> None:
    await clients.topic("t", max_message_bytes="1000")
    producer = await clients.producer()
    with pytest.raises(MessageSizeTooLargeError):
        await producer.send_and_wait("t", b"x" * 2_000)
    await producer.send_and_wait("t", b"x" * 500)


async def test_the_brokers_time_replaces_the_clients_when_the_topic_says_so(clients: Clients) -> None:
    await clients.topic("t", message_timestamp_type="LogAppendTime")
    producer = await clients.producer()
    sent = await producer.send_and_wait("t", b"v", timestamp_ms=5)
    (record,) = await read(await clients.consumer("t", check_crcs=True), 1)
    assert abs(record.timestamp - time.time() * 1000) < 5_000
    assert (sent.timestamp, record.timestamp_type) == (record.timestamp, 1)


async def test_offsets_are_found_by_time(clients: Clients) -> None:
    await clients.topic("t")
    producer = await clients.producer(linger_ms=5)
    # Three batches, out of order among themselves: 100..104, 50..54, 200..204.
    for first in (100, 50, 200):
        sending = [await producer.send("t", b"v", timestamp_ms=first + n) for n in range(5)]
        await asyncio.gather(*sending)
    consumer = await clients.consumer()
    partition = TopicPartition("t", 0)

    async def found(timestamp: int) -> int | None:
        answer = (await consumer.offsets_for_times({partition: timestamp}))[partition]
        return None if answer is None else int(answer.offset)

    assert [await found(t) for t in (0, 100, 103, 105, 203, 204, 205)] == [0, 0, 3, 10, 13, 14, None]


async def test_offsets_are_found_by_time_in_compressed_batches(clients: Clients) -> None:
    await clients.topic("t")
    producer = await clients.producer(compression_type="gzip", linger_ms=5)
    sending = [await producer.send("t", b"v" * 100, timestamp_ms=100 + n) for n in range(20)]
    await asyncio.gather(*sending)
    consumer = await clients.consumer()
    partition = TopicPartition("t", 0)
    assert (await consumer.offsets_for_times({partition: 113}))[partition].offset == 13


async def test_the_greatest_time_is_found(clients: Clients) -> None:
    await clients.topic("t")
    wire = await clients.wire()
    for timestamp in (10, 500, 20):
        await wire.ask(PRODUCE, 9, **produce_fields("t", batch(b"a", b"b", timestamp=timestamp)))
    wanted = [{"name": "t", "partitions": [{"partition_index": 0, "timestamp": -3}]}]
    answer = await wire.ask(LIST_OFFSETS, 7, replica_id=-1, topics=wanted)
    assert (answer.topics[0].partitions[0].offset, answer.topics[0].partitions[0].timestamp) == (3, 501)


async def test_a_consumer_seeks_and_reads_again(clients: Clients) -> None:
    await clients.topic("t")
    producer = await clients.producer()
    for number in range(10):
        await producer.send_and_wait("t", b"%d" % number)
    consumer = await clients.consumer("t")
    await read(consumer, 10)
    consumer.seek(TopicPartition("t", 0), 7)
    assert [r.value for r in await read(consumer, 3)] == [b"7", b"8", b"9"]
    assert await consumer.beginning_offsets([TopicPartition("t", 0)]) == {TopicPartition("t", 0): 0}
    assert await consumer.end_offsets([TopicPartition("t", 0)]) == {TopicPartition("t", 0): 10}


async def test_deleted_records_are_gone_and_the_rest_stays(clients: Clients) -> None:
    await clients.topic("t")
    producer = await clients.producer()
    for number in range(10):
        await producer.send_and_wait("t", b"%d" % number)
    wire = await clients.wire()
    partitions = [{"partition_index": 0, "offset": 4}]
    answer = await wire.ask(DELETE_RECORDS, 2, topics=[{"name": "t", "partitions": partitions}])
    assert answer.topics[0].partitions[0].low_watermark == 4
    assert only(await wire.ask(FETCH, 11, **fetch_fields("t", 3))).error_code is ErrorCode.offset_out_of_range
    assert only(await wire.ask(FETCH, 11, **fetch_fields("t", 4))).log_start_offset == 4
    consumer = await clients.consumer("t")
    assert (await consumer.getone()).value == b"4"


async def test_records_of_a_compacted_topic_are_not_deleted(clients: Clients) -> None:
    await clients.topic("t", cleanup_policy="compact")
    wire = await clients.wire()
    await wire.ask(PRODUCE, 9, **produce_fields("t", batch(b"v")))
    partitions = [{"partition_index": 0, "offset": -1}]
    answer = await wire.ask(DELETE_RECORDS, 2, topics=[{"name": "t", "partitions": partitions}])
    assert answer.topics[0].partitions[0].error_code is ErrorCode.policy_violation


async def test_the_only_epoch_of_leaders_ends_where_the_log_does(clients: Clients) -> None:
    await clients.topic("t")
    wire = await clients.wire()
    await wire.ask(PRODUCE, 9, **produce_fields("t", batch(b"a", b"b")))
    wanted = {"partition": 0, "leader_epoch": 0, "current_leader_epoch": 0}
    topics = [{"topic": "t", "partitions": [wanted]}]
    answer = await wire.ask(LEADER_EPOCH, 4, replica_id=-1, topics=topics)
    assert (answer.topics[0].partitions[0].end_offset, answer.topics[0].partitions[0].leader_epoch) == (2, 0)
    topics = [{"topic": "t", "partitions": [wanted | {"current_leader_epoch": 3}]}]
    answer = await wire.ask(LEADER_EPOCH, 4, replica_id=-1, topics=topics)
    assert answer.topics[0].partitions[0].error_code is ErrorCode.unknown_leader_epoch


async def test_readers_far_behind_are_served_from_the_store(clients: Clients) -> None:
    await clients.topic("t")
    producer = await clients.producer(max_batch_size=1 << 20, max_request_size=1 << 20)
    for number in range(40):  # more than the tail cache holds
        await producer.send_and_wait("t", b"%02d" % number + b"x" * 900_000)
    consumer = await clients.consumer("t")
    seen = [(await consumer.getone()).value[:2] for _ in range(40)]
    assert seen == [b"%02d" % number for number in range(40)]


async def test_an_unknown_topic_is_an_error_and_not_created(clients: Clients) -> None:
    producer = await clients.producer(request_timeout_ms=600)
    with pytest.raises(KafkaError):
        await producer.send_and_wait("nowhere", b"v")
