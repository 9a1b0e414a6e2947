"""Who works: what the workers of an application told last on the topic `workers`, and which tasks nobody runs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from headrace.streams.address import Address
from headrace.streams.errors import UnknownTopic
from headrace.streams.kafka import KafkaLog
from headrace.streams.log import Partition
from headrace.streams.subscription import Subscription
from headrace.streams.topics import Processor
from headrace.streams.workers import GONE_AFTER, WORKERS, TaskStatus, WorkerStatus, decode

FORGET_AFTER = 3600.0
"""Seconds of silence after which a worker is no longer told of: who died yesterday is noise. Readers begin so far back,
so that a topic that compaction has not reached yet costs an hour of it at most."""
MOST_WORKERS = 1_000
"""Workers held; beyond that the most silent ones go. A worker that dies at its start again and again has a new id each
time, and would fill the memory of whoever watches."""
READ_WITHIN = 5.0
"""Seconds for reading what is there; what a slow log has not given by then is left out."""

UNOWNED = "unowned"
STATES = ("starting", "restoring", "running", "stopping", "standby", UNOWNED)

Cell = str | int | float | None


@dataclass(frozen=True, slots=True)
class Seen:
    """A worker as it is known now. silent: seconds since it last told of itself; gone: for too long."""

    status: WorkerStatus
    silent: float

    @property
    def gone(self) -> bool:
        return self.silent > GONE_AFTER

    @property
    def state(self) -> str:
        return "gone" if self.gone else self.status.state

    @property
    def name(self) -> str:
        return f"{self.status.host}:{self.status.pid}"

    def row(self) -> dict[str, Cell]:
        """What is told of it, in one line."""
        tasks = self.status.tasks
        return {
            "worker": self.status.worker,
            "host": self.status.host,
            "pid": self.status.pid,
            "state": self.state,
            "silent": round(self.silent, 1),
            "tasks": 0 if self.gone else sum(t.state != "standby" for t in tasks),
            "standby": 0 if self.gone else sum(t.state == "standby" for t in tasks),
            "commits": sum(t.commits for t in tasks),
            "aborts": sum(t.aborts for t in tasks),
            "fenced": sum(t.fenced for t in tasks),
            "restarts": sum(t.restarts for t in tasks),
            "guarantee": self.status.guarantee,
            "metrics": self.status.metrics or None,
        }


@dataclass(frozen=True, slots=True)
class Place:
    """A task, and who runs it: nobody, where `worker` is None. standbys: workers that keep a copy of its state."""

    processor: str
    partition: int
    worker: Seen | None = None
    task: TaskStatus | None = None
    standbys: int = 0

    @property
    def state(self) -> str:
        return self.task.state if self.task is not None else UNOWNED

    @property
    def restored(self) -> float | None:
        """The share of a restore that is done; None where none is under way."""
        if self.task is None or self.task.state != "restoring":
            return None
        return min(1.0, self.task.restored / self.task.to_restore) if self.task.to_restore > 0 else 0.0

    def row(self) -> dict[str, Cell]:
        """What is told of it, in one line."""
        t = self.task
        return {
            "processor": self.processor,
            "partition": self.partition,
            "state": self.state,
            "restored": None if self.restored is None else round(self.restored, 3),
            "worker": self.worker.name if self.worker else None,
            "standbys": self.standbys,
            "lag": t.lag if t else None,
            "rows": t.rows if t else None,
            "records": t.records if t else None,
            "commits": t.commits if t else None,
            "aborts": t.aborts if t else None,
            "fenced": t.fenced if t else None,
            "restarts": t.restarts if t else None,
            "watermark": _moment(t.watermark) if t and t.watermark > 0 else None,
        }


@dataclass(frozen=True, slots=True)
class Crew:
    """The workers, the oldest first, and every task, upstream first."""

    workers: tuple[Seen, ...] = ()
    places: tuple[Place, ...] = ()

    @property
    def alive(self) -> tuple[Seen, ...]:
        return tuple(w for w in self.workers if not w.gone)

    @property
    def unowned(self) -> tuple[Place, ...]:
        return tuple(p for p in self.places if p.worker is None)

    def trouble(self) -> str:
        """What is wrong, in a sentence; empty where every task is run."""
        idle = self.unowned
        if not idle:
            return ""
        if len(idle) == len(self.places):
            gone = f"; {len(self.workers)} of them are silent" if self.workers else ""
            return f"no worker runs any of the {len(idle)} tasks{gone}: start one with `headrace worker PROGRAM`"
        return f"nobody runs {', '.join(f'{n} {told}' for n, told in by_processor(idle).items())}"


def by_processor(places: Sequence[Place]) -> dict[str, str]:
    """The partitions by processor, ascending as they are given, as people write them.

    >>> by_processor([Place("orders", 0), Place("orders", 1), Place("orders", 2), Place("orders", 5)])
    {'orders': '0-2, 5'}
    """
    found: dict[str, list[list[int]]] = {}
    for place in places:
        runs = found.setdefault(place.processor, [])
        if runs and runs[-1][1] == place.partition - 1:
            runs[-1][1] = place.partition
        else:
            runs.append([place.partition, place.partition])
    return {n: ", ".join(f"{a}-{b}" if b > a else f"{a}" for a, b in runs) for n, runs in found.items()}


class Roster:
    """Keeps what each worker told last. Knows no clock: milliseconds since 1970 are given.

    app:        workers of other applications are left out; None: those of all
    processors: with their partitions they say which tasks there should be; empty: those that workers tell of
    """

    def __init__(self, app: str | None, processors: Sequence[Processor]) -> None:
        self._app = app
        self._processors = tuple(processors)
        self._told: dict[str, tuple[WorkerStatus, float]] = {}

    def take(self, worker: str, value: bytes | None, heard: float | None = None) -> None:
        """A record of the topic; what is none is passed over.

        heard: when it came, by the reader's own clock, where it came just now; else the worker's word is taken for it
        """
        if value is None:
            self._told.pop(worker, None)
            return
        status = decode(value)
        if status is None:
            return
        if self._app in (None, status.app):
            self._told[worker] = status, status.time if heard is None else heard
        if len(self._told) > MOST_WORKERS:
            del self._told[min(self._told, key=lambda w: self._told[w][1])]

    def crew(self, now: float) -> Crew:
        """Who works at this moment."""
        for old in [w for w, (_, heard) in self._told.items() if now - heard > FORGET_AFTER * 1000]:
            del self._told[old]
        seen = [Seen(status, max(0.0, (now - heard) / 1000)) for status, heard in self._told.values()]
        seen.sort(key=lambda s: (s.status.started, s.status.worker))
        owners: dict[tuple[str, int], tuple[Seen, TaskStatus]] = {}
        standbys: dict[tuple[str, int], int] = {}
        for worker in seen:
            for task in worker.status.tasks if not worker.gone else ():
                at = task.stage, task.partition
                if task.state == "standby":
                    standbys[at] = standbys.get(at, 0) + 1
                elif at not in owners or _claim(worker, task) > _claim(*owners[at]):
                    owners[at] = worker, task
        wanted = dict.fromkeys((p.name, n) for p in self._processors for n in range(p.partitions))
        wanted.update(dict.fromkeys(sorted({*owners, *standbys})))  # what a worker of another version runs is told too
        places = []
        for at in wanted:
            owner, running = owners.get(at, (None, None))
            places.append(Place(*at, owner, running, standbys.get(at, 0)))
        return Crew(tuple(seen), tuple(places))


def _claim(worker: Seen, task: TaskStatus) -> tuple[bool, int, float]:
    """Of two that say they run a task, the later one in the group does: the other has been fenced, or will be."""
    return task.state != "stopping", worker.status.generation, -worker.silent


def begin(now: float | None = None) -> datetime:
    """Where readers of the topic begin."""
    return datetime.fromtimestamp(time.time() if now is None else now, UTC) - timedelta(seconds=FORGET_AFTER)


async def read_crew(address: Address, app: str | None, processors: Sequence[Processor]) -> Crew:
    """Who works now, from one reading of the topic. Raises LogUnavailable where the log does not answer."""
    roster = Roster(app, processors)
    subscription = Subscription(address, WORKERS, begin())
    log = KafkaLog(address, "headrace-status")
    until = time.monotonic() + READ_WITHIN
    try:
        await subscription.open()
        end = (await log.ends([Partition(WORKERS, 0)]))[Partition(WORKERS, 0)]
        while subscription.next.get(0, end) < end and time.monotonic() < until:
            for message in await subscription.batch(1.0):
                roster.take(message.key or "", message.data)
    except UnknownTopic:
        pass  # no worker has ever been here
    finally:
        await subscription.close()
        await log.close()
    return roster.crew(time.time() * 1000)


def _moment(microseconds: int) -> str:
    return datetime.fromtimestamp(microseconds / 1e6, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
