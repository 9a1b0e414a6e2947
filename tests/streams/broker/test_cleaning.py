"""Retention by time and size, and compaction; the clock is turned and the cleaner called by hand."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiokafka import TopicPartition
from headrace.streams.broker import Broker
from headrace.streams.broker.log import PartitionLog, Span

from tests.streams.broker.clients import QUICK, Clients, ManualClock, read_quiet

PLACE = TopicPartition("t", 0)


def log_of(broker: Broker) -> PartitionLog:
    return broker._running.topics.partition("t", 0)


async def contents(clients: Clients, isolation: str = "read_uncommitted") -> list[tuple[int, Any, Any]]:
    records = await read_quiet(await clients.consumer("t", isolation_level=isolation))
    return [(r.offset, r.key, r.value) for r in records]


async def test_records_older_than_retention_go_and_offsets_stay(
    timed_clients: Clients, timed_broker: Broker, clock: ManualClock
) -> None:
    await timed_clients.topic("t", retention_ms="1000")
    producer = await timed_clients.producer()
    for number in range(4):
        await producer.send_and_wait("t", b"%d" % number, timestamp_ms=clock.now_ms)
        clock.advance(500)
    await timed_broker.clean()
    assert await contents(timed_clients) == [(2, None, b"2"), (3, None, b"3")]
    consumer = await timed_clients.consumer()
    assert await consumer.beginning_offsets([PLACE]) == {PLACE: 2}
    clock.advance(10_000)
    await timed_broker.clean()
    assert await contents(timed_clients) == []
    assert (await producer.send_and_wait("t", b"4")).offset == 4


async def test_records_above_the_size_go_but_never_more_than_that(timed_clients: Clients, timed_broker: Broker) -> None:
    await timed_clients.topic("t", retention_ms="-1", retention_bytes="3000")
    producer = await timed_clients.producer()
    for _ in range(10):
        await producer.send_and_wait("t", b"x" * 1000)
    await timed_broker.clean()
    kept = log_of(timed_broker).bounds
    assert 3000 <= kept.size < 4200
    assert (kept.start, kept.end) == (7, 10)
    assert kept.size == sum(span.size for span in log_of(timed_broker).spans(0))


async def test_retention_without_bound_keeps_everything(
    timed_clients: Clients, timed_broker: Broker, clock: ManualClock
) -> None:
    await timed_clients.topic("t", retention_ms="-1")
    producer = await timed_clients.producer()
    await producer.send_and_wait("t", b"v", timestamp_ms=1)
    clock.advance(10**12)
    await timed_broker.clean()
    assert await contents(timed_clients) == [(0, None, b"v")]


async def test_retention_goes_in_steps_and_survives_a_restart(tmp_path: Path, clock: ManualClock) -> None:
    limits = replace(QUICK, cleaning_step_bytes=500, cleaning_interval_ms=3_600_000)
    async with Broker(tmp_path, limits=limits, clock=clock) as broker, Clients(broker.address) as clients:
        await clients.topic("t", retention_ms="1000")
        producer = await clients.producer()
        for _ in range(20):
            await producer.send_and_wait("t", b"x" * 200, timestamp_ms=clock.now_ms)
        clock.advance(2_000)
        await producer.send_and_wait("t", b"new", timestamp_ms=clock.now_ms)
        await broker.clean()
    async with Broker(tmp_path, limits=limits, clock=clock) as broker, Clients(broker.address) as clients:
        assert await contents(clients) == [(20, None, b"new")]


async def test_compaction_keeps_the_last_record_of_each_key_and_all_offsets(
    timed_clients: Clients, timed_broker: Broker
) -> None:
    await timed_clients.topic("t", cleanup_policy="compact")
    producer = await timed_clients.producer(linger_ms=10)
    sending = [await producer.send("t", b"%d" % number, key=b"k%d" % (number % 3)) for number in range(9)]
    await asyncio.gather(*sending)  # one batch
    await producer.send_and_wait("t", b"last", key=b"k0")
    await timed_broker.clean()
    assert await contents(timed_clients) == [(7, b"k1", b"7"), (8, b"k2", b"8"), (9, b"k0", b"last")]
    assert (await producer.send_and_wait("t", b"more", key=b"k1")).offset == 10


@pytest.mark.parametrize("compression", [None, "gzip"])
async def test_what_compaction_writes_is_sound(
    timed_clients: Clients, timed_broker: Broker, compression: str | None
) -> None:
    await timed_clients.topic("t", cleanup_policy="compact")
    producer = await timed_clients.producer(linger_ms=10, compression_type=compression, enable_idempotence=True)
    for _ in range(2):
        sending = [
            await producer.send("t", b"v" * 100, key=b"%d" % n, headers=[("h", b"%d" % n)], timestamp_ms=n + 1)
            for n in (*range(5), *range(3))
        ]
        await asyncio.gather(*sending)
    await timed_broker.clean()
    records = await read_quiet(await timed_clients.consumer("t", check_crcs=True))
    assert [(r.offset, r.key, r.timestamp, r.headers) for r in records] == [
        (8 + place, b"%d" % n, n + 1, (("h", b"%d" % n),)) for place, n in ((3, 3), (4, 4), (5, 0), (6, 1), (7, 2))
    ]
    spans = list(log_of(timed_broker).spans(0))
    assert [(s.base_offset, s.last_offset) for s in spans] == [(8, 15)]
    assert log_of(timed_broker).bounds.size == sum(span.size for span in spans)


async def test_tombstones_remove_their_key_and_then_themselves(
    timed_clients: Clients, timed_broker: Broker, clock: ManualClock
) -> None:
    await timed_clients.topic("t", cleanup_policy="compact", delete_retention_ms="1000")
    producer = await timed_clients.producer()
    await producer.send_and_wait("t", b"v", key=b"a", timestamp_ms=clock.now_ms)
    await producer.send_and_wait("t", None, key=b"a", timestamp_ms=clock.now_ms)
    await timed_broker.clean()
    assert await contents(timed_clients) == [(1, b"a", None)]
    clock.advance(1_001)
    for _ in range(2):
        await producer.send_and_wait("t", b"v", key=b"b", timestamp_ms=clock.now_ms)
    await timed_broker.clean()
    assert await contents(timed_clients) == [(3, b"b", b"v")]


@pytest.mark.parametrize("compression", [None, "gzip"])
async def test_a_mark_is_kept_from_the_first_cleaning_on_whatever_time_its_record_has(
    timed_clients: Clients, timed_broker: Broker, clock: ManualClock, compression: str | None
) -> None:
    await timed_clients.topic("t", cleanup_policy="compact", delete_retention_ms="1000", min_cleanable_dirty_ratio="0")
    producer = await timed_clients.producer(linger_ms=10, compression_type=compression)
    sending = [
        await producer.send("t", value, key=key, timestamp_ms=at, headers=[("h", b"%d" % at)])
        for key, value, at in ((b"a", b"v" * 100, 5), (b"b", None, 7), (b"c", b"v" * 100, clock.now_ms + 9))
    ]
    await asyncio.gather(*sending)  # one batch
    clock.advance(5_000)
    await timed_broker.clean()
    wanted = [(0, b"a", 5), (1, b"b", 7), (2, b"c", clock.now_ms - 5_000 + 9)]

    async def told() -> list[tuple[int, bytes, int]]:
        records = await read_quiet(await timed_clients.consumer("t", check_crcs=True))
        assert all(r.headers == (("h", b"%d" % r.timestamp),) for r in records)
        return [(r.offset, r.key, r.timestamp) for r in records]

    assert await told() == wanted
    consumer = await timed_clients.consumer()
    for at, offset in ((0, 0), (5, 0), (6, 1), (8, 2)):
        assert (await consumer.offsets_for_times({PLACE: at}))[PLACE].offset == offset
    clock.advance(1_000)
    await producer.send_and_wait("t", b"v", key=b"d", timestamp_ms=8, headers=[("h", b"8")])
    await timed_broker.clean()
    assert await told() == [*wanted, (3, b"d", 8)]
    clock.advance(1)
    await producer.send_and_wait("t", b"v", key=b"e", timestamp_ms=9, headers=[("h", b"9")])
    await timed_broker.clean()
    assert await told() == [wanted[0], wanted[2], (3, b"d", 8), (4, b"e", 9)]
    assert log_of(timed_broker).bounds.size == sum(span.size for span in log_of(timed_broker).spans(0))


async def test_compaction_never_touches_an_open_transaction(timed_clients: Clients, timed_broker: Broker) -> None:
    await timed_clients.topic("t", cleanup_policy="compact")
    plain = await timed_clients.producer()
    producer = await timed_clients.producer(transactional_id="x")
    await plain.send_and_wait("t", b"0", key=b"a")
    await producer.begin_transaction()
    await producer.send_and_wait("t", b"1", key=b"a")
    await plain.send_and_wait("t", b"2", key=b"a")
    await timed_broker.clean()
    assert [offset for offset, _, _ in await contents(timed_clients)] == [0, 1, 2]
    await producer.abort_transaction()
    await plain.send_and_wait("t", b"3", key=b"b")
    await timed_broker.clean()
    expected = [(2, b"a", b"2"), (4, b"b", b"3")]
    assert await contents(timed_clients) == expected
    assert await contents(timed_clients, "read_committed") == expected


async def test_aborted_records_do_not_replace_committed_ones(timed_clients: Clients, timed_broker: Broker) -> None:
    await timed_clients.topic("t", cleanup_policy="compact")
    producer = await timed_clients.producer(transactional_id="x")
    for value, commit in ((b"good", True), (b"bad", False)):
        await producer.begin_transaction()
        await producer.send_and_wait("t", value, key=b"a")
        await (producer.commit_transaction() if commit else producer.abort_transaction())
    await timed_broker.clean()
    assert await contents(timed_clients, "read_committed") == [(0, b"a", b"good")]
    assert await contents(timed_clients) == [(0, b"a", b"good")]


async def test_markers_do_not_pile_up_in_a_compacted_topic(timed_clients: Clients, timed_broker: Broker) -> None:
    await timed_clients.topic("t", cleanup_policy="compact")
    producer = await timed_clients.producer(transactional_id="x")
    for number in range(10):
        async with producer.transaction():
            await producer.send_and_wait("t", b"%d" % number, key=b"a")
    await timed_broker.clean()
    spans: list[Span] = list(log_of(timed_broker).spans(0))
    assert [(s.base_offset, s.last_offset) for s in spans] == [(18, 18), (19, 19)]  # the last marker ends the log


async def test_compaction_in_small_steps_comes_to_the_same(tmp_path: Path, clock: ManualClock) -> None:
    limits = replace(QUICK, cleaning_step_bytes=200, compaction_keys=7, cleaning_interval_ms=3_600_000)
    async with Broker(tmp_path, limits=limits, clock=clock) as broker, Clients(broker.address) as clients:
        await clients.topic("t", cleanup_policy="compact", min_cleanable_dirty_ratio="0")
        producer = await clients.producer()
        for number in range(60):
            await producer.send_and_wait("t", b"%d" % number, key=b"k%d" % (number * 7 % 20))
        for _ in range(12):
            await broker.clean()
        assert [offset for offset, _, _ in await contents(clients)] == list(range(40, 60))


async def test_a_reader_reaches_the_end_that_it_is_told_after_compaction(
    timed_clients: Clients, timed_broker: Broker
) -> None:
    await timed_clients.topic("t", cleanup_policy="compact", min_cleanable_dirty_ratio="0")
    producer = await timed_clients.producer(transactional_id="tx")
    for number in range(3):
        async with producer.transaction():
            await producer.send("t", key=b"k", value=b"%d" % number)
    await timed_broker.clean()
    consumer = await timed_clients.consumer(isolation_level="read_committed")
    consumer.assign([PLACE])
    consumer.seek(PLACE, 0)
    end = (await consumer.end_offsets([PLACE]))[PLACE]
    async with asyncio.timeout(10):
        while await consumer.position(PLACE) < end:
            await consumer.getmany(timeout_ms=50)
