"""A soak: the window job at full rate on the local broker, and whether memory stays as it is.

`python -m benchmarks.soak [--seconds N]`. Events come as fast as the worker takes them; what was taken is deleted from
the log behind it, so that the disk stays as it is too. Memory is what processes hold of their own (RssAnon), of the
worker and of the broker; it is flat where the most of the second half is at most a tenth above the most of the quarter
before it.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from headrace.streams.address import Address
from headrace.streams.admin import ensure_topics
from headrace.streams.batch import Block
from headrace.streams.expressions import Type
from headrace.streams.jsonrows import joined, printed
from headrace.streams.kafka import KafkaLog
from headrace.streams.log import Partition
from headrace.streams.spans import Spans, woven

from benchmarks import results
from benchmarks.delays import CORES, worker
from benchmarks.figures import local_broker, machine
from benchmarks.window import KEYS, OURS, PER_SECOND, app
from headrace import plan

SECONDS = 1_200.0
CHUNK = 20_000
"""Events published at once."""
AHEAD = 400_000
"""Events on the log that the worker has not taken yet, at most."""
SAMPLE = 5.0
"""Seconds between two samples of memory; what was taken is deleted as often."""
FLAT = 1.1
TRADES, FEATURES = Partition("trades", 0), Partition(OURS, 0)


def chunk(first: int, random: np.random.Generator) -> Block:
    """So many events from a number on, in event-time order."""
    symbol, quantity = random.integers(0, KEYS, CHUNK), random.integers(1, 1000, CHUNK)
    keys = woven([b"s", b""], [printed(symbol, Type("int", False))])
    at = 1_767_225_600_000_000 + (first + np.arange(CHUNK)) * (1_000_000 // PER_SECOND)
    columns = {
        "symbol": woven([b'"', b'"'], [keys]),
        "quantity": printed(quantity, Type("int", False)),
        "price": printed(quantity / 8, Type("float", False)),
        "at": printed(at, Type("time", False)),
    }
    return Block(TRADES.topic, Spans(keys.data, keys.start, keys.length), joined(columns), TRADES.number)


def memory(pid: int) -> float:
    """Megabytes of its own that a process holds."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"process {pid} tells nothing of its memory")


async def soak(seconds: float) -> tuple[float, list[tuple[float, float]]]:
    """Events a second, and megabytes of worker and broker at each sample."""
    samples: list[tuple[float, float]] = []
    [stage] = plan.stages(app)
    with tempfile.TemporaryDirectory() as folder:
        async with local_broker(Path(folder) / "log") as broker:
            await ensure_topics(broker, app.topics())
            [serving] = _children("headrace.streams.broker")
            async with worker("benchmarks.window", broker, f"{folder}/worker") as process:
                log = KafkaLog(broker)
                sender, random = await log.sender(), np.random.default_rng(7)
                began = last = time.monotonic()
                sent = taken = 0
                while time.monotonic() - began < seconds:
                    if sent - taken < AHEAD:
                        await sender.send([chunk(sent, random)], 0)
                        sent += CHUNK
                    else:
                        await asyncio.sleep(0.02)
                        taken = (await log.committed(stage.group, [TRADES])).get(TRADES, 0)
                    if time.monotonic() - last >= SAMPLE:
                        last = time.monotonic()
                        samples.append((memory(process.pid), memory(serving)))
                        await _forget(broker, {TRADES: taken, FEATURES: (await log.ends([FEATURES]))[FEATURES]})
                        print(f"{last - began:>6.0f} s  {taken:>13,} events  worker {samples[-1][0]:>6.0f} MB  "
                              f"broker {samples[-1][1]:>6.0f} MB", flush=True)  # fmt: skip
                rate = taken / (time.monotonic() - began)
                await sender.close()
                await log.close()
    return rate, samples


def _children(module: str) -> list[int]:
    """The processes that this one started with a module."""
    mine = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return [int(pid) for pid in mine if module in Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")]


async def _forget(broker: Address, before: dict[Partition, int]) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=broker.bootstrap)
    await admin.start()
    try:
        await admin.delete_records({TopicPartition(*p): RecordsToDelete(offset) for p, offset in before.items()})
    finally:
        await admin.close()


def flat(megabytes: Sequence[float]) -> bool:
    """Whether the most of the second half is hardly above the most of the quarter before it."""
    half = len(megabytes) // 2
    return max(megabytes[half:]) <= FLAT * max(megabytes[half // 2 : half])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=SECONDS)
    chosen = parser.parse_args(arguments)
    if chosen.seconds < 8 * SAMPLE:
        parser.error(f"--seconds must be at least {8 * SAMPLE:.0f}: of fewer samples nothing can be said")
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    here = machine()
    print(here, flush=True)
    if len(CORES) > 1:
        os.sched_setaffinity(0, CORES - {max(CORES)})
    rate, samples = asyncio.run(soak(chosen.seconds))
    rows = []
    for name, megabytes in zip(("worker", "broker"), zip(*samples, strict=True), strict=True):
        half = len(megabytes) // 2
        before, after = max(megabytes[half // 2 : half]), max(megabytes[half:])
        verdict = "flat" if flat(megabytes) else "NOT FLAT"
        print(f"{name}: {after:,.0f} MB at most in the second half, {before:,.0f} in the quarter before it: {verdict}")
        rows.append({"name": name, "guarantee": "exactly once", "seconds": chosen.seconds, "events_per_s": round(rate),
                     "megabytes_before": round(before), "megabytes_after": round(after)})  # fmt: skip
    print(f"{rate:,.0f} events/s")
    if chosen.seconds >= SECONDS:
        results.keep("soak", here, results.versions(), rows)
    return 0 if all(flat(megabytes) for megabytes in zip(*samples, strict=True)) else 1


if __name__ == "__main__":
    sys.exit(main())
