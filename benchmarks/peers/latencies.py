"""Latency of the window job by other engines that promise exactly once, and by Headrace, on one node of Apache Kafka.

Each engine at the settings at which its latency is least, of those that keep the promise and that it keeps up with; one
partition, one worker on a core of its own. It is warmed by half a minute of 20,000 events/s, for Java compiles what it
runs often; then come the rates, from the lowest. Every output is checked by the oracle.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from headrace.streams.address import Address
from headrace.streams.admin import ensure_topics
from headrace.streams.publisher import Publisher, Row
from headrace.streams.topics import Topic

from benchmarks.delays import CORES, WARM, WARM_RATE, WARM_SECONDS, measured
from benchmarks.figures import apache_kafka
from benchmarks.peers.children import Children, Failed
from benchmarks.peers.engines import ENGINES, Engine, Place, Start, flink_sql, headrace, kafka_streams
from benchmarks.peers.job import TOPIC, Events, events, oracle
from benchmarks.peers.outputs import Outputs, Payment, Wrong, check, make_topic

STARTED_WITHIN = 180.0
"""Seconds to the first output: a JVM's start, and a group's first meeting."""
POLL = 0.2

STREAMS = {
    # It looks whether a commit is due when a poll is over: with nothing to read, after the default of 100 ms.
    "poll.ms": "1",
    # A cache is written out at each commit: with so many, for nothing.
    "statestore.cache.max.bytes": "0",
}
"""Beside WindowJob's settings, and the interval of commits. Records that linger go with a commit at the latest."""
COMMITS = (1, 5)
"""Milliseconds. At 1 it is quickest where events are few, but it did not keep up with 20,000 events/s on two cores."""
FLINK = {
    # At 20 ms a checkpoint takes longer than that, and nothing comes sooner; at 100 all comes later.
    "execution.checkpointing.interval": "50 ms",
    # Else a record waits for this long, by default 100 ms, for others to go on with.
    "execution.buffer-timeout.interval": "1 ms",
}

OURS, KAFKA_STREAMS, FLINK_SQL = ENGINES[:3]
NAMES = {OURS.name: "Headrace on Kafka, the peers' job"}
"""Where another stands in the table: other rows of ours are of a job of the same shape, without peers."""
QUICK = (
    replace(OURS, prepare=partial(headrace, 1)),
    *(
        replace(
            KAFKA_STREAMS,
            guarantee=f"exactly once (v2); commits each {each} ms",
            prepare=partial(kafka_streams, {**STREAMS, "commit.interval.ms": str(each)}),
        )
        for each in COMMITS
    ),
    replace(
        FLINK_SQL,
        guarantee=f"exactly once; checkpoints and commits each {FLINK['execution.checkpointing.interval']}",
        prepare=partial(flink_sql, FLINK, "unbounded"),
    ),
)


def event(value: bytes) -> Hashable:
    """Which event it is, or is told of: its user and its time are no other's."""
    told = _payment(value)
    return told.user, told.ts if told.at is None else round(told.at.timestamp() * 1000)


_payment = msgspec.json.Decoder(Payment).decode


@dataclass(slots=True)
class Stream:
    """The job's events, a portion after the other, each event once."""

    made: Events
    taken: int = 0

    def next(self, count: int) -> list[Row]:
        begin, self.taken = self.taken, self.taken + count
        users = self.made.user[begin : self.taken].tolist()
        values = self.made.values(begin, self.taken)
        return [Row(b"u%d" % user, value) for user, value in zip(users, values, strict=True)]


async def compared(
    rates: Sequence[int], seconds: float, engines: Sequence[Engine] = QUICK, warm: float = WARM_SECONDS
) -> list[dict[str, Any]]:
    """A row for each engine and rate; of an engine that cannot be had, or fails, a line says why."""
    found: list[dict[str, Any]] = []
    for engine in engines:
        try:
            await _engine(engine, engine.prepare(), rates, seconds, warm, found.append)
        except (Failed, Wrong) as error:
            print(f"{engine.name} failed: {error}", file=sys.stderr, flush=True)
    return found


async def _engine(
    engine: Engine,
    start: Start,
    rates: Sequence[int],
    seconds: float,
    warm: float,
    tell: Callable[[dict[str, Any]], None],
) -> None:
    """Raises Failed, or Wrong."""
    worker, rest = {max(CORES)}, CORES - {max(CORES)} or CORES
    each = [int((WARM + seconds) * rate) for rate in rates]
    stream = Stream(events(1 + int(warm * WARM_RATE) + sum(each)))
    with tempfile.TemporaryDirectory(prefix="headrace-latency-", ignore_cleanup_errors=True) as folder:
        async with apache_kafka(Path(folder) / "kafka") as broker:
            await ensure_topics(broker, [Topic(TOPIC, "event", 1, None, {"retention.ms": "-1"})])
            await make_topic(broker, engine.topic, 1)
            outputs = Outputs(broker, engine.topic, 1)
            try:
                with Children(Path(folder) / engine.topic, worker, rest) as children:
                    start(Place(broker.bootstrap, engine.topic, children))
                    await _first(broker, stream, outputs, children)
                    if warm:
                        await measured(
                            broker, TOPIC, stream.next(int(warm * WARM_RATE)), engine.topic, WARM_RATE, event
                        )
                    for rate, count in zip(rates, each, strict=True):
                        p50, p99, real = await measured(broker, TOPIC, stream.next(count), engine.topic, rate, event)
                        children.check()
                        row: dict[str, Any] = {
                            "name": NAMES.get(engine.name, engine.name), "guarantee": engine.guarantee, "rate": rate,
                            "events_per_s": round(real), "p50_ms": round(p50, 2), "p99_ms": round(p99, 2),
                        }  # fmt: skip
                        print("{name:<34} {guarantee:<50} {events_per_s:>7,} events/s   p50 {p50_ms:>7.1f} ms   "
                              "p99 {p99_ms:>8.1f} ms".format(**row), flush=True)  # fmt: skip
                        tell(row)
                told = outputs.read()
            finally:
                outputs.close()
    check(told, stream.made, oracle(stream.made))
    if len(told) != stream.taken:
        raise Wrong(f"{engine.name} told of {len(told):,} of {stream.taken:,} events")


async def _first(broker: Address, stream: Stream, outputs: Outputs, children: Children) -> None:
    """Publish one event, and return once it is told of. Raises Failed."""
    publisher = Publisher(broker)
    await publisher.start()
    await publisher.send(TOPIC, stream.next(1))
    await publisher.close()
    until = time.monotonic() + STARTED_WITHIN
    while not outputs.end():
        await asyncio.sleep(POLL)
        children.check()
        if time.monotonic() > until:
            said = "; ".join(f"{log.stem}: {children.said(log.stem)}" for log in children.folder.glob("*.log"))
            raise Failed(f"no output within {STARTED_WITHIN:.0f} s ({said})")
