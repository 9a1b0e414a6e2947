"""`headrace export-state`: the committed state of an application as rows that a person can read (NDJSON).

It is rebuilt from the changelogs, so it needs no worker and no folder of one. For each task one row tells what the rows
after it are as of: how far its inputs were taken at its last commit.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
from rich.console import Console
from rich.progress import Progress as RichProgress

from headrace import plan, program
from headrace.app import App
from headrace.errors import ExportError
from headrace.stack import reach
from headrace.state import rebuild
from headrace.streams.batch import NEVER, Told
from headrace.streams.durations import when
from headrace.streams.kafka import KafkaLog
from headrace.streams.log import Log
from headrace.streams.rocks import RocksStore
from headrace.streams.task import MARK, Mark

Row = dict[str, Any]
"""A row as JSON can hold it; times are datetimes, and what was JSON before stays as it was."""

Progress = Callable[[str, int, int], None]


async def export(
    app: App, log: Log, of: str | None = None, progress: Progress = lambda what, done, every: None
) -> AsyncIterator[Row]:
    """The rows of state, task after task. of: the name of a feature set; left out, everything.

    Raises ExportError for a name that is no feature set's, and ProgramChanged where the state is another program's.
    """
    sets = [s.__name__ for s in plan.feature_sets(app)]
    if of is not None and of not in sets:
        raise ExportError(f"{app.name} has no feature set {of!r}: it has {', '.join(sets) or 'none'}")
    for stage in plan.stages(app):
        for number in range(stage.partitions):
            async for row in _task(log, stage, number, of, progress):
                yield row


async def _task(log: Log, stage: plan.Stage, number: int, of: str | None, progress: Progress) -> AsyncIterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        store = RocksStore(Path(folder) / "rows")  # on disk: only what operators hold is held in memory
        try:
            task, _ = stage.build(number, store)
            operators = [o for o in task.operators if of is None or o.name == of]
            if not operators:
                return
            what = f"{stage.name} {number}"
            position = await rebuild(log, task.changelog, store, lambda done, every: progress(what, done, every))
            stored = store.get(MARK)
            mark = msgspec.json.decode(stored, type=Mark) if stored else Mark([], [], NEVER, "")
            task.resume()
            at = max(mark.highs, default=NEVER)
            place: Row = {"processor": stage.name, "partition": number}
            yield {
                **place,
                "kind": "position",
                "changelog": task.changelog.topic,
                "offset": position,
                "taken": {i.partition.topic: o for i, o in zip(task.inputs, mark.offsets, strict=False)},
                "at": _moment(at),
                "watermark": _moment(mark.watermark),
                "program": mark.program or None,
            }
            if not stored:
                return
            for operator in operators:
                rows = operator.told(at) if isinstance(operator, Told) else iter(())
                for row in rows:
                    yield {**place, "kind": operator.name, **row}
        finally:
            store.close()


def _moment(microseconds: int) -> Any:
    """A datetime, or None where nothing was seen."""
    return when(microseconds) if microseconds > 0 else None


def print_state(
    program_file: str,
    broker: str | None,
    data: Path | None,
    of: str | None,
    out: Path | None,
    say: Callable[[str], None],
) -> None:
    """Export the state of a program's application to a file, or to standard output.

    The file is there once it is whole. Raises ExportError, ProgramChanged, NoBroker and LogUnavailable.
    """
    app = program.load(program_file)

    async def main() -> int:
        written = 0
        async with reach(app.name, broker, data) as address:
            log = KafkaLog(address, "headrace-export")
            try:
                with _opened(out) as file, _progress() as progress:
                    async for row in export(app, log, of, progress):
                        file.write(msgspec.json.encode(row) + b"\n")
                        written += 1
            finally:
                await log.close()
        return written

    written = asyncio.run(main())
    if out is not None:
        say(f"{written:,} rows of {app.name} are in {out}")


@contextlib.contextmanager
def _progress() -> Iterator[Progress]:
    """A bar on a terminal while changelogs are read."""
    bar = RichProgress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())
    with bar:
        reading = bar.add_task("reading the changelogs")

        def show(what: str, done: int, every: int) -> None:
            bar.update(reading, description=f"reading the changelog of {what}", completed=done, total=every)

        yield show


@contextlib.contextmanager
def _opened(out: Path | None) -> Iterator[BinaryIO]:
    if out is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    unfinished = out.with_name(f".{out.name}.unfinished")
    try:
        with unfinished.open("wb") as file:
            yield file
        unfinished.replace(out)
    except OSError as error:
        raise ExportError(f"{out} cannot be written: {error.strerror}") from error
    finally:
        unfinished.unlink(missing_ok=True)
