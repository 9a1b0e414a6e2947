"""The clients of a simulation: they publish bit by bit, one partition ahead of another, some records twice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from headrace.streams.batch import Record
from headrace.streams.log import Partition

from tests.simulation.fleet import IDLE_AFTER, Fleet

WITHIN = 2.5
"""Seconds that publishing takes at most: the merge waits longer for an empty input."""


async def publish(fleet: Fleet, records: Mapping[Partition, Sequence[Record]]) -> None:
    """Each partition's records in their order; which partition is next is drawn.

    Sometimes a part of them is held back until all else is taken and its topics have long been idle; then it comes
    at once, with times that the watermark may have left behind.
    """
    random = fleet.world.random
    cut = {p: random.randint(0, len(rows)) for p, rows in records.items()} if random.random() < 0.3 else {}
    await _publish(fleet, {p: rows[: cut.get(p, len(rows))] for p, rows in records.items()}, random.choice([0, WITHIN]))
    if cut:
        await fleet.world.sleep(2 * IDLE_AFTER)
        while not fleet.settled():
            await fleet.world.sleep(0.1)
        fleet.silences.append({p: len(fleet.log.entries(p)) for p in records})
        await _publish(fleet, {p: rows[cut[p] :] for p, rows in records.items()}, 0)
    fleet.published = True


async def _publish(fleet: Fleet, records: Mapping[Partition, Sequence[Record]], within: float) -> None:
    """In about so many seconds, or in one moment."""
    random, log = fleet.world.random, fleet.log
    pause = within / max(1, 2 * sum(len(rows) for rows in records.values()))
    waiting = {partition: list(rows) for partition, rows in records.items() if rows}
    while waiting:
        partition = random.choice(list(waiting))
        for _ in range(random.randint(1, len(waiting[partition]))):
            record = waiting[partition].pop(0)
            log.publish(record)
            if random.random() < 0.03:
                log.publish(record)  # a client that had no answer, and sent it again
            if random.random() < 0.03:
                await _aborted(fleet, record, bool(pause))
            if pause:
                await fleet.world.sleep(pause)
        if not waiting[partition]:
            del waiting[partition]


async def _aborted(fleet: Fleet, record: Record, slowly: bool) -> None:
    """A client's transaction that is never committed: nobody may read of it."""
    log = fleet.log
    name = f"client {len(log.ids)}"
    log.append_open(name, Partition(record.topic, record.partition or 0), record)
    if slowly:
        await fleet.world.turn()
    log.end(name, "aborted")
