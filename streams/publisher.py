"""Events to the log: checked, keyed by their contract, acknowledged by every replica, each once."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import msgspec
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaConnectionError, KafkaError
from aiokafka.partitioner import murmur2
from headrace.streams.address import Address, client_options
from headrace.streams.codecs import MAX_EVENT_BYTES, NO_JSON, SHAPE, Codec, doubt, key_of
from headrace.streams.diagnosis import diagnose, unreachable
from headrace.streams.errors import InvalidEvent, LogUnavailable, StreamsError
from headrace.streams.event import Event
from headrace.streams.jsoncodec import codec
from headrace.streams.topics import unknown_topic

BATCH_BYTES = 256 * 1024
"""Of one record batch. Smaller, and a replay spends its time on requests; larger, and others wait behind it."""
REQUEST_BYTES = MAX_EVENT_BYTES + 64 * 1024
"""Of one record in a request: the largest value with its key and headers."""
TIMEOUT = 20.0
"""Seconds for the log to acknowledge. A broker that restarts is back well within it."""
LONE = 8
"""Up to this many rows go one by one, so that rows of many callers share a batch; more are a batch themselves."""


@dataclass(frozen=True, slots=True)
class Row:
    """A record to be written. doubt: what may be wrong with it although it breaks no contract; see `codecs.doubt`."""

    key: bytes | None
    value: bytes
    doubt: str = ""


@dataclass(frozen=True, slots=True)
class Receipt:
    """Where an event lies in the log, on every replica."""

    topic: str
    partition: int
    offset: int


Publishable = Event | Mapping[str, Any] | bytes | str
"""An event as publishers take it: an `hr.Event`, a mapping (its values are whatever JSON can hold, hence Any), JSON
text, or bytes that are encoded already as the topic's codec says."""


def encode(item: Publishable, event: type[Event] | None = None, key: str | None = None) -> Row:
    """The row of an event, its key the text of its contract's key field (`key` where no contract is known).

    Raises InvalidEvent where the item breaks the contract.
    """
    if isinstance(item, Event):
        event = event or type(item)
        if not isinstance(item, event):
            raise InvalidEvent(
                f"{type(item).__name__} belongs to topic {item.contract.topic}, not to {event.contract.topic}"
            )
    if event is not None:
        value = _written(item, event)
        made = codec_of(event).decode_one(value)
        return Row(key_of(made), value, doubt(made))
    value = item if isinstance(item, bytes) else _json(item)
    if len(value) > MAX_EVENT_BYTES:
        raise InvalidEvent(f"the value has {len(value):,} bytes; at most {MAX_EVENT_BYTES:,} are taken")
    if key is None:
        return Row(None, value)
    try:
        found = msgspec.json.decode(value)
    except NO_JSON as error:
        raise InvalidEvent(f"the value is no JSON ({error}): {SHAPE}") from None
    if not isinstance(found, dict):
        raise InvalidEvent(f"the value is no JSON object: {SHAPE}")
    if found.get(key) is None:
        raise InvalidEvent(f"the value lacks the key field {key}", key)
    return Row(str(found[key]).encode(), value)


@cache
def codec_of(event: type[Event]) -> Codec:
    """The codec of an event class, made once."""
    return codec(event)


def _written(item: Publishable, event: type[Event]) -> bytes:
    """The item as its topic carries it."""
    if isinstance(item, bytes):
        return item
    if isinstance(item, Event):
        try:
            return codec_of(event).encode(item)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise InvalidEvent(f"the event cannot be encoded: {error}") from None
    value = _json(item)
    if event.contract.codec == "json":
        return value
    try:
        return codec_of(event).encode(msgspec.json.decode(value, type=event))
    except NO_JSON as error:
        raise InvalidEvent(str(error)) from None


def _json(item: Publishable) -> bytes:
    if isinstance(item, bytes):
        return item
    try:
        if isinstance(item, str):
            return item.encode()
        if isinstance(item, Event | Mapping):
            return msgspec.json.encode(item)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidEvent(f"the event cannot be written as JSON: {error}") from None
    raise InvalidEvent(f"{type(item).__name__} is no event: publish an hr.Event, a dict, JSON text or bytes")


class Publisher:
    """An idempotent producer; every topic's rows are written in the order of the calls.

    A call returns when all its rows are acknowledged; callers that bound their calls bound the buffer.
    """

    def __init__(self, address: Address, *, client: str = "headrace-publisher") -> None:
        self._address = address
        self._client = client
        self._producer: AIOKafkaProducer | None = None
        self._known: dict[str, int] = {}
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._spread = itertools.count()

    async def start(self) -> None:
        """Raises LogUnavailable where no broker answers, BadSecurity where it does not take us."""
        producer = AIOKafkaProducer(
            **client_options(self._address),
            client_id=self._client,
            enable_idempotence=True,
            acks="all",
            max_batch_size=BATCH_BYTES,
            max_request_size=REQUEST_BYTES,
            request_timeout_ms=int(TIMEOUT * 1000),
        )
        try:
            await producer.start()
        except (KafkaConnectionError, OSError) as error:
            await producer.stop()
            raise await diagnose(self._address) from error
        self._producer = producer

    async def close(self) -> None:
        """What was sent is acknowledged or has failed when this returns."""
        if self._producer is not None:
            producer, self._producer = self._producer, None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TIMEOUT):
                    await producer.stop()

    async def topics(self) -> frozenset[str]:
        """The topics of the log, looked up now."""
        try:
            metadata = await self._started().client.fetch_all_metadata()
        except KafkaError as error:
            raise unreachable(self._address) from error
        self._known = {t: len(metadata.partitions_for_topic(t) or ()) for t in metadata.topics()}
        return frozenset(self._known)

    async def check(self, topic: str) -> None:
        """Raises UnknownTopic, with the near names, where the log has no such topic."""
        if topic not in self._known and topic not in await self.topics():
            raise unknown_topic(topic, self._known, publishing=True)

    def partitions(self, topic: str) -> int:
        """How many the topic had when it was looked up; 0 where it was not."""
        return self._known.get(topic, 0)

    async def send(self, topic: str, rows: Sequence[Row]) -> list[Receipt]:
        """Write the rows in order (per partition), and wait until they are safe.

        Raises UnknownTopic, and LogUnavailable where the log did not acknowledge in time: what of the rows is
        written is then unknown, and sending them again may write them twice.
        """
        await self.check(topic)
        try:
            async with self._turns[topic]:
                sending = await (self._each if len(rows) <= LONE else self._batches)(topic, rows)
            return await sending
        except KafkaError as error:
            raise LogUnavailable(
                f"topic {topic}: the log at {self._address} did not acknowledge ({type(error).__name__}: {error}); "
                f"see whether the broker runs, then publish again"
            ) from error

    async def _each(self, topic: str, rows: Sequence[Row]) -> asyncio.Future[list[Receipt]]:
        producer, now = self._started(), int(time.time() * 1000)
        sent = [await producer.send(topic, value=r.value, key=r.key, timestamp_ms=now) for r in rows]

        async def receipts() -> list[Receipt]:
            return [Receipt(topic, m.partition, m.offset) for m in await asyncio.gather(*sent)]

        return asyncio.ensure_future(receipts())

    async def _batches(self, topic: str, rows: Sequence[Row]) -> asyncio.Future[list[Receipt]]:
        producer, now = self._started(), int(time.time() * 1000)
        partitions = sorted(await producer.partitions_for(topic))
        keyless = partitions[next(self._spread) % len(partitions)]
        by_partition: dict[int, list[int]] = defaultdict(list)
        for i, row in enumerate(rows):
            chosen = keyless if row.key is None else partitions[partition_of(row.key, len(partitions))]
            by_partition[chosen].append(i)
        sent: list[tuple[int, list[int], Any]] = []
        for partition, indices in by_partition.items():
            batch, held = producer.create_batch(), list[int]()
            for i in indices:
                row = rows[i]
                if batch.append(key=row.key, value=row.value, timestamp=now) is None:
                    sent.append((partition, held, await producer.send_batch(batch, topic, partition=partition)))
                    batch, held = producer.create_batch(), []
                    if batch.append(key=row.key, value=row.value, timestamp=now) is None:
                        raise InvalidEvent(f"the value has {len(row.value)} bytes; at most {MAX_EVENT_BYTES} are taken")
                held.append(i)
            sent.append((partition, held, await producer.send_batch(batch, topic, partition=partition)))

        async def receipts() -> list[Receipt]:
            found: list[Receipt | None] = [None] * len(rows)
            for (partition, held, _), written in zip(sent, await asyncio.gather(*(s[2] for s in sent)), strict=True):
                for n, i in enumerate(held):
                    found[i] = Receipt(topic, partition, written.offset + n)
            return [r for r in found if r is not None]

        return asyncio.ensure_future(receipts())

    def _started(self) -> AIOKafkaProducer:
        if self._producer is None:
            raise StreamsError("the publisher is closed; connect again")
        return self._producer


def partition_of(key: bytes, partitions: int) -> int:
    """The partition of a key, as Kafka's own clients choose it."""
    return 0 if partitions == 1 else int((murmur2(key) & 0x7FFFFFFF) % partitions)
