"""`make bench-nexmark`, or `python -m benchmarks.nexmark [--only QUERY] [--events N] [--repeats N] [--broker NAME]`.

Each query runs in a process on one core, exactly once, over as many events of the topics that it reads; the broker has
the other cores. Its answer is compared with one computed apart. Throughput is the median of the repeats.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
from headrace.streams.address import Address
from headrace.streams.admin import ensure_topics
from headrace.streams.kafka import KafkaLog
from headrace.streams.log import Partition
from headrace.streams.publisher import Publisher

from benchmarks.figures import BROKERS, machine
from benchmarks.nexmark import checks
from benchmarks.nexmark.events import Events, made
from benchmarks.nexmark.job import CORE
from benchmarks.nexmark.queries import QUERIES, Query
from benchmarks.window import job
from headrace.state import records

RESULTS = Path(__file__).parent.parent / "results" / "nexmark.json"
EVENTS = 1_000_000
MODULE = "benchmarks.nexmark.job"
PUBLISHED_AT_ONCE = 5_000


@dataclass(frozen=True, slots=True)
class Measured:
    """Throughput of a query: of the clock, and of the processor's time."""

    query: str
    engine: str
    guarantee: str
    events_per_s: float
    events_per_processor_s: float

    def __str__(self) -> str:
        spent = f"{self.events_per_processor_s:>12,.0f} of its processor's"
        return f"{self.query:<4} {self.engine:<10} {self.guarantee:<13} {self.events_per_s:>12,.0f} events/s {spent}"

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.query,
            "engine": self.engine,
            "guarantee": self.guarantee,
            "events_per_s": round(self.events_per_s),
            "events_per_processor_s": round(self.events_per_processor_s),
        }


async def measure(chosen: Sequence[Query], events: int, repeats: int, broker: str) -> list[Measured]:
    """Publishes the events, runs the queries, and checks what they say; each time on a broker of its own.

    Raises AssertionError where an answer is wrong.
    """
    given = {query.reads: made(events, query.reads) for query in chosen}
    rates: dict[str, list[tuple[float, float]]] = {query.name: [] for query in chosen}
    for turn in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            async with BROKERS[broker](Path(folder) / "log") as address:
                await ensure_topics(address, list({t.name: t for q in chosen for t in q.app.topics()}.values()))
                for some in given.values():
                    await publish(address, some)
                for query in chosen:
                    rate = await _run(query, given[query.reads], address, folder, checked=turn == 0)
                    rates[query.name].append(rate)
                    print(f"{query.name:<4} {rate[0]:>12,.0f} events/s", flush=True)
    return [_median(name, some) for name, some in rates.items()]


def _median(query: str, rates: list[tuple[float, float]]) -> Measured:
    wall, spent = (statistics.median(column) for column in zip(*rates, strict=True))
    return Measured(query, "headrace", "exactly once", wall, spent)


async def publish(broker: Address, events: Events) -> None:
    publisher = Publisher(broker)
    await publisher.start()
    for topic, rows in events.rows.items():
        for at in range(0, len(rows), PUBLISHED_AT_ONCE):
            await publisher.send(topic, rows[at : at + PUBLISHED_AT_ONCE])
    await publisher.close()


async def _run(query: Query, events: Events, broker: Address, folder: str, checked: bool) -> tuple[float, float]:
    """Events/s of one run, and per second of its processor."""
    topic = Partition(query.topic, 0)
    count = sum(len(events.rows[name]) for name in query.reads)
    log = KafkaLog(broker, "nexmark")
    try:
        rates = await job(MODULE, broker, folder, count, query.name)
        if checked:
            await _check(query, events, log, topic)
    finally:
        await log.close()
    return rates


async def _check(query: Query, events: Events, log: KafkaLog, topic: Partition) -> None:
    rows: list[checks.Row] = []
    end = (await log.ends([topic]))[topic]
    async for fetched in records(log, topic, end):
        rows += [msgspec.json.decode(value or b"") for value in fetched.values]
    published: list[int] = []
    if query.name == "q12":
        bid = Partition("bid", 0)
        async for fetched in records(log, bid, (await log.ends([bid]))[bid]):
            published += fetched.timestamp.tolist()
    wrong = checks.differ(query.name, checks.Given(events.values, published), rows)
    assert not wrong, wrong
    print(f"{query.name:<4} {len(rows):,} rows are as computed apart", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.nexmark", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=QUERIES, action="append", help="run this; may be given again")
    parser.add_argument("--events", type=int, default=EVENTS, help="that each query reads")
    parser.add_argument("--repeats", type=int, default=3, help="the median of so many is told")
    parser.add_argument("--broker", choices=BROKERS, default="local broker")
    parser.add_argument("--json", type=Path, default=RESULTS, metavar="FILE", help="where the figures are written")
    chosen = parser.parse_args(arguments)
    if chosen.repeats < 1 or chosen.events < 1:
        parser.error("--repeats and --events must be at least 1")
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    here = machine()
    print(here, flush=True)
    if rest := os.sched_getaffinity(0) - {CORE}:
        os.sched_setaffinity(0, rest)  # the broker's too, which starts from here
    queries = [QUERIES[name] for name in chosen.only or QUERIES]
    found = asyncio.run(measure(queries, chosen.events, chosen.repeats, chosen.broker))
    versions = {"headrace": version("headrace"), "broker": chosen.broker}
    chosen.json.parent.mkdir(exist_ok=True)
    for one in found:
        print(one, flush=True)
    rows = [one.as_json() for one in found]
    chosen.json.write_text(json.dumps({"machine": here, "versions": versions, "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
