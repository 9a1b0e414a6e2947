"""Whole batches beside single records: `python -m benchmarks.transport [--rounds N] [--only "local broker"|Kafka]`.

Each figure is of one client, reading or writing one partition at some limit of records a call, by both transports in
turn within a round, in changing order; ratios are of one round. Time is the wall's; processor time is of the client's
process alone, in nanoseconds a record. Reading is told for columns that nobody looks at, and for those taken apart into
byte strings; writing is of one `Block` a call, beside as many `Record`s.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import uvloop
from headrace.streams.address import Address
from headrace.streams.batch import Block, Record
from headrace.streams.kafka import TRANSPORT, TRANSPORTS, KafkaLog
from headrace.streams.log import Partition, Sender
from headrace.streams.spans import Spans

from benchmarks.broker import nothing, paced, topic
from benchmarks.figures import BROKERS, machine

SIZE = 100
"""Bytes of a value."""
LIMITS = {1: 3_000, 100: 100_000, 2_000: 400_000, 10_000: 400_000}
"""How many records are read, or written, at a limit."""

PACED = 500
"""Records of a latency."""

Cost = tuple[float, float]
"""Seconds, and seconds of the processor."""


class Costs:
    """Of a stretch of work."""

    def __init__(self) -> None:
        gc.collect()
        self._began = time.perf_counter(), time.process_time()

    def told(self) -> Cost:
        return time.perf_counter() - self._began[0], time.process_time() - self._began[1]


def opened(address: Address, transport: str) -> KafkaLog:
    os.environ[TRANSPORT] = transport
    return KafkaLog(address)


def pairs(count: int) -> tuple[list[bytes | None], list[bytes | None]]:
    return [b"k%d" % (n % 1_000) for n in range(count)], [b"%0*d" % (SIZE, n) for n in range(count)]


def outputs(name: str, count: int, transport: str) -> list[Record | Block]:
    keys, values = pairs(count)
    if transport == "batches":
        return [Block(name, Spans.of(keys), Spans.of(values), 0)]
    return [Record(name, key, value, 0) for key, value in zip(keys, values, strict=True)]


async def reading(address: Address, transport: str, name: str, limit: int, apart: bool) -> Cost:
    log, partition = opened(address, transport), Partition(name, 0)
    reader = await log.reader({partition: 0})
    cost, left = Costs(), LIMITS[limit]
    while left > 0:
        for fetched in await reader.fetch([partition], limit, 1.0):
            left -= len(fetched)
            if apart:
                list(fetched.keys), list(fetched.values)
    told = cost.told()
    await reader.close()
    await log.close()
    return told


async def writing(address: Address, transport: str, limit: int) -> Cost:
    log, name = opened(address, transport), await topic(address)
    sender = await log.sender()
    sent = outputs(name, limit, transport)
    cost = Costs()
    for _ in range(LIMITS[limit] // limit):
        await sender.send(sent, 0)
    told = cost.told()
    await sender.close()
    await log.close()
    return told


async def latency(address: Address, transport: str) -> Cost:
    """Median seconds from the sending of one record to its arrival at a reader that waits for it, and what it costs."""
    log, name = opened(address, transport), await topic(address)
    partition = Partition(name, 0)
    sender, reader = await log.sender(), await log.reader({partition: 0})
    sent = outputs(name, 1, transport)

    async def through() -> None:
        sending = asyncio.create_task(sender.send(sent, 0))
        while not any(len(f) for f in await reader.fetch([partition], 100, 1.0)):
            pass
        await sending

    await paced(through, 100, nothing)
    cost = Costs()
    taken = await paced(through, PACED, nothing)
    _, busy = cost.told()
    await sender.close()
    await reader.close()
    await log.close()
    return statistics.median(taken) / 1000, busy / PACED


async def filled(sender: Sender, name: str, size: int, count: int) -> None:
    """A topic in batches of so many records."""
    for _ in range(count // size):
        await sender.send(outputs(name, size, "batches"), 0)


async def measured(address: Address, rounds: int) -> None:
    log = opened(address, "batches")
    sender = await log.sender()
    large, single = await topic(address), await topic(address)
    await filled(sender, large, 5_000, max(LIMITS.values()))
    await filled(sender, single, 1, LIMITS[1])
    await sender.close()
    await log.close()

    jobs: dict[str, tuple[int, Callable[[str], Awaitable[Cost]]]] = {}
    for limit in LIMITS:
        jobs[f"read, at most {limit:,}"] = limit, lambda t, x=limit: reading(address, t, large, x, False)  # type: ignore[misc]
        jobs[f"read, at most {limit:,}, taken apart"] = limit, lambda t, x=limit: reading(address, t, large, x, True)  # type: ignore[misc]
        jobs[f"write, {limit:,} a call"] = limit, lambda t, x=limit: writing(address, t, x)  # type: ignore[misc]
    jobs["read batches of one record, at most 1"] = 1, lambda t: reading(address, t, single, 1, True)

    costs: dict[tuple[str, str], list[Cost]] = defaultdict(list)
    latencies: dict[str, list[Cost]] = defaultdict(list)
    for turn in range(rounds + 1):
        for transport in TRANSPORTS if turn % 2 else TRANSPORTS[::-1]:
            latencies[transport].append(await latency(address, transport))
        for name, (_, job) in jobs.items():
            for transport in TRANSPORTS if turn % 2 else TRANSPORTS[::-1]:
                costs[name, transport].append(await job(transport))
    each = f"{'records/s':>14} {'ns/record':>11}"
    print(f"{'':<40} {'batches':>26} {'records':>26} {'ratio of':>9}")
    print(f"{'':<40} {each} {each} {'speed':>9} {'processor':>9}")
    for name, (limit, _) in jobs.items():
        count = LIMITS[limit]
        # The first round warms.
        ours, theirs = (costs[name, t][1:] for t in TRANSPORTS)
        told = [
            f"{count / statistics.median(wall for wall, _ in c):>14,.0f} "
            f"{statistics.median(busy for _, busy in c) / count * 1e9:>11,.0f}"
            for c in (ours, theirs)
        ]
        speed = statistics.median(b[0] / a[0] for a, b in zip(ours, theirs, strict=True))
        busy = statistics.median(b[1] / a[1] for a, b in zip(ours, theirs, strict=True))
        print(f"{name:<40} {told[0]} {told[1]} {speed:>9.2f} {busy:>9.2f}")
    for n, what in enumerate(("one record through, median", "  processor time of it")):
        one, other = ([c[n] for c in latencies[t][1:]] for t in TRANSPORTS)
        ratio = statistics.median(b / a for a, b in zip(one, other, strict=True))
        both = f"{statistics.median(one) * 1e6:>23,.0f} us {statistics.median(other) * 1e6:>23,.0f} us"
        print(f"{what:<40} {both} {ratio:>9.2f}", flush=True)


async def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.transport")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=BROKERS)
    chosen = parser.parse_args(arguments)
    print(f"{machine()}; the median of {chosen.rounds}")
    for name, broker in BROKERS.items():
        if chosen.only in (None, name):
            with tempfile.TemporaryDirectory() as folder:
                async with broker(Path(folder)) as address:
                    print(f"\n{name}", flush=True)
                    await measured(address, chosen.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(uvloop.run(main()))
