"""A seeded world: actors that take turns, a clock that only moves when all of them wait, and faults.

Everything that happens follows from the seed, so a failing seed replays its failure.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Coroutine, Generator
from typing import Any

EPOCH = 1_577_836_800
"""The simulated wall clock begins in 2020."""


class Crash(BaseException):
    """The process died here. Nothing catches it but the world."""


class _Turn:
    """Hand over to another actor; come back not before the time given."""

    def __init__(self, until: float) -> None:
        self._until = until

    def __await__(self) -> Generator[float, None, None]:
        yield self._until


class World:
    """Runs actors in an order drawn from the seed. It is also the clock of what runs in it."""

    MAX_TURNS = 2_000_000
    """A run that takes more has stopped making progress."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.time = 0.0
        self.passed = 0.0
        self._actors: dict[str, tuple[float, Coroutine[Any, Any, None]]] = {}

    def now(self) -> float:
        return self.time

    def wall(self) -> float:
        """Seconds since 1970. `passed`: those that went by with nothing happening in them."""
        return EPOCH + self.passed + self.time

    async def sleep(self, seconds: float) -> None:
        await _Turn(self.time + seconds)

    async def turn(self) -> None:
        """Let others go first, sometimes."""
        if self.random.random() < 0.5:
            await _Turn(self.time)

    def spawn(self, name: str, actor: Coroutine[Any, Any, None]) -> None:
        assert name not in self._actors
        self._actors[name] = (self.time, actor)

    def kill(self, name: str) -> None:
        """End an actor where it stands, as SIGKILL does: none of its handlers runs."""
        _, actor = self._actors.pop(name)
        with contextlib.suppress(Crash, StopIteration):
            actor.throw(Crash())

    def pause(self, name: str, seconds: float) -> None:
        """Stop an actor where it stands, as SIGSTOP does; then it goes on there."""
        until, actor = self._actors[name]
        self._actors[name] = (max(until, self.time + seconds), actor)

    def running(self, name: str) -> bool:
        return name in self._actors

    def run(self) -> None:
        """Until no actor is left. An actor that crashes is gone; any other exception ends all."""
        try:
            self._run()
        finally:
            for _, actor in self._actors.values():
                with contextlib.suppress(Crash):
                    actor.close()

    def _run(self) -> None:
        for _ in range(self.MAX_TURNS):
            if not self._actors:
                return
            ready = [n for n, (until, _) in self._actors.items() if until <= self.time]
            if not ready:
                self.time = min(until for until, _ in self._actors.values())
                continue
            name = self.random.choice(ready)
            actor = self._actors[name][1]
            try:
                until = actor.send(None)
            except (StopIteration, Crash):
                self._actors.pop(name, None)
            else:
                if name in self._actors:
                    self._actors[name] = (until, actor)
        raise AssertionError("the simulation makes no progress")
