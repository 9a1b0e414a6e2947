"""The main job as real processes: its lines published, its stack run, killed and run again, its topics read."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from headrace.streams.address import Address
from headrace.streams.admin import ensure_topics
from headrace.streams.errors import StreamsError
from headrace.streams.kafka import KafkaLog
from headrace.streams.log import Fetched, Partition
from headrace.streams.publisher import Publisher, Row

from headrace.program import load
from headrace.state import records
from tests.kill.oracle import Source
from tests.scene import ROOT, broker_process, free_port

PROGRAM = ROOT / "examples" / "returns" / "pipeline.py"
ORDERS, RETURNS = Partition("orders", 0), Partition("returns", 0)
PREDICTIONS, OUTCOMES = Partition("predictions.returns", 0), Partition("outcomes.returns", 0)
AT_ONCE = 2_000
"""Lines published together."""
BACK_WITHIN = 90.0
"""Seconds for a killed process to be started again: its supervisor's bounds, on a machine that does more than this."""


def lines(share: int) -> list[tuple[str, Row]]:
    """The shop's sample: of every `share`-th customer every line, so that returns find what they take back."""
    found: list[tuple[str, Row]] = []
    for n, line in enumerate(_retail().lines(_retail().SAMPLE)):
        # Lines of no customer are rejected; they are thinned by their number.
        who = line.row.key if line.row.key is not None else b"%d" % n
        if zlib.crc32(who) % share == 0:
            found.append((line.topic, line.row))
    return found


def _retail() -> ModuleType:
    folder = str(PROGRAM.parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    import retail

    return retail


def sources(published: Sequence[tuple[str, Row]]) -> list[Source]:
    """The lines as they lie in their topics."""
    counts = {"orders": 0, "returns": 0}
    found = []
    for topic, row in published:
        found.append(Source(topic, counts[topic], row.value))
        counts[topic] += 1
    return found


def publish(data: Path, published: Sequence[tuple[str, Row]]) -> None:
    """Publish all lines to a log in the stack's folder, before any worker runs."""

    async def main() -> None:
        publisher = Publisher(address)
        await ensure_topics(address, load(PROGRAM).topics())
        await publisher.start()
        try:
            for topic in ("orders", "returns"):
                rows = [row for t, row in published if t == topic]
                for n in range(0, len(rows), AT_ONCE):
                    await publisher.send(topic, rows[n : n + AT_ONCE])
        finally:
            await publisher.close()

    data.mkdir(parents=True)
    with broker_process(data / "broker") as address:
        asyncio.run(main())


@dataclass
class Job:
    """The stack on a folder, as `headrace run` runs it; `module` is the command.

    starts: how often it was started: once, after each kill of the whole, and where it gave up a child
    """

    data: Path
    module: str = "headrace.command"
    starts: int = 0

    def __post_init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._environment = {**os.environ, "HEADRACE_HOME": str(self.data.parent), "PYTHONPATH": str(ROOT)}

    def __enter__(self) -> Job:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(60)

    def start(self) -> None:
        """Start the stack; it comes up while the job goes on."""
        self.starts += 1
        self.broker = Address("127.0.0.1", free_port())
        ports = ["--broker-port", str(self.broker.port), "--gateway-port", str(free_port())]
        command = [sys.executable, "-m", self.module, "run", str(PROGRAM), "--data", str(self.data), *ports]
        with (self.data / "stack.log").open("ab") as log:
            self._process = subprocess.Popen(command, cwd=ROOT, env=self._environment, stdout=log, stderr=log)

    def kill(self, what: str) -> None:
        """SIGKILL to the worker, the broker, or the stack with all its processes, which is then started again.

        A child is started again by its stack; where it died too often for that, the whole stack is, as a user would.
        """
        children = self._alive(what)
        assert self._process is not None
        if what == "stack":
            self._process.kill()
            self._process.wait()
        for pid in children.values() if what == "stack" else [children[what]]:
            with contextlib.suppress(ProcessLookupError):  # a child that saw its parent's end first
                os.kill(pid, signal.SIGKILL)
        if what == "stack":
            self.start()

    def _alive(self, what: str) -> dict[str, int]:
        """The stack's processes, once the one asked for is there: it may be on its way back from the last kill."""
        until = time.monotonic() + BACK_WITHIN
        while True:
            self.keep_up()
            children = self._children()
            if what in ("stack", *children):
                return children
            assert time.monotonic() < until, f"the {what} is not back within {BACK_WITHIN:.0f} s:\n{self.log()}"
            time.sleep(0.02)

    def _children(self) -> dict[str, int]:
        """The stack's processes by name, also while others still start."""
        assert self._process is not None
        found: dict[str, int] = {}
        for pid in Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split():
            with contextlib.suppress(OSError):
                module = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[2].decode()
                found[module.removesuffix("_worker").rpartition(".")[2]] = int(pid)
        return found

    def keep_up(self) -> None:
        """Start the stack again where it gave up a child that was killed too often, or in its first start."""
        assert self._process is not None
        if self._process.poll() is not None:
            assert re.search("times within a minute|was killed by SIGKILL before it was ready", self.log()), self.log()
            self.start()

    def log(self) -> str:
        return (self.data / "stack.log").read_text()[-3000:]

    def end(self, partition: Partition) -> int:
        """The end of a partition; 0 where the log does not answer just now."""

        async def main(log: KafkaLog) -> int:
            try:
                return (await asyncio.wait_for(log.ends([partition]), 5))[partition]
            except (StreamsError, TimeoutError):
                return 0
            finally:
                await log.close()

        return asyncio.run(main(self._log()))

    def wait_until(self, done: int, within: float) -> int:
        """Return once so many offsets of predictions are written, with how many there are."""
        until = time.monotonic() + within
        while (got := self.end(PREDICTIONS)) < done:
            assert time.monotonic() < until, f"not at {done} predictions within {within:.0f} s:\n{self.log()}"
            self.keep_up()
            time.sleep(0.02)
        return got

    def settle(self, within: float) -> None:
        """Return once every line is taken and every outcome is learnt."""
        until = time.monotonic() + within
        while not asyncio.run(self._settled(self._log())):
            assert time.monotonic() < until, f"not settled within {within:.0f} s:\n{self.log()}"
            self.keep_up()
            time.sleep(0.2)

    async def _settled(self, log: KafkaLog) -> bool:
        try:
            taken = await log.committed("returns.orders", [ORDERS, RETURNS])
            learnt = await log.committed("returns.learn.returns", [OUTCOMES])
            ends = await log.ends([ORDERS, RETURNS, OUTCOMES])
        except StreamsError:
            return False
        finally:
            await log.close()
        # The last record of a transaction has its marker behind it.
        all_learnt = learnt.get(OUTCOMES, 0) >= ends[OUTCOMES] - 1
        return all_learnt and taken == {p: ends[p] for p in (ORDERS, RETURNS)}

    def read(self, topic: str) -> list[tuple[bytes | None, bytes | None]]:
        """Every committed record of a topic's only partition: key and value."""

        async def main(log: KafkaLog) -> list[Fetched]:
            try:
                return [f async for f in records(log, Partition(topic, 0))]
            finally:
                await log.close()

        return [pair for f in asyncio.run(main(self._log())) for pair in zip(f.keys, f.values, strict=True)]

    def verify(self) -> subprocess.CompletedProcess[str]:
        """`headrace verify`, from another process, while the stack is up and after it went down."""
        assert self._process is not None
        where = ["--broker", str(self.broker)] if self._process.poll() is None else ["--data", str(self.data)]
        command = [sys.executable, "-m", "headrace.command", "verify", str(PROGRAM), *where]
        return subprocess.run(command, cwd=ROOT, env=self._environment, capture_output=True, text=True, check=False)

    def _log(self) -> KafkaLog:
        return KafkaLog(self.broker, "kill-test")


def moments(chance: random.Random, kills: int, predictions: int) -> list[int]:
    """How far the job shall have got at each kill: anywhere but at its very end, where little is left to lose."""
    return sorted(chance.randrange(1, int(predictions * 0.9)) for _ in range(kills))
