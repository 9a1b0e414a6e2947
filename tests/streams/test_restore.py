"""How a task's state comes back: by the changelog's tail where the disk is of use, and from nothing where it is not."""

from __future__ import annotations

import random
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
from headrace.streams.batch import Record
from headrace.streams.log import Partition
from headrace.streams.rocks import RocksStore
from headrace.streams.runner import STALE_AFTER, Progress, Runner, replay
from headrace.streams.slots import Slot
from headrace.streams.standby import Standby
from headrace.streams.store import MemoryStore, Store

from tests.simulation.log import SimulatedLog
from tests.simulation.world import World
from tests.streams import totals

CHANGELOG = Partition("totals.changelog", 0)


class CutLog(SimulatedLog):
    """A log whose changelog was cut at its beginning."""

    begin = 0

    async def starts(self, partitions: Any) -> dict[Partition, int]:
        return dict.fromkeys(partitions, self.begin)


@dataclass
class Ground:
    """A log with one task's history, and what time it is."""

    world: World = field(default_factory=lambda: World(1))
    now: float = 1_000_000.0

    def __post_init__(self) -> None:
        self.log = CutLog(self.world)

    def pay(self, who: str, amount: int, second: int) -> None:
        value = msgspec.json.encode({"who": who, "amount": amount, "at": f"2020-01-01T00:00:{second:02}Z"})
        self.log.publish(Record("payments", who.encode(), value))

    def play(self, part: Coroutine[Any, Any, None]) -> None:
        self.world.spawn(f"part at {self.world.time}", part)
        self.world.run()

    def work(self, store: Store) -> Progress:
        """A worker takes the task, works off what is there, and leaves it."""
        runner = Runner(totals.task(store), self.log, self.world, "totals", wall=lambda: self.now)

        async def part() -> None:
            await runner.start()
            idle = 0
            while idle < 10:
                idle = 0 if await runner.step() else idle + 1
            await runner.close()

        self.play(part())
        return runner.progress

    def restore(self, store: Store) -> Progress:
        progress = Progress()
        self.play(replay(totals.task(store), self.log, progress, lambda: self.now, lambda: False))
        return progress


def rows(store: MemoryStore) -> dict[bytes, bytes]:
    return dict(store.rows(b"totals\x00"))


def test_a_disk_that_was_there_a_moment_ago_reads_only_the_tail() -> None:
    ground, here, there = Ground(), MemoryStore(), MemoryStore()
    ground.pay("anna", 1, 1)
    ground.work(here)
    ground.pay("bert", 2, 2)
    whole = ground.work(there)
    tail = ground.restore(here)
    assert 0 < tail.to_restore == tail.restored
    assert tail.to_restore < ground.log.stable_end(CHANGELOG)
    assert whole.to_restore > 0, "one without a disk reads what there was"
    assert rows(here) == rows(there) == {b"anna": b"1", b"bert": b"2"}


def forget_anna(ground: Ground, there: MemoryStore) -> None:
    """Anna's row is deleted, and so long ago that the mark of it is gone too."""
    ground.pay("bert", 2, 2)
    ground.work(there)
    ground.log.append(CHANGELOG, Record(*CHANGELOG[:1], b"totals\x00anna", None), "committed")
    for entry in ground.log.entries(CHANGELOG):
        if entry.record.key == b"totals\x00anna":
            entry.state = "compacted"


def test_a_disk_older_than_the_marks_of_deleted_rows_is_made_again_from_nothing() -> None:
    for age, kept in ((STALE_AFTER - 60, True), (STALE_AFTER + 60, False)):
        ground, here, there = Ground(), MemoryStore(), MemoryStore()
        ground.pay("anna", 1, 1)
        ground.work(here)
        forget_anna(ground, there)
        ground.now += age
        ground.restore(here)
        assert (b"anna" in rows(here)) is kept, "only by its age can it know that it missed the mark"


def test_an_old_disk_that_missed_nothing_is_used_as_it_is() -> None:
    ground, here = Ground(), MemoryStore()
    ground.pay("anna", 1, 1)
    ground.work(here)
    ground.now += 10 * STALE_AFTER
    assert ground.restore(here).to_restore == 1, "the marker of its own last commit"
    assert rows(here) == {b"anna": b"1"}


def test_a_disk_from_before_the_changelogs_beginning_is_made_again() -> None:
    ground, here, there = Ground(), MemoryStore(), MemoryStore()
    ground.pay("anna", 1, 1)
    ground.work(here)
    forget_anna(ground, there)
    ground.log.begin = totals.task(here).position + 1
    progress = ground.restore(here)
    assert rows(here) == {b"bert": b"2"}
    assert progress.to_restore == ground.log.stable_end(CHANGELOG) - ground.log.begin


def test_a_disk_that_is_ahead_of_its_changelog_is_made_again() -> None:
    ground, here = Ground(), MemoryStore()
    ground.pay("anna", 1, 1)
    ground.work(here)
    ground.log.partitions[CHANGELOG].clear()  # the topic was deleted, and made anew
    ground.restore(here)
    assert rows(here) == {}


def test_a_standby_follows_and_its_owner_needs_nothing_more() -> None:
    ground, here, copy = Ground(), MemoryStore(), MemoryStore()
    progress, warm_at = Progress(), list[float]()

    def caught_up() -> None:
        assert rows(copy) == {b"anna": b"3"}
        warm_at.append(ground.world.time)

    for second in range(3):
        ground.pay("anna", 1, second)
    ground.work(MemoryStore())
    standby = Standby(totals.task(copy), ground.log, ground.world, progress, lambda: ground.now, caught_up)

    async def live() -> None:
        for second in range(3, 8):
            ground.pay("anna", 1, second)
            await ground.world.sleep(1.0)
        await ground.world.sleep(3.0)
        standby.stop()

    runner = Runner(totals.task(here), ground.log, ground.world, "totals", wall=lambda: ground.now)

    began = ground.world.time

    async def end() -> None:
        await ground.world.sleep(7.0)
        runner.stop()

    for name, part in (("live", live()), ("standby", standby.run()), ("owner", runner.run()), ("end", end())):
        ground.world.spawn(name, part)
    ground.world.run()
    assert rows(copy) == rows(here) == {b"anna": b"8"}
    assert len(warm_at) == 1, "told once, when it had come to the end"
    assert warm_at[0] < began + 1.0
    assert ground.restore(copy).to_restore <= 1, "the marker of the last transaction at most"


def test_a_fenced_task_asks_whose_it_is_before_it_starts_again() -> None:
    ground, store = Ground(), MemoryStore()
    answers = [True, False]

    async def ours() -> bool:
        return answers.pop(0)

    runner = Runner(totals.task(store), ground.log, ground.world, "totals", ours=ours, wall=lambda: ground.now)

    async def rival() -> None:
        for second in range(2):
            await ground.world.sleep(5.0)
            await ground.log.writer("totals-0")
            ground.pay("anna", 1, second)

    ground.world.spawn("owner", runner.run())
    ground.world.spawn("rival", rival())
    ground.world.run()
    assert runner.progress.fenced == 2
    assert answers == [], "the first time it went on, the second time it ended quietly"
    assert rows(store) == {b"anna": b"1"}


def test_a_large_state_comes_back_whole_also_where_its_restore_is_stopped_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.streams.task.MANY_ROWS", 20)
    monkeypatch.setattr("headrace.streams.runner.REPLAY_ROWS", 7)
    ground, chance, expected = Ground(), random.Random(1), dict[bytes, bytes]()
    for n in range(300):
        who, value = b"%d" % chance.randrange(25), chance.choice([b"%d" % n, None])
        ground.log.append(CHANGELOG, Record(*CHANGELOG[:1], b"totals\x00" + who, value), "committed")
        expected.pop(who, None)
        if value is not None:
            expected[who] = value
    positions, orderings = [0], set()
    while positions[-1] < 300:
        store = RocksStore(tmp_path / "state")
        stopping = iter([False] * 3 + [True] * 9).__next__
        ground.play(replay(totals.task(store), ground.log, Progress(), lambda: ground.now, stopping))
        positions.append(totals.task(store).position)
        orderings.add(store._ordering)
        rows_now = dict(store.rows(b"totals\x00"))
        store.close()
    assert len(positions) > 10, "it was stopped in the middle"
    assert positions == sorted(set(positions)), "each start goes on where the last one stopped"
    assert rows_now == expected
    assert orderings == {False, True}, "out of order while much was to come, in order at the end"


def test_an_emptied_store_has_nothing_left(tmp_path_factory: Any) -> None:
    store = RocksStore(tmp_path_factory.mktemp("state"))
    store.write([(b"totals\x00anna", b"1"), (b"\x00position", b"7 9"), (b"z\x00\xff\xff", b"2")])
    store.empty()
    assert list(store.rows(b"")) == []
    store.close()


def test_workers_on_one_folder_take_the_first_free_part_of_it(tmp_path_factory: Any) -> None:
    data = tmp_path_factory.mktemp("data")
    first, second = Slot(data), Slot(data)
    assert [first.path.name, second.path.name] == ["0", "1"]
    first.member = "consumer-7"
    first.store(CHANGELOG).mkdir(parents=True)
    first.release()
    again = Slot(data)
    assert again.path == first.path
    assert again.member == "consumer-7"
    assert again.kept([CHANGELOG, Partition("other", 1)]) == (CHANGELOG,)
    again.release()
    second.release()
