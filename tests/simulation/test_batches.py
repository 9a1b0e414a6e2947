"""How large a task's batches are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest
from headrace.streams import runner
from headrace.streams.batch import Batch, Change, Outputs
from headrace.streams.inputs import Input, Source
from headrace.streams.jsoncodec import codec
from headrace.streams.log import Partition
from headrace.streams.runner import AT_ONCE, Runner
from headrace.streams.store import MemoryStore
from headrace.streams.task import Task

from tests.simulation.log import SimulatedLog
from tests.simulation.test_totals import event
from tests.simulation.world import World
from tests.streams.totals import Payment


class Slow:
    """An operator that takes the next of some seconds for each batch, and notes its rows."""

    name = "slow"

    def __init__(self, world: World, seconds: Iterator[float]) -> None:
        self._world, self._seconds = world, seconds
        self.rows: list[int] = []

    def process(self, batch: Batch, out: Outputs) -> None:
        self._world.time += next(self._seconds)
        self.rows.append(len(batch))

    def changes(self) -> list[Change]:
        return []

    def load(self, rows: Iterable[tuple[bytes, bytes]]) -> None: ...

    def clear(self) -> None: ...


def taken(seconds: list[float], events: int, most: int = 1_000) -> list[int]:
    """The rows of each batch, where the operators have them for so many seconds."""
    world = World(1)
    log = SimulatedLog(world)
    for second in range(events):
        log.publish(event("payments", "a", 1, second))
    slow = Slow(world, iter(seconds))
    source = Input(Source("payments", codec(Payment), rejected="r", late="l"), Partition("payments", 0))
    task = Task("slow", 0, [source], [slow], MemoryStore(), Partition("slow.changelog", 0))
    mine = Runner(task, log, world, "group", idle_after=0.0, wall=world.wall, batch_rows=most)

    async def scenario() -> None:
        await mine.start()
        assert mine._reader is not None
        while source.buffered < events:
            for fetched in await mine._reader.fetch([source.partition], events, 1.0):
                task.feed(fetched)
        for _ in seconds:
            await mine.step()
        await mine.close()

    world.spawn("scenario", scenario())
    world.run()
    return slow.rows


def test_batches_grow_while_the_operators_are_quick_and_shrink_when_they_are_slow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runner, "MAX_BATCH_ROWS", 16)
    monkeypatch.setattr(runner, "BATCH_ROWS", 4)
    quick, slow, neither = 0.0, 3 * AT_ONCE, AT_ONCE
    assert taken([quick] * 5, 60) == [4, 8, 16, 16, 16]
    assert taken([quick, quick, neither, slow, slow, slow], 60) == [4, 8, 16, 16, 8, 4]
    assert taken([slow, slow, quick, quick], 60) == [4, 4, 4, 8]
    # What is less than a whole batch tells nothing of one.
    assert taken([quick, quick, slow], 14) == [4, 8, 2]
    assert taken([quick] * 3, 60, most=6) == [4, 6, 6]
