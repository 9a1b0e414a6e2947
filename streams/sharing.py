"""Which worker runs which task, decided by the group's leader: even, and moving as little as it can.

A task is one partition of a stage's changelog. What a worker has of a task's state already decides where a task goes
that has lost its worker: to a standby copy first, then to a disk that has an older one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec
from headrace.streams.log import Partition


class Claim(msgspec.Struct, frozen=True):
    """What a worker says of itself when it joins.

    topics:     changelogs whose tasks it can run
    running:    tasks that it runs
    generation: of the group when it was given them; of two that claim a task, the newer generation has it
    follows:    tasks of which it keeps a standby copy
    warm:       those of them whose copy has come to the end of the changelog
    kept:       tasks of which its disk has a state, of whatever age
    """

    topics: tuple[str, ...]
    running: tuple[Partition, ...] = ()
    generation: int = -1
    follows: tuple[Partition, ...] = ()
    warm: tuple[Partition, ...] = ()
    kept: tuple[Partition, ...] = ()


class Portion(msgspec.Struct, frozen=True):
    """What a worker is to run, and to keep standby copies of."""

    running: tuple[Partition, ...] = ()
    standby: tuple[Partition, ...] = ()


def share(claims: Mapping[str, Claim], partitions: Mapping[str, int], standbys: int = 0) -> dict[str, Portion]:
    """The portion of each worker; every task that some worker can run is in one of them.

    partitions: of each changelog
    standbys:   copies of each task beside the one that runs, as far as there are workers for them

    Numbers of tasks differ by one at most where all workers can run all tasks, and so do numbers of copies.
    """
    workers = sorted(claims)
    able = {w: set(claims[w].topics) for w in workers}
    tasks = [Partition(t, n) for t in sorted(partitions) for n in range(partitions[t])]
    tasks = [t for t in tasks if any(t.topic in able[w] for w in workers)]
    holding = _holding(claims, set(tasks))
    base, extra = divmod(len(tasks), len(workers))
    largest = sorted(workers, key=lambda w: (-len(holding[w]), w))
    quota = {w: base + (n < extra) for n, w in enumerate(largest)}
    wanted_elsewhere = {t for w in workers if len(holding[w]) < quota[w] for t in _copies(claims[w])}
    given = {w: _keep(holding[w], quota[w], wanted_elsewhere) for w in workers}
    owner = {t: w for w in workers for t in given[w]}
    able_for = {t: [w for w in workers if t.topic in able[w]] for t in tasks if t not in owner}

    def full(worker: str) -> bool:
        if len(given[worker]) == base:
            return sum(len(g) > base for g in given.values()) >= extra
        return len(given[worker]) > base

    # Those first of which somebody has the state: the others may go anywhere.
    for task in sorted(able_for, key=lambda t: (-max(warmth(claims[w], t) for w in able_for[t]), t)):
        owner[task] = min(
            able_for[task],
            key=lambda w: (
                full(w),
                -warmth(claims[w], task),
                sum(t.topic == task.topic for t in given[w]),
                len(given[w]),
                w,
            ),
        )
        given[owner[task]].append(task)
    copies = _standbys(claims, tasks, owner, standbys)
    return {w: Portion(tuple(sorted(given[w])), tuple(sorted(copies[w]))) for w in workers}


def _holding(claims: Mapping[str, Claim], tasks: set[Partition]) -> dict[str, list[Partition]]:
    """The tasks that each worker runs by right: of two that claim one, the one it was given to last."""
    last: dict[Partition, str] = {}
    for worker in sorted(claims):
        for task in claims[worker].running:
            if task in tasks and task.topic in claims[worker].topics:
                other = last.get(task)
                if other is None or claims[worker].generation > claims[other].generation:
                    last[task] = worker
    return {w: [t for t in claims[w].running if last.get(t) == w] for w in claims}


def _keep(holding: Sequence[Partition], quota: int, wanted_elsewhere: set[Partition]) -> list[Partition]:
    """The tasks that a worker keeps when it has too many: of each stage a share, and what others have no copy of."""
    seen: Counter[str] = Counter()
    rank = {}
    for task in sorted(holding, key=lambda t: (t in wanted_elsewhere, t)):
        rank[task] = seen[task.topic]
        seen[task.topic] += 1
    return sorted(holding, key=lambda t: (rank[t], t))[:quota]


def _standbys(
    claims: Mapping[str, Claim], tasks: Sequence[Partition], owner: Mapping[Partition, str], standbys: int
) -> dict[str, list[Partition]]:
    """The copies of each worker: those that it has, as far as its share goes, and others where they are missing."""
    able = {t: [w for w in sorted(claims) if w != owner[t] and t.topic in claims[w].topics] for t in tasks}
    missing = {t: min(standbys, len(able[t])) for t in tasks}
    running = Counter(owner.values())
    base, extra = divmod(sum(missing.values()), len(claims))
    # Who runs less has more that it may copy: with a copy at every worker, that is all the others' tasks.
    first = sorted(claims, key=lambda w: (running[w], -len(claims[w].follows), w))
    copies = _Copies({w: base + (n < extra) for n, w in enumerate(first)}, able)
    has = [(t, w) for t in tasks for w in able[t] if t in claims[w].follows or t in claims[w].running]
    # Of a worker that copies the task and the one that ran it, the first: that one has begun to copy another.
    for task, worker in sorted(has, key=lambda h: (-warmth(claims[h[1]], h[0]), h[0] not in claims[h[1]].follows, h)):
        if missing[task] and copies.room(worker):
            copies.of[worker].append(task)
            missing[task] -= 1
    for task in tasks:
        able[task].sort(key=lambda w: -warmth(claims[w], task))
        for _ in range(missing[task]):
            copies.place(task)
    return copies.of


class _Copies:
    """Copies as they are dealt out: each task's at workers of their own, none with more than its share."""

    def __init__(self, quota: Mapping[str, int], able: Mapping[Partition, Sequence[str]]) -> None:
        self.of: dict[str, list[Partition]] = {w: [] for w in quota}
        self._quota = quota
        self._able = able

    def room(self, worker: str) -> bool:
        return len(self.of[worker]) < self._quota[worker]

    def place(self, task: Partition) -> None:
        """Add a copy; where all who could take it are full, one of them hands another copy on."""
        if not self._find_room(task, set()):
            # Workers that can run some stages only: their shares cannot be even.
            free = [w for w in self._able[task] if task not in self.of[w]]
            self.of[min(free, key=lambda w: len(self.of[w]))].append(task)

    def _find_room(self, task: Partition, passed: set[str]) -> bool:
        free = [w for w in self._able[task] if task not in self.of[w] and w not in passed]
        for worker in free:
            if self.room(worker):
                self.of[worker].append(task)
                return True
        for worker in free:
            passed.add(worker)
            for other in list(self.of[worker]):
                if self._find_room(other, passed):
                    self.of[worker].remove(other)
                    self.of[worker].append(task)
                    return True
        return False


def warmth(claim: Claim, task: Partition) -> int:
    """How much of a task's state a worker has: 3 all, or nearly; 2 some, of whatever age; 1 what a copy has got by now
    that has only begun, 0 nothing."""
    if task in claim.warm or task in claim.running:
        return 3
    if task in claim.follows:
        return 1
    return 2 * (task in claim.kept)


def _copies(claim: Claim) -> tuple[Partition, ...]:
    return (*claim.warm, *claim.kept)
