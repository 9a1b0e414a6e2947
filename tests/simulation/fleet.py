"""An application's workers on simulated machines: they die, are cut off, move, and come back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from headrace.streams.errors import Fenced
from headrace.streams.log import Partition
from headrace.streams.runner import Runner
from headrace.streams.store import MemoryStore

from headrace.plan import Stage
from tests.simulation.log import Connection, Faults, SimulatedLog
from tests.simulation.world import Crash, World

IDLE_AFTER = 4.0
"""Seconds: longer than a scenario publishes, so that the merged order is a function of the data."""

TURNS = 400
"""Half seconds of a run before calm is ordered; then as many until everything is done."""

CALM = 7.0
"""Seconds without faults at the end: longer than any wait to start again, so that every owner has started."""

Place = tuple[str, int]
"""A task: its stage's name and its partition."""


@dataclass(slots=True)
class Chaos:
    """What goes wrong, and how often.

    crash:   between two numbered steps, the task's process dies
    kill:    each half second, a process dies wherever it stands
    zombie:  each half second, a second owner appears beside the first
    cut:     each half second, a process loses the log for some seconds
    wipe:    a machine's disk is new when a task comes to it
    compact: each half second, a changelog is compacted
    left:    how many of the first four are still to come
    """

    faults: Faults
    crash: float
    kill: float
    zombie: float
    cut: float
    wipe: float
    compact: float
    left: int

    @classmethod
    def drawn(cls, world: World) -> Chaos:
        random = world.random
        return cls(
            Faults(
                away=random.choice([0, 0, 0.02]),
                unknown=random.choice([0, 0.1, 0.3]),
                slow=random.choice([0, 0.05, 0.3]),
            ),
            crash=random.choice([0, 0.05, 0.2]),
            kill=random.choice([0, 0.05, 0.2]),
            zombie=random.choice([0, 0.05, 0.2]),
            cut=random.choice([0, 0.05]),
            wipe=random.choice([0, 0.2, 1]),
            compact=random.choice([0, 0.1]),
            left=random.choice([0, 4, 12, 24]),
        )

    def calm(self) -> None:
        self.faults.away = self.faults.unknown = self.faults.slow = 0
        self.left = 0

    def strikes(self, world: World, often: float) -> bool:
        """Whether one of the bounded faults happens here and now."""
        if not self.left or world.random.random() >= often:
            return False
        self.left -= 1
        return True


@dataclass(slots=True, eq=False)
class Worker:
    """One process that holds one task. The store is its machine's: no other process opens it meanwhile."""

    name: str
    place: Place
    machine: int
    runner: Runner
    connection: Connection


@dataclass
class Fleet:
    """Runs the stages of an application until all that was published is taken, and then some more, in peace.

    published: whether the clients are done
    silences:  the ends of the source's partitions at moments when all was taken and nothing was published for long
    """

    world: World
    log: SimulatedLog
    stages: Sequence[Stage]
    chaos: Chaos
    published: bool = False
    silences: list[dict[Partition, int]] = field(default_factory=list)
    disks: dict[tuple[int, Place], MemoryStore] = field(default_factory=dict)
    workers: list[Worker] = field(default_factory=list)
    ended: dict[Place, Worker] = field(default_factory=dict)
    started: int = 0

    @property
    def places(self) -> list[Place]:
        return [(s.name, n) for s in self.stages for n in range(s.partitions)]

    def stage(self, place: Place) -> Stage:
        return next(s for s in self.stages if s.name == place[0])

    async def supervise(self) -> None:
        """Keep an owner for every task until everything is done; then end them all."""
        self.log.faults = self.chaos.faults
        for turn in range(2 * TURNS):
            if turn == TURNS:
                self.chaos.calm()
            self._tend()
            await self.world.sleep(0.5)
            if self.published and self.settled():
                break
        self.chaos.calm()
        for place in self.places:
            # A fenced one that has nothing to write does not know it yet, and would stay without an heir.
            if self.owner(place) is None:
                self._start(place)
        await self.world.sleep(CALM)
        assert self.settled(), f"not done after {self.world.time:.0f} s: {self.log.groups}"
        self.ended = {place: owner for place in self.places if (owner := self.owner(place))}
        for worker in self.workers:
            if self.world.running(worker.name):
                self.world.kill(worker.name)

    def settled(self) -> bool:
        """Every committed record of every input is taken, and no transaction is open."""
        if self.log.open:
            return False
        for stage in self.stages:
            taken = self.log.groups.get(stage.group, {})
            for partition in (Partition(t, n) for t in stage.inputs for n in range(stage.partitions)):
                rest = self.log.entries(partition)[taken.get(partition, 0) :]
                if any(entry.state == "committed" for entry in rest):
                    return False
        return True

    def age(self, partition: Partition, offset: int) -> int:
        """How many silences there were before a record of the source was published."""
        return sum(offset >= ends.get(partition, 0) for ends in self.silences)

    def running(self, place: Place) -> list[Worker]:
        return [w for w in self.workers if w.place == place and self.world.running(w.name)]

    def owner(self, place: Place) -> Worker | None:
        """The one of a task's workers that no other has fenced, where it runs."""
        connection = self.log.owners.get(f"{self.stage(place).group}-{place[1]}")
        return next((w for w in self.running(place) if w.connection is connection), None)

    def _tend(self) -> None:
        random, chaos = self.world.random, self.chaos
        for worker in [w for w in self.workers if self.world.running(w.name)]:
            if chaos.strikes(self.world, chaos.kill):
                self.world.kill(worker.name)
            elif chaos.strikes(self.world, chaos.cut):
                worker.connection.cut_until = self.world.time + random.random() * 6
        for place in self.places:
            if not self.running(place) or chaos.strikes(self.world, chaos.zombie):
                self._start(place)
            if random.random() < chaos.compact:
                self.log.compact(Partition(self.stage(place).changelog, place[1]))

    def _start(self, place: Place) -> None:
        """A process takes the task over, on a machine where none holds its store, with what its disk has of it."""
        random = self.world.random
        held = {w.machine for w in self.running(place)}
        machine = random.choice([m for m in range(len(held) + 2) if m not in held])
        if random.random() < self.chaos.wipe:
            self.disks.pop((machine, place), None)
        store = self.disks.setdefault((machine, place), MemoryStore())
        stage = self.stage(place)
        task, follows = stage.build(place[1], store)
        connection = self.log.connect()
        runner = Runner(
            task,
            connection,
            self.world,
            stage.group,
            follows,
            batch_rows=random.choice([1, 3, 50]),
            idle_after=IDLE_AFTER,
            ahead=stage.ahead,
            crash=self._crash,
        )
        worker = Worker(f"worker {self.started}", place, machine, runner, connection)
        self.started += 1
        assert self.started < 2_000, "no progress"
        self.workers.append(worker)
        self.world.spawn(worker.name, self._run(worker))

    async def _run(self, worker: Worker) -> None:
        """A worker ends when it is fenced; another comes where none is left."""
        try:
            await worker.runner.run()
        except Fenced:
            await self.world.sleep(self.world.random.random())

    def _crash(self, step: int) -> None:
        if self.chaos.strikes(self.world, self.chaos.crash):
            raise Crash
