"""A worker: tasks of an application in one process, on one event loop. Started several times, workers share the tasks.

python -m headrace.worker PROGRAM --broker HOST:PORT --data DIR
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
import time
import uuid
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Gauge

from headrace import plan, program
from headrace.app import App
from headrace.errors import StackError
from headrace.presence import Cleaner, Presence
from headrace.running import BROKER
from headrace.streams import kernels, metrics, runner
from headrace.streams.address import parse_address
from headrace.streams.admin import ensure_topics, watch_topics
from headrace.streams.errors import CannotGoOn, HeadraceError
from headrace.streams.fleet import Fleet
from headrace.streams.inputs import MAX_BUFFERED_BYTES, MAX_BUFFERED_ROWS
from headrace.streams.kafka import KafkaLog
from headrace.streams.membership import Membership
from headrace.streams.memory import DEFAULT, Memory, parse_size
from headrace.streams.parent import watch_parent
from headrace.streams.slots import Slot
from headrace.streams.workers import TOPIC, WorkerStatus
from headrace.supervisor import FINAL, NOTE, Child, Supervisor

with warnings.catch_warnings():
    # It uses what newer Pythons and its own dependencies have deprecated.
    warnings.simplefilter("ignore")
    from mode import Service

logger = logging.getLogger("headrace.worker")

STATE_MEMORY = "HEADRACE_STATE_MEMORY"
"""Where a worker that a stack starts finds its bound of hot state."""

METRICS_PORT = 9464
"""Where a worker's metrics are by custom."""

REPORT_EVERY = 1.0
"""Seconds between updates of the exported metrics."""

NOTE_AFTER = 1.5
"""Seconds of silence before the worker says what it waits for; reading compiled kernels takes less."""

AGENTS_READY = 60.0
"""Seconds for the program's Faust app to join its group: it waits for the others of its group."""

AGENTS_AGAIN = 60.0
"""Seconds after which agents are tried again that died too often; the tasks go on all the while."""

OPEN_WITHIN = 5.0
"""Seconds before the worker says that it is ready though some of its tasks still read their changelogs: until they are
open an event waits, and a large state takes its time, which `headrace status` tells."""

LOOK_EVERY = 0.02
"""Seconds between looks whether they are open."""

GIVES_UP_WITHIN = 10.0
"""Seconds that tasks get to end their cycles once a topic is gone, for which some of them wait."""

REGISTRY = CollectorRegistry()


def _gauge(name: str, told: str, over: str = "partition") -> Gauge:
    return Gauge(f"headrace_task_{name}", told, ["task", over], registry=REGISTRY)


COUNTS = {
    "rows": _gauge("rows", "Rows taken since the task came to this worker"),
    "commits": _gauge("commits", "Transactions committed"),
    "aborts": _gauge("aborts", "Transactions thrown away, by an error or an unknown outcome"),
    "fenced": _gauge("fenced", "Times that a newer owner took the task over while this worker held it"),
    "records": _gauge("records", "Records produced"),
    "restarts": _gauge("restarts", "Starts after a failure; this many in a row are bounded by max_retries"),
    "restored": _gauge("restored", "Changelog records read, of the restore under way or the last one"),
    "to_restore": _gauge("to_restore", "Changelog records to be read, of the restore under way or the last one"),
}
HERE = Gauge(
    "headrace_task_here", "Whether the task is at this worker, by its state", ["task", "partition", "state"],
    registry=REGISTRY,
)  # fmt: skip
LAG = _gauge("lag", "Rows of the inputs that are published and not yet taken")
BUFFERED = _gauge("buffered_rows", "Rows waiting in the fullest partition, bounded by max_buffered_rows", "topic")
WATERMARK = _gauge("watermark_seconds", "The task's watermark")
RESIDENCE = {
    "size": _gauge("state_bytes", "Bytes of hot state, about; those of all tasks together bounded by state_memory"),
    "entities": _gauge("state_entities", "Entities whose state is hot"),
    "hits": _gauge("state_hits", "Rows whose entity was hot"),
    "misses": _gauge("state_misses", "Entities looked for in the store"),
    "evictions": _gauge("state_evictions", "Entities left to the store, for want of memory"),
}
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


class Worker(Service):
    """The control plane of one worker: services of Faust's (mode) that host the tasks, tell of them, and lead.

    It is a tree of its own. The program's own Faust app is not in it but in another process: what crashes there would
    crash the tree to its root, and with it the tasks.

    `start`, then wait for `ended`: it raises what ended a task for good; then `stop`.
    """

    mundane_level = "debug"

    def __init__(
        self,
        app: App,
        broker: str,
        data: Path,
        metrics_url: str = "",
        program: str = "",
        memory: Memory | None = None,
    ) -> None:
        super().__init__()
        self._app = app
        self._program = program
        self._broker = parse_address(broker)
        self._data = data
        self._metrics = metrics_url
        self._memory = memory
        self._id = f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}"
        self._began = int(time.time() * 1000)
        self._fleet: Fleet
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def on_start(self) -> None:
        app, client = self._app, f"headrace-{self._app.name}"
        await ensure_topics(self._broker, [*app.topics(), TOPIC])
        slot = self._slot = Slot(self._data)
        log = self._log = KafkaLog(self._broker, client_id=client)
        stages = plan.stages(app, memory=self._memory)

        def joined(member: str) -> None:
            slot.member = member

        membership = Membership(
            self._broker,
            f"{app.name}.workers",
            [s.changelog for s in stages],
            standbys=app.standby,
            earlier=slot.member,
            joined=joined,
            client_id=client,
        )
        self._fleet = Fleet(stages, log, membership, slot, SystemClock())
        self._presence = Presence(self._broker, self.status, client)

    async def on_stop(self) -> None:
        """End the open cycles, leave the group, and say so."""
        if not hasattr(self, "_presence"):
            return  # it did not get so far
        self._fleet.stop()
        await asyncio.wait([self.ended])
        await self._presence.leave()
        with contextlib.suppress(HeadraceError):
            await self._log.close()
        self._slot.release()

    @Service.task
    async def _run_tasks(self) -> None:
        """The fleet until it ends, or until a topic is gone under it: its tasks would wait for that one for ever."""
        running = asyncio.create_task(self._fleet.run())
        watching = asyncio.create_task(watch_topics(self._broker, self._app.topics()))
        try:
            await asyncio.wait([running, watching], return_when=asyncio.FIRST_COMPLETED)
            if not running.done():
                self._fleet.stop()
                await asyncio.wait([running], timeout=GIVES_UP_WITHIN)
                await watching
            await running
            self.ended.set_result(None)
        except Exception as error:
            self.ended.set_exception(error)
        finally:
            running.cancel()
            watching.cancel()

    @Service.task
    async def _greet(self) -> None:
        await self._fleet.first.wait()
        await opened(self._fleet)
        if self._fleet.assignment is not None:
            print(f"ready: {len(self._fleet.assignment.running)} tasks of {self._app.name}", flush=True)

    @Service.task
    async def _tell(self) -> None:
        await self._presence.run()

    @Service.task
    async def _clean(self) -> None:
        await Cleaner(self._log, self._app.name, self._presence, self.leads).run()

    @Service.timer(REPORT_EVERY)
    async def _measure(self) -> None:
        _report(self._fleet)

    @Service.task
    async def _host_agents(self) -> None:
        """Keep the program's Faust app running. Whatever becomes of it, the tasks go on."""
        if not (self._app.has_agents and self._program):
            return
        logs = self._slot.path
        argv = ["-m", "headrace.agents", self._program, "--broker", str(self._broker)]
        while True:
            supervisor = Supervisor(logs, tell=logger.warning)
            try:
                await supervisor.start(Child("agents", argv, AGENTS_READY))
                logger.info("the agents run; their log is %s", logs / "agents.log")
                await supervisor.wait()
            except StackError as error:
                logger.error("%s\nthe tasks go on; the agents are tried again in %.0f s", error, AGENTS_AGAIN)
            finally:
                await supervisor.stop()
            await asyncio.sleep(AGENTS_AGAIN)

    def leads(self) -> bool:
        """Whether the group has made this worker the one that does what one worker should."""
        return self._fleet.assignment is not None and self._fleet.assignment.leader

    def status(self) -> WorkerStatus:
        assignment = self._fleet.assignment
        return WorkerStatus(
            worker=self._id,
            app=self._app.name,
            host=socket.gethostname(),
            pid=os.getpid(),
            started=self._began,
            time=int(time.time() * 1000),
            state="stopping" if self.should_stop else "running" if assignment else "joining",
            guarantee=self._app.guarantee,
            generation=assignment.generation if assignment else -1,
            metrics=self._metrics,
            tasks=self._fleet.statuses(),
        )


async def serve(
    app: App, broker: str, data: Path, metrics_url: str = "", program: str = "", memory: Memory | None = None
) -> None:
    """Run a worker until SIGTERM or SIGINT, or until a task or a part of it fails for good: then its error is raised.

    The first signal ends it in order, the second at once: what is open is aborted by whoever takes over.
    """
    worker, stopping = Worker(app, broker, data, metrics_url, program, memory), asyncio.Event()
    loop = asyncio.get_running_loop()

    def stop() -> None:
        stopping.set()
        print("stopping: open cycles end first; a second signal ends it at once", flush=True)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, os._exit, 1)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    waiting = [asyncio.create_task(e.wait()) for e in (stopping, worker._crashed)]
    try:
        await worker.start()
        either: list[asyncio.Future[Any]] = [worker.ended, *waiting]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for one in waiting:
            one.cancel()
        await worker.stop()
    if worker.ended.done():
        worker.ended.result()
    # What failed where nobody foresaw it: without that part the worker would go on, and tell that it is stopping.
    if worker.crash_reason is not None:
        raise worker.crash_reason
    if stopping.is_set():
        print("stopped", flush=True)


async def opened(fleet: Fleet, within: float = OPEN_WITHIN) -> None:
    """Until every task that is to run here takes events, or so many seconds are over."""
    until = time.monotonic() + within
    while fleet.assignment is not None and time.monotonic() < until:
        if sum(task.state == "running" for task in fleet.statuses()) >= len(fleet.assignment.running):
            break
        await asyncio.sleep(LOOK_EVERY)


def _report(fleet: Fleet) -> None:
    for (task, number), progress in fleet.progress.items():
        for name, gauge in COUNTS.items():
            gauge.labels(task, str(number)).set(getattr(progress, name))
    # What a task left behind here would stand for ever, beside what its new owner tells.
    for gauge in (HERE, LAG, WATERMARK, BUFFERED, *RESIDENCE.values()):
        gauge.clear()
    for told in fleet.statuses():
        HERE.labels(told.stage, str(told.partition), told.state).set(1)
    fullest: dict[tuple[str, str], int] = {}
    for r in fleet.runners:
        label = (r.task.name, str(r.task.number))
        LAG.labels(*label).set(r.lag)
        WATERMARK.labels(*label).set(r.task.merge.watermark / 1e6)
        residence = r.task.residence
        for name, gauge in RESIDENCE.items():
            gauge.labels(*label).set(getattr(residence, name))
        for source in r.task.inputs:
            place = (r.task.name, source.partition.topic)
            fullest[place] = max(fullest.get(place, 0), source.buffered)
    for place, rows in fullest.items():
        BUFFERED.labels(*place).set(rows)


def warm_up() -> None:
    """Compile the kernels, or read them from the cache, before the first batch. A note says so where it takes time."""
    began, noted = time.monotonic(), False

    def progress(_: str, done: int, every: int) -> None:
        nonlocal noted
        if not noted and done < every and time.monotonic() - began > NOTE_AFTER:
            noted = True
            print(f"{NOTE}compiling {every} kernels (once on this machine; about half a minute)", flush=True)

    kernels.warm(progress)


def collect_rarely() -> None:
    """Few objects of a task live long and none in cycles: rare collections, and none of what start-up made."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(200_000, 20, 100)


def run(
    app_program: str,
    broker: str,
    data: Path,
    parent_fd: int | None = None,
    metrics_port: int = 0,
    metrics_host: str = metrics.LOOPBACK,
    other_port: bool = False,
    state_memory: str = DEFAULT,
) -> None:
    """The life of a worker process.

    metrics_port: 0 for none
    other_port:   whether another one will do where that is taken
    state_memory: the bound of hot state that its tasks share, such as "512MB". What a batch touches lies beside it; so
                  do, as yet, what waits for its outcome and what is learnt. Windows that are open, and sessions whose
                  results are published, count and stay, for they end without an event
    """
    memory = Memory(parse_size(state_memory))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    # While the log is away aiokafka says so ten times a second; what matters of it the worker says itself.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    watch_parent(parent_fd)
    os.environ[BROKER] = broker  # what the program's agents are made for
    app = program.load(app_program)
    warm_up()
    url = ""
    if metrics_port:
        metrics.describe_process(REGISTRY, "worker", BOUNDS | {"state_memory": memory.limit or 0})
        served = metrics.serve(REGISTRY, metrics_port, metrics_host, or_other=other_port)
        # Listening everywhere is no address: others reach it by this machine's name.
        there = socket.gethostname() if metrics_host == "0.0.0.0" else metrics_host
        url = f"http://{there}:{served}/metrics" if served else ""
    collect_rarely()
    try:
        import uvloop

        uvloop.run(serve(app, broker, data, url, app_program, memory))
    except ImportError:
        asyncio.run(serve(app, broker, data, url, app_program, memory))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="headrace worker", description="Run the tasks of a program.")
    parser.add_argument("program")
    parser.add_argument("--broker", required=True, metavar="ADDRESS")
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--parent-fd", type=int)
    parser.add_argument("--metrics-port", type=int, default=0)
    parser.add_argument("--state-memory", default=os.environ.get(STATE_MEMORY) or DEFAULT, metavar="SIZE")
    options = parser.parse_args(arguments)
    memory = options.state_memory
    try:
        run(
            options.program, options.broker, options.data, options.parent_fd, options.metrics_port, state_memory=memory
        )
    except HeadraceError as error:
        print(f"worker stopped: {error}", file=sys.stderr, flush=True)
        return FINAL if isinstance(error, CannotGoOn) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
