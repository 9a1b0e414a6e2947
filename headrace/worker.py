"""A worker: the tasks of an application in one process, on one event loop.

python -m headrace.worker PROGRAM --broker HOST:PORT --data DIR
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import logging
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge

from headrace import plan, program
from headrace.app import App
from headrace.streams import kernels, metrics, runner
from headrace.streams.errors import CannotGoOn, HeadraceError
from headrace.streams.inputs import MAX_BUFFERED_BYTES, MAX_BUFFERED_ROWS
from headrace.streams.kafka import KafkaLog
from headrace.streams.parent import watch_parent
from headrace.streams.runner import Runner
from headrace.streams.store import RocksStore
from headrace.supervisor import FINAL, NOTE

logger = logging.getLogger("headrace.worker")

REPORT_EVERY = 1.0
"""Seconds between updates of the exported metrics."""

NOTE_AFTER = 1.5
"""Seconds of silence before the worker says what it waits for; reading compiled kernels takes less."""

STOP_WITHIN = 10.0
"""Seconds that a stopping worker gives its tasks to end the cycle they are in; then it leaves, crash-only."""

REGISTRY = CollectorRegistry()


def _gauge(name: str, told: str, over: str = "partition") -> Gauge:
    return Gauge(f"headrace_task_{name}", told, ["task", over], registry=REGISTRY)


ROWS = _gauge("rows", "Rows taken since the task started")
COMMITS = _gauge("commits", "Transactions committed")
RECORDS = _gauge("records", "Records produced")
RESTARTS = _gauge("restarts", "Starts after a failure; this many in a row are bounded by max_retries")
BUFFERED = _gauge("buffered_rows", "Rows decoded and waiting, bounded by max_buffered_rows", "topic")
WATERMARK = _gauge("watermark_seconds", "The task's watermark")
BOUNDS = {
    "max_batch_rows": runner.MAX_BATCH_ROWS,
    "fetch_rows": runner.FETCH_ROWS,
    "max_buffered_rows": MAX_BUFFERED_ROWS,
    "max_buffered_bytes": MAX_BUFFERED_BYTES,
    "max_retries": runner.MAX_RETRIES,
}


class SystemClock:
    """Monotonic time and real sleep."""

    def now(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def runners(app: App, log: KafkaLog, data: Path) -> list[Runner]:
    """A runner for each partition of each stage. Raises StateError where another worker holds the state."""
    made = []
    for stage in plan.stages(app):
        for number in range(stage.partitions):
            store = RocksStore(data / "state" / f"{stage.name}-{number}")
            task, follows = stage.build(number, store)
            made.append(Runner(task, log, SystemClock(), stage.group, follows, ahead=stage.ahead))
    return made


async def serve(app: App, broker: str, data: Path) -> None:
    """Run every task until SIGTERM or SIGINT, or until one fails for good: then its error is raised."""
    log = KafkaLog(broker.removeprefix("kafka://"), client_id=f"headrace-{app.name}")
    tasks = runners(app, log, data)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    running = [asyncio.create_task(r.run(), name=r.task.name) for r in tasks]
    reporting = asyncio.create_task(_report(tasks))
    stopped = asyncio.create_task(stopping.wait())
    print(f"ready: {len(tasks)} tasks of {app.name}", flush=True)
    try:
        done, _ = await asyncio.wait([*running, stopped], return_when=asyncio.FIRST_COMPLETED)
        for failed in done - {stopped}:
            failed.result()
    finally:
        for one in tasks:
            one.stop()
        _, left = await asyncio.wait(running, timeout=STOP_WITHIN)
        for task in [*left, reporting, stopped]:
            task.cancel()
        with contextlib.suppress(HeadraceError):
            await log.close()
        for one in tasks:
            one.task.close()


async def _report(tasks: Sequence[Runner]) -> None:
    while True:
        for r in tasks:
            label = (r.task.name, str(r.task.number))
            ROWS.labels(*label).set(r.progress.rows)
            COMMITS.labels(*label).set(r.progress.commits)
            RECORDS.labels(*label).set(r.progress.records)
            RESTARTS.labels(*label).set(r.progress.restarts)
            WATERMARK.labels(*label).set(r.task.merge.watermark / 1e6)
            for source in r.task.inputs:
                BUFFERED.labels(r.task.name, source.partition.topic).set(source.buffered)
        await asyncio.sleep(REPORT_EVERY)


def warm_up() -> None:
    """Compile the kernels, or read them from the cache, before the first batch. A note says so where it takes time."""
    began, noted = time.monotonic(), False

    def progress(_: str, done: int, every: int) -> None:
        nonlocal noted
        if not noted and done < every and time.monotonic() - began > NOTE_AFTER:
            noted = True
            print(f"{NOTE}compiling {every} kernels (once on this machine; about half a minute)", flush=True)

    kernels.warm(progress)


def run(app_program: str, broker: str, data: Path, parent_fd: int | None = None, metrics_port: int = 0) -> None:
    """The life of a worker process."""
    watch_parent(parent_fd)
    app = program.load(app_program)
    warm_up()
    if metrics_port:
        metrics.describe_process(REGISTRY, "worker", BOUNDS)
        metrics.serve(REGISTRY, metrics_port)
    # Few objects live long here and none in cycles: rare collections, and none of what start-up made.
    gc.collect()
    gc.freeze()
    gc.set_threshold(200_000, 20, 100)
    try:
        import uvloop

        uvloop.run(serve(app, broker, data))
    except ImportError:
        asyncio.run(serve(app, broker, data))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="headrace worker", description="Run the tasks of a program.")
    parser.add_argument("program")
    parser.add_argument("--broker", required=True, metavar="HOST:PORT")
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--parent-fd", type=int)
    parser.add_argument("--metrics-port", type=int, default=0)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    logging.getLogger("aiokafka").setLevel(logging.WARNING)
    try:
        run(options.program, options.broker, options.data, options.parent_fd, options.metrics_port)
    except HeadraceError as error:
        print(f"worker stopped: {error}", file=sys.stderr, flush=True)
        return FINAL if isinstance(error, CannotGoOn) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
