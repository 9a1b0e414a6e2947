"""The committed state of tasks as their changelogs hold it: read anywhere, without a worker or its folder."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import msgspec

from headrace.streams.errors import LogUnavailable
from headrace.streams.log import Fetched, Log, Partition
from headrace.streams.store import Store
from headrace.streams.task import MARK, Mark

FETCH_ROWS = 2_000
WAIT = 0.1
"""Seconds for records to come. A transaction's marker at the end brings none, so this is what each partition costs."""

WAITS = 30.0
"""Seconds without a record before the end, after which the log is taken for away: whoever asked should be told."""

LOOK_BACK = 64
"""Records before a changelog's end among which its newest mark is looked for first. Each commit ends with one; behind
it lie a marker or two, and whatever an aborted transaction left."""


async def records(log: Log, partition: Partition, end: int | None = None, begin: int = 0) -> AsyncIterator[Fetched]:
    """Everything committed in a partition from an offset to another; `end` left out, to its present end.

    Raises LogUnavailable, also where the log does not come to the end.
    """
    if end is None:
        end = (await log.ends([partition]))[partition]
    reader = await log.reader({partition: begin})
    position, in_vain = begin, 0
    try:
        while position < end:
            reached = position
            for fetched in await reader.fetch([partition], FETCH_ROWS, WAIT):
                position = fetched.next_offset
                yield before(fetched, end)
            in_vain = 0 if position > reached else in_vain + 1
            if in_vain * WAIT > WAITS:
                raise LogUnavailable(
                    f"{partition.topic}, partition {partition.number}, gives nothing from offset {position:,} on, and "
                    f"ended at {end:,} when reading began: see that its broker is up, then try again"
                )
    finally:
        await reader.close()


def before(fetched: Fetched, end: int) -> Fetched:
    """The part of what was fetched that lies before an offset."""
    n = int(fetched.offset.searchsorted(end))
    return fetched if n == len(fetched) else part(fetched, 0, n, end)


def part(fetched: Fetched, start: int, end: int, next_offset: int) -> Fetched:
    rows = slice(start, end)
    columns = (fetched.offset[rows], fetched.timestamp[rows], fetched.keys[rows], fetched.values[rows])
    return Fetched(fetched.partition, *columns, next_offset=next_offset, end=fetched.end)


async def rebuild(
    log: Log, changelog: Partition, store: Store, progress: Callable[[int, int], None] = lambda done, every: None
) -> int:
    """Write the rows that a changelog holds into an empty store; returns the offset up to which it was read.

    progress: called with the offset reached, and the one to be reached
    """
    end = (await log.ends([changelog])).get(changelog, 0)
    async for fetched in records(log, changelog, end):
        store.write((key or b"", value) for key, value in zip(fetched.keys, fetched.values, strict=True))
        progress(fetched.next_offset, end)
    return end


async def newest_mark(log: Log, changelog: Partition) -> Mark | None:
    """Where the last commit of a task stands; None where there is none, or a reset took it back.

    It lies near the end, so that a large changelog is not read for it.
    """
    end = (await log.ends([changelog])).get(changelog, 0)
    back = LOOK_BACK
    while end:
        begin = max(0, end - back)
        found: list[bytes | None] = []
        async for fetched in records(log, changelog, end, begin):
            found += [value for key, value in zip(fetched.keys, fetched.values, strict=True) if key == MARK][-1:]
        if found or not begin:
            value = found[-1] if found else None
            return msgspec.json.decode(value, type=Mark) if value else None
        back *= 16
    return None
