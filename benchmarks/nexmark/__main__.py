"""`make bench-nexmark`, or `python -m benchmarks.nexmark [--only QUERY] [--engine NAME] [--events N] [--repeats N]`.

Headrace and Flink SQL, each exactly once and on a core of its own, one after the other; the broker, one node of Apache
Kafka, has the rest. Each query reads as many events of its topics. Headrace's answer is compared with one computed
apart. Throughput is the median of the repeats; that of a busy machine is told by the processor's time.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
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
from headrace.streams.topics import Topic

from benchmarks import results
from benchmarks.figures import BROKERS, machine
from benchmarks.nexmark import checks, flink
from benchmarks.nexmark.events import Events, made
from benchmarks.nexmark.job import CORE
from benchmarks.nexmark.queries import QUERIES, Query
from benchmarks.peers import flink as flinks
from benchmarks.peers.children import Children, Failed
from benchmarks.window import job
from headrace.state import records
from tests.stack import kafka

KEPT = results.RESULTS / "nexmark.json"
EVENTS = 1_500_000
MODULE = "benchmarks.nexmark.job"
PUBLISHED_AT_ONCE = 5_000
HEADRACE, FLINK = "Headrace", "Flink SQL"
GUARANTEES = {
    HEADRACE: "exactly once; changelog, RocksDB",
    FLINK: "exactly once; RocksDB; checkpoints and commits each 5 s",
}

Rate = tuple[float, float]
"""Events/s by the clock, and by the processor's time."""


@dataclass(frozen=True, slots=True)
class Bench:
    """What is the same for every query of a turn."""

    broker: Address
    folder: Path
    given: Mapping[tuple[str, ...], Events]
    checked: bool

    async def headrace(self, query: Query) -> Rate:
        """One run. Raises AssertionError where its answer is wrong."""
        log = KafkaLog(self.broker, "nexmark")
        try:
            rate = await job(MODULE, self.broker, str(self.folder), self._count(query), query.name)
            if self.checked:
                await _check(query, self.given[query.reads], log)
        finally:
            await log.close()
        return rate

    async def flink(self, query: Query, home: Path) -> Rate:
        """One run. Raises Failed."""
        await ensure_topics(self.broker, [Topic(flink.topic_of(query.name), "features", 1)])
        worker, rest = {CORE}, os.sched_getaffinity(0)
        with Children(self.folder / f"flink-{query.name}", worker, rest) as children:
            broker, count = self.broker.bootstrap, self._count(query)
            return await asyncio.to_thread(flink.run, query.name, broker, count, home, children)

    def _count(self, query: Query) -> int:
        return sum(len(self.given[query.reads].rows[topic]) for topic in query.reads)


Rates = dict[tuple[str, str], list[Rate]]
"""Of each query by each engine."""


async def measure(
    chosen: Sequence[Query],
    engines: Sequence[str],
    events: int,
    repeats: int,
    broker: str,
    keep: Callable[[Rates], None],
) -> Rates:
    """Runs each query by each engine; every turn has a broker of its own. keep: is given what there is after each."""
    homes = {name: home for name in engines if name == FLINK and (home := _had()) is not None}
    given = {query.reads: made(events, query.reads) for query in chosen}
    found: Rates = {}
    for turn in range(repeats):
        with tempfile.TemporaryDirectory(prefix="headrace-nexmark-", ignore_cleanup_errors=True) as folder:
            async with BROKERS[broker](Path(folder) / "log") as address:
                await ensure_topics(address, list({t.name: t for q in chosen for t in q.app.topics()}.values()))
                for some in given.values():
                    await publish(address, some)
                bench = Bench(address, Path(folder), given, checked=turn == 0)
                for query in chosen:
                    for engine in engines:
                        try:
                            if engine == HEADRACE:
                                rate = await bench.headrace(query)
                            elif engine in homes:
                                rate = await bench.flink(query, homes[engine])
                            else:
                                continue
                        except (Failed, OSError, RuntimeError) as error:
                            print(f"{query.name} by {engine} failed: {error}", file=sys.stderr, flush=True)
                            continue
                        found.setdefault((query.name, engine), []).append(rate)
                        print(_line(query.name, engine, rate), flush=True)
                        keep(found)
    return found


def _had() -> Path | None:
    try:
        return flinks.home()
    except (Failed, OSError, subprocess.SubprocessError) as error:
        print(f"{FLINK} cannot be had: {error}", file=sys.stderr, flush=True)
        return None


async def publish(broker: Address, events: Events) -> None:
    publisher = Publisher(broker)
    await publisher.start()
    for topic, rows in events.rows.items():
        for at in range(0, len(rows), PUBLISHED_AT_ONCE):
            await publisher.send(topic, rows[at : at + PUBLISHED_AT_ONCE])
    await publisher.close()


async def _check(query: Query, events: Events, log: KafkaLog) -> None:
    rows: list[checks.Row] = []
    topic = Partition(query.topic, 0)
    async for fetched in records(log, topic, (await log.ends([topic]))[topic]):
        rows += [msgspec.json.decode(value or b"") for value in fetched.values]
    published: list[int] = []
    if query.name == "q12":
        bid = Partition("bid", 0)
        async for fetched in records(log, bid, (await log.ends([bid]))[bid]):
            published += fetched.timestamp.tolist()
    wrong = checks.differ(query.name, checks.Given(events.values, published), rows)
    assert not wrong, wrong
    print(f"{query.name:<4} {len(rows):,} rows are as computed apart", flush=True)


def _line(query: str, engine: str, rate: Rate) -> str:
    return f"{query:<4} {engine:<10} {rate[0]:>12,.0f} events/s {rate[1]:>12,.0f} by the processor's time"


def as_json(where: str, broker: str, rates: Mapping[tuple[str, str], Sequence[Rate]]) -> dict[str, Any]:
    """What is kept: `machine`, `versions`, and a row for each query and engine."""
    versions = {HEADRACE: version("headrace"), FLINK: flinks.VERSION}
    versions = {engine: versions[engine] for _, engine in rates}
    rows = []
    for (query, engine), some in rates.items():
        wall, spent = (statistics.median(column) for column in zip(*some, strict=True))
        row: dict[str, Any] = {"name": query, "engine": engine, "guarantee": GUARANTEES[engine]}
        rows.append(row | {"events_per_s": round(wall), "events_per_processor_s": round(spent)})
    there = {"Apache Kafka": kafka.VERSION} if broker == "Kafka" else {"broker": broker}
    return {"machine": where, "versions": there | versions, "rows": rows}


def ratios(kept: Mapping[str, Any]) -> list[str]:
    """How many times as fast Headrace is, of each query that both ran."""
    rows = {(row["name"], row["engine"]): row for row in kept["rows"]}
    lines = []
    for query, engine in rows:
        if engine == HEADRACE and (query, FLINK) in rows:
            ours, theirs = rows[query, HEADRACE], rows[query, FLINK]
            clock, spent = (ours[name] / theirs[name] for name in ("events_per_s", "events_per_processor_s"))
            lines.append(f"{query:<4} {clock:>6.1f} times {FLINK}, {spent:>6.1f} by the processor's time")
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.nexmark", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=QUERIES, action="append", help="run this; may be given again")
    parser.add_argument("--engine", choices=GUARANTEES, action="append", help="run this; may be given again")
    parser.add_argument("--events", type=int, default=EVENTS, help="that each query reads")
    parser.add_argument("--repeats", type=int, default=1, help="the median of so many is told")
    parser.add_argument("--broker", choices=BROKERS, default="Kafka")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="left out: benchmarks/results, where all are measured"
    )
    chosen = parser.parse_args(arguments)
    if chosen.repeats < 1 or chosen.events < 1:
        parser.error("--repeats and --events must be at least 1")
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    # What is started ends with its block, whatever ends this process.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    here = machine()
    print(here, flush=True)
    if rest := os.sched_getaffinity(0) - {CORE}:
        os.sched_setaffinity(0, rest)  # the broker's too, which starts from here
    queries, engines = [QUERIES[name] for name in chosen.only or QUERIES], chosen.engine or list(GUARANTEES)
    file = chosen.json or (None if chosen.only or chosen.engine else KEPT)

    def keep(rates: Rates) -> None:
        if file:
            results.write(file, **as_json(here, chosen.broker, rates))

    rates = asyncio.run(measure(queries, engines, chosen.events, chosen.repeats, chosen.broker, keep))
    for line in ratios(as_json(here, chosen.broker, rates)):
        print(line, flush=True)
    return 0 if len(rates) == len(queries) * len(engines) else 1


if __name__ == "__main__":
    sys.exit(main())
