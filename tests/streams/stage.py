"""One task in memory: real events, codecs, inputs, operators and changelog; only the log and the disk are lists."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
from headrace.streams.batch import Batch, Change, Operator, Outputs, Record, one_by_one, record_by_record
from headrace.streams.event import Event
from headrace.streams.inputs import Input, Source
from headrace.streams.jsoncodec import codec
from headrace.streams.log import Fetched, Partition
from headrace.streams.store import MemoryStore
from headrace.streams.task import Task

SECOND = 1_000_000
START = 1_700_000_000 * SECOND
"""2023-11-14T22:13:20Z, second 0 of the tests' times."""
DAY = 86_400


def moment(second: float) -> str:
    """A time as events write it, so many seconds after START."""
    micros = START + round(second * SECOND)
    return datetime.fromtimestamp(micros // SECOND, UTC).strftime("%Y-%m-%dT%H:%M:%S") + f".{micros % SECOND:06d}Z"


class Seen:
    """An operator that notes the batches it is given."""

    name = "seen"

    def __init__(self) -> None:
        self.rows: list[tuple[float, float]] = []

    def process(self, batch: Batch, out: Outputs) -> None:
        both = zip(batch.time.tolist(), batch.watermark.tolist(), strict=True)
        self.rows += [((time - START) / SECOND, (mark - START) / SECOND) for time, mark in both]

    def changes(self) -> list[Change]:
        return []

    def load(self, rows: Any) -> None: ...

    def clear(self) -> None: ...


class Stage:
    """A task over the topics of some events, its log, its changelog and what it made. wake: of every source."""

    def __init__(
        self, events: Sequence[type[Event]], operators: Callable[[], list[Operator]], wake: int = 0
    ) -> None:
        self.events = events
        self.wake = wake
        self.log: dict[str, list[tuple[bytes, bytes, int]]] = {e.contract.topic: [] for e in events}
        self.changelog: list[Change] = []
        self.records: list[Record] = []
        self._operators = operators
        self.restart()

    def publish(self, event: type[Event], value: bytes | dict[str, Any], published: float = 10 * DAY) -> None:
        """Appends an event to its topic; published: in seconds after START."""
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        key = b"" if isinstance(value, bytes) else str(value[event.contract.key]).encode()
        self.log[event.contract.topic].append((key, data, START // 1000 + round(published * 1000)))

    def restart(self) -> None:
        """Dies, loses its disk, and comes back from the changelog alone."""
        store = MemoryStore()
        store.write(self.changelog)
        inputs = []
        for event in self.events:
            said, topic = event.contract, event.contract.topic
            late, refused = f"{topic}.late", f"{topic}.rejected"
            source = Source(topic, codec(event), said.out_of_orderness, said.lateness, refused, late, wake=self.wake)
            inputs.append(Input(source, Partition(topic, 0)))
        self.task = Task("stage", 0, inputs, self._operators(), store, Partition("stage.changelog", 0))
        self.task.resume()

    def feed(self) -> None:
        """Reads every topic to its end."""
        for source in self.task.inputs:
            topic, begin = source.partition.topic, source.position
            rows, end = self.log[topic][begin:], len(self.log[topic])
            self.task.feed(
                Fetched(
                    source.partition,
                    np.arange(begin, end),
                    np.array([at for _, _, at in rows], np.int64),
                    [key or None for key, _, _ in rows],
                    [value for _, value, _ in rows],
                    end,
                    end,
                )
            )

    def step(self, limit: int = 1000, idle: Sequence[int] = ()) -> int:
        """One batch; how many rows it took."""
        work = self.task.work(limit, frozenset(idle))
        if work is None:
            return 0
        self.records += record_by_record(work.records)
        self.changelog += one_by_one(work.changes)
        self.task.keep(work, len(self.changelog))
        return work.rows

    def drain(self, limits: Sequence[int] = (1000,), restart: bool = False) -> list[Record]:
        """Takes all that is published, in batches of these sizes in turn; what was made. The inputs then are idle."""
        self.feed()
        every = range(len(self.task.inputs))
        turn = 0
        while self.step(limits[turn % len(limits)]) or self.step(limits[turn % len(limits)], every):
            turn += 1
            if restart:
                self.restart()
                self.feed()
        return self.records

    def made(self, topic: str) -> list[Record]:
        """What was made for a topic."""
        return [record for record in self.records if record.topic == topic]
