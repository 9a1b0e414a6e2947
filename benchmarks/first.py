"""The first event of a worker that has just started, beside those that follow: `python -m benchmarks.latency --first`.

On an empty log one event after the other is published, each once the last is told of: milliseconds from publishing to
the committed result, of the first, and the median of the next hundred. With compiled kernels in numba's cache, as on
every start but a machine's first, and with an empty cache: then the start takes longer and says so, and the first event
waits no longer for it: nothing may come into the cache after the worker is ready. A worker is ready once it has its
tasks; they open their transactions and their state then, which an event that comes at once waits for too, and one that
comes two seconds later does not. The client has been at work before, on a topic of its own. Three minutes.
"""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

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
SETTLED = 2.0
"""Seconds after which a task of no state is open."""

Measured = dict[str, Any]


class Case(NamedTuple):
    """empty: whether numba's cache is; later: seconds from ready to the first event."""

    name: str
    empty: bool
    later: float


CASES = (
    Case("kernels in the cache, at once", False, 0.0),
    Case("kernels in the cache", False, SETTLED),
    Case("an empty cache", True, SETTLED),
)


async def compared(brokers: Mapping[str, Broker] = BROKERS, cases: Sequence[Case] = CASES) -> list[Measured]:
    """A row for each broker and case. Raises RuntimeError where a kernel is compiled after the worker is ready."""
    found = []
    for name, broker in brokers.items():
        for case in cases:
            with tempfile.TemporaryDirectory() as folder:
                row = await _started(broker, Path(folder), case)
            where = f"Headrace on {'the ' if name.islower() else ''}{name}"
            found.append({"name": where, "guarantee": "exactly once", "case": case.name, **row})
            print("{name:<28} {case:<30} ready after {ready_s:>5.1f} s; the first event {first_ms:>6.1f} ms, the next "
                  "hundred {next_p50_ms:>6.1f} ms (p50), {next_most_ms:>6.1f} ms (most)".format(**found[-1]),
                  flush=True)  # fmt: skip
            for line in row["said"]:
                print(f"    {line}", flush=True)
    return found


async def _started(broker: Broker, folder: Path, case: Case) -> Measured:
    async with broker(folder / "log") as address:
        await ensure_topics(address, [*app.topics(), Topic(WARM_UP, "event", 1)])
        argv = [sys.executable, "-m", "headrace.worker", "benchmarks.window", "--broker", address.bootstrap]
        cache = folder / "kernels"
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache)} if case.empty else None
        began = time.perf_counter()
        process = await asyncio.create_subprocess_exec(
            *argv, "--data", str(folder / "worker"), stdout=asyncio.subprocess.PIPE, env=environment
        )
        try:
            os.sched_setaffinity(process.pid, {max(CORES)})
            said = await asyncio.wait_for(_until_ready(process), READY_WITHIN)
            ready, kernels = time.perf_counter() - began, _files(cache)
            await asyncio.sleep(case.later)
            first, *following = await _one_by_one(address)
        finally:
            process.send_signal(signal.SIGTERM)
            await process.communicate()
        if late := _files(cache) - kernels:
            raise RuntimeError(f"compiled after the worker was ready: {', '.join(sorted(map(str, late)))}")
    return {
        "ready_s": round(ready, 1), "first_ms": round(first, 2), "next_p50_ms": round(statistics.median(following), 2),
        "next_most_ms": round(max(following), 2), "said": said,
    }  # fmt: skip


def _files(cache: Path) -> set[tuple[str, int]]:
    """What numba has written, and when."""
    return {(file.name, file.stat().st_mtime_ns) for file in cache.rglob("*.nb?")}


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
