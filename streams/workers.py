"""What the workers of an application tell of themselves: one record each, on a compacted topic that anyone can read."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from headrace.streams.codecs import MAX_INTEGER, NO_JSON
from headrace.streams.topics import WORKERS, Topic

__all__ = ["GONE_AFTER", "TELL_EVERY", "TOPIC", "WORKERS", "TaskState", "TaskStatus", "WorkerStatus", "decode"]

TOPIC = Topic(WORKERS, "workers", 1, None, {"cleanup.policy": "compact", "retention.ms": "-1"})
"""Key: the worker's id. A worker that ends in order leaves a tombstone."""

TELL_EVERY = 2.0
"""Seconds between two records of a worker."""

GONE_AFTER = 10.0
"""Seconds of silence after which readers take a worker for dead: several records may be late on a busy machine."""

Whole = Annotated[int, msgspec.Meta(ge=-MAX_INTEGER, le=MAX_INTEGER)]
"""Anyone can write to the topic; larger numbers could be neither reckoned with nor told on."""

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
    partition: Whole
    state: TaskState
    rows: Whole = 0
    records: Whole = 0
    commits: Whole = 0
    aborts: Whole = 0
    fenced: Whole = 0
    restarts: Whole = 0
    lag: Whole = 0
    restored: Whole = 0
    to_restore: Whole = 0
    watermark: Whole = 0


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
    pid: Whole
    started: Whole
    time: Whole
    state: Literal["joining", "running", "stopping"]
    guarantee: str = "exactly_once"
    generation: Whole = -1
    metrics: str = ""
    tasks: tuple[TaskStatus, ...] = ()


_decoder = msgspec.json.Decoder(WorkerStatus)


def decode(value: bytes) -> WorkerStatus | None:
    """What a worker told; None where it is no such record."""
    try:
        return _decoder.decode(value)
    except NO_JSON:
        return None
