"""Latency: from the call that publishes an event to its features read by a reader of what is committed.

`python -m benchmarks.latency`: of the window job at 100, 1,000 and 20,000 events/s, on the local broker and on Apache
Kafka, under both guarantees; a worker on one core, the log and the client on the other. Events go out a hundredth of a
second's worth at a time, as fast as the clock says and no faster.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
from headrace.streams.address import Address
from headrace.streams.admin import ensure_topics
from headrace.streams.kafka import KafkaLog
from headrace.streams.log import Partition
from headrace.streams.publisher import Publisher, Row

from benchmarks import results
from benchmarks.figures import BROKERS, Broker, Figure, collected, machine
from benchmarks.window import OURS, app, rows
from headrace.stack import Stack
from tests.stack import kafka

EXAMPLE = Path(__file__).parent.parent / "examples" / "returns"
PROGRAMS = {"exactly once": "benchmarks.window", "at least once": "benchmarks.at_least_once"}
RATE, RATES = 1_000, (100, 1_000, 20_000)
TICK = 0.01
"""Seconds between calls to publish."""
SECONDS = 15.0
WARM = 5.0
"""Seconds before the first latency counts."""
SILENCE = 10.0
"""Seconds without a result after which the rest is given up: what is rejected gets none."""
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


async def measured(
    broker: Address, topic: str, rows: list[Row], results: str, rate: float = RATE
) -> tuple[float, float, float]:
    """Publish rows at a rate, and read results on until every row has its own or nothing more comes.

    Returns p50 and p99 in milliseconds, and the rate.
    """
    log = KafkaLog(broker)
    there = Partition(results, 0)
    reader = await log.reader({there: (await log.ends([there]))[there]})
    publisher = Publisher(broker)
    await publisher.start()
    published: dict[int, float] = {}
    seen: dict[int, float] = {}
    ended = asyncio.Event()

    async def read() -> None:
        last = time.perf_counter()
        while len(seen) < len(rows):
            got = await reader.fetch([there], 10_000, 1.0)
            now = time.perf_counter()
            for fetched in got:
                for value in fetched.values:
                    seen.setdefault(_offset(value or b""), now)
                    last = now
            if ended.is_set() and now - last > SILENCE:
                return

    async def send(some: list[Row], now: float) -> None:
        for receipt in await publisher.send(topic, some):
            published[receipt.offset] = now

    reading = asyncio.create_task(read())
    began = time.perf_counter()
    sending = []
    each = max(1, round(rate * TICK))
    tick = each / rate
    for n, at in enumerate(range(0, len(rows), each)):
        await asyncio.sleep(max(0.0, began + n * tick - time.perf_counter()))
        sending.append(asyncio.create_task(send(rows[at : at + each], time.perf_counter())))
    await asyncio.gather(*sending)
    seconds = time.perf_counter() - began
    ended.set()
    await reading
    await publisher.close()
    await reader.close()
    await log.close()
    counted = [seen[o] - at for o, at in published.items() if o in seen and at >= began + WARM]
    p50, p99 = (1000 * np.percentile(counted, (50, 99))).tolist()
    return p50, p99, len(rows) / seconds


def _offset(value: bytes) -> int:
    """Of the event that a result is of: its id ends with it, and stands first."""
    return int(value[: value.index(b'"', 7)].rpartition(b"-")[2])


async def compared(seconds: float) -> list[dict[str, Any]]:
    """A row for each broker, guarantee and rate. Each has a log and a worker of its own."""
    found: list[dict[str, Any]] = []
    for name, broker in BROKERS.items():
        for guarantee in PROGRAMS:
            for rate in RATES:
                p50, p99, real = await _point(broker, guarantee, rate, seconds)
                found.append({
                    "name": f"Headrace on {'the ' if name.islower() else ''}{name}", "guarantee": guarantee,
                    "events_per_s": round(real), "p50_ms": round(p50, 2), "p99_ms": round(p99, 2),
                })  # fmt: skip
                print("{name:<30} {guarantee:<14} {events_per_s:>7,} events/s   p50 {p50_ms:>6.1f} ms   "
                      "p99 {p99_ms:>7.1f} ms".format(**found[-1]), flush=True)  # fmt: skip
    return found


async def _point(broker: Broker, guarantee: str, rate: int, seconds: float) -> tuple[float, float, float]:
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        address = await stack.enter_async_context(broker(Path(folder) / "log"))
        await ensure_topics(address, app.topics())
        await stack.enter_async_context(worker(PROGRAMS[guarantee], address, f"{folder}/worker"))
        return await measured(address, "trades", rows(int((WARM + seconds) * rate)), OURS, rate)


@asynccontextmanager
async def worker(program: str, broker: Address, folder: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A worker in a process of its own, on the last core where there are several."""
    argv = [sys.executable, "-m", "headrace.worker", program, "--broker", broker.bootstrap, "--data", folder]
    process = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE)
    try:
        os.sched_setaffinity(process.pid, {max(CORES)})
        assert process.stdout is not None
        while (line := await process.stdout.readline()) and not line.startswith(b"ready"):
            pass
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        await process.communicate()


CORES = os.sched_getaffinity(0)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.latency", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=SECONDS, help="that count, of each point")
    chosen = parser.parse_args(arguments)
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    here = machine()
    print(here, flush=True)
    if len(CORES) > 1:
        os.sched_setaffinity(0, CORES - {max(CORES)})  # the brokers' too: they are started from here
    results.keep("latency", here, results.versions(kafka=kafka.VERSION), asyncio.run(compared(chosen.seconds)))


if __name__ == "__main__":
    main()
