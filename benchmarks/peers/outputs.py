"""What an engine told: read from its topic, judged by the oracle, and timed by the broker's clock.

The broker stamps what it appends (message.timestamp.type=LogAppendTime): one clock for every engine, none of theirs.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from datetime import datetime

import msgspec
import numpy as np
from confluent_kafka import Consumer, KafkaError, TopicPartition
from headrace.streams.address import Address
from headrace.streams.admin import ensure_topics
from headrace.streams.topics import Topic
from numpy.typing import NDArray

from benchmarks.peers.job import PARTITIONS, WINDOW, Events, Right

NEAR = 1e-6
"""How far a sum may be from the oracle's: engines may add in another order."""
READ_TOGETHER = 10_000
SILENT = 20.0
"""Seconds without a record after which a topic that has not come to its end is given up."""


class Wrong(Exception):
    """An engine's output is not the job's."""


class Payment(msgspec.Struct, gc=False):
    """Whose an event is, and when. The time is `ts`, in ms, or `at`, a text of ISO 8601."""

    user: str
    ts: int = 0
    at: datetime | None = None


class _Value(Payment, gc=False, kw_only=True):
    count: int
    sum: float

    @property
    def window(self) -> int:
        return (self.ts if self.at is None else int(self.at.timestamp() * 1000)) // WINDOW


@dataclass(frozen=True, slots=True)
class Told:
    """Every committed output, as columns of length n; appended: ms by the broker's clock."""

    user: NDArray[np.int64]
    window: NDArray[np.int64]
    count: NDArray[np.int64]
    sum: NDArray[np.float64]
    appended: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.user)


async def make_topic(broker: Address, name: str, partitions: int = PARTITIONS) -> None:
    settings = {"retention.ms": "-1", "message.timestamp.type": "LogAppendTime"}
    await ensure_topics(broker, [Topic(name, "features", partitions, None, settings)])


class Outputs:
    """The topic that an engine writes."""

    def __init__(self, broker: Address, topic: str, partitions: int = PARTITIONS) -> None:
        settings = {
            "bootstrap.servers": broker.bootstrap,
            "group.id": "headrace-bench",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
        }
        self._consumer = Consumer(settings)
        self._partitions = [TopicPartition(topic, number, 0) for number in range(partitions)]

    def end(self) -> int:
        """Records that are there, transactions' markers among them and what is not committed."""
        return sum(self._consumer.get_watermark_offsets(p, timeout=10.0)[1] for p in self._partitions)

    def read(self) -> Told:
        """All that is committed. Raises Wrong where a record is none of the job's."""
        self._consumer.assign(self._partitions)
        users, windows, counts, appended, sums = array("q"), array("q"), array("q"), array("q"), array("d")
        decode = msgspec.json.Decoder(_Value).decode
        ended = 0
        while ended < len(self._partitions):
            messages = self._consumer.consume(READ_TOGETHER, SILENT)
            if not messages:
                raise Wrong("its topic could not be read to its end")
            for message in messages:
                if (error := message.error()) is not None:
                    if error.code() != KafkaError._PARTITION_EOF:
                        raise Wrong(f"its topic could not be read: {error}")
                    ended += 1
                    continue
                told = message.value() or b""
                try:
                    value = decode(told)
                    users.append(int(value.user[1:]))
                except (msgspec.MsgspecError, ValueError) as reason:
                    raise Wrong(f"it wrote {told[:200]!r}: {reason}") from None
                windows.append(value.window)
                counts.append(value.count)
                sums.append(value.sum)
                appended.append(message.timestamp()[1])
        return Told(*map(np.array, (users, windows, counts, sums, appended)))

    def close(self) -> None:
        self._consumer.close()


def check(told: Told, made: Events, right: Right) -> None:
    """Every output is right and told once, and none is missing before one of the same user. Raises Wrong."""
    window = made.window
    first, span = int(window[0]), int(window[-1] - window[0]) + 1
    # By user, then in order of time: the events of a window lie together, the n-th of them told by the count n.
    order = np.argsort(made.user, kind="stable")
    there = made.user[order] * span + window[order] - first
    wanted = told.user * span + told.window - first
    at = np.searchsorted(there, wanted) + told.count - 1
    known = (told.count > 0) & (told.window >= first) & (told.window < first + span) & (at < len(there))
    known[known] = there[at[known]] == wanted[known]
    _refuse(~known, told, "no event of it has such a count")
    event = order[at]
    _refuse(right.count[event] != told.count, told, "the count is another")
    _refuse(~(np.abs(right.sum[event] - told.sum) <= NEAR), told, "the sum is another")
    times = np.bincount(event, minlength=len(made))
    _refuse(times[event] > 1, told, "it is told more than once")
    seen, same = times[order] > 0, made.user[order][1:] == made.user[order][:-1]
    gap = np.zeros(len(made), bool)
    gap[1:] = seen[1:] & ~seen[:-1] & same
    # The first of a user has none before it that could be missing.
    _refuse(gap[at], told, "an earlier event of the user is missing")


def _refuse(bad: NDArray[np.bool_], told: Told, why: str) -> None:
    if bad.any():
        n = int(np.flatnonzero(bad)[0])
        said = f"user u{told.user[n]}, window {told.window[n]}, count {told.count[n]}, sum {told.sum[n]}"
        raise Wrong(f"{int(bad.sum()):,} of {len(told):,} outputs are wrong; of the first, {said}: {why}")


@dataclass(frozen=True, slots=True)
class Span:
    """What was timed: events, in seconds, and when that was, in ms by the broker's clock."""

    events: int
    begin: int
    end: int

    @property
    def seconds(self) -> float:
        return (self.end - self.begin) / 1000

    @property
    def events_per_s(self) -> float:
        return self.events / self.seconds


def timed(appended: NDArray[np.int64], warm: float, seconds: float) -> Span:
    """From the first output past the warm-up to the last, of at most so many seconds. Raises Wrong where none is.

    warm: when the warm-up ended, in ms
    """
    times = np.sort(appended)
    at = int(np.searchsorted(times, warm))
    if at < len(times):
        begin = int(times[at])
        last = times[: np.searchsorted(times, begin + 1000 * seconds, "right")]
        span = Span(int((last > begin).sum()), begin, int(last[-1]))
        if span.events:
            return span
    raise Wrong(f"its {len(times):,} outputs all belong to the warm-up: give it more events")
