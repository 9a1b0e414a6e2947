"""The simulator itself: a seed replays exactly, a failing one says how, and broken engines are caught."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
from headrace.streams.batch import NEVER
from headrace.streams.inputs import Merge
from headrace.streams.log import Writer
from headrace.streams.runner import Runner
from headrace.streams.task import Task, Work

from tests.simulation import seeds, test_returns, test_totals, test_windows
from tests.simulation.fleet import Fleet
from tests.simulation.log import Entry

SIMULATIONS: Mapping[str, Callable[[int], Fleet]] = {
    "totals": test_totals.simulate,
    "returns": test_returns.simulate,
    "windows": test_windows.simulate,
}

MOST = 30
"""Seeds within which each broken engine must be caught."""


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
        await writer.begin()
        ends = await writer.send([*work.records, *self.task.logged(work.changes)], self.task.number)
        self.task.keep(work, ends[self.task.changelog], self.wall())
        await writer.commit(self.group, work.offsets)

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


@pytest.mark.parametrize(
    "broken",
    [
        writes_the_store_before_the_commit,
        merges_by_arrival,
        keeps_hot_state_after_an_abort,
        forgets_how_far_its_inputs_were,
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
    except (AssertionError, LookupError):
        return True
