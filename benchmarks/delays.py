"""Events published at a rate, and when a reader of what is committed has what is told of each."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Hashable, Sequence
from contextlib import asynccontextmanager

import numpy as np
from headrace.streams.address import Address
from headrace.streams.kafka import KafkaLog
from headrace.streams.log import Partition
from headrace.streams.publisher import Publisher, Row

RATE = 1_000
TICK = 0.01
"""Seconds between calls to publish."""
WARM = 5.0
"""Seconds before the first latency counts."""
WARM_RATE, WARM_SECONDS = 20_000, 30.0
"""Events/s, and for how long, before anything is measured: a JVM compiles what it runs often."""
SILENCE = 10.0
"""Seconds without a result after which the rest is given up: what is rejected gets none."""
CORES = os.sched_getaffinity(0)

Name = Callable[[bytes], Hashable]
"""Of an event, alike from its own value and from what is told of it."""


async def measured(
    broker: Address, topic: str, rows: Sequence[Row], results: str, rate: float = RATE, name: Name | None = None
) -> tuple[float, float, float]:
    """Publish rows at a rate, and read results on until every row has its own or nothing more comes.

    name: of an event; left out, its offset, with which the ids of our own results end

    Returns p50 and p99 in milliseconds, and the rate.
    """
    log = KafkaLog(broker)
    there = Partition(results, 0)
    reader = await log.reader({there: (await log.ends([there]))[there]})
    publisher = Publisher(broker)
    await publisher.start()
    published: dict[Hashable, float] = {}
    seen: dict[Hashable, float] = {}
    wanted = {name(row.value) for row in rows} if name else None
    told = name or _offset
    ended = asyncio.Event()

    async def read() -> None:
        last = time.perf_counter()
        while len(seen) < len(rows):
            got = await reader.fetch([there], 10_000, 1.0)
            now = time.perf_counter()
            for fetched in got:
                for value in fetched.values:
                    one = told(value or b"")
                    if wanted is None or one in wanted:
                        seen.setdefault(one, now)
                    last = now
            if ended.is_set() and now - last > SILENCE:
                return

    async def send(some: Sequence[Row], now: float) -> None:
        receipts = await publisher.send(topic, some)
        for row, receipt in zip(some, receipts, strict=True):
            published[name(row.value) if name else receipt.offset] = now

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
