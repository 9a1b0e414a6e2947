"""`headrace profile`: where the processor's time goes in a program's own pipeline, by step.

Each task runs as in a worker, from empty state, over the events that lie on its log: the same runner, operators and
store, in this process. What it would publish is laid out as it would be sent and then dropped; nothing is written to
the log. Times are of the processor, not of the clock, so that a busy machine or a slow log does not change them.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace import plan, program, reports
from headrace.app import App
from headrace.errors import ProfileError
from headrace.stack import reach
from headrace.streams.batch import Batch, Block, Change, Operator, Outputs, Record, Touched
from headrace.streams.behind import Behind
from headrace.streams.codecs import Decoded, MsgspecCodec
from headrace.streams.inputs import Input
from headrace.streams.jsoncodec import JsonCodec
from headrace.streams.kafka import BATCH_BYTES, KafkaLog, laid_out
from headrace.streams.log import NO_OFFSETS, Log, Partition, Reader, Sender, Writer
from headrace.streams.recordbatches import build
from headrace.streams.rocks import RocksStore
from headrace.streams.runner import MAX_BATCH_ROWS, Runner
from headrace.streams.store import Store
from headrace.streams.task import Task
from headrace.worker import SystemClock, collect_rarely, warm_up

EVENTS = 200_000
"""Rows that each stage takes, unless told otherwise: seconds of work."""

WARM_SHARE = 0.1
"""Of them, those that go before anything is counted: while state and batches are still small."""

SILENCE = 30.0
"""Seconds without a row, where a log does not come to the end that it tells, after which what there was is told."""

READING, MERGING, BACKGROUND = "read, and the cycle itself", "merge inputs", "RocksDB, in the background"


@dataclass(slots=True)
class Meter:
    """Processor time by step, nanoseconds. A step within a step counts as its own alone."""

    spent: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    _inner: list[int] = field(default_factory=list)

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        began = time.thread_time_ns()
        self._inner.append(0)
        try:
            yield
        finally:
            whole = time.thread_time_ns() - began
            self.spent[name] += whole - self._inner.pop()
            if self._inner:
                self._inner[-1] += whole

    def clear(self) -> None:
        self.spent.clear()


@dataclass(slots=True)
class Profile:
    """Of one stage, over all its partitions.

    events: rows taken while it was measured
    spent:  processor time by step, nanoseconds, in the order in which a cycle goes through them
    notes:  what is worth knowing of a step
    """

    stage: str
    events: int = 0
    spent: dict[str, int] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return sum(self.spent.values())

    def rows(self) -> list[dict[str, Any]]:
        """A row for each step, and one for all of them."""
        made = [
            {
                "step": step,
                "ns/event": round(spent / self.events),
                "share": f"{spent / self.total:.1%}",
                "note": self.notes.get(step, ""),
            }
            for step, spent in self.spent.items()
        ]
        a_core = f"{self.events / self.total * 1e9:,.0f} events/s on one core"
        return [*made, {"step": "all", "ns/event": round(self.total / self.events), "share": "100%", "note": a_core}]


async def profile(app: App, log: Log, folder: Path, events: int = EVENTS) -> list[Profile]:
    """Run the stages of an application over at most so many rows each of what lies on the log.

    folder: where their state goes. Raises ProfileError where there is nothing to run over.
    """
    found = []
    for stage in plan.stages(app):
        made = Profile(stage.name)
        for number in range(stage.partitions):
            await _measure(stage, number, log, folder / f"{stage.name}-{number}", events // stage.partitions, made)
        found.append(made)
    if not any(p.events for p in found):
        topics = dict.fromkeys(t for s in plan.stages(app) for t in s.inputs)
        raise ProfileError(
            f"there is too little on {', '.join(topics)} to measure: publish some thousand events, then try again"
        )
    return found


async def _measure(stage: plan.Stage, number: int, log: Log, folder: Path, events: int, made: Profile) -> None:
    meter = Meter()
    store = _Store(RocksStore(folder), meter)
    task, follows = stage.build(number, store)
    codecs = _watch(task, meter)
    runner = Runner(task, _Dry(log, meter, task.changelog), SystemClock(), stage.group, follows, ahead=stage.ahead)
    runner.batch_rows = min(MAX_BATCH_ROWS, max(1, int(events * WARM_SHARE)))
    done, heard, before = 0, time.monotonic(), (0, 0, 0)
    try:
        await runner.start()
        while done < events and time.monotonic() - heard < SILENCE:
            taken = await runner.step()
            if not taken and all(i.caught_up and not i.buffered for i in task.inputs):
                break
            if taken:
                heard, done = time.monotonic(), done + taken
                if not before[0] and done >= events * WARM_SHARE:
                    meter.clear()
                    for codec in codecs:
                        codec.clear()
                    before = done, time.thread_time_ns(), time.process_time_ns()
        await runner.settle()
        thread, process = time.thread_time_ns(), time.process_time_ns()
    finally:
        await runner.close()
        task.close()
    if not before[0] or done == before[0]:
        return
    counted, began, process_began = before
    ours = thread - began
    spent = {READING: ours - sum(meter.spent.values()), **meter.spent}
    spent[BACKGROUND] = process - process_began - ours
    made.events += done - counted
    for step in sorted(spent, key=lambda s: _PLACE.get(s.partition(" ")[0], 3)):
        made.spent[step] = made.spent.get(step, 0) + max(0, spent[step])
    for codec in codecs:
        if codec.note:
            made.notes[codec.step] = codec.note


_PLACE = {"read,": 0, "decode": 1, "merge": 2, "state": 4, "lay": 5, "store": 6, "RocksDB,": 7}
"""By the first word of a step, where it stands in the cycle; operators come in their own order."""


def _watch(task: Task, meter: Meter) -> list[_Codec]:
    """Put the meter around the parts of a task."""
    codecs = []
    for source in task.inputs:
        codec = _Codec(source, meter)
        source.source = replace(source.source, codec=codec)
        codecs.append(codec)
    for operator in task.operators:
        _watch_operator(operator, meter)
    work = task.work

    def metered(limit: int, idle: frozenset[int] = frozenset()) -> Any:
        with meter.step(MERGING):
            return work(limit, idle)

    task.work = metered  # type: ignore[method-assign]
    return codecs


class _Codec:
    """The codec of an input, metered; it counts the rows that msgspec had to take."""

    def __init__(self, source: Input, meter: Meter) -> None:
        self._codec = source.source.codec
        self._meter = meter
        self.step = f"decode {source.partition.topic}"
        self.clear()

    def clear(self) -> None:
        self._rows = self._odd = 0

    @property
    def note(self) -> str:
        if isinstance(self._codec, JsonCodec):
            share = self._odd / max(1, self._rows)
            return f"{share:.1%} a row at a time: escapes, or no plain JSON" if self._odd else ""
        return (
            "a row at a time: its event has fields that are no columns" if isinstance(self._codec, MsgspecCodec) else ""
        )

    def decode(
        self, values: Sequence[bytes | None], keys: Sequence[bytes | None], published: NDArray[np.int64]
    ) -> Decoded:
        before = self._codec.odd if isinstance(self._codec, JsonCodec) else 0
        with self._meter.step(self.step):
            decoded = self._codec.decode(values, keys, published)
        self._rows += len(values)
        self._odd += self._codec.odd - before if isinstance(self._codec, JsonCodec) else 0
        return decoded


def _watch_operator(operator: Operator, meter: Meter) -> None:
    """Put the meter around an operator. It stays what it is: a task asks what else it can do."""
    process, changes = operator.process, operator.changes

    def processed(batch: Batch, out: Outputs) -> None:
        with meter.step(operator.name):
            process(batch, out)

    def changed() -> Sequence[Change | Touched]:
        with meter.step(f"state rows of {operator.name}"):
            return changes()

    operator.process, operator.changes = processed, changed  # type: ignore[method-assign]


class _Store(Behind):
    """The store, metered."""

    def __init__(self, store: Store, meter: Meter) -> None:
        super().__init__(store)
        self._meter = meter

    def write(self, changes: Iterable[Change | Touched]) -> None:
        with self._meter.step("store rows in RocksDB"):
            super().write(changes)


class _Dry:
    """The log to read; what is written to it is laid out, and goes nowhere."""

    def __init__(self, log: Log, meter: Meter, changelog: Partition) -> None:
        self._log = log
        self._writer = _Nowhere(meter, changelog)

    async def reader(self, offsets: Mapping[Partition, int]) -> Reader:
        return await self._log.reader(offsets)

    async def writer(self, owner: str) -> Writer:
        return self._writer

    async def sender(self) -> Sender:
        return self._writer

    async def committed(self, group: str, partitions: Sequence[Partition]) -> dict[Partition, int]:
        return {}

    async def ends(self, partitions: Sequence[Partition]) -> dict[Partition, int]:
        """The changelog's is that of what was written here."""
        found = await self._log.ends([p for p in partitions if p != self._writer.changelog])
        return {**found, self._writer.changelog: self._writer.written}

    async def starts(self, partitions: Sequence[Partition]) -> dict[Partition, int]:
        """A changelog begins at its end: there is nothing to restore."""
        return await self.ends(partitions)

    async def close(self) -> None:
        pass


class _Nowhere:
    """Lays records out as they would be sent."""

    def __init__(self, meter: Meter, changelog: Partition) -> None:
        self.changelog = changelog
        self.written = 0
        self._meter = meter

    async def begin(self, group: str = "", offsets: Mapping[Partition, int] = NO_OFFSETS) -> None:
        pass

    async def send(self, records: Sequence[Record | Block], home: int) -> dict[Partition, int]:
        by_topic: dict[str, list[Record | Block]] = defaultdict(list)
        for output in records:
            by_topic[output.topic].append(output)
        for topic, outputs in by_topic.items():
            what = "the changelog" if topic == self.changelog.topic else topic
            with self._meter.step(f"lay out {what}"):
                for _ in build(*laid_out(outputs), BATCH_BYTES):
                    pass
        self.written += sum(len(r) if isinstance(r, Block) else 1 for r in by_topic[self.changelog.topic])
        return {self.changelog: self.written}

    async def commit(self) -> None:
        pass

    async def abort(self) -> None:
        pass

    async def close(self) -> None:
        pass


def print_profile(
    program_file: str, broker: str | None, data: Path | None, events: int, say: Callable[[str], None]
) -> None:
    """Profile a program over the log of a stack that runs, or of one that is down.

    Raises NoBroker, LogUnavailable and ProfileError.
    """
    app = program.load(program_file)
    warm_up()
    collect_rarely()

    async def main() -> list[Profile]:
        async with reach(app.name, broker, data) as address:
            log = KafkaLog(address, "headrace-profile")
            try:
                with tempfile.TemporaryDirectory() as folder:
                    return await profile(app, log, Path(folder), events)
            finally:
                await log.close()

    for made in asyncio.run(main()):
        if made.events:
            reports.table(f"{made.stage}, {made.events:,} events", made.rows(), {"processor": made.stage})
        else:
            say(f"{made.stage}: too little lies on its topics to measure")
