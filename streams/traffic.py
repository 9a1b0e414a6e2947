"""What flows: the rate of each topic and the lag of each processor, from the log alone.

End offsets and the groups' committed offsets tell it, so it holds for any number of workers anywhere.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from headrace.streams.address import Address, client_options
from headrace.streams.closing import stop
from headrace.streams.diagnosis import diagnose
from headrace.streams.errors import LogUnavailable
from headrace.streams.subscription import Message, to_message
from headrace.streams.topics import Processor, Topic

TAIL = 50
"""Records at the end of a partition that are looked at: enough for a table and for a share of records in offsets."""
TAIL_WAIT = 0.5
"""Seconds that reading the tails may take; what did not come by then comes with the next sample."""
PLACES = 8
PLACE_WAIT = 0.3
"""Places of a log, and seconds for each, at which the share of records in its offsets is looked at when it is first
seen. Its end alone tells little of the rest: a backfill has a marker for a thousand records, a lone event one each."""
ANSWER = 5.0
"""Seconds for one answer of the log. A page that waits longer looks dead; it says so instead."""

Offsets = Mapping[tuple[str, int], int]


@dataclass(frozen=True, slots=True)
class Sample:
    """Offsets at one moment of the monotonic clock."""

    at: float
    first: Offsets
    end: Offsets
    committed: Mapping[str, Offsets]
    """By group."""


@dataclass(frozen=True, slots=True)
class TopicFlow:
    """records: as many as the topic holds, or about as many where not `exact`; rate: records/s written.

    What is written in transactions has markers among its offsets, whose share is estimated.
    """

    name: str
    kind: str
    partitions: int
    records: int
    rate: float
    exact: bool = True


@dataclass(frozen=True, slots=True)
class ProcessorFlow:
    """lag: records written and not yet processed; rate: records/s processed. None: it has committed nothing yet."""

    name: str
    group: str
    lag: int | None
    rate: float


@dataclass(frozen=True, slots=True)
class Flow:
    """Rates and lags between two samples, `seconds` apart; 0 where there was none before."""

    topics: tuple[TopicFlow, ...] = ()
    processors: tuple[ProcessorFlow, ...] = ()
    tails: Mapping[str, Sequence[Message]] = field(default_factory=dict)
    """The last records of topics that were written to since the sample before."""
    seconds: float = 0.0


def measure(
    topics: Sequence[Topic],
    processors: Sequence[Processor],
    before: Sample | None,
    now: Sample,
    density: Mapping[str, float] | None = None,
) -> tuple[tuple[TopicFlow, ...], tuple[ProcessorFlow, ...]]:
    """Rates and lags from two samples.

    density: the records per offset of a topic. What is written in transactions has a marker after each of them
    in every partition, so there are fewer records than offsets; 1 where nothing is known.
    """
    share = density or {}
    seconds = max(now.at - before.at, 1e-9) if before else 1.0
    partitions = {t.name: sorted(p for name, p in now.end if name == t.name) for t in topics}

    def moved(name: str, new: Offsets, old: Offsets) -> int:
        both = [(name, p) for p in partitions.get(name, ()) if (name, p) in new and (name, p) in old]
        return sum(max(0, new[tp] - old[tp]) for tp in both)

    flows = []
    for topic in topics:
        held = sum(now.end[topic.name, p] - now.first.get((topic.name, p), 0) for p in partitions[topic.name])
        written = moved(topic.name, now.end, before.end) if before else 0
        d = share.get(topic.name, 1.0)
        # Only publishers write outside of transactions.
        exact = topic.kind == "event" or not held
        flows.append(TopicFlow(topic.name, topic.kind, topic.partitions, round(held * d), written * d / seconds, exact))
    kinds = {t.name: t.kind for t in topics}
    lags = []
    for processor in processors:
        committed = now.committed.get(processor.group, {})
        earlier = before.committed.get(processor.group, {}) if before else {}
        lag, done, known = 0.0, 0.0, False
        for name in processor.inputs:
            d = share.get(name, 1.0)
            done += moved(name, committed, earlier) * d / seconds
            for p in partitions.get(name, ()):
                at = committed.get((name, p))
                known = known or at is not None
                behind = now.end[name, p] - (now.first.get((name, p), 0) if at is None else at)
                # The last offset of a topic written in transactions is a marker that nobody consumes.
                lag += max(0, behind - (kinds[name] != "event")) * d
        lags.append(ProcessorFlow(processor.name, processor.group, round(lag) if known or lag else None, done))
    return tuple(flows), tuple(lags)


class Traffic:
    """Samples the log; one for a process, whoever looks at it."""

    def __init__(
        self,
        address: Address,
        topics: Sequence[Topic],
        processors: Sequence[Processor],
        *,
        tail: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._address = address
        self._topics = tuple(topics)
        self._processors = tuple(processors)
        self._tail = tail
        self._clock = clock
        self._ends: AIOKafkaConsumer | None = None
        self._tails: AIOKafkaConsumer | None = None
        self._admin: AIOKafkaAdminClient | None = None
        self._coordinators: dict[str, int] = {}
        self._before: Sample | None = None
        self._density: dict[str, float] = {}
        self._held: dict[str, float] = {}
        """About how many records a topic holds: estimated once, then added to."""

    async def start(self) -> None:
        """Raises LogUnavailable where no broker answers."""
        common = {**client_options(self._address), "client_id": "headrace-traffic"}
        self._admin = AIOKafkaAdminClient(**common, request_timeout_ms=int(ANSWER * 1000))
        reading = {"isolation_level": "read_committed", "request_timeout_ms": int(ANSWER * 1000)}
        self._ends = AIOKafkaConsumer(**common, **reading)
        self._tails = AIOKafkaConsumer(**common, **reading, enable_auto_commit=False, fetch_max_wait_ms=100)
        try:
            await self._admin.start()
            await self._ends.start()
            if self._tail:
                await self._tails.start()
        except (KafkaError, OSError) as error:
            await self.close()
            raise await diagnose(self._address) from error

    async def close(self) -> None:
        for consumer in (self._ends, self._tails):
            if consumer is not None:
                await stop(consumer)
        if self._admin is not None:
            await self._admin.close()
        self._ends = self._tails = self._admin = None

    async def flow(self) -> Flow:
        """Sample now, and measure against the sample before. Raises LogUnavailable."""
        try:
            async with asyncio.timeout(2 * ANSWER):
                now = await self._sample()
                if self._tail and self._before is None:
                    await self._estimate(now)
                tails = await self._read_tails(now) if self._tail else {}
        except (KafkaError, OSError, TimeoutError) as error:
            self._coordinators.clear()
            raise LogUnavailable(f"the log at {self._address} does not answer ({type(error).__name__})") from error
        topics, processors = measure(self._topics, self._processors, self._before, now, self._density)
        seconds = now.at - self._before.at if self._before else 0.0
        self._before = now
        return Flow(tuple(self._with_records(t, seconds) for t in topics), processors, tails, seconds)

    def _with_records(self, topic: TopicFlow, seconds: float) -> TopicFlow:
        """The flow of a topic, its records those estimated before and those written since."""
        if topic.exact or topic.name not in self._density:
            return topic
        held = self._held.get(topic.name, topic.records) + topic.rate * seconds
        self._held[topic.name] = held
        return replace(topic, records=round(held))

    async def _sample(self) -> Sample:
        assert self._admin is not None
        assert self._ends is not None
        wanted = {t.name for t in self._topics}
        described = await self._admin.describe_topics()
        there = [
            TopicPartition(t["topic"], p["partition"])
            for t in described
            if t["topic"] in wanted
            for p in t["partitions"]
        ]
        # All topics at once: of those that it does not know, a look-up learns one at a time, 0.1 s each.
        await self._ends._client.set_topics(sorted({tp.topic for tp in there}))
        first = await self._ends.beginning_offsets(there) if there else {}
        end = await self._ends.end_offsets(there) if there else {}
        groups = {p.group for p in self._processors}
        committed = {group: await self._committed(group) for group in sorted(groups)}
        return Sample(self._clock(), _plain(first), _plain(end), committed)

    async def _committed(self, group: str) -> Offsets:
        assert self._admin is not None
        if group not in self._coordinators:
            self._coordinators[group] = await self._admin.find_coordinator(group)
        try:
            found = await self._admin.list_consumer_group_offsets(group, self._coordinators[group])
        except KafkaError:
            # The group may have moved to another broker; the next sample looks it up again.
            del self._coordinators[group]
            raise
        return {(tp.topic, tp.partition): o.offset for tp, o in found.items() if o.offset >= 0}

    async def _estimate(self, now: Sample) -> None:
        """How many records the derived topics hold, from PLACES along each."""
        assert self._tails is not None
        derived = {t.name for t in self._topics if t.kind not in ("event", "changelog", "registry")}
        spans = {
            TopicPartition(*tp): (now.first.get(tp, 0), end)
            for tp, end in now.end.items()
            if tp[0] in derived and end - now.first.get(tp, 0) > TAIL * PLACES
        }
        if not spans:
            return
        self._tails.assign(list(spans))
        seen = dict.fromkeys(spans, (0, 0))
        for place in range(PLACES):
            starts = {tp: first + (end - first) * place // PLACES for tp, (first, end) in spans.items()}
            for tp, start in starts.items():
                self._tails.seek(tp, start)
            wanted, until = set(spans), time.monotonic() + PLACE_WAIT
            while wanted and (left := until - time.monotonic()) > 0:
                got = await self._tails.getmany(*wanted, timeout_ms=int(left * 1000), max_records=TAIL * len(wanted))
                for tp, records in got.items():
                    wanted.discard(tp)
                    counted, offsets = seen[tp]
                    seen[tp] = (counted + len(records), offsets + records[-1].offset - starts[tp] + 1)
        for tp, (counted, offsets) in seen.items():
            first, end = spans[tp]
            share = counted / offsets if offsets else 1.0
            self._held[tp.topic] = self._held.get(tp.topic, 0.0) + share * (end - first)

    async def _read_tails(self, now: Sample) -> dict[str, list[Message]]:
        """The last records of the partitions that moved, and by the way how many of their offsets are records."""
        assert self._tails is not None
        old = self._before.end if self._before else {}
        derived = {t.name for t in self._topics if t.kind not in ("event", "changelog", "registry")}
        moved = {
            TopicPartition(*tp): end
            for tp, end in now.end.items()
            if tp[0] in derived and end > now.first.get(tp, 0) and end != old.get(tp)
        }
        if not moved:
            return {}
        self._tails.assign(list(moved))
        starts = {tp: max(end - TAIL, now.first.get(tuple(tp), 0)) for tp, end in moved.items()}
        for tp, start in starts.items():
            self._tails.seek(tp, start)
        tails: dict[str, list[Message]] = {}
        unfinished, until = set(moved), time.monotonic() + TAIL_WAIT
        while unfinished and (left := until - time.monotonic()) > 0:
            got = await self._tails.getmany(*unfinished, timeout_ms=int(left * 1000), max_records=TAIL * len(moved))
            for tp, records in got.items():
                tails.setdefault(tp.topic, []).extend(to_message(r) for r in records if r.offset < moved[tp])
                # A marker may be all that is left: then nothing more comes.
                if records and records[-1].offset >= moved[tp] - 2:
                    unfinished.discard(tp)
        for topic, messages in tails.items():
            spans = {tp: (starts[tp], moved[tp]) for tp in moved if tp.topic == topic and tp not in unfinished}
            offsets = sum(e - s for s, e in spans.values())
            if offsets:
                counted = sum(1 for m in messages if TopicPartition(topic, m.partition) in spans)
                self._density[topic] = counted / offsets
            messages.sort(key=lambda m: (m.timestamp, m.partition, m.offset))
        return tails


async def describe(address: Address) -> dict[str, int]:
    """The topics of the log with the number of their partitions. Raises LogUnavailable."""
    admin = AIOKafkaAdminClient(**client_options(address), request_timeout_ms=int(ANSWER * 1000))
    try:
        await admin.start()
        found = await admin.describe_topics()
    except (KafkaError, OSError) as error:
        raise await diagnose(address) from error
    finally:
        await admin.close()
    return {t["topic"]: len(t["partitions"]) for t in found if not t["topic"].startswith("__")}


def _plain(offsets: Mapping[TopicPartition, int]) -> dict[tuple[str, int], int]:
    return {(tp.topic, tp.partition): offset for tp, offset in offsets.items()}
