"""Which worker runs which task, decided by the group's leader: even, and moving as little as it can.

A task is one partition of a stage's changelog. What a worker has of a task's state already decides where a task goes
that has lost its worker: to a standby copy first, then to a disk that has an older one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import msgspec
from headrace.streams.log import Partition


class Claim(msgspec.Struct, frozen=True):
    """What a worker says of itself when it joins.

    topics:     changelogs whose tasks it can run
    running:    tasks that it runs
    generation: of the group when it was given them; of two that claim a task, the newer generation has it
    warm:       tasks whose changelog it follows as a standby
    kept:       tasks of which its disk has a state, of whatever age
    """

    topics: tuple[str, ...]
    running: tuple[Partition, ...] = ()
    generation: int = -1
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

    Numbers of tasks differ by one at most where all workers can run all tasks.
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
    for task in (t for t in tasks if t not in owner):
        owner[task] = min(
            (w for w in workers if task.topic in able[w]),
            key=lambda w: (
                len(given[w]) >= quota[w],
                -_warmth(claims[w], task),
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
    claims: Mapping[str, Claim], tasks: Iterable[Partition], owner: Mapping[Partition, str], standbys: int
) -> dict[str, list[Partition]]:
    copies: dict[str, list[Partition]] = {w: [] for w in claims}
    for task in tasks:
        free = [w for w in sorted(claims) if w != owner[task] and task.topic in claims[w].topics]
        free.sort(key=lambda w: (-_warmth(claims[w], task), len(copies[w]), w))
        for worker in free[:standbys]:
            copies[worker].append(task)
    return copies


def _warmth(claim: Claim, task: Partition) -> int:
    """How much of a task's state a worker has: 2 nearly all, 1 some, 0 none."""
    if task in claim.warm or task in claim.running:
        return 2
    return int(task in claim.kept)


def _copies(claim: Claim) -> tuple[Partition, ...]:
    return (*claim.warm, *claim.kept)
