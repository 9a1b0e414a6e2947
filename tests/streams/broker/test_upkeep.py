"""What time and size take away, and what an administrator may see and change, on either broker."""

import asyncio
import datetime
import time
import uuid
from typing import Any

import pytest
from kio.schema.errors import ErrorCode

from tests.streams.broker.clients import (
    FETCH,
    LIST_OFFSETS,
    PRODUCE,
    Clients,
    batch,
    eventually,
    fetch_fields,
    only,
    produce_fields,
    read_quiet,
)

METADATA, DELETE_RECORDS, DESCRIBE_CONFIGS, LOG_DIRS = 3, 21, 32, 35
CREATE_PARTITIONS, REASSIGNMENTS, TOPIC_PARTITIONS = 37, 46, 75
SECOND = datetime.timedelta(seconds=1)
# Kafka cleans whole segments and never the newest; these are of a batch or two.
SMALL = {"segment_ms": "300", "segment_bytes": "1048576", "file_delete_delay_ms": "0"}


async def offset_at(clients: Clients, timestamp: int, *, topic: str = "t", version: int = 10) -> Any:
    wire = await clients.wire()
    wanted = [{"name": topic, "partitions": [{"partition_index": 0, "timestamp": timestamp}]}]
    answer = await wire.ask(LIST_OFFSETS, version, replica_id=-1, topics=wanted)
    return answer.topics[0].partitions[0]


async def test_retention_by_time_takes_what_is_old_by_its_own_time(clients: Clients) -> None:
    await clients.topic("t", 1, retention_ms="60000", **SMALL)
    wire = await clients.wire()
    now = int(time.time() * 1000)
    for timestamp in (1_000, now):  # 1970, and today
        await wire.ask(PRODUCE, 9, **produce_fields("t", batch(b"v", timestamp=timestamp)))
        await asyncio.sleep(0.4)  # a segment is rolled by the time of its first record

    async def cut() -> bool:
        return bool((await offset_at(clients, -2)).offset == 1)

    await eventually(cut)
    found = only(await wire.ask(FETCH, 11, **fetch_fields("t", 1)))
    assert (found.error_code, found.log_start_offset, found.high_watermark) == (ErrorCode.none, 1, 2)


async def test_retention_by_size_takes_the_oldest(clients: Clients) -> None:
    await clients.topic("t", retention_bytes="2500000", segment_bytes="1048576", file_delete_delay_ms="0")
    wire = await clients.wire()
    for _ in range(10):
        await wire.ask(PRODUCE, 9, **produce_fields("t", batch(b"x" * 900_000)))

    async def cut() -> bool:
        return bool((await offset_at(clients, -2)).offset >= 6)

    await eventually(cut)
    # Kafka keeps the segment that reaches over the bound, so one more or less.
    assert 6 <= (await offset_at(clients, -2)).offset <= 8
    assert (await offset_at(clients, -1)).offset == 10


async def test_compaction_keeps_the_newest_of_a_key_at_its_offset_and_drops_old_tombstones(clients: Clients) -> None:
    settings = {"cleanup_policy": "compact", "min_cleanable_dirty_ratio": "0.01", "delete_retention_ms": "100"}
    await clients.topic("t", 1, **settings, **SMALL)
    producer = await clients.producer()
    for key, value in ((b"a", b"1"), (b"b", b"1"), (b"a", b"2"), (b"c", b"1"), (b"c", None), (b"b", b"2")):
        await producer.send_and_wait("t", value, key=key)

    async def compacted() -> bool:
        # New records roll the segment, and only older ones are compacted.
        await producer.send_and_wait("t", b"newest", key=b"z")
        consumer = await clients.consumer("t")
        seen = [(r.offset, r.key, r.value) for r in await read_quiet(consumer) if r.key != b"z"]
        await consumer.stop()
        return seen == [(2, b"a", b"2"), (5, b"b", b"2")]

    await eventually(compacted)


async def test_a_deletion_mark_is_kept_for_its_time_however_old_its_record_says_it_is(clients: Clients) -> None:
    settings = {"cleanup_policy": "compact", "min_cleanable_dirty_ratio": "0.01", "delete_retention_ms": "600000"}
    await clients.topic("t", 1, **settings, **SMALL)
    producer = await clients.producer()
    for key, value in ((b"a", b"1"), (b"a", b"2"), (b"c", b"1"), (b"c", None)):
        await producer.send_and_wait("t", value, key=key, timestamp_ms=1_000)
    for newest in (b"2", b"3"):  # compacted, and once more

        async def compacted(newest: bytes = newest) -> bool:
            await producer.send_and_wait("t", b"newest", key=b"z")
            consumer = await clients.consumer("t")
            seen = [(r.key, r.value) for r in await read_quiet(consumer) if r.key != b"z"]
            await consumer.stop()
            assert (b"c", None) in seen
            return sorted(seen, key=lambda one: one[0]) == [(b"a", newest), (b"c", None)]

        await eventually(compacted)
        await producer.send_and_wait("t", b"3", key=b"a", timestamp_ms=1_000)


async def test_special_times_have_versions_that_know_them(clients: Clients) -> None:
    await clients.topic("t")
    wire = await clients.wire()
    await wire.ask(PRODUCE, 9, **produce_fields("t", batch(b"a", b"b", timestamp=50)))
    seen = {
        (timestamp, version): await offset_at(clients, timestamp, version=version)
        for timestamp, version in (
            (-1, 1),
            (-2, 1),
            (-3, 7),
            (-3, 6),
            (-4, 8),
            (-4, 7),
            (-5, 9),
            (-5, 8),
            (-9, 10),
            (51, 5),
        )
    }
    found = {key: (answer.error_code.name, answer.offset, answer.timestamp) for key, answer in seen.items()}
    refused = ("unsupported_version", -1, -1)
    assert found == {
        (-1, 1): ("none", 2, -1),
        (-2, 1): ("none", 0, -1),
        (-3, 7): ("none", 1, 51),
        (-3, 6): refused,
        (-4, 8): ("none", 0, -1),
        (-4, 7): refused,
        (-5, 9): ("none", -1, -1),
        (-5, 8): refused,
        (-9, 10): refused,
        (51, 5): ("none", 1, 51),
    }


async def test_topics_are_written_and_read_by_id(clients: Clients) -> None:
    await clients.topic("t")
    wire = await clients.wire()
    topic_id = (await wire.ask(METADATA, 12, topics=[{"name": "t"}])).topics[0].topic_id
    for given, code in ((topic_id, ErrorCode.none), (uuid.uuid4(), ErrorCode.unknown_topic_id)):
        data = {"topic_id": given, "partition_data": [{"index": 0, "records": batch(b"v")}]}
        answer = await wire.ask(PRODUCE, 13, acks=-1, timeout=SECOND, topic_data=[data])
        (topic,) = answer.responses
        assert (topic.topic_id, topic.partition_responses[0].error_code) == (given, code)
        wanted = {"topic_id": given, "partitions": [{"partition": 0, "fetch_offset": 0, "partition_max_bytes": 1000}]}
        for version in (13, 18):
            read = await wire.ask(FETCH, version, max_wait=SECOND, min_bytes=1, topics=[wanted])
            (topic,) = read.responses
            assert (topic.topic_id, topic.partitions[0].error_code) == (given, code)
            assert bool(topic.partitions[0].records) is (code is ErrorCode.none)


@pytest.mark.parametrize("acks", [2, -2])
async def test_other_acknowledgements_are_refused(clients: Clients, acks: int) -> None:
    await clients.topic("t")
    answer = await (await clients.wire()).ask(PRODUCE, 9, **produce_fields("t", batch(b"v"), acks=acks))
    (partition,) = answer.responses[0].partition_responses
    assert (partition.error_code, partition.base_offset) == (ErrorCode.invalid_required_acks, -1)


async def test_records_are_deleted_up_to_the_end_and_not_beyond(clients: Clients) -> None:
    await clients.topic("t")
    wire = await clients.wire()
    await wire.ask(PRODUCE, 9, **produce_fields("t", batch(b"a", b"b", b"c")))

    async def delete(offset: int, topic: str = "t") -> tuple[str, int]:
        partitions = [{"partition_index": 0, "offset": offset}]
        answer = await wire.ask(DELETE_RECORDS, 2, topics=[{"name": topic, "partitions": partitions}], timeout=SECOND)
        (found,) = answer.topics[0].partitions
        return found.error_code.name, found.low_watermark

    assert await delete(2) == ("none", 2)
    assert await delete(1) == ("none", 2)  # nothing comes back
    assert await delete(4) == ("offset_out_of_range", -1)
    assert await delete(-5) == ("offset_out_of_range", -1)
    assert await delete(1, "nowhere") == ("unknown_topic_or_partition", -1)
    assert await delete(-1) == ("none", 3)


async def test_topics_are_described_in_pages(clients: Clients) -> None:
    for name in ("b", "a"):
        await clients.topic(name, 3)
    wire = await clients.wire()

    async def page(limit: int, *names: str, cursor: Any = None) -> tuple[list[tuple[str, str, list[int]]], Any]:
        asked = [{"name": name} for name in names]
        answer = await wire.ask(TOPIC_PARTITIONS, 0, topics=asked, response_partition_limit=limit, cursor=cursor)
        seen = [
            (topic.name, topic.error_code.name, [partition.partition_index for partition in topic.partitions])
            for topic in answer.topics
        ]
        following = answer.next_cursor
        return seen, following and {"topic_name": following.topic_name, "partition_index": following.partition_index}

    first, cursor = await page(4, "b", "a")
    assert (first, cursor) == (
        [("a", "none", [0, 1, 2]), ("b", "none", [0])],
        {"topic_name": "b", "partition_index": 1},
    )
    assert await page(4, "b", "a", cursor=cursor) == ([("b", "none", [1, 2])], None)
    assert await page(3, "b", "a") == ([("a", "none", [0, 1, 2])], {"topic_name": "b", "partition_index": 0})
    assert await page(9, "nowhere") == ([("nowhere", "unknown_topic_or_partition", [])], None)


async def test_the_folder_tells_what_its_partitions_hold(clients: Clients) -> None:
    await clients.topic("t", 2)
    wire = await clients.wire()
    await wire.ask(PRODUCE, 9, **produce_fields("t", batch(b"x" * 1000)))
    (folder,) = (await wire.ask(LOG_DIRS, 4, topics=[{"topic": "t", "partitions": (0, 1)}])).results
    sizes = {part.partition_index: part.partition_size for part in folder.topics[0].partitions}
    assert (sizes[0], sizes[1]) == (len(batch(b"x" * 1000)), 0)
    assert 0 < folder.usable_bytes < folder.total_bytes
    assert (await wire.ask(REASSIGNMENTS, 0, topics=None)).topics == ()


async def test_only_what_one_asks_for_is_described_and_only_of_what_there_is(clients: Clients) -> None:
    await clients.topic("t", retention_ms="5")
    wire = await clients.wire()

    async def describe(kind: int, name: str, *keys: str) -> tuple[str, dict[str, tuple[str, bool]]]:
        resource = {"resource_type": kind, "resource_name": name, "configuration_keys": keys or None}
        (found,) = (await wire.ask(DESCRIBE_CONFIGS, 4, resources=[resource])).results
        own = 1
        return found.error_code.name, {one.name: (one.value, one.config_source == own) for one in found.configs}

    assert await describe(2, "t", "retention.ms", "no.such") == ("none", {"retention.ms": ("5", True)})
    assert (await describe(2, "nowhere"))[0] == "unknown_topic_or_partition"
    assert (await describe(2, "bad name"))[0] == "invalid_topic_exception"
    assert (await describe(99, "t"))[0] == "invalid_request"
    code, everything = await describe(2, "t")
    assert (code, len(everything) > 30, everything["segment.bytes"]) == ("none", True, ("1073741824", False))


async def test_partitions_are_only_checked_or_assigned_when_one_says_so(clients: Clients) -> None:
    await clients.topic("t")
    wire = await clients.wire()

    async def grow(count: int, *brokers: int, validate_only: bool = False) -> str:
        assignments = [{"broker_ids": (broker,)} for broker in brokers] or None
        topics = [{"name": "t", "count": count, "assignments": assignments}]
        answer = await wire.ask(CREATE_PARTITIONS, 3, topics=topics, timeout=5 * SECOND, validate_only=validate_only)
        return str(answer.results[0].error_code.name)

    assert await grow(2, validate_only=True) == "none"
    assert await grow(3, 1) == "invalid_replica_assignment"
    assert await grow(2, 9) == "invalid_replica_assignment"
    assert await grow(2, 1) == "none"
    assert await grow(2) == "invalid_partitions"
