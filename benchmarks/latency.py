"""Latency: from the call that publishes an event to its features read by a reader of what is committed.

`python -m benchmarks.latency`: of the window job at 100, 1,000 and 20,000 events/s, on the local broker and on Apache
Kafka, under both guarantees, and beside Kafka Streams and Flink (see peers.latencies); a worker on one core, the log
and the client on the other. Each is warmed by half a minute of 20,000 events/s, for a JVM compiles what it runs often;
then come the rates, from the lowest. Events go out a hundredth of a second's worth at a time, as fast as the clock says
and no faster. Twenty minutes; `--only ours` or `--only peers` is half of it, and keeps nothing. `--first` measures the
first event after a start instead (see first).
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from itertools import islice
from pathlib import Path
from typing import Any

from headrace.streams.admin import ensure_topics

from benchmarks import first, results
from benchmarks.delays import CORES, RATE, WARM, WARM_RATE, WARM_SECONDS, measured, worker
from benchmarks.figures import BROKERS, Broker, Figure, collected, machine
from benchmarks.peers import flink, latencies
from benchmarks.window import OURS, app, rows
from headrace.stack import Stack
from tests.stack import kafka

EXAMPLE = Path(__file__).parent.parent / "examples" / "returns"
PROGRAMS = {"exactly once": "benchmarks.window", "at least once": "benchmarks.at_least_once"}
RATES = (100, 1_000, 20_000)
SECONDS = 15.0
UNITS = {"p50, publish to prediction": "ms", "p99, publish to prediction": "ms", "published": "events/s"}


def measure(repeats: int, seconds: float = SECONDS) -> list[Figure]:
    """The returns pipeline on its own stack at 1,000 events/s; each repeat goes on with the orders that follow."""
    return collected(asyncio.run(_repeats(repeats, seconds)), UNITS)


async def _repeats(repeats: int, seconds: float) -> list[dict[str, float]]:
    sys.path.insert(0, str(EXAMPLE))
    import retail

    orders = [line.row for line in retail.lines(retail.SAMPLE) if line.topic == "orders" and line.row.key]
    with tempfile.TemporaryDirectory() as folder:
        async with Stack(EXAMPLE / "pipeline.py", data=folder) as stack:
            found, at = [], 0
            for _ in range(repeats):
                count = int((WARM + seconds) * RATE)
                through = await measured(stack.broker, "orders", orders[at : at + count], "predictions.returns")
                found.append(dict(zip(UNITS, through, strict=True)))
                at += count
    return found


async def compared(seconds: float) -> list[dict[str, Any]]:
    """A row for each broker, guarantee and rate. Each guarantee has a log and a worker of its own."""
    found: list[dict[str, Any]] = []
    for name, broker in BROKERS.items():
        for guarantee in PROGRAMS:
            async for rate, p50, p99, real in _points(broker, guarantee, seconds):
                found.append({
                    "name": f"Headrace on {'the ' if name.islower() else ''}{name}", "guarantee": guarantee,
                    "rate": rate, "events_per_s": round(real), "p50_ms": round(p50, 2), "p99_ms": round(p99, 2),
                })  # fmt: skip
                print("{name:<30} {guarantee:<14} {events_per_s:>7,} events/s   p50 {p50_ms:>6.1f} ms   "
                      "p99 {p99_ms:>7.1f} ms".format(**found[-1]), flush=True)  # fmt: skip
    return found


async def _points(broker: Broker, guarantee: str, seconds: float) -> AsyncIterator[tuple[int, float, float, float]]:
    each = {rate: int((WARM + seconds) * rate) for rate in RATES}
    warm = int(WARM_SECONDS * WARM_RATE)
    stream = iter(rows(warm + sum(each.values())))
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        address = await stack.enter_async_context(broker(Path(folder) / "log"))
        await ensure_topics(address, app.topics())
        await stack.enter_async_context(worker(PROGRAMS[guarantee], address, f"{folder}/worker"))
        await measured(address, "trades", list(islice(stream, warm)), OURS, WARM_RATE)
        for rate, count in each.items():
            yield rate, *await measured(address, "trades", list(islice(stream, count)), OURS, rate)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.latency", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=SECONDS, help="that count, of each point")
    parser.add_argument("--only", choices=("ours", "peers"), help="these alone; nothing is kept")
    parser.add_argument("--first", action="store_true", help="the first event after a start")
    chosen = parser.parse_args(arguments)
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    # What is started ends with its block, whatever ends this process.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    here = machine()
    print(here, flush=True)
    if len(CORES) > 1:
        os.sched_setaffinity(0, CORES - {max(CORES)})  # the brokers' too: they are started from here
    if chosen.first:
        results.keep("first", here, results.versions(kafka=kafka.VERSION), asyncio.run(first.compared()))
        return
    found = [] if chosen.only == "peers" else asyncio.run(compared(chosen.seconds))
    if chosen.only != "ours":
        found += asyncio.run(latencies.compared(RATES, chosen.seconds))
    if chosen.only is None:
        versions = results.versions(kafka=kafka.VERSION, flink=flink.VERSION)
        results.keep("latency", here, versions, found)


if __name__ == "__main__":
    main()
