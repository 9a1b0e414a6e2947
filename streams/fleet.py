"""The tasks that the group has given to this worker: started, handed over, and watched."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from headrace.streams.batch import NEVER
from headrace.streams.behind import on_disk
from headrace.streams.closing import CLOSE_WITHIN
from headrace.streams.log import Log, Partition
from headrace.streams.membership import Assignment, Membership
from headrace.streams.runner import FENCED_WAIT, Clock, Follow, Progress, Runner
from headrace.streams.sharing import Claim
from headrace.streams.slots import Slot
from headrace.streams.standby import Standby
from headrace.streams.store import Store
from headrace.streams.task import Task
from headrace.streams.workers import TaskState, TaskStatus

logger = logging.getLogger("headrace.workers")

END_WITHIN = 10.0
"""Seconds that a task which is handed over, or a worker which stops, gets to end the cycle it is in; then it is cut
off, and its transaction with it."""

ASK_AGAIN = 0.5
"""Seconds after which a task that waits for the group looks whether it is still wanted: a worker must stop in time."""

Role = Literal["running", "standby"]


class Stage(Protocol):
    """Tasks of one kind; `headrace.plan` lays them out."""

    @property
    def name(self) -> str: ...
    @property
    def group(self) -> str: ...
    @property
    def partitions(self) -> int: ...
    @property
    def changelog(self) -> str: ...
    @property
    def ahead(self) -> frozenset[str]: ...
    @property
    def build(self) -> Callable[[int, Store], tuple[Task, list[Follow]]]: ...


@dataclass(eq=False)
class _Place:
    """One task at this worker, in the role that the group wants it in. `live` runs until it is wanted no more."""

    fleet: Fleet
    stage: Stage
    task: Partition
    wanted: Role | None
    progress: Progress
    role: Role | None = None
    runner: Runner | None = None
    warm: bool = False
    living: asyncio.Task[None] = field(init=False)
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.living = asyncio.create_task(self.live(), name=f"{self.stage.name}-{self.task.number}")

    def want(self, role: Role | None) -> None:
        self.wanted = role
        self._news.set()

    async def live(self) -> None:
        while self.wanted is not None:
            self.role = self.wanted
            await self._play(self.role)
            self._news.clear()
            if self.wanted == self.role:
                # It ended of itself: the task is another's. The next portion will say so, or has come to say otherwise.
                if self.task in self.fleet.portion(self.role):
                    await self.fleet.clock.sleep(FENCED_WAIT)
                else:
                    await self._news.wait()

    async def _play(self, role: Role) -> None:
        """Run the task, or follow it, until it ends or is wanted otherwise."""
        store = on_disk(self.fleet.slot.store(self.task))
        task, follows = self.stage.build(self.task.number, store)
        part: Runner | Standby
        if role == "running":
            part = self.runner = self.fleet.runner(task, self.stage, follows, self.progress, self._ours)
        else:
            part = Standby(task, self.fleet.log, self.fleet.clock, self.progress, caught_up=self._caught_up)
        doing = asyncio.create_task(part.run(), name=f"{role} {self.stage.name}-{self.task.number}")
        try:
            while self.wanted == role and not doing.done():
                self._news.clear()
                news = asyncio.create_task(self._news.wait())
                await asyncio.wait([doing, news], return_when=asyncio.FIRST_COMPLETED)
                news.cancel()
            part.stop()
            await asyncio.wait([doing], timeout=END_WITHIN)
        finally:
            doing.cancel()
            await asyncio.wait([doing])
            self.warm = False
            if self.runner is not None:
                # What takes longer goes on beside: its clients end by themselves, and each would be left open.
                closing = asyncio.create_task(self.runner.close())
                self.fleet.closing.add(closing)
                closing.add_done_callback(self.fleet.closing.discard)
                self.runner = None
                await asyncio.wait([closing], timeout=CLOSE_WITHIN)
            task.close()
        if not doing.cancelled():
            doing.result()

    def _caught_up(self) -> None:
        self.warm = True
        self.fleet.claim()

    async def _ours(self) -> bool:
        """Whether the group says, now, that this task is to run here. A log that is away is waited for."""
        asking = asyncio.create_task(self.fleet.membership.confirm())
        while self.wanted == "running" and not asking.done():
            await asyncio.wait([asking], timeout=ASK_AGAIN)
        if not asking.done():
            asking.cancel()
            return False
        return self.task in asking.result().running

    @property
    def state(self) -> TaskState:
        if self.wanted != self.role:
            return "stopping"
        return "standby" if self.role == "standby" else self.progress.state

    def status(self) -> TaskStatus:
        p, runner = self.progress, self.runner
        watermark = runner.task.merge.watermark if runner is not None else NEVER
        return TaskStatus(
            stage=self.stage.name,
            partition=self.task.number,
            state=self.state,
            rows=p.rows,
            records=p.records,
            commits=p.commits,
            aborts=p.aborts,
            fenced=p.fenced,
            restarts=p.restarts,
            lag=runner.lag if runner is not None else 0,
            restored=p.restored,
            to_restore=p.to_restore,
            watermark=max(0, watermark),
        )


class Fleet:
    """Runs what the membership says. `run` returns after `stop`, and raises what ends a task for good.

    progress: of every task that has been here, by its name and partition; what a task did before it went stays told
    """

    def __init__(
        self, stages: Sequence[Stage], log: Log, membership: Membership, slot: Slot, clock: Clock
    ) -> None:
        self.log = log
        self.membership = membership
        self.slot = slot
        self.clock = clock
        self.progress: dict[tuple[str, int], Progress] = {}
        self.assignment: Assignment | None = None
        self.first = asyncio.Event()
        self._stages = {s.changelog: s for s in stages}
        self._tasks = [Partition(s.changelog, n) for s in stages for n in range(s.partitions)]
        self._places: dict[Partition, _Place] = {}
        self._stopping = asyncio.Event()
        self.closing: set[asyncio.Task[None]] = set()
        membership.claim = Claim(tuple(sorted(self._stages)), kept=slot.kept(self._tasks))

    @property
    def runners(self) -> list[Runner]:
        """What runs here now."""
        return [p.runner for p in self._places.values() if p.runner is not None]

    def statuses(self) -> tuple[TaskStatus, ...]:
        """Every task that is here, by name and partition."""
        told = [p.status() for p in self._places.values() if p.role is not None]
        return tuple(sorted(told, key=lambda s: (s.stage, s.partition)))

    def portion(self, role: Role) -> frozenset[Partition]:
        """The tasks that the group wants here in a role, as it said last."""
        now = self.membership.assignment
        if now is None:
            return frozenset()
        return now.running if role == "running" else now.standby

    def runner(
        self, task: Task, stage: Stage, follows: list[Follow], progress: Progress, ours: Callable[[], Awaitable[bool]]
    ) -> Runner:
        """What runs a task; a seam for tests that crash it."""
        return Runner(
            task,
            self.log,
            self.clock,
            stage.group,
            follows,
            ahead=stage.ahead,
            ours=ours,
            progress=progress,
        )

    async def run(self) -> None:
        await self.membership.start()
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            while not self._stopping.is_set():
                news = asyncio.create_task(self.membership.next(self.assignment))
                living = [p.living for p in self._places.values()]
                await asyncio.wait([news, stopping, *living], return_when=asyncio.FIRST_COMPLETED)
                self._clear()
                if news.done():
                    self._take(news.result())
                news.cancel()
        finally:
            stopping.cancel()
            await self._end()

    def stop(self) -> None:
        """End the cycles that are open, leave the group, and let `run` return."""
        self._stopping.set()

    def _take(self, assignment: Assignment) -> None:
        self.assignment = assignment
        wanted: dict[Partition, Role] = dict.fromkeys(assignment.standby, "standby")
        wanted.update(dict.fromkeys(assignment.running, "running"))
        for task, place in self._places.items():
            place.want(wanted.get(task))
        for task in sorted(wanted):
            if task not in self._places or self._places[task].living.done():
                stage = self._stages[task.topic]
                progress = self.progress.setdefault((stage.name, task.number), Progress())
                self._places[task] = _Place(self, stage, task, wanted[task], progress)
        self.claim()
        logger.info(
            "generation %d: runs %d tasks, follows %d",
            assignment.generation,
            len(assignment.running),
            len(assignment.standby),
        )
        self.first.set()

    def claim(self) -> None:
        """Have the group know, when it gathers next, what this worker has of the tasks' states."""
        now = self.assignment
        assert now is not None
        follows = tuple(sorted(now.standby))
        self.membership.claim = Claim(
            tuple(sorted(self._stages)),
            tuple(sorted(now.running)),
            now.generation,
            follows,
            tuple(t for t in follows if t in self._places and self._places[t].warm),
            self.slot.kept(self._tasks),
        )

    def _clear(self) -> None:
        """Forget the places that have ended. Raises what ended one for good."""
        for task, place in list(self._places.items()):
            if place.living.done():
                place.living.result()
                del self._places[task]

    async def _end(self) -> None:
        for place in self._places.values():
            place.want(None)
        living = [p.living for p in self._places.values()]
        if living:
            _, left = await asyncio.wait(living, timeout=END_WITHIN + 1)
            for late in left:
                late.cancel()
            await asyncio.wait(living)
            for ended in living:
                if not ended.cancelled():
                    ended.exception()  # the first that failed has ended the worker; the others are heard
        await self.membership.stop()
