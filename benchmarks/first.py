"""The first event of a worker that has just started, beside those that follow: `python -m benchmarks.latency --first`.

On an empty log, once the worker says that it is ready, one event after the other is published, each once the last is
told of: milliseconds from publishing to the committed result, of the first, and the median of the next hundred. Once
with compiled kernels in numba's cache, as on every start but a machine's first, and once with an empty cache: then the
start takes longer and says so, and the first event waits no longer for it. The client has been at work before, on a
topic of its own. A minute and a half.
"""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headrace.streams.address import Address
from headrace.streams.admin import ensure_topics
from headrace.streams.kafka import KafkaLog
from headrace.streams.log import Partition, Reader
from headrace.streams.publisher import Publisher, Row
from headrace.streams.topics import Topic

from benchmarks.delays import CORES
from benchmarks.figures import BROKERS, Broker
from benchmarks.window import OURS, app, rows

FOLLOWING = 100
PAUSE = 0.01
"""Seconds after a result before the next event."""
TOLD_WITHIN = 60.0
READY_WITHIN = 600.0
WARM_UP = "warm-up"
"""The client's own topic."""
CACHES = ("kernels in the cache", "an empty cache")

Measured = dict[str, Any]


async def compared(brokers: Mapping[str, Broker] = BROKERS, caches: tuple[str, ...] = CACHES) -> list[Measured]:
    """A row for each broker and cache."""
    found = []
    for name, broker in brokers.items():
        for cache in caches:
            with tempfile.TemporaryDirectory() as folder:
                row = await _started(broker, Path(folder), cache == CACHES[1])
            where = f"Headrace on {'the ' if name.islower() else ''}{name}"
            found.append({"name": where, "guarantee": "exactly once", "case": cache, **row})
            print("{name:<28} {case:<22} ready after {ready_s:>5.1f} s; the first event {first_ms:>6.1f} ms, the next "
                  "hundred {next_p50_ms:>6.1f} ms (p50), {next_most_ms:>6.1f} ms (most)".format(**found[-1]),
                  flush=True)  # fmt: skip
            for line in row["said"]:
                print(f"    {line}", flush=True)
    return found


async def _started(broker: Broker, folder: Path, empty: bool) -> Measured:
    async with broker(folder / "log") as address:
        await ensure_topics(address, [*app.topics(), Topic(WARM_UP, "event", 1)])
        argv = [sys.executable, "-m", "headrace.worker", "benchmarks.window", "--broker", address.bootstrap]
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(folder / "kernels")} if empty else None
        began = time.perf_counter()
        process = await asyncio.create_subprocess_exec(
            *argv, "--data", str(folder / "worker"), stdout=asyncio.subprocess.PIPE, env=environment
        )
        try:
            os.sched_setaffinity(process.pid, {max(CORES)})
            said = await asyncio.wait_for(_until_ready(process), READY_WITHIN)
            ready = time.perf_counter() - began
            first, *following = await _one_by_one(address)
        finally:
            process.send_signal(signal.SIGTERM)
            await process.communicate()
    return {
        "ready_s": round(ready, 1), "first_ms": round(first, 2), "next_p50_ms": round(statistics.median(following), 2),
        "next_most_ms": round(max(following), 2), "said": said,
    }  # fmt: skip


async def _until_ready(process: asyncio.subprocess.Process) -> list[str]:
    """What it says until it is. Raises RuntimeError where it ends before."""
    said = []
    assert process.stdout is not None
    while line := (await process.stdout.readline()).decode().strip():
        said.append(line)
        if line.startswith("ready"):
            return said
    raise RuntimeError(f"the worker ended before it was ready; it said {said}")


async def _one_by_one(address: Address) -> list[float]:
    """Milliseconds of each event, the first first."""
    log, publisher = KafkaLog(address), Publisher(address)
    features, own = Partition(OURS, 0), Partition(WARM_UP, 0)
    reader = await log.reader({features: 0, own: 0})
    await publisher.start()
    await publisher.check("trades")
    made = rows(FOLLOWING + 1)
    for row in made[:FOLLOWING]:
        await _told(publisher, reader, WARM_UP, own, row)
    found = []
    for row in made:
        found.append(1000 * await _told(publisher, reader, "trades", features, row))
        await asyncio.sleep(PAUSE)
    await publisher.close()
    await reader.close()
    await log.close()
    return found


async def _told(publisher: Publisher, reader: Reader, topic: str, there: Partition, row: Row) -> float:
    """Seconds from publishing a row to a record there. Raises TimeoutError."""
    began = time.perf_counter()
    async with asyncio.timeout(TOLD_WITHIN):
        await publisher.send(topic, [row])
        while not any(len(fetched) for fetched in await reader.fetch([there], 10, 1.0)):
            pass
    return time.perf_counter() - began
