"""How fast the local broker is, with aiokafka on both sides of one machine.

    python benchmarks/broker.py [--records 1000000] [--size 100]

Records go in whole batches (`create_batch`, `send_batch`), as the data plane sends them. They come back as
records through `getmany`, and as raw batches through a client that only fetches. The broker is a process of
its own.
"""

import argparse
import asyncio
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from kio.schema.fetch.v11.request import FetchPartition, FetchRequest, FetchTopic
from kio.schema.fetch.v11.response import FetchResponse
from kio.schema.types import TopicName
from kio.serial import entity_reader, entity_writer

TOPIC = "benchmark"
PARTITIONS = 2
BATCH_BYTES = 512 * 1024
FETCH_BYTES = 8 * 1024 * 1024
LONE_MESSAGES = 500
_COUNT_AT = 57


async def start_broker(folder: Path) -> tuple[asyncio.subprocess.Process, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "headrace.streams.broker",
        "--data",
        str(folder),
        "--port",
        "0",
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    line = (await process.stdout.readline()).decode()
    return process, line.rsplit(" at ", 1)[1].rstrip(".\n")


async def produce(address: str, records: int, size: int) -> float:
    producer = AIOKafkaProducer(
        bootstrap_servers=address, enable_idempotence=True, max_batch_size=BATCH_BYTES
    )
    await producer.start()
    batch = producer.create_batch()
    count = 0
    while batch.append(key=None, value=b"x" * size, timestamp=None) is not None:
        count += 1
    whole = -(-records // count)
    batches = []
    for _ in range(whole):
        batch = producer.create_batch()
        for _ in range(count):
            batch.append(key=None, value=b"x" * size, timestamp=None)
        batch.close()
        batches.append(batch)
    started = time.perf_counter()
    for number, batch in enumerate(batches):
        await producer.send_batch(batch, TOPIC, partition=number % PARTITIONS)
    await producer.flush()
    seconds = time.perf_counter() - started
    await producer.stop()
    return whole * count / seconds


async def consume(address: str) -> float:
    partitions = [TopicPartition(TOPIC, index) for index in range(PARTITIONS)]
    consumer = AIOKafkaConsumer(
        bootstrap_servers=address, max_partition_fetch_bytes=4 * 1024 * 1024, check_crcs=False
    )
    await consumer.start()
    consumer.assign(partitions)
    await consumer.seek_to_beginning(*partitions)
    total = sum((await consumer.end_offsets(partitions)).values())
    started, seen = time.perf_counter(), 0
    while seen < total:
        for found in (await consumer.getmany(timeout_ms=1000, max_records=100_000)).values():
            seen += len(found)
    seconds = time.perf_counter() - started
    await consumer.stop()
    return int(total) / seconds


async def fetch_raw(address: str) -> float:
    """What the broker alone can serve: records are counted by the headers of their batches."""
    host, port = address.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port), limit=64 * 1024 * 1024)
    read, write = entity_reader(FetchResponse), entity_writer(FetchRequest)
    started, seen = time.perf_counter(), 0
    for index in range(PARTITIONS):
        offset = 0
        while True:
            writer.write(_fetch_frame(write, index, offset))
            (length,) = struct.unpack(">i", await reader.readexactly(4))
            response, _ = read(await reader.readexactly(length), 4)
            records = response.responses[0].partitions[0].records
            if not records:
                break
            position = 0
            while position < len(records):
                base, size = struct.unpack_from(">qi", records, position)
                (count,) = struct.unpack_from(">i", records, position + _COUNT_AT)
                offset, seen, position = base + count, seen + count, position + 12 + size
    seconds = time.perf_counter() - started
    writer.close()
    return seen / seconds


def _fetch_frame(write: Callable[[BytesIO, Any], None], index: int, offset: int) -> bytes:
    # Any: kio's integers are types of their own, which plain ones satisfy when it runs.
    make: Any = FetchPartition
    partition = make(
        partition=index, fetch_offset=offset, log_start_offset=-1, partition_max_bytes=FETCH_BYTES
    )
    make = FetchRequest
    request = make(
        replica_id=-1,
        max_wait=timedelta(0),
        min_bytes=1,
        topics=(FetchTopic(topic=TopicName(TOPIC), partitions=(partition,)),),
        forgotten_topics_data=(),
        session_epoch=-1,
    )
    body = BytesIO()
    body.write(struct.pack(">ihhih", 0, 1, 11, 0, -1))
    write(body, request)
    frame = body.getvalue()
    return struct.pack(">i", len(frame) - 4) + frame[4:]


async def lone_messages(address: str) -> list[float]:
    producer = AIOKafkaProducer(bootstrap_servers=address)
    await producer.start()
    taken = []
    for _ in range(LONE_MESSAGES):
        started = time.perf_counter()
        await producer.send_and_wait(TOPIC, b"x" * 100, partition=0)
        taken.append((time.perf_counter() - started) * 1000)
    await producer.stop()
    return taken


async def through(address: str) -> list[float]:
    """From the send of one record to its arrival at a consumer that waits for it."""
    producer = AIOKafkaProducer(bootstrap_servers=address)
    consumer = AIOKafkaConsumer(bootstrap_servers=address)
    await producer.start()
    await consumer.start()
    partition = TopicPartition(TOPIC, 1)
    consumer.assign([partition])
    await consumer.seek_to_end(partition)
    await consumer.position(partition)
    taken = []
    for _ in range(LONE_MESSAGES):
        started = time.perf_counter()
        await producer.send(TOPIC, b"x" * 100, partition=1)
        await consumer.getone()
        taken.append((time.perf_counter() - started) * 1000)
    await producer.stop()
    await consumer.stop()
    return taken


def _spread(taken: list[float]) -> str:
    hundredths = statistics.quantiles(taken, n=100)
    return f"p50 {hundredths[49]:.2f} ms, p99 {hundredths[98]:.2f} ms"


async def main(records: int, size: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        process, address = await start_broker(Path(folder))
        print(f"ready after       {time.perf_counter() - begun:9.2f} s")
        print(f"idle              {_resident(process.pid):9.0f} MB resident")
        admin = AIOKafkaAdminClient(bootstrap_servers=address)
        await admin.start()
        await admin.create_topics([NewTopic(TOPIC, PARTITIONS, 1)])
        await admin.close()
        print(f"produced          {await produce(address, records, size):9,.0f} records/s of {size} bytes")
        print(f"consumed          {await consume(address):9,.0f} records/s through aiokafka's records")
        print(f"fetched           {await fetch_raw(address):9,.0f} records/s as whole batches")
        print(f"lone message      acknowledged: {_spread(await lone_messages(address))}")
        print(f"lone message      produced and consumed: {_spread(await through(address))}")
        print(f"afterwards        {_resident(process.pid):9.0f} MB resident")
        process.terminate()
        await process.wait()


def _resident(pid: int) -> float:
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        return float("nan")
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--size", type=int, default=100)
    arguments = parser.parse_args()
    asyncio.run(main(arguments.records, arguments.size))
