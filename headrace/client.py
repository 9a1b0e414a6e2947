"""The client: publish events to topics, subscribe to streams; in plain code and in asyncio."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
import warnings
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Coroutine, Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Any, TypeVar, overload

from headrace.app import App
from headrace.running import current, find_broker
from headrace.streams.address import Address
from headrace.streams.errors import InvalidEvent, StreamsError
from headrace.streams.event import Event
from headrace.streams.publisher import Publishable, Publisher, Receipt, Row, encode
from headrace.streams.subscription import Message, Start, Subscription, parse_start
from headrace.streams.topics import derived_topic, kind_of

__all__ = ["AsyncConnection", "Connecting", "Connection", "Message", "Published", "Receipt", "connect"]

T = TypeVar("T")
TopicName = str | type[Event]

CHUNK = 2000
"""Events that are encoded and sent together; a failure is told after this many at the latest."""
IN_FLIGHT = 4
"""Chunks that wait for their acknowledgement. With more, memory grows and nothing gets faster."""
KEYLESS = (
    "which field is its key is not known here, and an event without key may come to any partition: workers reject it. "
    "Connect with the program, hr.connect(app=app), or publish its events as hr.Event"
)
POLL = 0.5
"""Seconds of one wait for records; what a closing connection may still wait for."""


@dataclass(frozen=True, slots=True)
class Published:
    """What became of many events: how many were written, and the last offset in each partition."""

    topic: str
    count: int
    offsets: dict[int, int]


def connect(broker: str | None = None, app: App | None = None) -> Connecting:
    """A connection to the log, for `with` and for `async with`.

    broker: `kafka://host:port`; left out, HEADRACE_BROKER's or the local stack's
    app:    the program, so that dicts and bytes are checked against their contracts before they are sent. Without it
            they are sent as they are (an `hr.Event` is checked always): what breaks its contract is then found by the
            worker, and goes to `<topic>.rejected` with the reason. So does an event without key on a topic of several
            partitions; the local stack's key fields are known, elsewhere a warning says that they are not

    ```python
    with hr.connect(app=app) as connection:
        connection.publish("orders", {"invoice": "489434", ...})
        for message in connection.subscribe("predictions.returns", "earliest", timeout=5):
            print(message.key, message.value["score"])
    ```

    Entering it raises NoBroker where nothing says where the broker is, and LogUnavailable where it does not answer.
    """
    return Connecting(broker, app)


class Connecting:
    """A connection that is not open yet."""

    def __init__(self, broker: str | None, app: App | None) -> None:
        self._broker = broker
        self._app = app
        self._sync: Connection | None = None
        self._async: AsyncConnection | None = None

    def __enter__(self) -> Connection:
        self._sync = Connection(self._broker, self._app)
        return self._sync

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._sync is not None:
            self._sync.close()

    async def __aenter__(self) -> AsyncConnection:
        self._async = AsyncConnection(find_broker(self._broker), contracts(self._app))
        await self._async.open()
        return self._async

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        if self._async is not None:
            await self._async.close()


@dataclass(frozen=True, slots=True)
class Contracts:
    """What is known of topics before their events are sent: their classes, or at least their key fields."""

    events: Mapping[str, type[Event]]
    keys: Mapping[str, str]

    def topic(self, topic: TopicName) -> tuple[str, type[Event] | None, str | None]:
        if isinstance(topic, str):
            return topic, self.events.get(topic), self.keys.get(topic)
        return topic.contract.topic, topic, topic.contract.key


def contracts(app: App | None) -> Contracts:
    """Those of the program; without one, the key fields that the local stack tells."""
    if app is not None:
        return Contracts({e.contract.topic: e for e in app.events}, {})
    running = current()
    return Contracts({}, {t.name: t.key for t in running.topics if t.key} if running else {})


class AsyncConnection:
    """A connection in asyncio."""

    def __init__(self, broker: Address, known: Contracts) -> None:
        self.broker = broker
        self._known = known
        self._publisher = Publisher(broker)
        self._open: set[Subscription] = set()
        self._warned: set[str] = set()

    async def open(self) -> None:
        await self._publisher.start()

    async def close(self) -> None:
        for subscription in list(self._open):
            await subscription.close()
        await self._publisher.close()

    async def topics(self) -> list[str]:
        """The names of the log's topics."""
        return sorted(await self._publisher.topics())

    async def partitions(self, topic: TopicName) -> int:
        """How many partitions a topic has. Raises UnknownTopic."""
        name = self._known.topic(topic)[0]
        await self._publisher.check(name)
        return self._publisher.partitions(name)

    @overload
    async def publish(  # type: ignore[overload-overlap]  # bytes, text and mappings are one event
        self, topic: TopicName, events: Publishable
    ) -> Receipt: ...
    @overload
    async def publish(
        self, topic: TopicName, events: Iterable[Publishable] | AsyncIterable[Publishable]
    ) -> Published: ...
    async def publish(
        self, topic: TopicName, events: Publishable | Iterable[Publishable] | AsyncIterable[Publishable]
    ) -> Receipt | Published:
        """Publish one event, or all of an iterable; returns when they are safe.

        Raises UnknownTopic; DerivedTopic where a program writes the topic; InvalidEvent where one breaks its contract
        (of an iterable, what came before it is published); LogUnavailable where the log did not acknowledge.
        """
        name, event, key = self._known.topic(topic)
        await self._check(name, event)
        if isinstance(events, Event | Mapping | bytes | str):
            return (await self._publisher.send(name, [self._heeded(name, _row(name, events, event, key))]))[0]
        await self._publisher.check(name)
        tally = _Tally(name)
        waiting: deque[asyncio.Task[list[Receipt]]] = deque()
        taken = 0
        async for chunk in _chunks(events):
            encoded = (_row(name, item, event, key, i) for i, item in enumerate(chunk, taken))
            remaining = _Remaining(self._heeded(name, row) for row in encoded)
            taken += len(chunk)
            if rows := remaining.chunk():
                waiting.append(asyncio.create_task(self._publisher.send(name, rows)))
            while len(waiting) > (0 if remaining.failure else IN_FLIGHT):
                tally.add(await waiting.popleft())
            remaining.raise_failure()
        while waiting:
            tally.add(await waiting.popleft())
        return tally.published()

    async def _check(self, topic: str, event: type[Event] | None) -> None:
        """Raises UnknownTopic and DerivedTopic, where no contract says that it is a topic of events."""
        if event is None:
            await self._publisher.check(topic)
            if kind_of(topic) != "event":
                raise derived_topic(topic, await self._publisher.topics())

    def _heeded(self, topic: str, row: Row) -> Row:
        """The row; a warning, once for a topic, where something may be wrong with it."""
        doubt = KEYLESS if row.key is None and self._publisher.partitions(topic) > 1 else row.doubt
        if doubt and topic not in self._warned:
            self._warned.add(topic)
            warnings.warn(f"topic {topic}: {doubt}", stacklevel=2)
        return row

    async def subscribe(
        self,
        topic: TopicName,
        start: Start | str = "latest",
        *,
        timeout: float | None = None,  # noqa: ASYNC109  # how long the stream may be silent, not how long this may take
        group: str | None = None,
    ) -> AsyncIterator[Message]:
        """The records of a topic, as they come; ends when none came for `timeout` seconds.

        start: "earliest", "latest", a time (of publication; a datetime or ISO text) or the next offset by partition
        group: share the topic with the others of this group, and go on where it left off
        """
        async with self._subscription(topic, start, group) as subscription:
            until = _deadline(timeout)
            while (left := until - time.monotonic()) > 0:
                messages = await subscription.batch(min(left, POLL))
                for message in messages:
                    yield message
                if messages:
                    until = _deadline(timeout)

    def _subscription(self, topic: TopicName, start: Start | str, group: str | None) -> _Held:
        name = self._known.topic(topic)[0]
        begin = parse_start(start) if isinstance(start, str) else _zoned(start)
        return _Held(Subscription(self.broker, name, begin, group=group), self._open)


class _Held:
    """A subscription that is open for a while; the connection closes what its user left open."""

    def __init__(self, subscription: Subscription, open_ones: set[Subscription]) -> None:
        self.subscription = subscription
        self._open = open_ones

    async def __aenter__(self) -> Subscription:
        await self.subscription.open()
        self._open.add(self.subscription)
        return self.subscription

    async def __aexit__(self, *_: object) -> None:
        self._open.discard(self.subscription)
        await self.subscription.close()


class Connection:
    """A connection in plain code: the same over an event loop in a thread of its own."""

    def __init__(self, broker: str | None = None, app: App | None = None) -> None:
        address, self._known = find_broker(broker), contracts(app)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="headrace-connection", daemon=True)
        self._thread.start()
        self._within = AsyncConnection(address, self._known)
        try:
            self._do(self._within.open())
        except BaseException:
            self._stop()
            raise

    @property
    def broker(self) -> Address:
        return self._within.broker

    def close(self) -> None:
        """What was published is safe when this returns; subscriptions end."""
        if self._thread.is_alive():
            try:
                self._do(self._within.close())
            finally:
                self._stop()

    def topics(self) -> list[str]:
        """The names of the log's topics."""
        return self._do(self._within.topics())

    def partitions(self, topic: TopicName) -> int:
        """How many partitions a topic has. Raises UnknownTopic."""
        return self._do(self._within.partitions(topic))

    @overload
    def publish(  # type: ignore[overload-overlap]  # bytes, text and mappings are one event
        self, topic: TopicName, events: Publishable
    ) -> Receipt: ...
    @overload
    def publish(self, topic: TopicName, events: Iterable[Publishable]) -> Published: ...
    def publish(self, topic: TopicName, events: Publishable | Iterable[Publishable]) -> Receipt | Published:
        """As `AsyncConnection.publish`. An iterable is read, and its events encoded, in the caller's thread."""
        if isinstance(events, Event | Mapping | bytes | str):
            return self._do(self._within.publish(topic, events))
        name, event, key = self._known.topic(topic)
        self._do(self._within._check(name, event))
        encoded = (_row(name, item, event, key, i) for i, item in enumerate(events))
        return self.publish_rows(name, (self._within._heeded(name, row) for row in encoded))

    def publish_rows(self, topic: str, rows: Iterable[Row]) -> Published:
        """Publish rows that are encoded already. Where the iterable raises, what came before it is published."""
        publisher = self._within._publisher
        self._do(publisher.check(topic))
        tally = _Tally(topic)
        waiting: deque[Future[list[Receipt]]] = deque()
        remaining = _Remaining(rows)
        while chunk := remaining.chunk():
            waiting.append(self._begin(publisher.send(topic, chunk)))
            while len(waiting) > IN_FLIGHT:
                tally.add(waiting.popleft().result())
        while waiting:
            tally.add(waiting.popleft().result())
        remaining.raise_failure()
        return tally.published()

    def subscribe(
        self,
        topic: TopicName,
        start: Start | str = "latest",
        *,
        timeout: float | None = None,
        group: str | None = None,
    ) -> Iterator[Message]:
        """As `AsyncConnection.subscribe`. What is published after this call returns will be seen."""
        held = self._within._subscription(topic, start, group)
        self._do(held.__aenter__())
        return self._read(held, timeout)

    def _read(self, held: _Held, timeout: float | None) -> Iterator[Message]:
        try:
            until = _deadline(timeout)
            while (left := until - time.monotonic()) > 0:
                messages = self._do(held.subscription.batch(min(left, POLL)))
                yield from messages
                if messages:
                    until = _deadline(timeout)
        finally:
            if self._thread.is_alive():
                self._do(held.__aexit__())

    def _begin(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        if not self._thread.is_alive():
            work.close()
            raise StreamsError("the connection is closed; connect again")
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return self._begin(work).result()

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class _Tally:
    def __init__(self, topic: str) -> None:
        self.topic = topic
        self.taken = 0
        self.count = 0
        self.offsets: dict[int, int] = {}

    def add(self, receipts: list[Receipt]) -> None:
        self.count += len(receipts)
        for receipt in receipts:
            self.offsets[receipt.partition] = max(receipt.offset, self.offsets.get(receipt.partition, -1))

    def published(self) -> Published:
        return Published(self.topic, self.count, self.offsets)


class _Remaining:
    """Rows in chunks. A failure ends them, and waits until what came before it is sent."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._rows = iter(rows)
        self.failure: BaseException | None = None

    def chunk(self) -> list[Row]:
        rows: list[Row] = []
        if self.failure is None:
            try:
                for row in itertools.islice(self._rows, CHUNK):
                    rows.append(row)
            except Exception as error:
                self.failure = error
        return rows

    def raise_failure(self) -> None:
        if self.failure is not None:
            raise self.failure


def _row(
    topic: str, item: Publishable, event: type[Event] | None, key: str | None, number: int | None = None
) -> Row:
    """The row of an event of a topic, and its number among many, from 0. Raises InvalidEvent, which names them."""
    try:
        return encode(item, event, key)
    except InvalidEvent as error:
        which = f"topic {topic}" if number is None else f"topic {topic}, event {number}"
        raise InvalidEvent(f"{which}: {error.reason}", error.field) from None


async def _chunks(
    events: Iterable[Publishable] | AsyncIterable[Publishable],
) -> AsyncIterator[list[Publishable]]:
    if isinstance(events, Iterable):
        remaining = iter(events)
        while chunk := list(itertools.islice(remaining, CHUNK)):
            yield chunk
        return
    chunk = []
    async for item in events:
        chunk.append(item)
        if len(chunk) == CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _deadline(timeout: float | None) -> float:
    return float("inf") if timeout is None else time.monotonic() + timeout


def _zoned(start: Start) -> Start:
    if isinstance(start, datetime) and start.tzinfo is None:
        raise StreamsError(f"start={start.isoformat()} has no zone: give it one, as datetime(..., tzinfo=UTC)")
    return start
