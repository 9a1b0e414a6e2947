"""Records from the log: where to start, and one record as a reader gets it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Literal, TypeVar

import msgspec
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import KafkaConnectionError, KafkaError
from headrace.streams.address import Address, client_options
from headrace.streams.closing import stop
from headrace.streams.codecs import NO_JSON
from headrace.streams.diagnosis import diagnose
from headrace.streams.durations import clock
from headrace.streams.errors import LogUnavailable, StreamsError
from headrace.streams.event import Event
from headrace.streams.publisher import codec_of
from headrace.streams.topics import unknown_topic

E = TypeVar("E", bound=Event)

Start = Literal["earliest", "latest"] | datetime | Mapping[int, int]
"""Where a subscription starts: an end of the topic, the time of publication, or the next offset of each partition."""

BATCH = 500
"""Records that a reader holds at a time."""

@dataclass(frozen=True)
class Message:
    """A record of a topic. `timestamp` is when it was published, as its publisher tells; `data` is its value as it lies
    in the log."""

    topic: str
    partition: int
    offset: int
    key: str | None
    timestamp: datetime
    data: bytes | None
    headers: Mapping[str, bytes] = field(default_factory=dict)

    @cached_property
    def value(self) -> Any:  # whatever JSON holds
        """The value decoded from JSON; the bytes themselves where they are no JSON; None where there is none."""
        if self.data is None:
            return None
        try:
            return msgspec.json.decode(self.data)
        except NO_JSON:
            return self.data

    @property
    def line(self) -> msgspec.Raw | None:
        """The value as JSON on one line, as it was written; None where it is no JSON."""
        if self.data is None:
            return msgspec.Raw(b"null")
        if self.value is self.data:
            return None
        # In JSON a line break is never part of a string, so it may become a space.
        return msgspec.Raw(self.data.replace(b"\n", b" ").replace(b"\r", b" "))

    def decode(self, event: type[E]) -> E:
        """The value as an event. Raises InvalidEvent where it breaks the contract."""
        found = codec_of(event).decode_one(self.data or b"")
        assert isinstance(found, event)
        return found


def parse_start(text: str) -> Literal["earliest", "latest"] | datetime:
    """Where to start, as users write it: earliest, latest, or a time (2010-03-01, 2010-03-01T12:00:00Z).

    A time without a zone is in UTC. Raises StreamsError where the text is none of these.
    """
    match text:
        case "earliest" | "latest":
            return text
    try:
        at = datetime.fromisoformat(re.sub(r"(?<=\d)[zZ]$", "+00:00", text.strip()))
    except ValueError:
        raise StreamsError(
            f"{text!r} is no place to start: write earliest, latest, or a time such as 2010-03-01T12:00:00Z"
        ) from None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


class Subscription:
    """A reader of one topic that sees committed records only.

    Without a group it reads every partition from `start`. With one it shares the partitions with the group's other
    members and goes on where the group left off (`start` counts where it has never been): positions are
    committed when the next batch is asked for, so a record may come twice after a crash, and none is skipped.
    Records that retention has removed meanwhile are passed over.
    """

    def __init__(self, address: Address, topic: str, start: Start = "latest", *, group: str | None = None) -> None:
        self._address = address
        self.topic = topic
        self._start = start
        self._group = group
        self._consumer: AIOKafkaConsumer | None = None
        self._pending = False
        self.next: dict[int, int] = {}
        """The next offset to be read of each partition."""

    async def open(self) -> None:
        """Find the place to start; what is published from now on will be seen.

        Raises UnknownTopic, LogUnavailable where no broker answers, and BadSecurity where it does not take us.
        """
        consumer = AIOKafkaConsumer(
            **client_options(self._address),
            client_id="headrace-subscriber",
            group_id=self._group,
            enable_auto_commit=False,
            auto_offset_reset="latest" if self._group and self._start == "latest" else "earliest",
            isolation_level="read_committed",
        )
        try:
            await consumer.start()
            # partitions_for_topic() knows only topics that a consumer has subscribed to, and assigning is not that.
            metadata = await consumer._client.fetch_all_metadata()
            if self.topic not in metadata.topics():
                raise unknown_topic(self.topic, metadata.topics())
            if self._group:
                consumer.subscribe([self.topic], listener=_Joined(consumer, self._start))
            else:
                await self._assign(consumer, sorted(metadata.partitions_for_topic(self.topic)))
        except (KafkaConnectionError, OSError) as error:
            await stop(consumer)
            raise await diagnose(self._address) from error
        except KafkaError as error:
            await stop(consumer)
            raise LogUnavailable(f"topic {self.topic}: the log at {self._address} did not answer ({error})") from error
        except BaseException:
            await stop(consumer)
            raise
        self._consumer = consumer

    async def _assign(self, consumer: AIOKafkaConsumer, partitions: list[int]) -> None:
        assigned = [TopicPartition(self.topic, p) for p in partitions]
        consumer.assign(assigned)
        for tp, offset in (await positions(consumer, assigned, self._start)).items():
            consumer.seek(tp, offset)
            self.next[tp.partition] = offset

    async def batch(self, wait: float, most: int = BATCH) -> list[Message]:
        """The next records, at most `most`, or none when none came within `wait` seconds."""
        if self._consumer is None:
            raise StreamsError(f"the subscription to {self.topic} is closed; subscribe again")
        if self._pending:
            await self._commit()
        got = await self._consumer.getmany(timeout_ms=int(wait * 1000), max_records=most)
        messages = [to_message(record) for records in got.values() for record in records]
        for tp, records in got.items():
            if records:
                self.next[tp.partition] = records[-1].offset + 1
        self._pending = bool(self._group and messages)
        return messages

    async def _commit(self) -> None:
        assert self._consumer is not None
        self._pending = False
        try:
            await self._consumer.commit()
        except KafkaError as error:
            # A rebalance took the partitions away: their new owner reads these records again.
            if not error.retriable and type(error).__name__ not in ("CommitFailedError", "IllegalStateError"):
                raise LogUnavailable(f"group {self._group}: positions could not be committed ({error})") from error

    async def close(self) -> None:
        """The last batch counts as read."""
        if self._consumer is not None:
            if self._pending:
                await self._commit()
            consumer, self._consumer = self._consumer, None
            await stop(consumer)


async def positions(
    consumer: AIOKafkaConsumer, partitions: list[TopicPartition], start: Start
) -> dict[TopicPartition, int]:
    """The offset at which each partition starts."""
    if start == "earliest":
        return dict(await consumer.beginning_offsets(partitions))
    ends: dict[TopicPartition, int] = await consumer.end_offsets(partitions)
    if start == "latest":
        return dict(ends)
    if isinstance(start, datetime):
        found = await consumer.offsets_for_times(dict.fromkeys(partitions, max(0, int(start.timestamp() * 1000))))
        return {tp: found[tp].offset if found.get(tp) else ends[tp] for tp in partitions}
    return {tp: min(start.get(tp.partition, ends[tp]), ends[tp]) for tp in partitions}


class _Joined(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka has no types
    """Starts a group at a time where it has never been."""

    def __init__(self, consumer: AIOKafkaConsumer, start: Start) -> None:
        self._consumer = consumer
        self._start = start

    async def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        pass

    async def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        if isinstance(self._start, str):
            return
        new = [tp for tp in assigned if await self._consumer.committed(tp) is None]
        for tp, offset in (await positions(self._consumer, new, self._start)).items():
            self._consumer.seek(tp, offset)


def to_message(record: Any) -> Message:  # aiokafka has no types
    return Message(
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        key=None if record.key is None else record.key.decode(errors="replace"),
        timestamp=clock(record.timestamp),
        data=record.value,
        headers=dict(record.headers),
    )


def headers_of(message: Message) -> dict[str, str]:
    """The headers as text, with U+FFFD for what is not UTF-8."""
    return {name: (value or b"").decode(errors="replace") for name, value in message.headers.items()}
