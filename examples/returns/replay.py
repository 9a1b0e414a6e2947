"""`make run`: the local stack, two years (or the first 120 days) of a shop's orders at full speed, and a summary.

With HEADRACE_BROKER the lines go there, to workers that run already, and nothing is started here.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from aiokafka import AIOKafkaConsumer, TopicPartition
from headrace.models import versions
from headrace.models.evaluation import exact
from headrace.streams.address import Address, client_options, parse_address
from headrace.streams.admin import ensure_topics
from headrace.streams.closing import stop
from headrace.streams.durations import DAY, micros
from headrace.streams.errors import HeadraceError
from headrace.streams.kafka import KafkaLog
from headrace.streams.log import Partition
from headrace.streams.publisher import Publisher
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from headrace import running
from headrace.program import load
from headrace.stack import Stack

sys.path.insert(0, str(Path(__file__).parent))

import retail

PROGRAM = Path(__file__).parent / "pipeline.py"
HORIZON = 30 * DAY

CHUNK = 500
"""Events published at once."""

IN_FLIGHT = 2_000
"""Events published and not yet predicted: more would only wait in the log, and show as latency."""

SETTLE_WITHIN = 120.0
"""Seconds without any progress after which a run is given up."""

METRICS = ("roc_auc", "average_precision", "log_loss")

NEXT = """try next, from this folder:
  .venv/bin/headrace run examples/returns/pipeline.py      # and open its page
  .venv/bin/headrace subscribe predictions.returns --from earliest --max 5
  .venv/bin/headrace verify examples/returns/pipeline.py   # recompute it all"""


class _Made(msgspec.Struct):
    """What the summary needs of a prediction."""

    id: str
    at: Any
    score: float
    baselines: dict[str, float]
    latency_ms: float


class _Known(msgspec.Struct):
    id: str
    outcome: bool


@dataclass
class Seen:
    """What has come out so far. Arrays are by the offset of the order: prediction, time, outcome."""

    orders: int
    started: float = field(default_factory=time.time)
    predicted: int = 0
    outcomes: int = 0
    rejected: dict[str, int] = field(default_factory=lambda: {"orders": 0, "returns": 0})
    late: dict[str, int] = field(default_factory=lambda: {"orders": 0, "returns": 0})
    alarms: int = 0
    watermark: str = "-"
    quality: dict[str, Any] = field(default_factory=dict)
    latencies: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._moved = asyncio.Event()
        self.scores = np.full((4, self.orders), np.nan)
        self.at = np.zeros(self.orders, np.int64)
        self.positive = np.zeros(self.orders, np.bool_)

    @property
    def done(self) -> int:
        """Orders that need nothing more: predicted, rejected or late."""
        return self.predicted + self.rejected["orders"] + self.late["orders"]

    def moved(self) -> None:
        self._moved.set()

    async def room(self, published: int) -> None:
        """Return when few enough of the published orders are still on their way."""
        while published - self.done > IN_FLIGHT:
            self._moved.clear()
            await self._moved.wait()

    def take(self, topic: str, value: bytes, timestamp: int, now: float) -> None:
        kind, _, name = topic.partition(".")
        if kind == "predictions":
            made = msgspec.json.decode(value, type=_Made)
            place = int(made.id.rpartition("-")[2])
            beside = made.baselines
            self.scores[:, place] = (made.score, beside["base"], beside["item"], beside["customer"])
            self.at[place] = micros(msgspec.convert(made.at, type=_Moment))
            self.predicted += 1
            self.watermark = made.at[:16].replace("T", " ")
            if timestamp / 1000 >= self.started:
                self.latencies.append(now * 1000 - (timestamp - made.latency_ms))
        elif kind == "outcomes":
            known = msgspec.json.decode(value, type=_Known)
            self.positive[int(known.id.rpartition("-")[2])] = known.outcome
            self.outcomes += 1
        elif kind == "metrics":
            self.quality = msgspec.json.decode(value)
        elif kind == "drift":
            self.alarms += 1
        elif name == "rejected":
            self.rejected[kind] += 1
        elif name == "late":
            self.late[kind] += 1

    def measured(self) -> dict[str, Any]:
        """Exact quality of every prediction after the first 30 days; a line not taken back so far is a negative."""
        judged = np.flatnonzero(self.at >= (self.at[self.at > 0].min() if self.predicted else 0) + HORIZON)
        judged = judged[np.isfinite(self.scores[0, judged])]
        found: dict[str, Any] = {"judged": len(judged), "positives": int(self.positive[judged].sum())}
        for prefix, scores in zip(("", "base_", "item_", "customer_"), self.scores, strict=True):
            metrics = exact(scores[judged], self.positive[judged])
            found.update({prefix + name: metrics[name] for name in METRICS})
        return found


_Moment = datetime
TOPICS = [
    "predictions.returns",
    "outcomes.returns",
    "metrics.returns",
    "drift.returns",
    *(f"{t}.{kind}" for t in ("orders", "returns") for kind in ("rejected", "late")),
]


@dataclass(frozen=True, slots=True)
class Place:
    """Where the replay goes. `lost` returns never, and raises HeadraceError when what runs there has died for good."""

    broker: Address
    lost: Callable[[], Awaitable[object]]
    data: str


@contextlib.asynccontextmanager
async def somewhere(data: Path, console: Console) -> AsyncIterator[Place]:
    """The broker that HEADRACE_BROKER names, or else a local stack."""
    named = os.environ.get(running.BROKER)
    if named:
        broker = parse_address(named)
        await ensure_topics(broker, load(PROGRAM).topics())
        say(console, f"publishing to {broker}; its workers predict")
        # Workers elsewhere die unseen: `settled` gives up when nothing moves.
        yield Place(broker, asyncio.Event().wait, str(broker))
        return
    async with Stack(PROGRAM, data=data, tell=partial(say, console)) as stack:
        say(console, f"page and gateway at {stack.gateway}; broker at {stack.broker}; data in {stack.data}")
        yield Place(stack.broker, stack.wait, str(stack.data))


@contextlib.asynccontextmanager
async def watching(broker: Address, seen: Seen) -> AsyncIterator[None]:
    """Read every result from the beginning, also those of an interrupted run."""
    consumer = AIOKafkaConsumer(
        **client_options(broker),
        isolation_level="read_committed",
        enable_auto_commit=False,
        fetch_max_wait_ms=50,
        max_partition_fetch_bytes=4 << 20,
    )
    await consumer.start()
    partitions = [TopicPartition(t, 0) for t in TOPICS]
    consumer.assign(partitions)
    for partition in partitions:
        consumer.seek(partition, 0)

    async def read() -> None:
        while True:
            got = await consumer.getmany(timeout_ms=100)
            now = time.time()
            for tp, records in got.items():
                for record in records:
                    seen.take(tp.topic, record.value, record.timestamp, now)
            seen.moved()

    reading = asyncio.create_task(read())
    try:
        yield
    finally:
        reading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await reading
        await stop(consumer)


async def publish(broker: Any, lines: Sequence[retail.Line], skip: dict[str, int], seen: Seen) -> int:
    """Publish what the log does not have yet; returns how many. Waits for predictions to keep up."""
    publisher = Publisher(broker)
    await publisher.start()
    published = 0
    orders = skip["orders"]
    left = dict(skip)
    chunk: dict[str, list[Any]] = {"orders": [], "returns": []}
    try:
        for n, line in enumerate(lines, 1):
            if left[line.topic]:
                left[line.topic] -= 1
            else:
                chunk[line.topic].append(line.row)
            size = len(chunk["orders"]) + len(chunk["returns"])
            if size == CHUNK or (n == len(lines) and size):
                await seen.room(orders)
                orders += len(chunk["orders"])
                published += size
                await asyncio.gather(*(publisher.send(t, rows) for t, rows in chunk.items() if rows))
                chunk = {"orders": [], "returns": []}
    finally:
        await publisher.close()
    return published


async def settled(log: KafkaLog, seen: Seen) -> None:
    """Return once every order is done and every outcome is learnt. Raises HeadraceError where nothing moves."""
    moved, last = time.monotonic(), (-1, -1)
    learnt = Partition("outcomes.returns", 0)
    while True:
        if seen.done == seen.orders:
            committed = await log.committed("returns.learn.returns", [learnt])
            if committed.get(learnt, 0) >= (await log.ends([learnt]))[learnt] - 1:
                return
        now = (seen.done, seen.outcomes)
        if now != last:
            moved, last = time.monotonic(), now
        elif time.monotonic() - moved > SETTLE_WITHIN:
            raise HeadraceError(
                f"nothing has moved for {SETTLE_WITHIN:.0f} s at {seen.done:,} of {seen.orders:,} orders; "
                f"see the logs of the worker"
            )
        await asyncio.sleep(0.1)


async def show(bar: Progress, numbers: Text, seen: Seen) -> None:
    """Keep the progress bar and the numbers under it, or, where there is no terminal, a line every five seconds."""
    while True:
        shown = 0 if bar.console.is_terminal else 5.0
        before, began = seen.done, time.monotonic()
        await asyncio.sleep(shown or 0.5)
        rate = (seen.done - before) / (time.monotonic() - began)
        auc, loss = seen.quality.get("roc_auc"), seen.quality.get("log_loss")
        text = (
            f"{rate:,.0f} events/s · {seen.predicted:,} predictions · {seen.outcomes:,} outcomes · "
            f"AUC {f'{auc:.3f}' if auc else '-'} · log loss {f'{loss:.4f}' if loss else '-'} · "
            f"at {seen.watermark} · {sum(seen.late.values())} late · {sum(seen.rejected.values()):,} rejected"
        )
        bar.update(bar.task_ids[0], completed=seen.done)
        numbers.plain = text
        if shown:
            print(text, flush=True)


async def weights(broker: Address) -> list[tuple[str, float]]:
    """The weights of the newest version over standardised features, the heaviest first."""
    log = KafkaLog(broker)
    partition = Partition(versions.REGISTRY, 0)
    end = (await log.ends([partition]))[partition]
    reader = await log.reader({partition: max(0, end - 4)})
    newest: versions.Version | None = None
    for fetched in await reader.fetch([partition], 10, 2.0):
        for value in fetched.values:
            newest = versions.decode(value) if value else newest
    await reader.close()
    await log.close()
    if newest is None:
        return []
    model = versions.load(newest).estimator["LogisticRegression"]
    return sorted(((str(k), float(v)) for k, v in model.weights.items()), key=lambda pair: -abs(pair[1]))


async def replay(which: str, data: Path, console: Console) -> dict[str, Any]:
    lines = await asyncio.to_thread(retail.lines, retail.file(which))
    orders = sum(line.topic == "orders" for line in lines)
    async with contextlib.AsyncExitStack() as closing:
        place = await closing.enter_async_context(somewhere(data, console))
        log = KafkaLog(place.broker)
        closing.push_async_callback(log.close)
        ends = await log.ends([Partition("orders", 0), Partition("returns", 0)])
        skip = {p.topic: end for p, end in ends.items()}
        if any(skip.values()):
            say(console, f"resuming: {sum(skip.values()):,} of {len(lines):,} lines are published already")
        seen = Seen(orders)
        bar = Progress(BarColumn(None), TextColumn("{task.percentage:>3.0f}%"), TimeElapsedColumn(), console=console)
        bar.add_task("replay", total=orders)
        numbers = Text()
        # The numbers are wider than a narrow terminal: under the bar they wrap, beside it they would be cut.
        with Live(Group(bar, numbers), console=console) if console.is_terminal else contextlib.nullcontext():
            async with watching(place.broker, seen):
                shown = asyncio.create_task(show(bar, numbers, seen))
                dead = asyncio.ensure_future(place.lost())
                began = time.monotonic()
                work = asyncio.create_task(_work(place.broker, log, lines, skip, seen))
                try:
                    await asyncio.wait([work, dead], return_when=asyncio.FIRST_COMPLETED)
                    if dead.done():
                        dead.result()
                    published = work.result() if work.done() else await work
                finally:
                    for running_task in (shown, dead, work):
                        running_task.cancel()
                    await asyncio.wait([shown, dead, work])  # what they hold is closed before the log is
                seconds = time.monotonic() - began
        carried = await weights(place.broker)
        return _summary(seen, len(lines), published, seconds) | {"data": place.data, "weights": carried}


async def _work(broker: Any, log: KafkaLog, lines: Sequence[retail.Line], skip: dict[str, int], seen: Seen) -> int:
    published = await publish(broker, lines, skip, seen)
    await settled(log, seen)
    return published


def _summary(seen: Seen, lines: int, published: int, seconds: float) -> dict[str, Any]:
    p50, p99 = np.percentile(seen.latencies, (50, 99)).tolist() if seen.latencies else (None, None)
    return {
        "published": lines,
        "predicted": seen.predicted,
        "outcomes": seen.outcomes,
        "late": sum(seen.late.values()),
        "rejected": sum(seen.rejected.values()),
        "drift_alarms": seen.alarms,
        "seconds": round(seconds, 2),
        "events_per_s": round(published / seconds, 1),
        "p50_ms": p50 and round(p50, 1),
        "p99_ms": p99 and round(p99, 1),
        **seen.measured(),
    }


def say(console: Console, text: str) -> None:
    """Print as it is: paths and commands that are broken at the edge of a terminal cannot be pasted."""
    console.print(text, soft_wrap=True, highlight=False, markup=False)


def tell(found: dict[str, Any], console: Console) -> None:
    """The summary for people."""
    counts = Table(title="What happened", show_header=False, title_justify="left")
    rows = {
        "published": f"{found['published']:,} lines: orders and returns",
        "predicted": f"{found['predicted']:,} order lines, each once",
        "joined": f"{found['outcomes']:,} predictions with what became of them",
        "rejected": f"{found['rejected']:,} that break their contract (no customer, no price, ...)",
        "late": f"{found['late']:,}",
        "drift alarms": f"{found['drift_alarms']:,}",
        "throughput": f"{found['events_per_s']:,.0f} events/s over {found['seconds']:.1f} s",
        "publish to prediction": f"p50 {found['p50_ms']} ms, p99 {found['p99_ms']} ms, at full speed",
    }
    for name, text in rows.items():
        counts.add_row(name, text)
    console.print(counts)
    title = f"Quality of {found['judged']:,} predictions, each made before its outcome ({found['positives']:,} returns)"
    quality = Table("", "ROC AUC", "average precision", "log loss", title=title, title_justify="left")
    for name, prefix in (
        ("online model", ""),
        ("customer's past rate", "customer_"),
        ("item's past rate", "item_"),
        ("base rate", "base_"),
    ):
        values = [found[prefix + m] for m in METRICS]
        quality.add_row(name, *("-" if v is None else f"{v:.4f}" for v in values))
    console.print(quality)
    heaviest = " · ".join(f"{name} {weight:+.2f}" for name, weight in found["weights"][:6])
    say(console, f"what carries it (weights over standardised features): {heaviest}")
    say(console, f"data: {found['data']}")


async def interruptible(work: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
    """End the work in order at the first signal, whatever more come. Raises KeyboardInterrupt once it has ended."""
    working = asyncio.ensure_future(work)
    signalled = asyncio.Event()

    def end() -> None:
        if not signalled.is_set():
            signalled.set()
            working.cancel()

    for sign in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(sign, end)
    try:
        return await working
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


def prepare(data: Path, which: str) -> None:
    """A finished run is followed by a new one; an interrupted one is resumed."""
    note = data / "replay.json"
    state = json.loads(note.read_text()) if note.exists() else {}
    if state.get("finished") or (state and state.get("which") != which):
        shutil.rmtree(data)
    data.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps({"which": which, "finished": False}))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("which", nargs="?", choices=("sample", "full"), default="sample")
    which = parser.parse_args(arguments).which
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # its news of connections is the stack's to tell
    console = Console()
    data = running.home() / "returns"
    here = not os.environ.get(running.BROKER)
    try:
        if here:
            say(console, "reading the events, then starting a broker, a worker and a gateway")
            prepare(data, which)
        found = asyncio.run(interruptible(replay(which, data, console)))
    except HeadraceError as error:
        print(f"headrace: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the next run goes on from here", file=sys.stderr)
        return 130
    tell(found, console)
    if here:
        (data / "replay.json").write_text(json.dumps({"which": which, "finished": True}))
        say(console, NEXT)
    wanted = os.environ.get("HEADRACE_SUMMARY")
    if wanted:
        weights = {f"weight_{name}": weight for name, weight in found.pop("weights")}
        Path(wanted).write_text(json.dumps({**found, **weights}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
