"""What was acknowledged is there after the broker stopped, and after it was killed at any moment."""

import asyncio
import contextlib
import datetime
import random
import signal
import sys
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.structs import OffsetAndMetadata
from headrace.streams.broker import Broker
from headrace.streams.broker.store import Change, Store
from kio.schema.errors import ErrorCode

from tests.streams.broker.clients import (
    FETCH,
    PRODUCE,
    QUICK,
    Clients,
    Wire,
    batch,
    eventually,
    fetch_fields,
    only,
    produce_fields,
    read,
    read_quiet,
)

INIT_PRODUCER, ADD_PARTITIONS, ADD_OFFSETS, END_TXN, TXN_COMMIT, OFFSET_FETCH = 22, 24, 25, 26, 28, 9
KILLS = 5
MAGIC = 16
"""Where a batch begins that the broker keeps as it came."""
TIMEOUT = datetime.timedelta(seconds=30)


async def start(folder: Path, *more: str) -> tuple[asyncio.subprocess.Process, str]:
    command = [sys.executable, "-m", "headrace.streams.broker", "--data", str(folder), "--port", "0", *more]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=asyncio.subprocess.DEVNULL)
    assert process.stdout is not None
    line = (await process.stdout.readline()).decode()
    assert " at " in line, line
    return process, line.rsplit(" at ", 1)[1].strip().rstrip(".")


@contextlib.asynccontextmanager
async def running(folder: Path, *more: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, Clients]]:
    process, address = await start(folder, *more)
    try:
        async with Clients(address) as clients:
            yield process, clients
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_everything_is_there_after_a_restart(tmp_path: Path) -> None:
    async with Broker(tmp_path, limits=QUICK) as broker, Clients(broker.address) as clients:
        await clients.topic("t", 2, retention_ms="-1")
        producer = await clients.producer(enable_idempotence=True)
        for number in range(10):
            await producer.send_and_wait("t", b"%d" % number, partition=number % 2)
        consumer = await clients.consumer(group_id="g", enable_auto_commit=False)
        consumer.assign([TopicPartition("t", 0)])
        await consumer.commit({TopicPartition("t", 0): OffsetAndMetadata(3, "note")})
    async with Broker(tmp_path, limits=QUICK) as broker, Clients(broker.address) as clients:
        records = await read_quiet(await clients.consumer("t"))
        assert sorted((r.partition, r.offset, r.value) for r in records) == sorted(
            (number % 2, number // 2, b"%d" % number) for number in range(10)
        )
        held = await (await clients.admin()).list_consumer_group_offsets("g")
        assert held == {TopicPartition("t", 0): OffsetAndMetadata(3, "note")}
        assert (await (await clients.producer()).send_and_wait("t", b"v", partition=0)).offset == 5


async def test_a_batch_that_comes_again_after_a_restart_is_recognised(tmp_path: Path) -> None:
    records = batch(b"v", producer=(0, 0, 0))
    offsets: list[int] = []
    for _ in range(3):
        async with Broker(tmp_path, limits=QUICK) as broker, Clients(broker.address) as clients:
            wire = await clients.wire()
            if not offsets:
                await clients.topic("t")
                assert (await wire.ask(INIT_PRODUCER, 4, transactional_id=None)).producer_id == 0
            answer = await wire.ask(PRODUCE, 9, **produce_fields("t", records))
            offsets.append(answer.responses[0].partition_responses[0].base_offset)
    assert offsets == [0, 0, 0]


async def test_aborted_records_stay_hidden_after_a_restart(tmp_path: Path) -> None:
    async with Broker(tmp_path, limits=QUICK) as broker, Clients(broker.address) as clients:
        await clients.topic("t")
        producer = await clients.producer(transactional_id="x")
        for number in range(4):
            await producer.begin_transaction()
            await producer.send_and_wait("t", b"%d" % number)
            await (producer.commit_transaction() if number % 2 else producer.abort_transaction())
    async with Broker(tmp_path, limits=QUICK) as broker, Clients(broker.address) as clients:
        records = await read_quiet(await clients.consumer("t", isolation_level="read_committed"))
        assert [r.value for r in records] == [b"1", b"3"]


async def test_clients_go_on_when_the_broker_comes_back(tmp_path: Path) -> None:
    async with Broker(tmp_path, limits=QUICK) as broker:
        address = broker.address
        port = int(address.rsplit(":", 1)[1])
        clients = Clients(address)
        await clients.topic("t")
        producer = await clients.producer(enable_idempotence=True, retry_backoff_ms=20)
        settings = {"group_id": "g", "heartbeat_interval_ms": 50, "retry_backoff_ms": 20}
        consumer = await clients.consumer("t", session_timeout_ms=500, **settings)
        await producer.send_and_wait("t", b"before")
        assert (await consumer.getone()).value == b"before"
        await consumer.commit()
    async with Broker(tmp_path, port=port, limits=QUICK), clients:
        await producer.send_and_wait("t", b"after")
        async with asyncio.timeout(10):
            assert (await consumer.getone()).value == b"after"


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
async def test_the_process_starts_quickly_says_so_in_one_line_and_stops_cleanly(
    tmp_path: Path, kind: signal.Signals
) -> None:
    begun = time.perf_counter()
    async with running(tmp_path) as (process, clients):
        assert time.perf_counter() - begun < 5  # 0.5 s alone on a core; the tests may not be alone
        await clients.topic("t")
        process.send_signal(kind)
        async with asyncio.timeout(5):
            assert await process.wait() == 0
        assert process.stdout is not None
        assert await process.stdout.read() == b""


async def test_the_process_says_what_is_wrong_with_its_folder(tmp_path: Path) -> None:
    async with Broker(tmp_path):
        command = [sys.executable, "-m", "headrace.streams.broker", "--data", str(tmp_path), "--port", "0"]
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe)
        _, error = await process.communicate()
        assert process.returncode == 1
        assert b"Another broker holds the folder" in error


def numbered(number: int) -> bytes:
    """A value; some are large, which are stored in another way."""
    return b"%d" % number + b" " * (20_000 if number % 5 == 0 else 0)


class Writer:
    """An idempotent producer that counts; what was not acknowledged it sends again with the same sequence."""

    def __init__(self) -> None:
        self.producer = -1
        self.acknowledged = 0

    async def run(self, wire: Wire) -> None:
        if self.producer < 0:
            self.producer = (await wire.ask(INIT_PRODUCER, 4, transactional_id=None)).producer_id
        while True:
            number = self.acknowledged
            records = batch(numbered(number), producer=(self.producer, 0, number))
            answer = await wire.ask(PRODUCE, 9, **produce_fields("plain", records))
            partition = answer.responses[0].partition_responses[0]
            assert (partition.error_code, partition.base_offset) == (ErrorCode.none, number)
            self.acknowledged += 1


class Transactor:
    """Each transaction writes a number to two partitions and commits it as the offset of a group."""

    def __init__(self) -> None:
        self.acknowledged = 0

    async def run(self, wire: Wire) -> None:
        begun = await wire.ask(INIT_PRODUCER, 4, transactional_id="x", transaction_timeout=TIMEOUT)
        owner = (begun.producer_id, begun.producer_epoch)
        # What the end of the last life came to is in the group's offset, and only there.
        number = await committed(wire)
        assert number in (self.acknowledged, self.acknowledged + 1)
        sequence = 0
        while True:
            await self._transaction(wire, owner, number, sequence)
            number, sequence = number + 1, sequence + 1
            self.acknowledged = number

    @staticmethod
    async def _transaction(wire: Wire, owner: tuple[int, int], number: int, sequence: int) -> None:
        ids = {"transactional_id": "x", "producer_id": owner[0], "producer_epoch": owner[1]}
        old_names = {f"v3_and_below_{name}": value for name, value in ids.items()}
        topics = [{"name": "t", "partitions": (0, 1)}]
        await wire.ask(ADD_PARTITIONS, 3, **old_names, v3_and_below_topics=topics)
        for partition in (0, 1):
            records = batch(numbered(number), producer=(*owner, sequence), transactional=True)
            answer = await wire.ask(
                PRODUCE, 9, **produce_fields("t", records, partition=partition, transactional_id="x")
            )
            assert answer.responses[0].partition_responses[0].error_code is ErrorCode.none
        await wire.ask(ADD_OFFSETS, 3, **ids, group_id="g")
        offset = {"partition_index": 0, "committed_offset": number + 1, "committed_metadata": ""}
        places = [{"name": "plain", "partitions": (offset,)}]
        await wire.ask(TXN_COMMIT, 3, **ids, group_id="g", member_id="", generation_id=-1, topics=places)
        ended = await wire.ask(END_TXN, 3, **ids, committed=True)
        assert ended.error_code is ErrorCode.none


async def committed(wire: Wire) -> int:
    topics = [{"name": "plain", "partition_indexes": (0,)}]
    answer = await wire.ask(OFFSET_FETCH, 7, group_id="g", topics=topics, require_stable=True)
    return max(0, int(answer.topics[0].partitions[0].committed_offset))


async def test_a_broker_killed_under_load_loses_nothing_and_repeats_nothing(tmp_path: Path) -> None:
    seed = 20_260_000
    dice = random.Random(seed)
    writer, transactor = Writer(), Transactor()
    for kill in range(KILLS):
        async with running(tmp_path) as (process, clients):
            if kill == 0:
                await clients.topic("plain")
                await clients.topic("t", 2)
            loads = [asyncio.create_task(load.run(await clients.wire())) for load in (writer, transactor)]
            begun = transactor.acknowledged
            await eventually(partial(_later, transactor, begun))  # a machine with much to do is slow to begin
            await asyncio.sleep(dice.uniform(0.0, 0.2))
            process.kill()
            lost = await asyncio.gather(*loads, return_exceptions=True)
            assert all(isinstance(error, (OSError, asyncio.IncompleteReadError)) for error in lost), (
                seed,
                lost,
            )
    assert min(writer.acknowledged, transactor.acknowledged) > KILLS, "the test wrote too little to say anything"
    async with running(tmp_path) as (_, clients):
        await check_plain(clients, writer)
        await check_transactions(clients, transactor)


async def _later(transactor: Transactor, begun: int) -> bool:
    return transactor.acknowledged > begun + 1


async def check_plain(clients: Clients, writer: Writer) -> None:
    consumer = await clients.consumer("plain")
    records = await read(consumer, writer.acknowledged, 20) + await read_quiet(consumer)
    assert len(records) in (writer.acknowledged, writer.acknowledged + 1)
    assert [r.value for r in records] == [numbered(number) for number in range(len(records))]


async def check_transactions(clients: Clients, transactor: Transactor) -> None:
    wire = await clients.wire()
    await wire.ask(INIT_PRODUCER, 4, transactional_id="x", transaction_timeout=TIMEOUT)
    number = await committed(wire)
    assert number in (transactor.acknowledged, transactor.acknowledged + 1)
    consumer = await clients.consumer("t", isolation_level="read_committed")
    records = await read(consumer, 2 * number, 20) + await read_quiet(consumer)
    for partition in (0, 1):
        values = [int(r.value) for r in records if r.partition == partition]
        assert values == list(range(number))


@pytest.mark.parametrize("where", [0, MAGIC, 25, 60, -1])
async def test_a_batch_that_is_damaged_on_disk_is_refused_and_those_before_it_are_served(
    tmp_path: Path, where: int
) -> None:
    async with Broker(tmp_path) as broker, Clients(broker.address) as clients:
        await clients.topic("t")
        for number in range(3):
            await (await clients.wire()).ask(PRODUCE, 9, **produce_fields("t", batch(b"%d" % number)))
    store = Store(tmp_path)
    [key] = [key for key, _ in store.scan(b"l") if key.endswith(b"\x01")]
    data = bytearray(store.get(key) or b"")
    data[where] ^= 1
    change = Change()
    change.put(key, bytes(data))
    store.commit(change)
    store.close()
    async with Broker(tmp_path) as broker, Clients(broker.address) as clients:
        wire = await clients.wire()
        first, second, third = [only(await wire.ask(FETCH, 11, **fetch_fields("t", n))) for n in range(3)]
    assert (second.error_code, second.records) == (ErrorCode.corrupt_message, b"")
    for good, value in ((first, b"0"), (third, b"2")):
        assert good.error_code == ErrorCode.none
        assert good.records[MAGIC:] == batch(value)[MAGIC:]


@pytest.mark.parametrize("options", [["--fsync"], ["--auto-create"]])
async def test_the_options_of_the_process_are_taken(tmp_path: Path, options: list[str]) -> None:
    async with running(tmp_path, *options) as (_, clients):
        if options == ["--fsync"]:
            await clients.topic("t")
        producer: Any = await clients.producer()
        assert (await producer.send_and_wait("t", b"v")).offset == 0
