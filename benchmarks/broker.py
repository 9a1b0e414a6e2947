"""The local broker beside Apache Kafka: `make bench-broker`, or `python -m benchmarks.broker [--rounds N]`.

Both run at once on this machine, each with its own defaults for durability (neither waits for the disk). The same
client measures each figure of one and then of the other, in changing order, after two rounds that do not count: Java
compiles what it runs often. What is told is the median of the ratios within a round: from one round to the next the
page cache alone makes writes half as fast again.

Writes go in whole batches, as the data plane sends them. A transaction is the data plane's: records to two topics,
consumed offsets, commit. Reads are of committed records, as raw batches, by a bare client that only asks and receives.
Latencies are taken at a steady rate that neither broker feels: by the bare client, which shows the brokers, and by
aiokafka, whose own time is most of what its users see.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import logging
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from io import BytesIO
from pathlib import Path
from typing import Any, Self

import numpy as np
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from headrace.streams.address import Address
from headrace.streams.admin import ensure_topics
from headrace.streams.batch import Record
from headrace.streams.kafka import KafkaLog
from headrace.streams.log import Partition
from headrace.streams.topics import Topic
from kio.schema.errors import ErrorCode
from kio.schema.fetch.v11.request import FetchPartition, FetchRequest, FetchTopic
from kio.schema.fetch.v11.response import FetchResponse
from kio.schema.produce.v8.request import PartitionProduceData, ProduceRequest, TopicProduceData
from kio.schema.produce.v8.response import ProduceResponse
from kio.schema.types import TopicName
from kio.serial import entity_reader, entity_writer

from benchmarks.figures import Figure, apache_kafka, collected, local_broker, machine

RECORDS = 1_000_000
SIZE = 100
"""Bytes of a value."""
PARTITIONS = 2
WARM = 2
"""Rounds that do not count: one in each order."""
BATCH_BYTES = 512 * 1024
FETCH_BYTES = 8 << 20
PASSES = 10
"""Readings of all that was written: one takes less than 0.1 s."""
TRANSACTIONS = 400
ROWS = 100
"""Records of a transaction to each of its two topics."""
PACED = 1_000
"""Operations of a latency."""
EVERY = 0.005
"""Seconds between two of them."""
_COUNT_AT = 57
"""Where a record batch says how many records it has."""

_numbers = itertools.count(1)


async def topic(address: Address, partitions: int = 1) -> str:
    settings = {"retention.ms": "-1", "file.delete.delay.ms": "0"}
    made = Topic(f"bench-{next(_numbers)}", "event", partitions, None, settings)
    await ensure_topics(address, [made])
    return made.name


async def remove(address: Address, name: str) -> None:
    """Its pages serve what is written next: those that the kernel takes anew cost more than what is measured here."""
    admin = AIOKafkaAdminClient(bootstrap_servers=address.bootstrap)
    await admin.start()
    await admin.delete_topics([name])
    await admin.close()


async def writes(address: Address) -> tuple[str, float]:
    """The topic, and acknowledged records/s of an idempotent producer."""
    name = await topic(address, PARTITIONS)
    producer = AIOKafkaProducer(
        bootstrap_servers=address.bootstrap, enable_idempotence=True, max_batch_size=BATCH_BYTES
    )
    await producer.start()
    batches, count = [], 0
    while count < RECORDS:
        batch = producer.create_batch()
        while batch.append(key=None, value=b"x" * SIZE, timestamp=None) is not None:
            count += 1
        batch.close()
        batches.append(batch)
    began = time.perf_counter()
    for number, batch in enumerate(batches):
        await producer.send_batch(batch, name, partition=number % PARTITIONS)
    await producer.flush()
    seconds = time.perf_counter() - began
    await producer.stop()
    return name, count / seconds


class Bare:
    """A client on one connection that asks and receives, and nothing more."""

    def __init__(self, address: Address) -> None:
        self._connection = socket.create_connection((address.host, address.port))
        self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._room = bytearray(FETCH_BYTES + (1 << 20))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def ask(self, request: bytes) -> None:
        self._connection.sendall(request)

    def answer(self) -> memoryview:
        """The next one, without its header; it is there until the one after it."""
        (length,) = struct.unpack(">i", self._received(4))
        return self._received(length)[4:]

    def _received(self, length: int) -> memoryview:
        whole = memoryview(self._room)[:length]
        left = whole
        while left:
            count = self._connection.recv_into(left)
            if not count:
                raise ConnectionError("The broker closed the connection.")
            left = left[count:]
        return whole.toreadonly()


_read_fetched, _write_fetch = entity_reader(FetchResponse), entity_writer(FetchRequest)
_read_produced, _write_produce = entity_reader(ProduceResponse), entity_writer(ProduceRequest)


def _fetch(topic: str, partition: int, offset: int, wait: timedelta = timedelta(0)) -> bytes:
    # Any: kio's integers are types of their own, which plain ones satisfy when it runs.
    make: Any = FetchPartition
    wanted = make(partition=partition, fetch_offset=offset, log_start_offset=-1, partition_max_bytes=FETCH_BYTES)
    make = FetchRequest
    request = make(
        replica_id=-1,
        max_wait=wait,
        min_bytes=1,
        isolation_level=1,
        topics=(FetchTopic(topic=TopicName(topic), partitions=(wanted,)),),
        forgotten_topics_data=(),
        session_epoch=-1,
    )
    return _framed(_write_fetch, request)


def _produce(topic: str, batch: bytes) -> bytes:
    make: Any = PartitionProduceData
    data = TopicProduceData(name=TopicName(topic), partition_data=(make(index=0, records=batch),))
    make = ProduceRequest
    request = make(transactional_id=None, acks=-1, timeout=timedelta(seconds=30), topic_data=(data,))
    return _framed(_write_produce, request)


def _framed(write: Callable[[BytesIO, Any], None], request: Any) -> bytes:
    body = BytesIO()
    body.write(struct.pack(">ihhih", 0, request.__api_key__, request.__version__, 0, -1))
    write(body, request)
    frame = body.getvalue()
    return struct.pack(">i", len(frame) - 4) + frame[4:]


def _batches(answer: memoryview) -> Iterator[tuple[int, int]]:
    """Of each whole batch: how many records it has, and the offset after them."""
    response, _ = _read_fetched(answer, 0)
    records = response.responses[0].partitions[0].records or b""
    at = 0
    while at + _COUNT_AT < len(records):
        base, size = struct.unpack_from(">qi", records, at)
        if at + 12 + size > len(records):
            return  # Kafka cuts what it sends at the bound; the rest comes with the next fetch
        (count,) = struct.unpack_from(">i", records, at + _COUNT_AT)
        yield count, base + count
        at += 12 + size


async def reads(address: Address, name: str) -> float:
    """Committed records/s; records are counted by the headers of their batches."""
    with Bare(address) as client:
        began, seen = time.perf_counter(), 0
        for partition in [*range(PARTITIONS)] * PASSES:
            offset = 0
            while True:
                client.ask(_fetch(name, partition, offset))
                got = list(_batches(client.answer()))
                if not got:
                    break
                seen, offset = seen + sum(count for count, _ in got), got[-1][1]
        return seen / (time.perf_counter() - began)


async def transactions(address: Address) -> float:
    """Transactions/s of one owner, one after the other."""
    transaction = await _Transaction.opened(address)
    began = time.perf_counter()
    for _ in range(TRANSACTIONS):
        await transaction()
    seconds = time.perf_counter() - began
    await transaction.close()
    return TRANSACTIONS / seconds


@dataclass
class _Transaction:
    """The data plane's transaction, again and again."""

    log: KafkaLog
    writer: Any
    records: list[Record]
    source: Partition
    turn: int = 0

    @classmethod
    async def opened(cls, address: Address) -> _Transaction:
        log = KafkaLog(address)
        outputs, changelog, source = [await topic(address) for _ in range(3)]
        records = [Record(t, b"%d" % n, b"x" * SIZE, 0) for t in (outputs, changelog) for n in range(ROWS)]
        return cls(log, await log.writer(f"owner-{outputs}"), records, Partition(source, 0))

    async def __call__(self) -> None:
        self.turn += 1
        await self.writer.begin()
        await self.writer.send(self.records, 0)
        await self.writer.commit("bench", {self.source: self.turn})

    async def close(self) -> None:
        await self.writer.close()
        await self.log.close()


async def nothing() -> None:
    """What most operations need before them."""


async def paced(
    operation: Callable[[], Awaitable[object]],
    count: int = PACED,
    before: Callable[[], Awaitable[object]] = nothing,
) -> list[float]:
    """Milliseconds that each of the operations takes, begun at a steady rate, one at a time."""
    taken = []
    began = time.perf_counter()
    for n in range(count):
        await before()
        await asyncio.sleep(began + n * EVERY - time.perf_counter())
        at = time.perf_counter()
        await operation()
        taken.append((time.perf_counter() - at) * 1000)
    return taken


async def write_latency(address: Address) -> list[float]:
    """Of one acknowledged record."""
    name = await topic(address)
    with Bare(address) as client:

        async def write() -> None:
            client.ask(request)
            _acknowledged(client.answer())

        request = _produce(name, _one_record())
        return await paced(write)


async def read_latency(address: Address) -> list[float]:
    """From the write of one record to its arrival at a reader of committed records that waits for it."""
    name = await topic(address)
    with Bare(address) as writer, Bare(address) as reader:
        offset = 0

        async def wait() -> None:
            reader.ask(_fetch(name, 0, offset, timedelta(seconds=30)))

        async def through() -> None:
            nonlocal offset
            writer.ask(request)
            while not (got := list(_batches(reader.answer()))):  # Kafka answers a reader now and then before it has any
                await wait()
            offset = got[-1][1]
            _acknowledged(writer.answer())

        request = _produce(name, _one_record())
        return await paced(through, before=wait)


def _one_record() -> bytes:
    plain = {"is_transactional": 0, "producer_id": -1, "producer_epoch": -1, "base_sequence": -1}
    builder = DefaultRecordBatchBuilder(magic=2, compression_type=0, **plain, batch_size=1 << 20)
    builder.append(0, round(time.time() * 1000), None, b"x" * SIZE, [])
    return bytes(builder.build())


def _acknowledged(answer: memoryview) -> None:
    response, _ = _read_produced(answer, 0)
    code = response.responses[0].partition_responses[0].error_code
    if code is not ErrorCode.none:
        raise RuntimeError(f"A write was refused: {code.name}.")


async def aiokafka_write_latency(address: Address) -> list[float]:
    """As `write_latency`."""
    name = await topic(address)
    producer = AIOKafkaProducer(bootstrap_servers=address.bootstrap, enable_idempotence=True)
    await producer.start()
    taken = await paced(lambda: producer.send_and_wait(name, b"x" * SIZE, partition=0))
    await producer.stop()
    return taken


async def aiokafka_read_latency(address: Address) -> list[float]:
    """As `read_latency`."""
    name = await topic(address)
    producer = AIOKafkaProducer(bootstrap_servers=address.bootstrap, enable_idempotence=True)
    consumer = AIOKafkaConsumer(bootstrap_servers=address.bootstrap, isolation_level="read_committed")
    await producer.start()
    await consumer.start()
    consumer.assign([TopicPartition(name, 0)])
    await consumer.seek_to_beginning()

    async def through() -> None:
        await producer.send(name, b"x" * SIZE, partition=0)
        await consumer.getone()

    taken = await paced(through)
    await producer.stop()
    await consumer.stop()
    return taken


async def transaction_latency(address: Address) -> list[float]:
    """From begin to the end of commit."""
    transaction = await _Transaction.opened(address)
    taken = await paced(transaction, TRANSACTIONS)
    await transaction.close()
    return taken


UNITS = {
    "acknowledged writes": "records/s",
    "committed reads": "records/s",
    "transactions": "a second",
    "acknowledged write, p50": "ms",
    "acknowledged write, p99": "ms",
    "committed read, p50": "ms",
    "committed read, p99": "ms",
    "transaction, p50": "ms",
    "transaction, p99": "ms",
    "write by aiokafka, p50": "ms",
    "write by aiokafka, p99": "ms",
    "read by aiokafka, p50": "ms",
    "read by aiokafka, p99": "ms",
}
LATENCIES = (write_latency, read_latency, transaction_latency, aiokafka_write_latency, aiokafka_read_latency)


async def round_of(brokers: Mapping[str, Address]) -> dict[str, dict[str, float]]:
    """Every figure of each, a figure of one right after that of the other, in the order given."""
    found: dict[str, list[float]] = {name: [] for name in brokers}
    topics: dict[str, str] = {}
    for name, address in brokers.items():
        topics[name], written = await writes(address)
        found[name].append(written)
    for name, address in brokers.items():
        found[name].append(await reads(address, topics[name]))
        await remove(address, topics[name])
    for name, address in brokers.items():
        found[name].append(await transactions(address))
    for latency in LATENCIES:
        for name, address in brokers.items():
            found[name] += np.percentile(await latency(address), (50, 99)).tolist()
    return {name: dict(zip(UNITS, values, strict=True)) for name, values in found.items()}


async def measure(rounds: int) -> dict[str, list[Figure]]:
    """The figures of both, by name of the broker."""
    found: dict[str, list[dict[str, float]]] = {"local": [], "Kafka": []}
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        theirs = await stack.enter_async_context(apache_kafka(folder / "kafka"))
        local = await stack.enter_async_context(local_broker(folder / "local"))
        order = [("local", local), ("Kafka", theirs)]
        for number in range(WARM + rounds):
            got = await round_of(dict(order))
            order.reverse()
            for name, values in got.items() if number >= WARM else ():
                found[name].append(values)
    return {name: collected(values, UNITS) for name, values in found.items()}


def better(mine: Figure, theirs: Figure) -> list[float]:
    """By how much mine is better than theirs, in each round: above 1 where it is."""
    pairs = zip(mine.values, theirs.values, strict=True)
    return [(b / a if mine.unit == "ms" else a / b) for a, b in pairs]


def table(figures: dict[str, list[Figure]]) -> list[str]:
    """A line for each figure: the medians of both, and of their ratios, with the quartiles between which half lie."""
    lines = [f"{'':<26} {'local':>12} {'Kafka':>12} {'':<9}   local is better by"]
    for mine, theirs in zip(figures["local"], figures["Kafka"], strict=True):
        low, middle, high = np.percentile(better(mine, theirs), (25, 50, 75))
        ratio = f"{middle:.2f}  ({low:.2f} to {high:.2f})"
        lines.append(f"{mine.name:<26} {mine.value:>12} {theirs.value:>12} {mine.unit:<9}   {ratio}")
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.broker", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=10, help="the medians of so many are told")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    chosen = parser.parse_args(arguments)
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    print(f"{machine()}; the medians of {chosen.rounds} rounds", flush=True)
    figures = asyncio.run(measure(chosen.rounds))
    print("\n".join(table(figures)))
    if chosen.json:
        told = {name: [figure.as_json() for figure in of] for name, of in figures.items()}
        chosen.json.write_text(json.dumps({"machine": machine(), "figures": told}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
