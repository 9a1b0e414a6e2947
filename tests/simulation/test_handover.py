"""How a task changes hands: what chance finds seldom in the simulator, step by step."""

from __future__ import annotations

import json
import math
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any

import pytest
from headrace.streams import runner
from headrace.streams.batch import Record
from headrace.streams.errors import Fenced, LogLost, LogUnavailable, TransactionUnknown
from headrace.streams.log import NO_OFFSETS, Fetched, Partition, Turns, Writer
from headrace.streams.runner import LOST_AFTER, Follow, Progress, Runner
from headrace.streams.standby import Standby
from headrace.streams.store import MemoryStore

from tests.simulation.log import SimulatedLog
from tests.simulation.state import from_changelog, rows
from tests.simulation.test_totals import STAGE, build, event
from tests.simulation.world import World

CHANGES = Partition(STAGE.changelog, 0)


def play(world: World, scenario: Coroutine[Any, Any, None]) -> None:
    world.spawn("scenario", scenario)
    world.run()


async def commits(writer: Writer) -> bool:
    """Whether a transaction of this writer goes through."""
    try:
        await writer.begin()
        await writer.send([Record("t", b"k", b"v", 0)], 0)
        await writer.commit()
    except Fenced:
        return False
    return True


@pytest.mark.parametrize(("first", "both"), [(0, False), (1, True)])
def test_of_two_owners_that_open_at_once_one_alone_writes_if_it_begins_with_the_id_opened_first(
    first: int, both: bool
) -> None:
    world = World(1)
    log = SimulatedLog(world)
    wrote: list[bool] = []

    def turns(opened: list[Writer]) -> Turns:
        return Turns([*opened[first:], *opened[:first]])

    async def scenario() -> None:
        one, other = log.connect(), log.connect()
        held = [await one.id("owner.0")]
        # The one stands still here, and the other opens both ids and writes.
        running = turns([await other.id(f"owner.{n}") for n in range(2)])
        assert await commits(running)
        held.append(await one.id("owner.1"))
        # The one now loads what is committed. Whatever the other commits from here on, it does not know of.
        wrote.extend([await commits(running), await commits(turns(held))])

    play(world, scenario())
    assert all(wrote) is both


@pytest.mark.parametrize(("stale_after", "equal"), [(runner.STALE_AFTER, True), (math.inf, False)])
def test_a_store_that_lay_aside_while_the_log_forgot_deletions_is_made_anew(
    stale_after: float, equal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "STALE_AFTER", stale_after)
    world = World(1)
    log = SimulatedLog(world)
    here = MemoryStore()

    async def scenario() -> None:
        await deleted(log, here)
        await work(log, here)

    play(world, scenario())
    assert (rows(here) == rows(from_changelog(log, STAGE, 0).store)) is equal


def test_a_store_is_made_anew_where_days_pass_while_it_is_brought_forward() -> None:
    world = World(1)
    log = SimulatedLog(world)
    here, slept = MemoryStore(), False

    def wall() -> float:
        """Of a machine that is put to sleep as soon as the first of three rows has come back."""
        nonlocal slept
        if not slept and here.get(b"totals\x00a"):
            slept = True
            world.passed += 30 * 3600
            log.compact(CHANGES)
        return world.wall()

    async def scenario() -> None:
        for who in "abc":
            log.publish(event("payments", who, 1, 0))
        await work(log, MemoryStore())
        for who in "abc":
            log.publish(event("refunds", who, 1, 1))
        await work(log, MemoryStore())
        # The deletions are known to the cleaner, and a row and its deletion are both there still.
        for entry in log.entries(CHANGES):
            entry.horizon = log.now_ms() + 1 if entry.record.value is None else 0
        drawn = log.world.random.choice
        log.world.random.choice = lambda options: options[0]  # type: ignore[method-assign,assignment]
        task, _ = build(0, here)
        await runner.replay(task, log, Progress(), wall, lambda: False)
        log.world.random.choice = drawn  # type: ignore[method-assign]

    play(world, scenario())
    assert slept
    assert rows(here) == rows(from_changelog(log, STAGE, 0).store) == {}


def test_a_store_is_not_taken_for_new_because_a_node_that_is_behind_says_that_nothing_followed() -> None:
    world = World(1)
    log = SimulatedLog(world)
    here = MemoryStore()

    class Behind(SimulatedLog):
        async def ends(self, partitions: Sequence[Partition]) -> dict[Partition, int]:
            return dict.fromkeys(partitions, build(0, here)[0].position)

    async def scenario() -> None:
        await deleted(log, here)
        late = Behind(world, log.faults, log.partitions, log.groups, log.ids, log.open, log.waiting)
        await runner.replay(build(0, here)[0], late, Progress(), world.wall, lambda: False)
        world.passed += 1
        await runner.replay(build(0, here)[0], log, Progress(), world.wall, lambda: False)

    play(world, scenario())
    assert rows(here) == rows(from_changelog(log, STAGE, 0).store) != {}


def test_an_owner_that_was_held_up_for_days_at_its_barrier_does_not_take_its_store_for_new() -> None:
    world = World(1)
    log = SimulatedLog(world)
    late, here = log.connect(), MemoryStore()

    class HeldUp(Runner):
        async def _write_barrier(self, writer: Writer) -> int:
            barrier = await super()._write_barrier(writer)
            await forgotten(log)
            late.behind[CHANGES] = (math.inf, barrier)  # the node that it asks slept as long
            return barrier

    async def scenario() -> None:
        log.publish(event("payments", "a", 5, 0))
        await work(log, here)
        task, follows = build(0, here)
        mine = HeldUp(task, late, world, STAGE.group, follows, idle_after=0.0, wall=world.wall)
        with pytest.raises(Fenced):
            await mine.start()
        await mine.close()
        await work(log, here)

    play(world, scenario())
    assert rows(here) == rows(from_changelog(log, STAGE, 0).store) != {}


class Emptied(MemoryStore):
    times = 0

    def empty(self) -> None:
        self.times += 1
        super().empty()


@pytest.mark.parametrize("missed", [False, True])
def test_a_copy_is_made_anew_after_days_only_where_it_may_have_missed_a_deletion(missed: bool) -> None:
    world = World(1)
    log = SimulatedLog(world)
    here = Emptied()
    copy = Standby(build(0, here)[0], log, world, Progress(), world.wall)
    ended: list[bool] = []

    async def follow() -> None:
        await copy.run()
        ended.append(True)

    async def scenario() -> None:
        log.publish(event("payments", "a", 5, 0))
        await work(log, MemoryStore())
        world.spawn("copy", follow())
        await world.sleep(5.0)
        assert rows(here) == rows(from_changelog(log, STAGE, 0).store)
        if missed:  # the machine of the copy sleeps, the others do not
            world.pause("copy", 600.0)
            await deleted(log, MemoryStore())
            await world.sleep(600.0)
        else:
            world.passed += 30 * 3600
        for who in "cd":
            log.publish(event("payments", who, 1, 2))
            await work(log, MemoryStore())
            await world.sleep(5.0)
        copy.stop()
        await world.sleep(5.0)

    play(world, scenario())
    assert ended
    assert rows(here) == rows(from_changelog(log, STAGE, 0).store)
    assert here.times == missed


@pytest.mark.parametrize(
    ("gone", "says"),
    [
        (Partition("payments", 0), r"payments, partition 0, ends at offset 0, .* task totals-0 reflects it up to 2: "),
    ],
)
def test_a_topic_made_again_empty_ends_the_task_with_a_sentence_and_nothing_is_written(
    gone: Partition, says: str
) -> None:
    world = World(1)
    log = SimulatedLog(world)
    store = MemoryStore()

    async def scenario() -> None:
        for who in "ab":
            log.publish(event("payments", who, 1, 0))
        await work(log, store)
        before = rows(store)
        log.partitions[gone] = []
        began = world.now()
        with pytest.raises(LogLost, match=says):
            await work(log, store)
        assert world.now() - began >= LOST_AFTER
        assert rows(store) == before
        assert len(log.committed_records("totals")) == 2

    play(world, scenario())


def test_a_changelog_made_again_empty_is_noticed_where_no_store_is_left() -> None:
    world = World(1)
    log = SimulatedLog(world)

    async def scenario() -> None:
        log.publish(event("payments", "a", 1, 0))
        await work(log, MemoryStore())
        log.partitions[CHANGES] = []
        says = r"totals.changelog, partition 0, is empty, but the state of task totals-0 is of payments up to offset 1"
        with pytest.raises(LogLost, match=says):
            await work(log, MemoryStore())
        assert len(log.committed_records("totals")) == 1

    play(world, scenario())


@pytest.mark.parametrize("kept", [True, False])
def test_a_changelog_that_lost_its_end_is_noticed_and_nothing_is_published_twice(kept: bool) -> None:
    world = World(1)
    log = SimulatedLog(world)
    store = MemoryStore()

    async def scenario() -> None:
        log.publish(event("payments", "a", 1, 0))
        await work(log, store)
        written = len(log.partitions[CHANGES])
        log.publish(event("payments", "b", 1, 1))
        await work(log, store)
        del log.partitions[CHANGES][written:]
        says = r"totals.changelog, partition 0, tells of payments up to offset 1, .* is of payments up to offset 2"
        with pytest.raises(LogLost, match=says):
            await work(log, store if kept else MemoryStore())
        assert len(log.committed_records("totals")) == 2

    play(world, scenario())


@pytest.mark.parametrize("before", [0, 1])
def test_a_task_whose_newer_owner_committed_while_it_was_starting_is_fenced_and_takes_nothing_for_lost(
    before: int,
) -> None:
    world = World(1)
    log = SimulatedLog(world)

    class Overtaken(SimulatedLog):
        """Where one that starts is overtaken as soon as it has restored."""

        async def committed(self, group: str, partitions: Sequence[Partition]) -> dict[Partition, int]:
            log.publish(event("payments", "b", 1, 1))
            await work(log, MemoryStore())
            return await super().committed(group, partitions)

    async def scenario() -> None:
        for _ in range(before):
            log.publish(event("payments", "a", 1, 0))
            await work(log, MemoryStore())
        late = Overtaken(world, log.faults, log.partitions, log.groups, log.ids, log.open, log.waiting)
        with pytest.raises(Fenced):
            await work(late, MemoryStore())
        assert len(log.committed_records("totals")) == before + 1

    play(world, scenario())


def test_a_task_that_publishes_ahead_gives_up_too_where_no_commit_comes_through(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(1)
    log = SimulatedLog(world)
    monkeypatch.setattr(runner, "MAX_RETRIES", 3)
    begin = Turns.begin

    async def refused(self: Turns, group: str = "", offsets: Mapping[Partition, int] = NO_OFFSETS) -> None:
        if offsets:
            raise TransactionUnknown("the group takes no offsets")
        await begin(self, group, offsets)

    monkeypatch.setattr(Turns, "begin", refused)

    async def scenario() -> None:
        log.publish(event("payments", "a", 1, 0))
        task, follows = build(0, MemoryStore())
        ahead = frozenset({"totals"})
        mine = Runner(task, log, world, STAGE.group, follows, idle_after=0.0, ahead=ahead, wall=world.wall)
        with pytest.raises(LogUnavailable, match=r"gave up after 3 attempts: the group takes no offsets"):
            await mine.run()
        assert len(log.committed_records("totals")) == 4

    play(world, scenario())


def test_an_input_is_not_idle_by_what_was_read_of_it_before_the_process_was_held_up() -> None:
    world = World(1)
    log = SimulatedLog(world)
    calls: list[float] = []

    class HeldUp(Runner):
        """For a minute, between its second read and the work on it; meanwhile something comes to the empty input."""

        async def _follow(self, wait: float) -> list[Fetched]:
            calls.append(wait)
            if calls.count(0.0) == 2:
                log.publish(event("refunds", "a", 1, 1))
                await world.sleep(60.0)
            return await super()._follow(wait)

    async def scenario() -> None:
        log.publish(event("payments", "a", 5, 100))
        task, _ = build(0, MemoryStore())
        follows = [Follow(Partition("registry", 0), lambda _: None)]
        mine = HeldUp(task, log, world, STAGE.group, follows, wall=world.wall)
        await mine.start()
        for _ in range(30):
            await mine.step()
        await mine.close()
        assert calls.count(0.0) > 2
        assert not log.committed_records("refunds.late")
        assert [json.loads(r.value or b"")[1] for r in log.committed_records("totals")] == [-1, 4]

    play(world, scenario())


async def deleted(log: SimulatedLog, store: MemoryStore) -> None:
    """An owner with this store writes a row; another one deletes it, and the log forgets that."""
    log.publish(event("payments", "a", 5, 0))
    await work(log, store)
    await forgotten(log)


async def forgotten(log: SimulatedLog) -> None:
    """The row of "a" is deleted, and days later nothing tells of that."""
    log.publish(event("refunds", "a", 5, 1))
    log.publish(event("payments", "b", 1, 1))
    await work(log, MemoryStore())
    log.compact(CHANGES)
    log.world.passed += 30 * 3600
    log.compact(CHANGES)


async def work(log: SimulatedLog, store: MemoryStore) -> None:
    """An owner takes what is there, and ends in order."""
    task, follows = build(0, store)
    mine = Runner(task, log, log.world, STAGE.group, follows, idle_after=0.0, wall=log.world.wall)
    await mine.start()
    for _ in range(30):
        await mine.step()
    await mine.close()
