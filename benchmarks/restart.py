"""Restart with 1 GB of state: seconds from starting the process to the first output of what was published while it was
away, by Headrace and by Kafka Streams, exactly once, on one node of Apache Kafka.

`python -m benchmarks.restart [--state SIZE] [--only NAME]`; some ten minutes. Three cases, in this order:

- an empty disk: the whole state comes from the changelog;
- a clean stop (SIGTERM): the state lies on disk;
- kill -9 under a load of 1,000 events/s: the state lies on disk as the process left it.

State: customers with a row for each of eight days. Headrace's is made by its own operators and committed to the
changelog by its own writer (see recovery); Kafka Streams' are as many rows of as many bytes, in the same order of keys,
written to the changelog of its store. Each event asks for all rows of its customer: an output tells their orders, eight
and those published since, and every output of every case is checked, so that none was lost, told twice or left out.
The worker has a core to itself; the log, the client and the rest have the others. What the system has of the files in
its memory stays there, for both.

After a kill, Kafka Streams 4.1 goes on from its store as it lies, in which there may be what an aborted transaction
wrote (KAFKA-20685); where that is mended it takes the whole state from the changelog anew, as with an empty disk.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from headrace.streams.address import Address
from headrace.streams.admin import ensure_topics
from headrace.streams.batch import Block
from headrace.streams.kafka import KafkaLog
from headrace.streams.log import Partition, Reader
from headrace.streams.memory import parse_size
from headrace.streams.publisher import Publisher, Row, encode
from headrace.streams.spans import Spans
from headrace.streams.topics import Topic

from benchmarks import results
from benchmarks.customers import BEGAN, Order
from benchmarks.figures import apache_kafka, machine
from benchmarks.peers.children import Children, Failed, busy, cores
from benchmarks.peers.engines import ROOT, have_java, java_job
from benchmarks.recovery import DAYS, STATE_BYTES, State, make_state
from tests.stack import kafka

LOAD_RATE, TICK = 1_000, 0.01
LOAD_SECONDS = 5.0
"""Of load before the kill: some thirty of Kafka Streams' commits, and more of ours."""
OUTPUT_WITHIN = 600.0
"""Seconds from the start to the output: a whole restore, on a machine that is busy with other things too."""
STOPPED_WITHIN = 60.0
SENT_TOGETHER = 20_000
CASES = ("an empty disk", "a clean stop", "kill -9 under load")
SEED = 7


class Wrong(Exception):
    """State was lost, or an event was not told of once."""


@dataclass(frozen=True, slots=True)
class Engine:
    """orders, told: its topics, of one partition.

    make: commits a state of so many bytes to its changelog, or one as large as another's
    command: of the worker; what it needs is compiled before it is told
    """

    name: str
    guarantee: str
    orders: str
    told: str
    make: Callable[[Address, int, State | None], Awaitable[State]]
    command: Callable[[Address, Children], list[str]]


async def our_state(broker: Address, least: int, like: State | None) -> State:
    return await make_state(broker, least)


def our_command(broker: Address, children: Children) -> list[str]:
    program = ["-m", "headrace.worker", "benchmarks.customers"]
    return [sys.executable, *program, "--broker", broker.bootstrap, "--data", str(children.folder / DATA)]


DATA = "data"
STREAMS = "restart-kafka-streams"
"""The application's id, as RestartJob has it."""


async def their_state(broker: Address, least: int, like: State | None) -> State:
    """As many rows of as many bytes as another engine has. Without one, rows of what ours has by itself."""
    customers = (like.rows if like else max(DAYS, least // OUR_ROW)) // DAYS
    wide = (like.bytes // like.rows if like else OUR_ROW) - len(_row_key(0, 0))
    forever = {"retention.ms": "-1"}
    changelog = Topic(f"{STREAMS}-orders-changelog", "changelog", 1, None, {"cleanup.policy": "compact"})
    topics = [Topic(STREAMS, "event", 1, None, forever), Topic(f"{STREAMS}-told", "features", 1, None, forever)]
    await ensure_topics(broker, [changelog, *topics])
    random = np.random.default_rng(SEED)
    noise, one = random.bytes(1 << 20), (1).to_bytes(8, "big")
    log = KafkaLog(broker)
    sender = await log.sender()
    for day in range(DAYS):
        turns = random.permutation(customers).tolist()
        for first in range(0, customers, SENT_TOGETHER):
            who = turns[first : first + SENT_TOGETHER]
            starts = random.integers(0, len(noise) - wide, len(who)).tolist()
            keys = Spans.of([_row_key(n, day) for n in who])
            values = Spans.of([one + noise[at : at + wide - len(one)] for at in starts])
            await sender.send([Block(changelog.name, keys, values, 0)], 0)
    await sender.close()
    await log.close()
    return State(customers * DAYS, customers * DAYS * (wide + len(_row_key(0, 0))))


OUR_ROW = STATE_BYTES // 4_115_000
"""Bytes of a row of ours."""


def _row_key(customer: int, day: int) -> bytes:
    return b"customer-%07d/%d" % (customer, day)


def their_command(broker: Address, children: Children) -> list[str]:
    return [
        *java_job("RestartJob", children),
        broker.bootstrap,
        str(children.folder / DATA),
        STREAMS,
        f"{STREAMS}-told",
    ]


ENGINES = (
    Engine("Headrace", "exactly once; changelog, RocksDB", "orders", "features.Customer", our_state, our_command),
    Engine(
        "Kafka Streams", "exactly once (v2); changelog, RocksDB", STREAMS, f"{STREAMS}-told", their_state, their_command
    ),
)


class Shop:
    """Orders of the customers, and what is told of each: checked as it is read, one event after the other."""

    def __init__(self, broker: Address, engine: Engine, customers: int) -> None:
        self._engine = engine
        self._customers = customers
        self._publisher = Publisher(broker)
        self._log = KafkaLog(broker)
        self._told = Partition(engine.told, 0)
        self._reader: Reader
        self._wanted: Counter[str] = Counter()
        self._seen: Counter[str] = Counter()
        self._random = np.random.default_rng(SEED)
        self.published = 0
        self.outputs = 0

    async def __aenter__(self) -> Shop:
        await self._publisher.start()
        self._reader = await self._log.reader({self._told: 0})
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._publisher.close()
        await self._reader.close()
        await self._log.close()

    async def publish(self, count: int) -> None:
        """Orders of customers drawn evenly, an hour into the last day."""
        await self._publisher.send(self._engine.orders, [self.order() for _ in range(count)])

    def order(self) -> Row:
        """Of the next customer."""
        customer = f"customer-{int(self._random.integers(self._customers)):07}"
        at = BEGAN + timedelta(days=DAYS - 1, hours=1, milliseconds=self.published)
        self._wanted[customer] += 1
        self.published += 1
        return encode(Order(customer=customer, quantity=1, price=1.0, at=at))

    async def read(self) -> None:
        """Take what is told now. Raises Wrong."""
        for fetched in await self._reader.fetch([self._told], 10_000, TICK):
            for value in fetched.values:
                self.take(json.loads(value or b""))

    def take(self, told: dict[str, Any]) -> None:
        """What is told of one order. Raises Wrong."""
        customer = told["customer"]
        self._seen[customer] += 1
        self.outputs += 1
        right = DAYS + self._seen[customer]
        if told["orders"] != right or self._seen[customer] > self._wanted[customer]:
            raise Wrong(f"{self._engine.name} tells of {customer} {told['orders']} orders, where {right} are right")

    async def all_told(self, children: Children) -> None:
        """Return once every order is told of, the last published as the last. Raises Wrong, or Failed."""
        until = time.monotonic() + OUTPUT_WITHIN
        while self.outputs < self.published:
            await self.read()
            children.check()
            if time.monotonic() > until:
                raise Failed(f"{self.published - self.outputs} orders have no output after {OUTPUT_WITHIN:.0f} s")

    async def load(self, seconds: float) -> None:
        """A steady load for so long, and until it is told of at all. Raises Failed."""
        each, before = int(LOAD_RATE * TICK), self.outputs
        began = time.perf_counter()
        for n in range(int(OUTPUT_WITHIN / TICK)):
            if n * TICK >= seconds and self.outputs >= before + each:
                return
            await self.publish(each)
            await self.read()
            await asyncio.sleep(max(0.0, began + n * TICK - time.perf_counter()))
        raise Failed(f"{self._engine.name} tells of none of the orders of the load")


class Case:
    """An engine's worker, started and ended again and again on one folder."""

    def __init__(self, broker: Address, engine: Engine, children: Children, state: State) -> None:
        self.shop = Shop(broker, engine, state.rows // DAYS)
        self._engine = engine
        self._children = children
        self._state = state
        self._command = engine.command(broker, children)
        self._process: subprocess.Popen[bytes]

    async def rows(self, load: float) -> list[dict[str, Any]]:
        """A row for each of CASES."""
        data = self._children.folder / DATA
        empty = await self._restarted(CASES[0])
        self._end(signal.SIGTERM)
        disk = size(data)
        clean = await self._restarted(CASES[1])
        await self.shop.load(load)
        self._end(signal.SIGKILL)
        killed = await self._restarted(CASES[2])
        self._end(signal.SIGTERM)
        # Whatever it wrote at its end: nothing may be told once more.
        for _ in range(20):
            await self.shop.read()
        shutil.rmtree(data)
        return [{**row, "disk_mb": round(disk / 1e6)} for row in (empty, clean, killed)]

    async def _restarted(self, case: str) -> dict[str, Any]:
        behind = self.shop.published - self.shop.outputs
        await self.shop.publish(1)
        began = time.perf_counter()
        self._process = self._children.start(
            "worker", self._command, worker=True, environment={"PYTHONPATH": str(ROOT)}
        )
        await self.shop.all_told(self._children)
        seconds, spent = time.perf_counter() - began, busy(self._process.pid)
        state, checked = self._state, self.shop.outputs
        row: dict[str, Any] = {
            "name": self._engine.name, "guarantee": self._engine.guarantee, "case": case, "seconds": round(seconds, 2),
            "processor_seconds": round(spent, 2), "rows_of_state": state.rows, "state_mb": round(state.bytes / 1e6),
            "waiting": behind + 1, "outputs_checked": checked,
        }  # fmt: skip
        print("{name:<14} {case:<20} {seconds:>8.1f} s  ({processor_seconds:,.1f} s of the processor)   "
              "{outputs_checked:,} outputs right".format(**row), flush=True)  # fmt: skip
        return row

    def _end(self, how: signal.Signals) -> None:
        """Raises Failed where it does not end."""
        self._process.send_signal(how)
        try:
            self._process.wait(STOPPED_WITHIN)
        except subprocess.TimeoutExpired:
            raise Failed(f"{self._engine.name} does not stop: {self._children.said('worker')}") from None


def size(folder: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


async def compared(least: int, engines: Sequence[Engine] = ENGINES, load: float = LOAD_SECONDS) -> list[dict[str, Any]]:
    """A row for each engine and case. Raises Wrong, or Failed."""
    have_java()
    worker, rest = cores()
    if rest:
        os.sched_setaffinity(0, rest)  # the broker's too: it is started from here
    found: list[dict[str, Any]] = []
    like: State | None = None
    with tempfile.TemporaryDirectory(prefix="headrace-restart-", ignore_cleanup_errors=True) as folder:
        async with apache_kafka(Path(folder) / "kafka") as broker:
            for engine in engines:
                like = state = await engine.make(broker, least, like)
                print(f"{engine.name}: {state.rows:,} rows, {state.bytes / 1e6:,.0f} MB of state", flush=True)
                with Children(Path(folder) / engine.name.replace(" ", "-"), worker, rest) as children:
                    case = Case(broker, engine, children, state)
                    async with case.shop:
                        found += await case.rows(load)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.restart", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--state", type=parse_size, default=STATE_BYTES, metavar="SIZE", help='as "100MB"; of 1 GB')
    parser.add_argument("--only", choices=[engine.name for engine in ENGINES], help="measure this one")
    chosen = parser.parse_args(arguments)
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    # What is started ends with its block, whatever ends this process.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    here = machine()
    print(here, flush=True)
    engines = [engine for engine in ENGINES if chosen.only in (None, engine.name)]
    began = time.monotonic()
    rows = asyncio.run(compared(chosen.state, engines))
    print(table(rows))
    print(f"{time.monotonic() - began:,.0f} s in all")
    if chosen.state >= STATE_BYTES and not chosen.only:
        results.keep("restart", here, results.versions(kafka=kafka.VERSION), rows)
    return 0


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Seconds, an engine a line; and what its state is."""
    lines = [f"{'':<14}" + "".join(f"{case:>22}" for case in CASES) + f"{'on disk':>12}"]
    for name in dict.fromkeys(row["name"] for row in rows):
        mine = [row for row in rows if row["name"] == name]
        told = "".join(f"{row['seconds']:>20.1f} s" for row in mine)
        lines.append(f"{name:<14}{told}{mine[0]['disk_mb']:>9,} MB")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
