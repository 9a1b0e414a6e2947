"""A warm copy of a task that another worker runs: its store follows the changelog, and is nearly there when needed."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from headrace.streams.errors import LogUnavailable
from headrace.streams.log import Log
from headrace.streams.runner import FETCH_ROWS, RETRY_FIRST, RETRY_LAST, STALE_AFTER, Clock, Progress, replay
from headrace.streams.task import Task

logger = logging.getLogger("headrace.streams")

FOLLOW_WAIT = 0.5
"""Seconds that a read of the changelog waits for a first record: a copy need not be newer than that."""


class Standby:
    """Keeps the store of one task near the end of its changelog until `stop`; a log that is away is waited for.

    caught_up: called when the store has come to the end: from then on the copy is worth having
    """

    def __init__(
        self,
        task: Task,
        log: Log,
        clock: Clock,
        progress: Progress,
        wall: Callable[[], float] = time.time,
        caught_up: Callable[[], None] = lambda: None,
    ) -> None:
        self._task = task
        self._log = log
        self._clock = clock
        self._progress = progress
        self._wall = wall
        self._caught_up = caught_up
        self._stopping = False

    async def run(self) -> None:
        while not self._stopping:
            try:
                await replay(self._task, self._log, self._progress, self._wall, lambda: self._stopping)
                if not self._stopping:
                    self._caught_up()
                await self._follow()
                await self._clock.sleep(RETRY_FIRST)  # the next node asked may say that there is nothing to replay
            except LogUnavailable as error:
                logger.warning("the copy of task %s-%d waits: %s", self._task.name, self._task.number, error)
                await self._clock.sleep(RETRY_LAST)

    async def _follow(self) -> None:
        """Returns when the store may have missed marks of deleted rows: `replay` then finds out, and makes it anew."""
        partition, task = self._task.changelog, self._task
        sound = self._wall() - task.written <= STALE_AFTER
        reader = await self._log.reader({partition: task.position})
        try:
            while not self._stopping:
                got = await reader.fetch([partition], FETCH_ROWS, FOLLOW_WAIT)
                if not got:
                    task.rest()
                for fetched in got:
                    if fetched.next_offset > task.position:
                        known = task.written
                        # After hours without a commit the next one follows the store's position: nothing was missed.
                        if sound and len(fetched) and fetched.offset[0] == task.position:
                            known = max(known, fetched.timestamp[0] / 1000)
                        if self._wall() - known > STALE_AFTER:
                            return
                        task.replay(fetched, self._wall())
        finally:
            await reader.close()

    def stop(self) -> None:
        """Let `run` return after the read it is in."""
        self._stopping = True
