"""An application's workers on simulated machines: they share its tasks, and die, stop, are cut off, and come back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from headrace.streams.batch import Change, Touched
from headrace.streams.behind import Behind
from headrace.streams.errors import Fenced
from headrace.streams.log import Partition
from headrace.streams.runner import Progress, Runner
from headrace.streams.standby import Standby
from headrace.streams.store import MemoryStore, Store

from headrace.plan import Stage
from tests.simulation.log import Connection, Faults, SimulatedLog
from tests.simulation.world import Crash, World

IDLE_AFTER = 4.0
"""Seconds: longer than a scenario publishes, so that the merged order is a function of the data."""

TURNS = 400
"""Half seconds of a run before calm is ordered; then as many until everything is done."""

CALM = 8.0
"""Seconds without faults at the end: longer than any wait to start again, so that every owner has started."""

MOST_WORKERS = 3
"""That live at once. As many machines and one more hold stores, so that workers find old ones, and new ones none."""

SESSION = 2.0
"""Seconds of a worker's silence after which its tasks are given to others."""

TOLD_WITHIN = 0.6
"""Seconds between a worker's questions whether its tasks are still its own, at most."""

STOPS_WITHIN = 1.5
"""Seconds that a task which is taken away gets to end its cycle; then it is cancelled where it stands."""

LONG_PAUSE = 6.0
"""Seconds that a stopped process stands still at most: past the session and the time-out of transactions."""

ASIDE = 30 * 3600.0
"""Seconds of a long rest: marks of deletions in changelogs are gone after it."""

Place = tuple[str, int]
"""A task: its stage's name and its partition."""


@dataclass(slots=True)
class Chaos:
    """What goes wrong, and how often.

    crash:    between two numbered steps, the process dies
    kill:     each half second, a process dies wherever it stands
    pause:    each half second, a process stops wherever it stands, and goes on there seconds later
    cut:      each half second, a process loses the log for some seconds
    silence:  each half second, a process is not heard of for some seconds, and goes on all the while
    leave:    each half second, a process ends in order
    join:     each half second, a process joins
    move:     each half second, the tasks are dealt anew
    wipe:     a machine's disk is new when a process comes to it
    compact:  each half second, a changelog is compacted
    rest:     each half second, days go by, in which the log compacts what it has
    left:     how many of all but the last two are still to come
    patience: whether a task's new owner waits until the one before has given it up, or is gone
    standby:  whether workers keep copies of the state of tasks that others have
    """

    faults: Faults
    crash: float
    kill: float
    pause: float
    cut: float
    silence: float
    leave: float
    join: float
    move: float
    wipe: float
    compact: float
    rest: float
    left: int
    patience: bool
    standby: bool

    @classmethod
    def drawn(cls, world: World) -> Chaos:
        random = world.random
        return cls(
            Faults(
                away=random.choice([0, 0, 0.02]),
                unknown=random.choice([0, 0.1, 0.3]),
                slow=random.choice([0, 0.05, 0.3]),
                marking=random.choice([0, 0, 0.1, 0.5]),
                behind=random.choice([0, 0.1, 0.5]),
            ),
            crash=random.choice([0, 0.05, 0.2]),
            kill=random.choice([0, 0.05, 0.2]),
            pause=random.choice([0, 0.05, 0.2]),
            cut=random.choice([0, 0.05]),
            silence=random.choice([0, 0.05, 0.2]),
            leave=random.choice([0, 0.05]),
            join=random.choice([0, 0.05, 0.2]),
            move=random.choice([0, 0.05, 0.2]),
            wipe=random.choice([0, 0.2, 1]),
            compact=random.choice([0, 0.1, 0.3]),
            rest=random.choice([0, 0.05, 0.1]),
            left=random.choice([0, 4, 12, 24]),
            patience=random.choice([True, False]),
            standby=random.choice([True, False]),
        )

    def calm(self) -> None:
        faults = self.faults
        faults.away = faults.unknown = faults.slow = faults.marking = faults.behind = 0
        self.left = 0

    def strikes(self, world: World, often: float) -> bool:
        """Whether one of the bounded faults happens here and now."""
        if not self.left or world.random.random() >= often:
            return False
        self.left -= 1
        return True


class Disk(MemoryStore):
    """A task's store on one machine: whoever holds it must have closed it before another opens it."""

    def __init__(self) -> None:
        super().__init__()
        self.handle: Handle | None = None

    def open(self) -> Handle:
        assert self.handle is None, "the store is held already"
        self.handle = Handle(self)
        return self.handle


class Handle:
    """What a process has of a store, until it closes it or dies."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self.get, self.rows, self.many = disk.get, disk.rows, disk.many
        self.ordering, self.rest = disk.ordering, disk.rest

    def write(self, changes: Iterable[Change | Touched]) -> None:
        assert self.disk.handle is self, "a store is written by one that does not hold it"
        self.disk.write(changes)

    def empty(self) -> None:
        assert self.disk.handle is self, "a store is emptied by one that does not hold it"
        self.disk.empty()

    def close(self) -> None:
        if self.disk.handle is self:
            self.disk.handle = None


@dataclass(slots=True, eq=False)
class Hosted:
    """A task at a worker. runner None: a copy of its state only."""

    name: str
    place: Place
    handle: Handle
    store: Store
    connection: Connection
    runner: Runner | None


@dataclass(slots=True, eq=False)
class Worker:
    """One process. hosted: its tasks. heard: when it last asked which they are; silent: until when it is not heard."""

    name: str
    machine: int
    hosted: dict[Place, Hosted] = field(default_factory=dict)
    heard: float = 0.0
    silent_until: float = -1.0


@dataclass
class Membership:
    """Who has which task, as a consumer group's coordinator knows it: those heard of within the session share them."""

    world: World
    places: Sequence[Place]
    patience: bool
    members: list[Worker] = field(default_factory=list)
    dealt: dict[Place, Worker] = field(default_factory=dict)
    given_up: dict[Place, Worker | None] = field(default_factory=dict)

    def join(self, worker: Worker) -> None:
        worker.heard = self.world.time
        self.members.append(worker)
        self.deal()

    def leave(self, worker: Worker) -> None:
        if worker in self.members:
            self.members.remove(worker)
            for place, holder in self.given_up.items():
                if holder is worker:
                    self.given_up[place] = None
            self.deal()

    def expire(self) -> None:
        for worker in list(self.members):
            if self.world.time - worker.heard > SESSION:
                self.leave(worker)

    def deal(self, anew: bool = False) -> None:
        """As even as can be; who has a task keeps it if that is so, unless all are dealt anew."""
        random = self.world.random
        kept = {} if anew else {p: w for p, w in self.dealt.items() if w in self.members}
        self.dealt = {}
        if not self.members:
            return
        most = -(-len(self.places) // len(self.members))
        share = {worker.name: 0 for worker in self.members}
        for place in random.sample(list(self.places), len(self.places)):
            worker = kept.get(place)
            if worker is None or share[worker.name] >= most:
                worker = random.choice([w for w in self.members if share[w.name] == min(share.values())])
            share[worker.name] += 1
            self.dealt[place] = worker

    def ask(self, worker: Worker) -> list[Place]:
        """A worker's tasks; it is a member again if it was not. One that it gets, its owner before may have still."""
        if self.world.time >= worker.silent_until:
            worker.heard = self.world.time
            if worker not in self.members:
                self.join(worker)
        elif worker not in self.members:
            return list(worker.hosted)  # it hears as little as it is heard
        mine = [p for p, w in self.dealt.items() if w is worker]
        if self.patience:
            mine = [p for p in mine if self.given_up.get(p) in (None, worker)]
        for place in mine:
            self.given_up[place] = worker
        return mine

    def give_up(self, worker: Worker, place: Place) -> None:
        """The worker has stopped a task that is no longer its own."""
        if self.given_up.get(place) is worker:
            self.given_up[place] = None


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
    disks: dict[tuple[int, Place], Disk] = field(default_factory=dict)
    workers: list[Worker] = field(default_factory=list)
    ended: dict[Place, Runner] = field(default_factory=dict)
    kept: dict[Place, Disk] = field(default_factory=dict)
    started: int = 0
    moves: int = 0

    def __post_init__(self) -> None:
        self.members = Membership(self.world, self.places, self.chaos.patience)

    @property
    def places(self) -> list[Place]:
        return [(s.name, n) for s in self.stages for n in range(s.partitions)]

    def stage(self, place: Place) -> Stage:
        return next(s for s in self.stages if s.name == place[0])

    async def supervise(self) -> None:
        """Keep workers until everything is done; then end them all."""
        self.log.faults = self.chaos.faults
        for _ in range(self.world.random.randint(1, MOST_WORKERS)):
            self._start()
        for turn in range(2 * TURNS):
            if turn == TURNS:
                self.chaos.calm()
            self._tend()
            await self.world.sleep(0.5)
            if self.published and self.settled():
                break
        self.chaos.calm()
        await self._tend_for(LONG_PAUSE)
        for place in self.places:
            # One that was fenced and has nothing to write does not know it yet: it starts again.
            hosted = self.members.dealt[place].hosted.get(place)
            if self.owner(place) is None and hosted is not None and self.world.running(hosted.name):
                self.world.kill(hosted.name)
        await self._tend_for(CALM)
        assert self.settled(), f"not done after {self.world.time:.0f} s: {self.log.groups}"
        for place in self.places:
            owner = self.owner(place)
            assert owner is not None, f"nobody has {place}"
            owner[0].task.rest()
            self.ended[place], self.kept[place] = owner
        for worker in list(self.workers):
            self._kill(worker)

    def settled(self) -> bool:
        """Every committed record of every input is taken, and no transaction is open."""
        if self.log.open or self.log.waiting:
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

    def owner(self, place: Place) -> tuple[Runner, Disk] | None:
        """The runner of a task which no other has fenced, and its store."""
        name = f"{self.stage(place).group}-{place[1]}"
        for worker in self.workers:
            one = worker.hosted.get(place)
            if one and one.runner and self.world.running(one.name) and self.log.holds(name, one.connection):
                return one.runner, self.disks[worker.machine, place]
        return None

    async def _tend_for(self, seconds: float) -> None:
        end = self.world.time + seconds
        while self.world.time < end:
            self._tend()
            await self.world.sleep(0.5)

    def _tend(self) -> None:
        random, chaos = self.world.random, self.chaos
        for worker in list(self.workers):
            if chaos.strikes(self.world, chaos.kill):
                self._kill(worker)
            elif chaos.strikes(self.world, chaos.leave):
                self._kill(worker)
                self.members.leave(worker)
            elif chaos.strikes(self.world, chaos.pause):
                self._pause(worker, random.random() * LONG_PAUSE)
            elif chaos.strikes(self.world, chaos.cut):
                for hosted in worker.hosted.values():
                    hosted.connection.cut_until = self.world.time + random.random() * LONG_PAUSE
            elif chaos.strikes(self.world, chaos.silence):
                worker.silent_until = self.world.time + random.random() * LONG_PAUSE
        self.log.expire()
        self.members.expire()
        if not self.workers or (len(self.workers) < MOST_WORKERS and chaos.strikes(self.world, chaos.join)):
            self._start()
        if chaos.strikes(self.world, chaos.move):
            self.members.deal(anew=True)
        rests = chaos.strikes(self.world, chaos.rest)
        for place in self.places:
            if rests or random.random() < chaos.compact:
                self.log.compact(Partition(self.stage(place).changelog, place[1]))
        if rests:
            self.world.passed += ASIDE
            for place in self.places:
                self.log.compact(Partition(self.stage(place).changelog, place[1]))

    def _start(self) -> None:
        """A worker comes to a machine where none is."""
        random = self.world.random
        held = {w.machine for w in self.workers}
        machine = random.choice([m for m in range(MOST_WORKERS + 1) if m not in held])
        if random.random() < self.chaos.wipe:
            self.disks = {key: disk for key, disk in self.disks.items() if key[0] != machine}
        worker = Worker(f"worker {self.started}", machine)
        self.started += 1
        assert self.started < 500, "no progress"
        self.workers.append(worker)
        self.members.join(worker)
        self.world.spawn(worker.name, self._host(worker))

    def _kill(self, worker: Worker, acting: str = "") -> None:
        """The process dies with all that is in it. acting: which of its actors does this, and ends by itself."""
        self.workers.remove(worker)
        for name in (worker.name, *(h.name for h in worker.hosted.values())):
            if self.world.running(name) and name != acting:
                self.world.kill(name)
        for hosted in worker.hosted.values():
            hosted.handle.close()

    def _pause(self, worker: Worker, seconds: float) -> None:
        for name in (worker.name, *(h.name for h in worker.hosted.values())):
            if self.world.running(name):
                self.world.pause(name, seconds)

    async def _host(self, worker: Worker) -> None:
        """Ask for the worker's tasks again and again; start and stop them as told."""
        while True:
            mine = self.members.ask(worker)
            for place, hosted in list(worker.hosted.items()):
                if (place in mine) is (hosted.runner is None):
                    await self._end(worker, hosted)
                    self.members.give_up(worker, place)
            for place in mine:
                held = worker.hosted.get(place)
                if held is not None and not self.world.running(held.name):
                    self._drop(worker, held)
                if place not in worker.hosted:
                    self._begin(worker, place)
            if self.chaos.standby:
                for place in self.places:
                    if place not in worker.hosted:
                        self._begin(worker, place, standby=True)
            await self.world.sleep(self.world.random.random() * TOLD_WITHIN)

    def _begin(self, worker: Worker, place: Place, standby: bool = False) -> None:
        handle = self.disks.setdefault((worker.machine, place), Disk()).open()
        store = Behind(handle, self.world.random.choice([0, 1_000, 1 << 20]))
        stage, connection = self.stage(place), self.log.connect()
        task, follows = stage.build(place[1], store)
        self.moves += 1
        assert self.moves < 5_000, "no progress"
        name = f"{worker.name}, {place[0]}-{place[1]}, {self.moves}"
        one = Runner(
            task,
            connection,
            self.world,
            stage.group,
            follows,
            wall=self.world.wall,
            batch_rows=self.world.random.choice([1, 3, 50]),
            idle_after=IDLE_AFTER,
            ahead=stage.ahead,
            crash=lambda step: self._crash(worker, name),
        )
        worker.hosted[place] = Hosted(name, place, handle, store, connection, None if standby else one)
        copy = Standby(task, connection, self.world, Progress(), self.world.wall)
        self.world.spawn(name, copy.run() if standby else self._run(one))

    async def _end(self, worker: Worker, hosted: Hosted) -> None:
        """Let a task end its cycle; cancel it where that takes long."""
        end = self.world.time + STOPS_WITHIN
        if hosted.runner is not None:
            hosted.runner.stop()
            while self.world.running(hosted.name) and self.world.time < end:
                await self.world.sleep(0.1)
        self._drop(worker, hosted)

    def _drop(self, worker: Worker, hosted: Hosted) -> None:
        if self.world.running(hosted.name):
            self.world.kill(hosted.name)
        hosted.store.close()
        del worker.hosted[hosted.place]

    async def _run(self, one: Runner) -> None:
        """A task that is fenced ends; its worker starts it again where it still has it."""
        try:
            await one.run()
        except Fenced:
            await self.world.sleep(self.world.random.random())

    def _crash(self, worker: Worker, acting: str) -> None:
        if self.chaos.strikes(self.world, self.chaos.crash):
            self._kill(worker, acting)
            raise Crash
