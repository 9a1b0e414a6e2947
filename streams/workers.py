"""What the workers of an application tell of themselves: one record each, on a compacted topic that anyone can read."""

from __future__ import annotations

from typing import Literal

import msgspec
from headrace.streams.topics import WORKERS, Topic

__all__ = ["GONE_AFTER", "TELL_EVERY", "TOPIC", "WORKERS", "TaskState", "TaskStatus", "WorkerStatus"]

TOPIC = Topic(WORKERS, "workers", 1, None, {"cleanup.policy": "compact", "retention.ms": "-1"})
"""Key: the worker's id. A worker that ends in order leaves a tombstone."""

TELL_EVERY = 2.0
"""Seconds between two records of a worker."""

GONE_AFTER = 10.0
"""Seconds of silence after which readers take a worker for dead: several records may be late on a busy machine."""

TaskState = Literal["starting", "restoring", "running", "standby", "stopping"]


class TaskStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One task of a worker. Counts are since the task came to this worker.

    rows, records: taken and produced
    aborts:        transactions thrown away, by an error or an unknown outcome
    fenced:        times that a newer owner took the task over while this one still held it
    restarts:      starts after a failure of the log
    lag:           rows of its inputs that are published and not yet taken
    restored, to_restore: changelog records read and to be read, of the restore under way or the last one
    watermark:     microseconds
    """

    stage: str
    partition: int
    state: TaskState
    rows: int = 0
    records: int = 0
    commits: int = 0
    aborts: int = 0
    fenced: int = 0
    restarts: int = 0
    lag: int = 0
    restored: int = 0
    to_restore: int = 0
    watermark: int = 0


class WorkerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A worker process.

    worker:     its id, new with each start
    started, time: milliseconds since 1970; `time` is when this was told
    generation: of the group that shares the tasks, as this worker last joined it
    metrics:    where it serves its metrics, or empty
    """

    worker: str
    app: str
    host: str
    pid: int
    started: int
    time: int
    state: Literal["joining", "running", "stopping"]
    guarantee: str = "exactly_once"
    generation: int = -1
    metrics: str = ""
    tasks: tuple[TaskStatus, ...] = ()
