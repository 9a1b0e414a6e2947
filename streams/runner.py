"""Drives a task over a log: the five steps, and the way back from every failure."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

from headrace.streams.batch import Block, Outputs, one_by_one
from headrace.streams.errors import Fenced, HeadraceError, LogLost, LogUnavailable, TransactionUnknown
from headrace.streams.log import Fetched, Log, Partition, Reader, Sender, Writer
from headrace.streams.task import BARRIER, Task, Work

logger = logging.getLogger("headrace.streams")

BATCH_ROWS, MAX_BATCH_ROWS = 2_000, 32_000
"""Rows of one transaction: at first, enough to hide a commit's cost, and at most. An entity's row of state is written
once for each of them, so that large ones cost less an event."""

AT_ONCE = 0.02
"""Seconds that the operators should have a batch for: meanwhile the process does nothing else. Where they have a whole
one for less than half, the next is twice as large, and half where for more than twice."""

FETCH_ROWS = 2_000
"""Rows asked of each input at once, at least."""

REPLAY_ROWS = 10_000
"""Changelog rows asked for at once: as many as the log sends in one answer, mostly."""

SETTLE_EVERY = 1.0
"""Seconds between transactions of a task that publishes ahead of them; a crash publishes again what lies between."""

SETTLE_ROWS = 50_000
"""Rows taken after which it does not wait that long: their touched rows of state are held in memory."""

IDLE_AFTER = 0.25
"""Seconds that an input must have been read to its end before it stops holding others back."""

POLL = 0.1
"""Seconds that a read waits for a first record."""

RETRY_FIRST, RETRY_LAST, MAX_RETRIES = 0.1, 5.0, 60
"""Seconds between attempts to start again, doubling; then the worker gives up (after about five minutes)."""

FENCED_WAIT = 0.5
"""Seconds before a fenced task asks whether it is still this worker's: two owners may cross while the group gathers,
and the one that is to have it should not take it back and forth."""

TOMBSTONES_KEPT = 24 * 3600.0
"""Seconds for which a changelog keeps the mark of a deleted row (its delete.retention.ms). A store that missed the mark
would keep the row for ever."""

STALE_AFTER = TOMBSTONES_KEPT / 2
"""Seconds after which a store that is behind is made again from nothing: half, for a restore takes time too."""

RESTORE_WAITS = 30.0
"""Seconds that a restore waits for records that the log has said to have; then the task starts again."""

LOST_AFTER = 30.0
"""Seconds for which the log may end before what was read of it: a new leader needs a moment to know how far it is, and
a node that is cut off from its cluster, and not from this worker, tells an old end until it notices. Who is told that
data is lost is not started again, so it is not said in haste."""


class Clock(Protocol):
    def now(self) -> float:
        """Monotonic seconds."""

    async def sleep(self, seconds: float) -> None: ...


@dataclass(slots=True)
class Follow:
    """A topic read from its beginning beside the inputs, outside the transaction: the newest value of each key."""

    partition: Partition
    take: Callable[[Fetched], None]
    offset: int = 0


@dataclass(slots=True)
class Progress:
    """What a runner has done since it started.

    aborts:   transactions thrown away, by an error or an unknown outcome
    fenced:   times that a newer owner took the task over
    restored, to_restore: changelog offsets passed and to pass, of the restore under way or the last one
    """

    state: Literal["starting", "restoring", "running", "stopping"] = "starting"
    rows: int = 0
    commits: int = 0
    restarts: int = 0
    records: int = 0
    aborts: int = 0
    fenced: int = 0
    restored: int = 0
    to_restore: int = 0


async def replay(
    task: Task,
    log: Log,
    progress: Progress,
    wall: Callable[[], float],
    stopping: Callable[[], bool],
    barrier: int = 0,
    began: float | None = None,
) -> None:
    """Bring a task's store to the end of its changelog, from nothing where it cannot be brought forward.

    barrier: an offset before which the changelog does not end, whatever the log says of it, for this task has written
             up to there. Without one the end may be that of a node that is behind: it proves nothing
    began:   a time before the barrier was written; now, where it is left out

    Raises LogUnavailable, also where the log does not come to the barrier.
    """
    partition = task.changelog
    began = wall() if began is None else began
    end = max(barrier, (await log.ends([partition])).get(partition, 0))
    begin = (await log.starts([partition])).get(partition, 0)
    if task.position and (task.position < begin or task.position > end):
        logger.info("task %s-%d: its changelog was cut or made anew meanwhile", task.name, task.number)
        task.forget()
    first = max(task.position, begin)
    if not task.position:
        task.current(began)
    position = first
    progress.restored, progress.to_restore = 0, max(0, end - first)
    task.expect(end - first)
    in_vain = 0
    while position < end and not stopping():
        reader = await log.reader({partition: position})
        try:
            while position < end and not stopping():
                got = await reader.fetch([partition], REPLAY_ROWS, POLL)
                # A commit's mark is never compacted away: where only barriers came, nothing was missed.
                missed = any(key != BARRIER for fetched in got for key in fetched.keys)
                # Asked of each fetch: a machine may be put to sleep in the middle of this, too.
                if missed and wall() - task.written > STALE_AFTER:
                    logger.info("task %s-%d: its disk is too old, and is made anew", task.name, task.number)
                    began, position, first = wall(), begin, begin
                    task.forget()
                    task.current(began)
                    progress.restored, progress.to_restore = 0, end - first
                    break
                before = position
                for fetched in got:
                    task.replay(fetched, wall())
                    position = fetched.next_offset
                    progress.restored = min(position, end) - first
                in_vain = 0 if position > before else in_vain + 1
                if in_vain * POLL > RESTORE_WAITS:
                    raise LogUnavailable(
                        f"{partition.topic}, partition {partition.number}, does not come to offset {end:,}, where it "
                        f"ended when task {task.name}-{task.number} began to restore"
                    )
        finally:
            await reader.close()
    if position >= end:
        task.expect(0)
        if barrier:
            task.current(began)


@dataclass(slots=True)
class _Ahead:
    """Batches whose outputs are published ahead of the transaction that settles them."""

    since: float
    records: Outputs = field(default_factory=list)
    changes: dict[bytes, bytes | None] = field(default_factory=dict)
    offsets: dict[Partition, int] = field(default_factory=dict)
    rows: int = 0

    def add(self, work: Work, ahead: frozenset[str]) -> None:
        self.records += [r for r in work.records if r.topic not in ahead]
        self.changes.update(one_by_one(work.changes))
        self.offsets = work.offsets
        self.rows += work.rows

    def work(self) -> Work:
        return Work(self.records, list(self.changes.items()), self.offsets, self.rows)


@dataclass
class Runner:
    """One task on one log.

    `start` then `step` again and again; `run` does both until `stop` and survives failures of the log.
    ahead: topics published at once, at least once, and not in the transaction with state and offsets, which then
           settles several batches: a crash publishes some of them again, with the same ids. Nothing that this
           application reads belongs here, so that what is computed stays exactly once.
    batch_rows: at most so many rows in one transaction
    ours:  asked before the task starts again: whether it is still this worker's to run. Left out, it is, until a newer
           owner fences it
    wall:  seconds since 1970
    crash: called between the numbered steps with the number of the step just done, for crash tests
    """

    task: Task
    log: Log
    clock: Clock
    group: str
    follows: list[Follow] = field(default_factory=list)
    batch_rows: int = MAX_BATCH_ROWS
    idle_after: float = IDLE_AFTER
    ahead: frozenset[str] = frozenset()
    ours: Callable[[], Awaitable[bool]] | None = None
    wall: Callable[[], float] = time.time
    crash: Callable[[int], None] = lambda step: None
    progress: Progress = field(default_factory=Progress)
    _writer: Writer | None = None
    _reader: Reader | None = None
    _beside: Reader | None = None
    _sender: Sender | None = None
    _unsettled: _Ahead | None = None
    _stopping: bool = False
    _asked: float = 0.0
    _empty_since: dict[int, float] = field(default_factory=dict)
    _ends: dict[Partition, int] = field(default_factory=dict)
    _rows: int = field(default_factory=lambda: BATCH_ROWS)

    async def start(self) -> None:
        """Fence earlier owners, write a barrier, bring the store to it, load, and go to the committed offsets."""
        self.progress.state = "starting"
        await self.close()
        task = self.task
        self._writer = await self.log.writer(f"{self.group}-{task.number}")
        if self.ahead:
            self._sender = await self.log.sender()
        self.progress.state = "restoring"
        began = self.wall()  # a process may be held up for days between writing and knowing it
        barrier = await self._write_barrier(self._writer)
        await replay(task, self.log, self.progress, self.wall, lambda: self._stopping, barrier, began)
        if self._stopping:
            return
        task.resume()
        await self._check_log()
        self._empty_since.clear()
        self._ends.clear()
        self._reader = await self.log.reader({i.partition: i.position for i in task.inputs})
        if self.follows:
            for follow in self.follows:
                follow.offset = 0
            self._beside = await self.log.reader({f.partition: 0 for f in self.follows})
            await self._catch_up()
        self.progress.state = "running"

    async def _write_barrier(self, writer: Writer) -> int:
        """The changelog's offset after it: all that earlier owners committed lies before."""
        await writer.begin()
        ends = await writer.send([self.task.barrier()], self.task.number)
        await writer.commit()
        return ends[self.task.changelog]

    @property
    def lag(self) -> int:
        """Rows of the inputs that are published and not yet taken, as far as the last fetches know."""
        return sum(max(0, self._ends.get(i.partition, 0) - i.offset) for i in self.task.inputs)

    async def _check_log(self) -> None:
        """Raises LogLost where the log lacks what this task has read of it, or written to it."""
        inputs = {i.partition: i.position for i in self.task.inputs}
        until, wait = self.clock.now() + LOST_AFTER, RETRY_FIRST
        while True:
            ends = await self.log.ends(list(inputs))
            lost = {p: offset for p, offset in inputs.items() if offset > ends.get(p, 0)}
            if not lost or self.clock.now() >= until:
                break
            if self._stopping:
                return
            if wait == RETRY_FIRST:
                logger.warning("task %s-%d waits for the log, which ends too early", self.task.name, self.task.number)
            await self.clock.sleep(wait)
            wait = min(2 * wait, RETRY_LAST)
        for partition, offset in lost.items():
            raise self._lost(partition, f"ends at offset {ends.get(partition, 0):,}", f"reflects it up to {offset:,}")
        # State and offsets are committed together: one that is behind has lost its end.
        taken = await self.log.committed(self.group, list(inputs))
        if ahead := {p: offset for p, offset in taken.items() if offset > inputs[p]}:
            assert self._writer is not None
            await self._write_barrier(self._writer)  # raises Fenced where a newer owner has committed meanwhile
            for p, offset in ahead.items():
                has = f"tells of {p.topic} up to offset {inputs[p]:,}" if any(inputs.values()) else "is empty"
                raise self._lost(self.task.changelog, has, f"is of {p.topic} up to offset {offset:,}")

    def _lost(self, partition: Partition, has: str, state: str) -> LogLost:
        return LogLost(
            f"{partition.topic}, partition {partition.number}, {has}, but the state of task "
            f"{self.task.name}-{self.task.number} {state}: the topic was deleted and made again, or the log has lost "
            f"data. Bring the log's data back; or begin anew: give the app another name, or delete its topics and its "
            f"data, and publish its events again"
        )

    async def _catch_up(self) -> None:
        """Read what is followed to its end before the first batch: a scorer starts with the newest version."""
        behind = {f.partition for f in self.follows}
        while behind and not self._stopping:
            for fetched in await self._follow(POLL):
                if fetched.caught_up:
                    behind.discard(fetched.partition)

    async def _follow(self, wait: float) -> list[Fetched]:
        assert self._beside is not None
        got = await self._beside.fetch([f.partition for f in self.follows], FETCH_ROWS, wait)
        for fetched in got:
            for follow in self.follows:
                if follow.partition == fetched.partition:
                    follow.take(fetched)
                    follow.offset = fetched.next_offset
        return got

    async def step(self) -> int:
        """One cycle. Returns the rows taken; 0 where there was nothing to do."""
        assert self._writer is not None
        assert self._reader is not None
        # 1. read a micro-batch
        idle = self._idle()
        ready = self.task.merge.available(idle) > 0
        room = [i.partition for i in self.task.inputs if not i.full]
        self._asked = self.clock.now()
        for fetched in await self._reader.fetch(room, max(FETCH_ROWS, self._rows), 0.0 if ready else POLL):
            self.task.feed(fetched)
            self._ends[fetched.partition] = fetched.end
        if self.follows:
            await self._follow(0.0)
        self.crash(1)
        # 2. run the operators
        limit, began = min(self._rows, self.batch_rows), self.clock.now()
        work = self.task.work(limit, self._idle())
        if work is not None and work.rows == limit:
            self._adapt(self.clock.now() - began)
        if work is None:
            if self._due():
                await self.settle()
            self.task.rest()
            return 0
        self.crash(2)
        if self._sender is None:
            await self._commit(self._writer, work)
        else:
            await self._publish_ahead(self._sender, work)
        return work.rows

    def _adapt(self, seconds: float) -> None:
        """Choose the size of the next batch, by the seconds that a whole one took."""
        if seconds < AT_ONCE / 2:
            self._rows = min(2 * self._rows, MAX_BATCH_ROWS)
        elif seconds > AT_ONCE * 2:
            self._rows = max(self._rows // 2, BATCH_ROWS)

    async def _publish_ahead(self, sender: Sender, work: Work) -> None:
        await sender.send([r for r in work.records if r.topic in self.ahead], self.task.number)
        if self._unsettled is None:
            self._unsettled = _Ahead(self.clock.now())
        self._unsettled.add(work, self.ahead)
        if self._due():
            await self.settle()

    def _due(self) -> bool:
        held = self._unsettled
        return held is not None and (self.clock.now() - held.since >= SETTLE_EVERY or held.rows >= SETTLE_ROWS)

    async def settle(self) -> None:
        """Commit what was published ahead; nothing where there is none."""
        if self._unsettled is not None:
            assert self._writer is not None
            work, self._unsettled = self._unsettled.work(), None
            await self._commit(self._writer, work)

    async def _commit(self, writer: Writer, work: Work) -> None:
        # Before: one that is stopped after its commit, and goes on days later, is as old as its commit.
        at = self.wall()
        try:
            # 3. produce outputs and changelog, then the consumed offsets
            await writer.begin(self.group, work.offsets)
            logged = self.task.logged(work.changes)
            ends = await writer.send([*work.records, *logged], self.task.number)
            self.crash(3)
            # 4. commit
            await writer.commit()
        except (Fenced, LogUnavailable, TransactionUnknown):
            self.progress.aborts += 1
            raise
        self.crash(4)
        # 5. write the touched rows
        self.task.keep(work, ends[self.task.changelog], at)
        self.progress.rows += work.rows
        self.progress.commits += 1
        self.progress.records += sum(len(r) if isinstance(r, Block) else 1 for r in work.records)
        self.crash(5)

    def _idle(self) -> frozenset[int]:
        """Inputs read to their end for long enough, as of when they were last asked: a process that was held up since
        knows nothing of what came meanwhile."""
        for n, source in enumerate(self.task.inputs):
            if source.buffered or not source.caught_up:
                self._empty_since.pop(n, None)
            else:
                self._empty_since.setdefault(n, self._asked)
        return frozenset(n for n, since in self._empty_since.items() if self._asked - since >= self.idle_after)

    async def run(self) -> None:
        """Until `stop`, or until the task is another's. Starts again after failures of the log, from what is committed.

        Raises StateError, LogUnavailable when the log stays away, and Fenced where nobody can say whose the task is.
        """
        retries, wait, commits = 0, RETRY_FIRST, self.progress.commits
        while not self._stopping:
            try:
                await self.start()
                while not self._stopping:
                    await self.step()
                    # Not rows taken: what publishes ahead of a commit that never comes would do so for ever.
                    if self.progress.commits > commits:
                        retries, wait, commits = 0, RETRY_FIRST, self.progress.commits
                await self.settle()
                break
            except Fenced:
                self.progress.fenced += 1
                if self.ours is None:
                    raise
                logger.info(
                    "task %s-%d was taken over by another worker, or this one stood still for a minute",
                    self.task.name,
                    self.task.number,
                )
                await self.close()
                await self.clock.sleep(FENCED_WAIT)
            except (LogUnavailable, TransactionUnknown) as error:
                retries += 1
                self.progress.restarts += 1
                if retries > MAX_RETRIES:
                    raise LogUnavailable(
                        f"task {self.task.name} gave up after {MAX_RETRIES} attempts: {error}"
                    ) from error
                logger.warning("task %s starts again in %.1f s: %s", self.task.name, wait, error)
                await self.clock.sleep(wait)
                wait = min(2 * wait, RETRY_LAST)
            except HeadraceError:
                await self.close()
                raise
            if self.ours is not None and not await self.ours():
                break
        self.progress.state = "stopping"
        await self.close()

    def stop(self) -> None:
        """Let `run` return after the cycle it is in."""
        self._stopping = True

    async def close(self) -> None:
        self._unsettled = None
        for part in (self._writer, self._sender, self._reader, self._beside):
            if part is not None:
                with contextlib.suppress(Fenced, LogUnavailable, TransactionUnknown):
                    await part.close()
        self._writer = self._sender = self._reader = self._beside = None
