"""Workers of a job on a real log, killed, stopped, frozen, added and removed at random while events are published."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from headrace.streams.address import Address, parse_address
from headrace.streams.admin import ensure_topics
from headrace.streams.errors import StreamsError
from headrace.streams.kafka import KafkaLog
from headrace.streams.log import Log, Partition
from headrace.streams.publisher import Row
from headrace.streams.workers import TOPIC as WORKERS_TOPIC

from headrace.app import App
from headrace.plan import stages
from headrace.program import load
from headrace.verify import verify
from tests.kill import feed, states
from tests.kill.verifier import Differences, check_customers, check_window
from tests.scene import ROOT, free_port

WORKERS = 3
END_WITHIN = 40.0
"""Seconds for a worker to end after SIGTERM: the cycle it is in, its part in the group, its last word."""
FROZEN = (12.0, 15.0)
"""Seconds that a worker is stopped before it goes on as a zombie: past its session in the group."""
BURST = 9
"""Kills that follow one another before all that was published must have been taken."""
PAUSE = (0.2, 3.2)
"""Seconds between two kills of a burst: within a start, before it, after it."""
RECOVERED_WITHIN = 120.0
"""Seconds from the last kill of a burst until all that was published by then is taken: the session of a worker that
died, a restore, and the work that waited, on a machine that does more than this."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Job:
    """A program of this folder, what publishes its events, and what checks its outputs."""

    name: str
    events: Callable[[int], Iterator[tuple[str, Row]]]
    rate: float
    check: Callable[[Log], Awaitable[Differences]]

    @property
    def program(self) -> Path:
        return ROOT / "tests" / "kill" / f"{self.name}.py"

    def app(self) -> App:
        return load(self.program)


def window(rate: float = 300.0) -> Job:
    return Job("window", feed.ticks, rate, check_window)


def customers(share: int, rate: float = 60.0) -> Job:
    return Job("customers", lambda seed: feed.shopping(share), rate, check_customers)


@dataclass(eq=False)
class Worker:
    number: int
    process: subprocess.Popen[bytes]
    log: Path
    frozen: bool = False

    @property
    def ready(self) -> bool:
        return b"ready: " in self.log.read_bytes()

    def told(self) -> str:
        return self.log.read_text(errors="replace")[-3000:]


class Workers:
    """Processes of `headrace worker`, all on one data folder.

    module: the command; another one stands for a broken engine
    told:   what their environment has beside this one's
    """

    def __init__(
        self,
        program: Path,
        broker: str,
        data: Path,
        module: str = "headrace.command",
        told: Mapping[str, str] | None = None,
    ) -> None:
        self.data = data
        self.all: list[Worker] = []
        self.gone: list[str] = []
        self._program = program
        self._broker = broker
        self._module = module
        self._numbers = itertools.count()
        self._environment = {**os.environ, "HEADRACE_HOME": str(data.parent), "PYTHONPATH": str(ROOT), **(told or {})}
        data.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.all:
            with contextlib.suppress(ProcessLookupError):
                worker.process.kill()
        for worker in self.all:
            worker.process.wait()

    def add(self) -> Worker:
        number = next(self._numbers)
        log = self.data / f"worker-{number}.log"
        command = [sys.executable, "-m", self._module, "worker", str(self._program), "--broker", self._broker]
        command += ["--data", str(self.data), "--metrics-port", str(free_port())]
        with log.open("wb") as out:
            process = subprocess.Popen(command, cwd=ROOT, env=self._environment, stdout=out, stderr=out)
        worker = Worker(number, process, log)
        self.all.append(worker)
        return worker

    def kill(self, worker: Worker) -> None:
        worker.process.kill()
        worker.process.wait()
        self.all.remove(worker)

    def stop(self, worker: Worker) -> int:
        """SIGTERM, and wait for its end; the exit status."""
        worker.process.terminate()
        try:
            status = worker.process.wait(END_WITHIN)
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"worker {worker.number} did not end within {END_WITHIN:.0f} s of SIGTERM:\n{worker.told()}"
            ) from None
        self.all.remove(worker)
        return status

    def freeze(self, worker: Worker) -> None:
        worker.process.send_signal(signal.SIGSTOP)
        worker.frozen = True

    def thaw(self, worker: Worker) -> None:
        worker.process.send_signal(signal.SIGCONT)
        worker.frozen = False

    def awake(self) -> list[Worker]:
        """Those that are not frozen; the ready ones, where there are any."""
        awake = [w for w in self.all if not w.frozen]
        return [w for w in awake if w.ready] or awake

    def keep_up(self) -> None:
        """Start a worker again that ended of itself, as whoever runs workers does, and note what it said."""
        for worker in list(self.all):
            status = worker.process.poll()
            if status is not None:
                self.gone.append(f"worker {worker.number} ended with {status}:\n{worker.told()}")
                self.all.remove(worker)
                self.add()

    def wait_ready(self, within: float = 90.0) -> None:
        until = time.monotonic() + within
        while not all(w.ready for w in self.all):
            self.keep_up()
            if time.monotonic() > until:
                raise AssertionError(f"not ready within {within:.0f} s:\n" + "\n".join(w.told() for w in self.all))
            time.sleep(0.1)


@dataclass
class Rig:
    """A job with its workers on a log; `asked` runs a question on a connection of its own."""

    job: Job
    broker: Address
    workers: Workers
    chance: random.Random
    bootstrap: str = ""
    say: Callable[[str], None] = print
    kills: dict[str, int] = field(default_factory=lambda: {"KILL": 0, "TERM": 0, "STOP": 0, "added": 0, "removed": 0})
    _zombies: list[tuple[float, Worker]] = field(default_factory=list)
    _bursts: int = 0

    def asked(self, question: Callable[[KafkaLog], Awaitable[T]]) -> T:
        async def main() -> T:
            log = KafkaLog(parse_address(self.bootstrap) if self.bootstrap else self.broker, "kill-test")
            try:
                return await question(log)
            finally:
                await log.close()

        return asyncio.run(main())

    def ends(self) -> dict[Partition, int]:
        """What is published by now."""
        app = self.job.app()
        inputs = [Partition(e.contract.topic, n) for e in app.events for n in range(app.partitions)]
        return self.asked(lambda log: log.ends(inputs))

    def taken(self, targets: Mapping[Partition, int]) -> bool:
        """Whether the tasks have committed all of these partitions' records; False where the log does not answer."""
        found: dict[Partition, int] = {}
        try:
            for stage in stages(self.job.app()):
                inputs = [p for p in targets if p.topic in stage.inputs]
                found |= self.asked(lambda log, g=stage.group, i=inputs: log.committed(g, i)) if inputs else {}  # type: ignore[misc]
        except StreamsError:
            return False
        return all(found.get(p, 0) >= end for p, end in targets.items())

    def recover(self, within: float = RECOVERED_WITHIN) -> float:
        """Return once all that is published by now is taken; the seconds that it took."""
        targets, began = self.ends(), time.monotonic()
        while not self.taken(targets):
            self.keep_up()
            if time.monotonic() - began > within:
                said = "\n".join(f"worker {w.number}:\n{w.told()}" for w in self.workers.all)
                raise AssertionError(f"what was published is not taken within {within:.0f} s of the last kill:\n{said}")
            time.sleep(0.3)
        return time.monotonic() - began

    def keep_up(self) -> None:
        self.workers.keep_up()
        for due, worker in list(self._zombies):
            if time.monotonic() >= due:
                self._zombies.remove((due, worker))
                self.workers.thaw(worker)

    def sleep(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.keep_up()
            time.sleep(min(0.05, max(0.0, until - time.monotonic())))

    def burst(self, rotation: Sequence[str]) -> None:
        """Kills in this order at random moments; then everything that was published is taken. In every second burst
        a worker more comes before, and one leaves after."""
        self._bursts += 1
        guest = self._bursts % 2 == 1
        if guest:
            self.workers.add()
            self.kills["added"] += 1
        for what in rotation:
            self.sleep(self.chance.uniform(*PAUSE))
            self._do(what, self._somebody())
        if guest:
            self.sleep(self.chance.uniform(*PAUSE))
            self._ended(self._somebody())
            self.kills["removed"] += 1
        while self._zombies:
            self.sleep(0.1)
        seconds = self.recover()
        self.say(f"{self.told()}; all taken {seconds:.1f} s after the last kill; the workers: {len(self.workers.all)}")

    def _somebody(self) -> Worker:
        while not self.workers.awake():
            self.sleep(0.1)
        return self.chance.choice(self.workers.awake())

    def _do(self, what: str, victim: Worker) -> None:
        self.kills[what] += 1
        if what == "KILL":
            self.workers.kill(victim)
            self.workers.add()
        elif what == "TERM":
            self._ended(victim)
            self.workers.add()
        else:
            self.workers.freeze(victim)
            self._zombies.append((time.monotonic() + self.chance.uniform(*FROZEN), victim))

    def _ended(self, worker: Worker) -> None:
        """A worker that is asked to end does so by itself, also in the middle of its start."""
        starting = not worker.ready
        status = self.workers.stop(worker)
        if status != 0 and not (starting and status == -signal.SIGTERM):
            raise AssertionError(f"worker {worker.number} ended with {status} at SIGTERM:\n{worker.told()}")

    def told(self) -> str:
        return ", ".join(f"{count} {what}" for what, count in self.kills.items())

    def settle(self, within: float = RECOVERED_WITHIN) -> None:
        """Return once every record of every topic that a stage reads is taken."""
        until = time.monotonic() + within
        while (behind := self._behind()) != 0:
            self.keep_up()
            if time.monotonic() > until:
                said = "\n".join(f"worker {w.number}:\n{w.told()}" for w in self.workers.all)
                raise AssertionError(f"{behind} records are not taken within {within:.0f} s:\n{said}")
            time.sleep(0.3)

    def _behind(self) -> int:
        try:
            return self.asked(lambda log: behind(self.job.app(), log))
        except StreamsError:
            return -1

    def end(self) -> None:
        for worker in list(self.workers.all):
            self._ended(worker)

    def check(self) -> None:
        """Every output against its source, by the oracle and by `headrace verify`, and every state three ways."""
        began = time.monotonic()
        outputs = self.asked(self.job.check)
        self.say(str(outputs))
        assert not outputs, str(outputs)
        verified = self.asked(lambda log: verify(self.job.app(), log))
        wrong = [f"{c.what}: {dict(c.ways)} {c.examples}" for c in verified if c.different]
        assert not wrong, "\n".join(wrong)
        self.say(f"headrace verify: {sum(c.compared for c in verified):,} compared, all equal")
        unequal = self.asked(lambda log: states.differences(self.job.app(), log, self.workers.data))
        assert not unequal, "\n".join(unequal)
        self.say(f"live state = changelog = source, in every task; checked in {time.monotonic() - began:.0f} s")


async def behind(app: App, log: Log) -> int:
    """How many records of the topics that the stages read have not been taken."""
    count = 0
    for stage in stages(app):
        learning = stage.name.startswith("learn.")
        inputs = [Partition(t, n) for n in range(1 if learning else app.partitions) for t in stage.inputs]
        taken = await log.committed(stage.group, inputs)
        for partition, end in (await log.ends(inputs)).items():
            position = taken.get(partition, 0)
            if position >= end:
                continue
            # Markers of transactions may be all that is left.
            reader = await log.reader({partition: position})
            try:
                while position < end:
                    for fetched in await reader.fetch([partition], 2_000, 1.0):
                        count, position = count + len(fetched), fetched.next_offset
            finally:
                await reader.close()
    return count


def rotation(kills: int) -> list[str]:
    return list(itertools.islice(itertools.cycle(("STOP", "KILL", "TERM")), kills))


def create_topics(job: Job, broker: Address, replication: int = 1) -> None:
    asyncio.run(ensure_topics(broker, [*job.app().topics(), WORKERS_TOPIC], replication=replication))
