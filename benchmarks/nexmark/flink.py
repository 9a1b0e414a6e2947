"""The queries by Flink SQL: exactly once, state in RocksDB, one slot on the worker's core, the same topics.

A job ends with the topics. What is timed is its second half: before that Java compiles what it runs often.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.children import Children, Failed, busy
from benchmarks.peers.flink import ENDED, Flink

SQL = Path(__file__).with_suffix(".sql")
SOURCE = """'connector' = 'kafka', 'properties.bootstrap.servers' = '{broker}',
  'properties.group.id' = 'nexmark-flink', 'properties.max.partition.fetch.bytes' = '4194304',
  'scan.startup.mode' = 'earliest-offset', 'scan.bounded.mode' = 'latest-offset',
  'format' = 'json', 'json.timestamp-format.standard' = 'ISO-8601'"""
SINK = """'connector' = 'kafka', 'properties.bootstrap.servers' = '{broker}', 'topic' = '{topic}',
  'format' = 'json', 'sink.delivery-guarantee' = 'exactly-once', 'sink.transactional-id-prefix' = '{topic}',
  'properties.transaction.timeout.ms' = '600000', 'properties.batch.size' = '262144', 'properties.linger.ms' = '50'"""
SETTINGS = {"metrics.fetcher.update-interval": "500"}
"""Milliseconds; Flink's own 10 s are as long as what is measured."""
POLL = 0.25
WITHIN = 600.0
"""Seconds of a job, on a busy machine: alone it needs a twentieth."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A look at a job: when, seconds of the processor that its worker had taken, and events."""

    at: float
    busy: float
    taken: int


def topic_of(query: str) -> str:
    """Where it tells its answer."""
    return f"flink-{query}"


def sections(text: str) -> dict[str, str]:
    """The statements of the tables and of each query, by the names that their sections begin with."""
    parts = re.split(r"(?m)^-- (\w+)\n", text)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def job(query: str, broker: str) -> str:
    """The statements that run a query."""
    said = sections(SQL.read_text())
    sink = SINK.format(broker=broker, topic=topic_of(query))
    return (said["tables"] + said[query]).format(source=SOURCE.format(broker=broker), sink=sink)


def run(query: str, broker: str, events: int, home: Path, children: Children) -> tuple[float, float]:
    """Events/s of a query over so many, and per second of its processor. Raises Failed."""
    flink = Flink(home, children, SETTINGS)
    flink.start()
    [one] = flink.submit(job(query, broker))
    samples: list[Sample] = []
    until = time.monotonic() + WITHIN
    while flink.state(one) not in ENDED:
        samples.append(Sample(time.monotonic(), busy(flink.worker), flink.taken(one)))
        if time.monotonic() > until:
            raise Failed(f"{query} has taken {samples[-1].taken:,} of {events:,} events in {WITHIN:.0f} s")
        children.check()
        time.sleep(POLL)
    return rates(samples, events)


def rates(samples: list[Sample], events: int) -> tuple[float, float]:
    """Events/s, and per second of the processor, from the half of the events to the last. Raises Failed."""
    # A query that reads a topic twice takes each of its events so often.
    times = max(1, round(max((s.taken for s in samples), default=0) / events))
    later = [sample for sample in samples if sample.taken >= times * events // 2]
    if not later:
        raise Failed(f"the job ended after {max((s.taken for s in samples), default=0):,} of {events:,} events")
    # The first sample of each count: Flink tells it anew every half second only.
    first, last = later[0], next(sample for sample in later if sample.taken == later[-1].taken)
    if last.taken == first.taken:
        raise Failed("the job ended between two looks at it: give it more events")
    count = (last.taken - first.taken) / times
    return count / (last.at - first.at), count / (last.busy - first.busy)
