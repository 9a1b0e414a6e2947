"""`make bench-peers`, or `python -m benchmarks.peers [--only NAME] [--events N] [--seconds S] [--json FILE]`.

The window job by other engines and by Headrace, on one node of Apache Kafka, one engine after the other: each reads
the same topic of 4 partitions with one worker on a core of its own, while the broker and the rest have the others.
Engines that do not come to the topic's end are stopped when their time is up. What each told of each event must be
what the oracle says; events/s are from the first output past the warm-up to the last, by the broker's clock. Beside
them stand events per second of the worker's processor: what a busy machine does not stretch.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.streams.address import Address

from benchmarks import results
from benchmarks.drawing import bars
from benchmarks.figures import apache_kafka, machine
from benchmarks.peers.children import Children, Failed, Meter, cores
from benchmarks.peers.engines import ENGINES, Engine, Place, Start
from benchmarks.peers.job import Events, Right, events, oracle, publish
from benchmarks.peers.outputs import Outputs, Span, Wrong, check, make_topic, timed
from tests.stack import kafka

EVENTS = 16_000_000
"""As many as the fastest reads in fifteen seconds."""
SECONDS = 25.0
RESULT = results.RESULTS / "window.json"
POLL = 0.25
STARTED_WITHIN = 180.0
"""Seconds to the first output: a JVM's start, and a group's first meeting."""
ENDED_WITHIN = 420.0
"""Seconds to the end, of which most engines need a fifth: one that is not yet warm by then is on a machine too busy."""
QUIET = 30.0
"""Seconds without an output after which an engine is at the end of the topic: some write in bursts."""
LAST_COMMIT = 10.0
"""Seconds beyond what is timed, in which what was timed is committed."""


@dataclass(frozen=True, slots=True)
class Row:
    """An engine's line. busy: seconds of the processor that the worker took while timed; NaN where nobody tells."""

    engine: Engine
    span: Span
    busy: float

    @property
    def each(self) -> tuple[float, float]:
        """Events/s, and events per second of the processor."""
        return self.span.events_per_s, self.span.events / self.busy

    def line(self, ours: Row | None) -> str:
        one = self.engine
        told = f"{one.name:<14} {one.version:<8} {one.guarantee:<{WIDE}}"
        for rate, our in zip(self.each, ours.each if ours else (0, 0), strict=True):
            told += f" {rate:>12,.0f} {our / rate:>8.1f}" if our else f" {rate:>12,.0f} {'':>8}"
        return told


WIDE = 56
_RATES = "".join(f" {rate:>12} {'ours is':>8}" for rate in ("events/s", "by processor"))
HEAD = f"{'engine':<14} {'version':<8} {'guarantee':<{WIDE}}{_RATES}"


@dataclass(frozen=True, slots=True)
class Bench:
    """What is the same for every engine. cores: the worker's, and the others."""

    broker: Address
    folder: Path
    made: Events
    right: Right
    seconds: float
    cores: tuple[set[int], set[int]]

    async def measure(self, engine: Engine, start: Start) -> Row:
        """Run an engine, and judge and time what it told. Raises Failed, or Wrong."""
        await make_topic(self.broker, engine.topic)
        outputs = Outputs(self.broker, engine.topic)
        try:
            with Children(self.folder / engine.topic, *self.cores) as children:
                place = Place(self.broker.bootstrap, engine.topic, children)
                meter, warm = await self._watch(start(place), children, outputs, engine.warm_up)
            told = outputs.read()
        finally:
            outputs.close()
        check(told, self.made, self.right)
        span = timed(told.appended, 1000 * warm, self.seconds)
        return Row(engine, span, meter.between(span.begin / 1000, span.end / 1000))

    async def _watch(self, pid: int, children: Children, outputs: Outputs, warm_up: float) -> tuple[Meter, float]:
        """Until the time is up, or the outputs stand still; and when the warm-up ended. Raises Failed."""
        meter, began, end = Meter(pid), time.time(), 0
        first, moved, warm = 0.0, began, None
        while True:
            await asyncio.sleep(POLL)
            meter.sample()
            children.check()
            now, before, end = time.time(), end, outputs.end()
            if end > before:
                first, moved = first or now, now
            warm = warm or (meter.reached(first, warm_up) if first else None)
            if (first and now - moved > QUIET) or (warm and now - warm > self.seconds + LAST_COMMIT):
                return meter, warm or now
            if now - began > (ENDED_WITHIN if first else STARTED_WITHIN):
                said = "; ".join(f"{log.stem}: {children.said(log.stem)}" for log in children.folder.glob("*.log"))
                raise Failed(f"{'no end' if first else 'no output'} within {now - began:.0f} s ({said})")


async def compared(engines: Sequence[Engine], count: int, seconds: float) -> list[Row]:
    """A row for each engine that could be measured; of the others a line says why not."""
    starts = {engine.name: start for engine in engines if (start := _prepared(engine)) is not None}
    worker, rest = cores()
    if rest:
        os.sched_setaffinity(0, rest)  # the broker's too: it is started from here
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="headrace-peers-", ignore_cleanup_errors=True) as folder:
        async with apache_kafka(Path(folder) / "kafka") as broker:
            made = events(count)
            await publish(broker, made)
            bench = Bench(broker, Path(folder), made, oracle(made), seconds, (worker, rest))
            print(HEAD, flush=True)
            for engine in engines:
                if engine.name not in starts:
                    continue
                try:
                    row = await bench.measure(engine, starts[engine.name])
                except Exception as error:  # whatever ends one, the others go on
                    kind = "" if isinstance(error, Failed | Wrong) else f"{type(error).__name__}: "
                    print(f"{engine.name} failed: {kind}{error}", file=sys.stderr, flush=True)
                    continue
                rows.append(row)
                print(row.line(rows[0] if rows[0].engine is ENGINES[0] else None), flush=True)
    return rows


def _prepared(engine: Engine) -> Start | None:
    try:
        return engine.prepare()
    except (Failed, OSError, subprocess.SubprocessError) as error:
        print(f"{engine.name} cannot be had: {error}", file=sys.stderr, flush=True)
        return None


def as_json(where: str, rows: Sequence[Row]) -> dict[str, Any]:
    """What is kept: `machine`, `versions`, and of each engine a row."""
    versions = {"Apache Kafka": kafka.VERSION, **{row.engine.name: row.engine.version for row in rows}}
    told = [
        {
            "name": row.engine.name,
            "guarantee": row.engine.guarantee,
            "events_per_s": round(row.span.events_per_s),
            "events": row.span.events,
            "seconds": round(row.span.seconds, 1),
            "processor_seconds": None if math.isnan(row.busy) else round(row.busy, 1),
        }
        for row in rows
    ]
    return {"machine": where, "versions": versions, "rows": told}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [engine.name for engine in ENGINES]
    parser.add_argument("--only", choices=names, action="append", help="measure this; may be given again")
    parser.add_argument("--events", type=int, default=EVENTS, help="of the topic that all read")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="that an engine is timed, at most")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="left out: benchmarks/results, where all are measured"
    )
    chosen = parser.parse_args(arguments)
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    # What is started ends with its block, whatever ends this process.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    where = machine()
    print(where, flush=True)
    engines = [e for e in ENGINES if not chosen.only or e.name in chosen.only]
    rows = asyncio.run(compared(engines, chosen.events, chosen.seconds))
    kept = chosen.json or (None if chosen.only else RESULT)
    if kept and rows:
        results.write(kept, **as_json(where, rows))
        drawn = [(row.engine.name, row.engine.guarantee, row.span.events_per_s) for row in rows]
        kept.with_suffix(".svg").write_text(bars("A keyed one-minute window on Kafka, one core", "events/s", drawn))
    return 0 if len(rows) == len(engines) else 1


if __name__ == "__main__":
    sys.exit(main())
