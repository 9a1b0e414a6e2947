"""The simulator itself: a seed replays exactly, a failing one says how, and broken engines are caught."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
from headrace.streams import runner
from headrace.streams.batch import NEVER
from headrace.streams.errors import Fenced, HeadraceError, TransactionUnknown
from headrace.streams.inputs import Merge
from headrace.streams.log import Fetched, Partition, Writer
from headrace.streams.runner import Runner
from headrace.streams.task import Task, Work

from tests.simulation import seeds, test_returns, test_totals, test_windows
from tests.simulation.fleet import Fleet
from tests.simulation.log import IDS, Connection, Entry

SIMULATIONS: Mapping[str, Callable[[int], Fleet]] = {
    "totals": test_totals.simulate,
    "returns": test_returns.simulate,
    "windows": test_windows.simulate,
}

Opening = Callable[[Connection, str], Awaitable[Writer]]

MOST = 60
"""Seeds within which each broken engine must be caught. What chance finds more seldom is in `test_handover`."""


def told(fleet: Fleet) -> list[tuple[object, Entry]]:
    """All that ever was in the log, aborted transactions and markers too."""
    return [(partition, entry) for partition, entries in fleet.log.partitions.items() for entry in entries]


@pytest.mark.parametrize("pipeline", list(SIMULATIONS))
def test_a_seed_replays_exactly(pipeline: str) -> None:
    once, again = (SIMULATIONS[pipeline](13) for _ in range(2))
    assert told(once) == told(again)
    assert (once.world.time, once.started) == (again.world.time, again.started)


@pytest.mark.parametrize("fails", [lambda seed: [f"{seed} is wrong"], lambda seed: [str(1 // 0)]])
def test_a_failing_seed_says_which_command_replays_it(
    fails: Callable[[int], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seeds, "FIRST", 40)
    monkeypatch.setattr(seeds, "SEEDS", 10)
    with pytest.raises(AssertionError, match="make sim FIRST=41 SEEDS=1"):
        seeds.check("returns", 0, fails)


def writes_the_store_before_the_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    async def commit(self: Runner, writer: Writer, work: Work) -> None:
        await writer.begin(self.group, work.offsets)
        ends = await writer.send([*work.records, *self.task.logged(work.changes)], self.task.number)
        self.task.keep(work, ends[self.task.changelog], self.wall())
        await writer.commit()

    monkeypatch.setattr(Runner, "_commit", commit)


def merges_by_arrival(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Merge, "_safe", lambda self, idle: [source.buffered for source in self.inputs])


def keeps_hot_state_after_an_abort(monkeypatch: pytest.MonkeyPatch) -> None:
    resume = Task.resume

    def resumed(self: Task) -> None:
        loaded = hasattr(self, "loaded")
        operators = self.operators
        self.operators = [] if loaded else operators
        resume(self)
        self.operators = operators
        self.loaded = True  # type: ignore[attr-defined]

    monkeypatch.setattr(Task, "resume", resumed)


def forgets_how_far_its_inputs_were(monkeypatch: pytest.MonkeyPatch) -> None:
    resume = Task.resume

    def resumed(self: Task) -> None:
        resume(self)
        for source in self.inputs:
            source.resume(source.offset, NEVER)

    monkeypatch.setattr(Task, "resume", resumed)


def opens_an_id_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = itertools.count()

    async def writer(self: Connection, owner: str, _open: Opening = Connection.writer) -> Writer:
        fresh = f"{owner}-{next(opened)}"
        found = await _open(self, fresh)
        for n in range(IDS):  # so that the fleet finds the owner
            self.log.id(f"{owner}.{n}").connection = self
        return found

    monkeypatch.setattr(Connection, "writer", writer)


def starts_without_the_changelogs_tail(monkeypatch: pytest.MonkeyPatch) -> None:
    async def replay(task: Task, *rest: Any) -> None:
        if not task.position:
            await whole(task, *rest)

    whole = runner.replay
    monkeypatch.setattr(runner, "replay", replay)


def goes_on_at_offsets_that_it_remembers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that had the task before takes its own offsets for the group's."""
    keep, resume = Task.keep, Task.resume
    remembered: dict[object, list[int]] = {}

    def kept(self: Task, work: Work, position: int, at: float = 0.0) -> None:
        keep(self, work, position, at)
        remembered[disk(self)] = [i.offset for i in self.inputs]

    def resumed(self: Task) -> None:
        resume(self)
        for source, offset in zip(self.inputs, remembered.get(disk(self), []), strict=False):
            source.resume(offset, source.high)

    def disk(task: Task) -> object:
        handle = getattr(task._store, "_store", task._store)
        return getattr(handle, "disk", task)  # the machine's, not the process's

    monkeypatch.setattr(Task, "keep", kept)
    monkeypatch.setattr(Task, "resume", resumed)


def does_not_notice_that_it_is_fenced(monkeypatch: pytest.MonkeyPatch) -> None:
    async def commit(self: Runner, writer: Writer, work: Work) -> None:
        ends: dict[Partition, int] = {}
        with contextlib.suppress(Fenced):
            await writer.begin(self.group, work.offsets)
            ends = await writer.send([*work.records, *self.task.logged(work.changes)], self.task.number)
            await writer.commit()
        self.task.keep(work, ends.get(self.task.changelog, self.task.position), self.wall())

    monkeypatch.setattr(Runner, "_commit", commit)


def reads_on_after_an_unknown_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    async def commit(self: Runner, writer: Writer, work: Work) -> None:
        await writer.begin(self.group, work.offsets)
        ends = await writer.send([*work.records, *self.task.logged(work.changes)], self.task.number)
        with contextlib.suppress(TransactionUnknown):
            await writer.commit()
        self.task.keep(work, ends[self.task.changelog], self.wall())

    monkeypatch.setattr(Runner, "_commit", commit)


def restores_before_it_fences(monkeypatch: pytest.MonkeyPatch) -> None:
    async def start(self: Runner) -> None:
        await self.close()
        await runner.replay(self.task, self.log, self.progress, self.wall, lambda: False)
        self.task.resume()
        self._writer = await self.log.writer(f"{self.group}-{self.task.number}")
        self._empty_since.clear()
        self._reader = await self.log.reader({i.partition: i.position for i in self.task.inputs})

    monkeypatch.setattr(Runner, "start", start)


def forgets_the_deletions_in_a_changelog(monkeypatch: pytest.MonkeyPatch) -> None:
    replay = Task.replay

    def replayed(self: Task, fetched: Fetched, now: float = 0.0) -> None:
        there = [i for i, value in enumerate(fetched.values) if value is not None]
        keys, values = [fetched.keys[i] for i in there], [fetched.values[i] for i in there]
        kept = replace(
            fetched, offset=fetched.offset[there], timestamp=fetched.timestamp[there], keys=keys, values=values
        )
        replay(self, kept, now)

    monkeypatch.setattr(Task, "replay", replayed)


def takes_the_changelogs_end_from_a_node_that_was_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    async def none(self: Runner, writer: Writer) -> int:
        return 0

    monkeypatch.setattr(Runner, "_write_barrier", none)


@pytest.mark.parametrize(
    "broken",
    [
        writes_the_store_before_the_commit,
        merges_by_arrival,
        keeps_hot_state_after_an_abort,
        forgets_how_far_its_inputs_were,
        opens_an_id_of_its_own,
        starts_without_the_changelogs_tail,
        goes_on_at_offsets_that_it_remembers,
        does_not_notice_that_it_is_fenced,
        reads_on_after_an_unknown_outcome,
        restores_before_it_fences,
        forgets_the_deletions_in_a_changelog,
        takes_the_changelogs_end_from_a_node_that_was_cut_off,
    ],
)
def test_a_broken_engine_is_caught(
    broken: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(monkeypatch)
    assert any(caught(seed) for seed in range(1, MOST))


def caught(seed: int) -> bool:
    try:
        return bool(test_totals.wrong(test_totals.simulate(seed)))
    except (AssertionError, LookupError, HeadraceError):
        return True
