"""The main job: the returns example over its whole file, exactly once on the local broker, beside a bare Python loop.

`python -m benchmarks.main [--file sample | full] [--repeats N]`. All lines lie on the log before the worker starts;
timed is from there until every order is predicted, every outcome that can be known is learnt, and all is committed.
The worker has one core, the broker the other. The loop (`benchmarks.bare`) has the same features and the same river
model, no log and no state, and a core to itself.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from headrace.streams.address import Address
from headrace.streams.admin import ensure_topics
from headrace.streams.kafka import KafkaLog
from headrace.streams.log import Partition
from headrace.streams.publisher import Publisher

from benchmarks import bare, results
from benchmarks.delays import CORES, worker
from benchmarks.figures import local_broker, machine
from benchmarks.latency import EXAMPLE
from headrace import plan

AT_ONCE = 2_000
"""Lines published at once."""

POLL = 0.1
QUIET = 60.0
"""Seconds without a commit after which a run is given up."""


async def pipeline(lines: list[Any], folder: Path) -> tuple[float, float]:
    """Seconds of the clock, and of the worker's processor, to the last commit."""
    async with local_broker(folder / "log") as broker:
        await ensure_topics(broker, bare.APP.topics())
        await publish(broker, lines)
        async with worker(str(EXAMPLE / "pipeline.py"), broker, str(folder / "worker")) as process:
            began, spent = time.perf_counter(), processor(process.pid)
            await _done(broker)
            return time.perf_counter() - began, processor(process.pid) - spent


def processor(pid: int) -> float:
    """Seconds of the processor that a process has had."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def publish(broker: Address, lines: list[Any]) -> None:
    publisher = Publisher(broker)
    await publisher.start()
    for topic in ("orders", "returns"):
        rows = [line.row for line in lines if line.topic == topic]
        for at in range(0, len(rows), AT_ONCE):
            await publisher.send(topic, rows[at : at + AT_ONCE])
    await publisher.close()


async def _done(broker: Address) -> None:
    """Return when every stage has taken all that lies on its topics. Raises RuntimeError where it does not go on."""
    log = KafkaLog(broker)
    stages = plan.stages(bare.APP)
    moved, before = time.monotonic(), -1
    try:
        while True:
            left = taken = 0
            for stage in stages:  # upstream first: what one has yet to publish, the next has yet to take
                inputs = [Partition(topic, 0) for topic in stage.inputs]
                committed = await log.committed(stage.group, inputs)
                ends = await log.ends(inputs)
                left += sum(max(0, ends[p] - committed.get(p, 0) - MARKERS) for p in inputs)
                taken += sum(committed.values())
            if not left:
                return
            if taken != before:
                moved, before = time.monotonic(), taken
            elif time.monotonic() - moved > QUIET:
                raise RuntimeError(f"the worker stands still with {left:,} records before it")
            await asyncio.sleep(POLL)
    finally:
        await log.close()


MARKERS = 1
"""A transaction's marker at a topic's end, which nobody takes."""


def loop(which: str) -> float:
    """Seconds of the processor that the bare loop takes, in a process of its own."""
    argv = [sys.executable, "-m", "benchmarks.bare", which]
    told = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    return float(json.loads(told.splitlines()[-1])["processor_seconds"])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.main", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--file", choices=("sample", "full"), default="full")
    parser.add_argument("--repeats", type=int, default=3, help="the median of so many is told")
    chosen = parser.parse_args(arguments)
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    here = machine()
    print(here, flush=True)
    if len(CORES) > 1:
        os.sched_setaffinity(0, CORES - {max(CORES)})  # the broker's too: it is started from here
    lines = bare.retail_lines(chosen.file)
    found: dict[str, list[float]] = {name: [] for name in NAMES}
    for _ in range(chosen.repeats):
        found["loop"].append(len(lines) / loop(chosen.file))
        with tempfile.TemporaryDirectory() as folder:
            clock, spent = asyncio.run(pipeline(lines, Path(folder)))
        found["clock"].append(len(lines) / clock)
        found["processor"].append(len(lines) / spent)
    rows = []
    base = statistics.median(found["loop"])
    for name, values in found.items():
        rate = statistics.median(values)
        what, guarantee = NAMES[name]
        rows.append({
            "name": what, "guarantee": guarantee, "events_per_s": round(rate), "least": round(min(values)),
            "most": round(max(values)), "times_the_loop": round(rate / base, 2),
        })  # fmt: skip
        spread = f"({min(values):,.0f} to {max(values):,.0f})"
        print(f"{what:<58} {rate:>9,.0f} events/s  {spread:<22} {rate / base:.2f} times the loop", flush=True)
    if chosen.file == "full":
        results.keep("main", here, results.versions(), rows)


NAMES = {
    "loop": ("bare Python loop, river, no log", "none"),
    "clock": ("Headrace, every line predicted, joined, learnt, judged", "exactly once"),
    "processor": ("the same, by the worker's processor time", "exactly once"),
}


if __name__ == "__main__":
    main()
