"""Events per second over 1 and 2 workers and 1 to 32 partitions: `python -m benchmarks.scale --workers`; six minutes.

The peers' window job (see peers.job), exactly once on one node of Apache Kafka. The workers are there and have shared
the tasks when the events come, all in one transaction; timed is from its commit to the last output, by the broker's
clock. Every output is checked by the oracle. Beside events/s stand events per second of the workers' processor time,
all workers together: what the machine's other work does not stretch. A worker has a core to itself where there are
enough; the log, the client and the rest have the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from headrace.streams.address import Address

from benchmarks.delays import CORES
from benchmarks.drawing import chart
from benchmarks.figures import apache_kafka
from benchmarks.peers.children import Children, Failed, Meter
from benchmarks.peers.engines import OUR_JOB, OUR_TOPIC, ROOT
from benchmarks.peers.job import Events, Right, events, oracle, publish
from benchmarks.peers.outputs import Outputs, Told, Wrong, check, make_topic

WORKERS, PARTITIONS = (1, 2), (1, 2, 4, 8, 16, 32)
EVENTS = 1_000_000
SHARED_WITHIN, TOLD_WITHIN = 120.0, 300.0
"""Seconds until the workers have shared the tasks; seconds until all is told of."""
SETTLED = 2.0
"""Seconds after the tasks are shared: they are restored by then, of nothing."""
QUIET = 2.0
"""Seconds without an output after the last of all."""
POLL = 0.1
GENERATION = re.compile(r"generation (\d+): runs (\d+) tasks")


async def measured(
    workers: Sequence[int] = WORKERS, partitions: Sequence[int] = PARTITIONS, count: int = EVENTS
) -> list[dict[str, Any]]:
    """A row for each number of workers and of partitions. Raises Failed, or Wrong."""
    made = events(count)
    right, found = oracle(made), []
    for number in workers:
        for parts in partitions:
            found.append(await _point(number, parts, made, right))
            print("{name:<28} {events_per_s:>10,} events/s   {events_per_processor_s:>10,} by processor time "
                  "({processor_seconds:.1f} s)".format(**found[-1]), flush=True)  # fmt: skip
    print(told(len(CORES)))
    return found


def told(cores: int) -> str:
    """What a machine of so many cores shows, and what it cannot."""
    most = max(WORKERS)
    if cores >= most + 2:
        return f"{cores} cores: each worker has one, the log and the client have others; events/s are of the workers."
    return (
        f"{cores} cores: one worker has a core, the log and the client the other. Two workers share both with the log\n"
        f"and the client: events/s cannot double, and say what this machine gives, not what workers do. What it shows\n"
        f"is the cost of an event by the workers' processor time: how much more it is with many partitions, and with\n"
        f"a second worker. That two workers take twice as many where each has a core is not shown."
    )


async def _point(number: int, partitions: int, made: Events, right: Right) -> dict[str, Any]:
    cores = sorted(CORES)
    rest = set(cores[:-number]) or set(cores)
    os.sched_setaffinity(0, rest)  # the broker's too: it is started from here
    with tempfile.TemporaryDirectory(prefix="headrace-workers-", ignore_cleanup_errors=True) as place:
        folder = Path(place)
        async with apache_kafka(folder / "kafka") as broker:
            await make_topic(broker, OUR_TOPIC, partitions)
            outputs = Outputs(broker, OUR_TOPIC, partitions)
            with contextlib.ExitStack() as stack:
                stack.callback(outputs.close)
                crew, pids = [], []
                for n in range(number):
                    own = {cores[-1 - n % len(cores)]}
                    one = stack.enter_context(Children(folder / f"worker-{n}", own, rest))
                    crew.append(one)
                    pids.append(_worker(one, broker, folder / "data", partitions))
                await _shared(crew, partitions)
                meters = [Meter(pid) for pid in pids]
                for meter in meters:
                    meter.sample()
                await publish(broker, made, partitions, at_once=True)
                began = time.time()
                await _told(outputs, len(made), crew, meters)
                all_told = outputs.read()
    check(all_told, made, right)
    return _row(number, partitions, all_told, len(made), began, meters)


def _row(number: int, partitions: int, told: Told, events: int, began: float, meters: list[Meter]) -> dict[str, Any]:
    """Raises Wrong."""
    if len(told) != events:
        raise Wrong(f"{len(told):,} of {events:,} events are told of")
    end = int(told.appended.max()) / 1000
    spent = sum(meter.between(began, end) for meter in meters)
    plural = f"{number} worker{'s' * (number > 1)}, {partitions} partition{'s' * (partitions > 1)}"
    return {
        "name": plural, "guarantee": "exactly once", "workers": number, "partitions": partitions,
        "events_per_s": round(events / (end - began)),
        "events_per_processor_s": round(events / spent) if spent else None,
        "processor_seconds": round(spent, 2),
    }  # fmt: skip


def _worker(children: Children, broker: Address, data: Path, partitions: int) -> int:
    command = [sys.executable, "-m", "headrace.worker", OUR_JOB, "--broker", broker.bootstrap, "--data", str(data)]
    environment = {"PYTHONPATH": str(ROOT), "PARTITIONS": str(partitions)}
    return children.start("worker", command, worker=True, environment=environment).pid


async def _shared(crew: Sequence[Children], partitions: int) -> None:
    """Return once the workers are in one generation, and every task is one's. Raises Failed."""
    until = time.monotonic() + SHARED_WITHIN
    while True:
        last = [GENERATION.findall((one.folder / "worker.log").read_text())[-1:] for one in crew]
        lines = [(int(generation), int(runs)) for [(generation, runs)] in filter(None, last)]
        together = len(lines) == len(crew) and len({generation for generation, _ in lines}) == 1
        if together and sum(runs for _, runs in lines) == partitions:
            await asyncio.sleep(SETTLED)
            return
        for one in crew:
            one.check()
        if time.monotonic() > until:
            raise Failed(f"the workers do not share the tasks: {'; '.join(one.said('worker') for one in crew)}")
        await asyncio.sleep(POLL)


async def _told(outputs: Outputs, events: int, crew: Sequence[Children], meters: Sequence[Meter]) -> None:
    """Return once so many records, and no more, are told. Raises Failed."""
    began = moved = time.monotonic()
    before = 0
    while True:
        for meter in meters:
            meter.sample()
        end, now = outputs.end(), time.monotonic()
        if end > before:
            before, moved = end, now
        if end >= events and now - moved > QUIET:
            return
        for one in crew:
            one.check()
        if now - began > TOLD_WITHIN:
            raise Failed(f"{end:,} of {events:,} events are told of after {TOLD_WITHIN:.0f} s")
        await asyncio.sleep(POLL)


def draw(rows: Sequence[dict[str, Any]]) -> str:
    """An SVG of both rates over the partitions."""
    lines = {}
    for what, name in (("events_per_processor_s", ", by processor"), ("events_per_s", "")):
        for number in dict.fromkeys(row["workers"] for row in rows):
            mine = [row for row in rows if row["workers"] == number]
            points = [(row["partitions"], row[what] / 1000) for row in mine]
            lines[f"{number} worker{'s' * (number > 1)}{name}"] = points
    title = f"The window job on Kafka, {len(CORES)} cores for workers, log and client"
    return chart(title, "partitions", "thousand events/s", lines)
