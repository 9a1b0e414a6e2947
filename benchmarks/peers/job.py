"""The job: a keyed 60 s event-time tumbling count and sum, JSON in, and JSON out for each event.

An event is `{"user":"u123","ts":1700000000123,"amount":12.34,"item":"i99"}`. What an engine tells of it is the count
and the sum of its user's window as of that event: `{"user":"u123","ts":...,"count":3,"sum":45.67}` and what else it
likes, `ts` (or `at`, as text) being any time within the window. The oracle says what is right, one event at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from headrace.streams.address import Address
from headrace.streams.admin import ensure_topics
from headrace.streams.batch import Block
from headrace.streams.kafka import KafkaLog
from headrace.streams.publisher import partition_of
from headrace.streams.spans import Spans
from headrace.streams.topics import Topic
from numpy.typing import NDArray

TOPIC = "payments"
PARTITIONS = 4
KEYS = 10_000
ITEMS = 2_000
BEGAN = 1_700_000_000_123
"""Of event time, in ms: within a minute, as streams begin."""
WINDOW = 60_000
TOGETHER = 4
"""Events of one millisecond, each of another user: then an engine that sorts by time has one order to come to."""
SENT_TOGETHER = 20_000


@dataclass(frozen=True, slots=True)
class Events:
    """In order of time, as columns of length n; cents are of the amount."""

    user: NDArray[np.int64]
    ts: NDArray[np.int64]
    cents: NDArray[np.int64]
    item: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ts)

    @property
    def window(self) -> NDArray[np.int64]:
        """The number of each event's window, since 1970."""
        return self.ts // WINDOW

    def values(self, begin: int, end: int) -> Iterator[bytes]:
        """The JSON of these."""
        columns = (c[begin:end].tolist() for c in (self.user, self.ts, self.cents, self.item))
        for user, ts, cents, item in zip(*columns, strict=True):
            yield b'{"user":"u%d","ts":%d,"amount":%.2f,"item":"i%d"}' % (user, ts, cents / 100, item)


def events(count: int) -> Events:
    random, number = np.random.default_rng(7), np.arange(count)
    user = random.integers(0, KEYS // TOGETHER, count) * TOGETHER + number % TOGETHER
    cents, item = random.integers(0, 100_000, count), random.integers(0, ITEMS, count)
    return Events(user, BEGAN + number // TOGETHER, cents, item)


@dataclass(frozen=True, slots=True)
class Right:
    """The count and the sum of the user's window as of each event."""

    count: NDArray[np.int64]
    sum: NDArray[np.float64]


def oracle(made: Events) -> Right:
    totals: dict[tuple[int, int], tuple[int, float]] = {}
    told = []
    for user, window, cents in zip(made.user.tolist(), made.window.tolist(), made.cents.tolist(), strict=True):
        count, total = totals.get((user, window), (0, 0.0))
        totals[user, window] = now = (count + 1, total + cents / 100)
        told.append(now)
    counts, sums = zip(*told, strict=True) if told else ((), ())
    return Right(np.array(counts, np.int64), np.array(sums, np.float64))


async def publish(broker: Address, made: Events, partitions: int = PARTITIONS, *, at_once: bool = False) -> None:
    """Each to the partition of its user, as Kafka's own clients choose it; in order of time within a partition.

    at_once: in one transaction, so that readers of what is committed have nothing of it, and then all
    """
    settings = {"retention.ms": "-1"}
    await ensure_topics(broker, [Topic(TOPIC, "event", partitions, None, settings)])
    log = KafkaLog(broker, "headrace-bench")
    if at_once:
        writer = await log.writer("headrace-bench")
        await writer.begin()
        for some in blocks(made, partitions):
            await writer.send(some, 0)
        await writer.commit()
        await writer.close()
    else:
        sender = await log.sender()
        for some in blocks(made, partitions):
            await sender.send(some, 0)
        await sender.close()
    await log.close()


def blocks(made: Events, partitions: int) -> Iterator[list[Block]]:
    """All of them, some at a time: a block for each partition."""
    keys = [b"u%d" % user for user in range(KEYS)]
    partition = np.array([partition_of(key, partitions) for key in keys])[made.user]
    for begin in range(0, len(made), SENT_TOGETHER):
        end = min(begin + SENT_TOGETHER, len(made))
        each = Spans.of([keys[user] for user in made.user[begin:end].tolist()])
        values = Spans.of(list(made.values(begin, end)))
        there = [np.flatnonzero(partition[begin:end] == number) for number in range(partitions)]
        yield [Block(TOPIC, each.take(r), values.take(r), n) for n, r in enumerate(there) if len(r)]
