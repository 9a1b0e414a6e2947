"""What does harm to brokers while clients work: kill -9, stop and go on, an orderly restart."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Protocol

from headrace.streams.address import Address
from headrace.streams.admin import answers

from tests.history import broken
from tests.history.history import Fault, History
from tests.scene import free_port


class Victim(Protocol):
    """One broker, at the same place after each of its deaths."""

    def kill(self) -> None: ...
    def stop(self) -> None: ...
    def start(self) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...


@dataclass
class Harm:
    """Draws by seed whom to harm, how, and for how long."""

    victims: Sequence[Victim]
    seed: int
    between: tuple[float, float]
    """Seconds of peace, from and to."""
    away: tuple[float, float]
    """Seconds that a broker is dead or asleep."""
    choose: Callable[[], Victim] | None = None
    """Whom to harm, where it is not to be any of them: the leader of a partition."""
    kinds: Sequence[str] = ("kill", "pause", "restart")
    done: list[Fault] = field(default_factory=list)

    async def run(self, over: asyncio.Event, history: History) -> None:
        dice = random.Random(f"{self.seed} nemesis")
        # Each kind before any comes again, so that a short run has had them all.
        coming: list[str] = []
        while not await _within(over, dice.uniform(*self.between)):
            coming = coming or dice.sample(list(self.kinds), len(self.kinds))
            kind = coming.pop()
            victim = await asyncio.to_thread(self.choose) if self.choose else dice.choice(self.victims)
            fault = history.add(Fault(kind=kind, began=time.monotonic()))
            self.done.append(fault)
            begin, end = {
                "kill": (victim.kill, victim.start),
                "pause": (victim.pause, victim.resume),
                "restart": (victim.stop, victim.start),
            }[kind]
            await asyncio.to_thread(begin)
            await asyncio.sleep(dice.uniform(*self.away))
            await asyncio.to_thread(end)
            fault.ended = time.monotonic()

    def harmed_enough(self) -> bool:
        return {fault.kind for fault in self.done if fault.ended is not None} >= set(self.kinds)

    async def heal(self) -> None:
        for victim in self.victims:
            await asyncio.to_thread(victim.kill)
            await asyncio.to_thread(victim.start)


async def _within(event: asyncio.Event, seconds: float) -> bool:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)
    return event.is_set()


_FORKS = multiprocessing.get_context("forkserver")
"""A broker is a process of its own, forked from one that has imported everything: dying costs it no seconds."""
_FORKS.set_forkserver_preload(["tests.history.broken"])


class LocalBroker:
    """The local broker as a process; `flaws` are those of `tests.history.broken`."""

    def __init__(self, folder: Path, *flaws: str) -> None:
        self.address = Address("127.0.0.1", free_port())
        self._arguments = ["--data", str(folder / "log"), "--port", str(self.address.port)]
        self._flaws = flaws
        self._log = folder / "broker.log"
        self._process: ForkServerProcess | None = None

    @property
    def _running(self) -> ForkServerProcess:
        assert self._process is not None
        return self._process

    def _signal(self, number: signal.Signals) -> None:
        assert self._running.pid is not None
        os.kill(self._running.pid, number)

    def start(self) -> None:
        self._process = _FORKS.Process(target=broken.run, args=(self._flaws, self._arguments, self._log))
        self._process.start()
        until = time.monotonic() + 30
        while not asyncio.run(answers(self.address)):
            assert self._process.is_alive(), f"the broker did not start: {self._log.read_text()}"
            assert time.monotonic() < until, "the broker does not answer"
            time.sleep(0.02)

    def kill(self) -> None:
        self._running.kill()
        self._running.join()

    def stop(self) -> None:
        self._signal(signal.SIGTERM)
        self._running.join(15)
        assert not self._running.is_alive(), "the broker does not stop"

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)
