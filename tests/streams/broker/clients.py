"""Real brokers on loopback, real aiokafka clients, and a wire that speaks any version of any API."""

import asyncio
import datetime
import io
import itertools
import struct
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any, Self

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from headrace.streams.broker import Limits
from kio.index import load_request_schema, load_response_schema
from kio.schema.errors import ErrorCode
from kio.serial import entity_reader, entity_writer

from tests.streams.broker.building import builder

PRODUCE, FETCH, LIST_OFFSETS, FIND_COORDINATOR, DELETE_RECORDS = 0, 1, 2, 10, 21
INIT_PRODUCER, DESCRIBE_TRANSACTIONS = 22, 65
LEAVE_GROUP, DESCRIBE_GROUPS, LIST_GROUPS, DELETE_GROUPS = 13, 15, 16, 42
# Sessions of tenths of a second and cleaning at once, so that tests of what time does are short.
QUICK = Limits(session_timeout_min_ms=100, deadline_check_ms=10, cleaning_interval_ms=200)


class ManualClock:
    """A clock that moves only when it is told."""

    def __init__(self) -> None:
        self.now_ms = 1_700_000_000_000

    def wall_ms(self) -> int:
        return self.now_ms

    def monotonic_ms(self) -> int:
        return self.now_ms

    def advance(self, ms: int) -> None:
        self.now_ms += ms


class Wire:
    """One connection that sends any request and reads the answer, by kio and without a client's retries."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self._numbers = itertools.count(1)

    async def ask(self, api_key: int, version: int, **fields: Any) -> Any:
        number = self.send(api_key, version, **fields)
        return await self.receive(api_key, version, number)

    def send(self, api_key: int, version: int, **fields: Any) -> int:
        number = next(self._numbers)
        schema = load_request_schema(api_key, version)
        body = io.BytesIO()
        body.write(struct.pack(">hhih4s", api_key, version, number, 4, b"wire"))
        if schema.__header_schema__.__flexible__:
            body.write(b"\0")
        entity_writer(schema)(body, builder(schema)(fields))
        frame = body.getvalue()
        self.writer.write(struct.pack(">i", len(frame)) + frame)
        return number

    async def receive(self, api_key: int, version: int, number: int) -> Any:
        schema = load_response_schema(api_key, version)
        async with asyncio.timeout(10):
            (length,) = struct.unpack(">i", await self.reader.readexactly(4))
            frame = await self.reader.readexactly(length)
        assert struct.unpack_from(">i", frame) == (number,)
        start = 5 if schema.__header_schema__.__flexible__ else 4
        message, size = entity_reader(schema)(frame, start)
        assert start + size == len(frame), "the answer has bytes that its version does not"
        return message

    async def closed(self) -> bool:
        """Whether the broker has hung up."""
        async with asyncio.timeout(5):
            return await self.reader.read(1) == b""


class Clients:
    """Makes clients of one broker and closes them at the end."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._open = AsyncExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._open.aclose()

    async def producer(self, **settings: Any) -> Any:
        producer = AIOKafkaProducer(bootstrap_servers=self.address, **settings)
        self._open.push_async_callback(producer.stop)
        await producer.start()
        return producer

    async def consumer(self, *topics: str, **settings: Any) -> Any:
        settings = {"auto_offset_reset": "earliest", **settings}
        consumer = AIOKafkaConsumer(*topics, bootstrap_servers=self.address, **settings)
        self._open.push_async_callback(consumer.stop)
        await consumer.start()
        return consumer

    async def admin(self, **settings: Any) -> Any:
        admin = AIOKafkaAdminClient(bootstrap_servers=self.address, **settings)
        self._open.push_async_callback(admin.close)
        await admin.start()
        return admin

    async def topic(self, name: str, partitions: int = 1, **configs: str) -> str:
        """A topic; underscores in the names of its configuration stand for dots."""
        admin = await self.admin()
        # Cleaning is quick here, and tests write records of old times.
        dotted = {"retention.ms": "-1"} | {key.replace("_", "."): value for key, value in configs.items()}
        answer = await admin.create_topics([NewTopic(name, partitions, 1, topic_configs=dotted)])
        assert answer.topic_errors[0][1] == 0, answer
        await self._ready(name)
        return name

    async def _ready(self, topic: str) -> None:
        """Kafka says that a topic is there a moment before it is."""
        wire = await self.wire()
        wanted = [{"name": topic, "partitions": [{"partition_index": 0, "timestamp": -1}]}]
        async with asyncio.timeout(10):
            while True:
                answer = await wire.ask(LIST_OFFSETS, 5, replica_id=-1, topics=wanted)
                if answer.topics[0].partitions[0].error_code == 0:
                    return
                await asyncio.sleep(0.05)

    async def clear(self) -> None:
        """Delete all topics and groups of a broker that outlives the test."""
        admin, wire = await self.admin(), await self.wire()
        if topics := [name for name in await admin.list_topics() if not name.startswith("__")]:
            await admin.delete_topics(topics)
        async with asyncio.timeout(20):
            # The first look for a coordinator makes the topic it keeps its state in.
            for kind in (0, 1):
                asked = {"key_type": kind, "coordinator_keys": ("x",)}
                while (await wire.ask(FIND_COORDINATOR, 4, **asked)).coordinators[0].error_code:  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
            # A Kafka that has just begun gives no producer ids yet, and knows no transactions.
            while (await wire.ask(INIT_PRODUCER, 4, transactional_id=None)).error_code:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
            while await self._transactions_are_loading(wire):  # noqa: ASYNC110
                await asyncio.sleep(0.1)
            while (listed := await wire.ask(LIST_GROUPS, 4)).error_code or listed.groups:
                names = tuple(group.group_id for group in listed.groups)
                for group in (await wire.ask(DESCRIBE_GROUPS, 5, groups=names)).groups:
                    gone = [{"member_id": member.member_id} for member in group.members]
                    await wire.ask(LEAVE_GROUP, 5, group_id=group.group_id, members=gone)
                await wire.ask(DELETE_GROUPS, 2, groups_names=names)
                await asyncio.sleep(0.1)

    async def _transactions_are_loading(self, wire: Wire) -> bool:
        asked = await wire.ask(DESCRIBE_TRANSACTIONS, 0, transactional_ids=("nobody's",))
        return asked.transaction_states[0].error_code is not ErrorCode.transactional_id_not_found

    async def wire(self) -> Wire:
        host, port = self.address.rsplit(":", 1)
        reader, writer = await asyncio.open_connection(host, int(port))
        self._open.callback(writer.close)
        return Wire(reader, writer)


async def eventually(look: Callable[[], Awaitable[Any]], seconds: float = 5) -> None:
    """Kafka ends a transaction a moment after it says so; the local broker needs no second look."""
    async with asyncio.timeout(seconds):
        while not await look():  # noqa: ASYNC110 - what is looked at is on the other side
            await asyncio.sleep(0.05)


async def read(consumer: Any, count: int, seconds: float = 5) -> list[Any]:
    """The next `count` records."""
    found: list[Any] = []
    async with asyncio.timeout(seconds):
        while len(found) < count:
            for records in (await consumer.getmany(timeout_ms=100)).values():
                found += records
    return found


async def read_quiet(consumer: Any, seconds: float = 0.3) -> list[Any]:
    """Everything until nothing has come for a while."""
    found: list[Any] = []
    while batch := await consumer.getmany(timeout_ms=int(seconds * 1000)):
        for records in batch.values():
            found += records
    return found


def batch(
    *values: bytes,
    timestamp: int = 1_000,
    producer: tuple[int, int, int] = (-1, -1, -1),
    transactional: bool = False,
    key: bytes = b"k",
) -> bytes:
    builder = DefaultRecordBatchBuilder(
        magic=2,
        compression_type=0,
        is_transactional=int(transactional),
        producer_id=producer[0],
        producer_epoch=producer[1],
        base_sequence=producer[2],
        batch_size=1 << 20,
    )
    for offset, value in enumerate(values):
        builder.append(offset, timestamp + offset, key, value, [])
    return bytes(builder.build())


def produce_fields(
    topic: str, records: bytes, *, partition: int = 0, acks: int = -1, transactional_id: str | None = None
) -> dict[str, Any]:
    data = {"index": partition, "records": records}
    return {
        "transactional_id": transactional_id,
        "acks": acks,
        "timeout": datetime.timedelta(seconds=1),
        "topic_data": [{"name": topic, "partition_data": [data]}],
    }


def fetch_fields(topic: str, offset: int = 0, **more: Any) -> dict[str, Any]:
    partition = {
        "partition": 0,
        "fetch_offset": offset,
        "partition_max_bytes": more.pop("partition_max", 1 << 20),
    }
    wait = datetime.timedelta(milliseconds=more.pop("wait_ms", 0))
    return {
        "replica_id": -1,
        "max_wait": wait,
        "min_bytes": 1,
        "topics": [{"topic": topic, "partitions": [partition]}],
        **more,
    }


def only(response: Any) -> Any:
    return response.responses[0].partitions[0]
