"""The events of both jobs, and a thread that publishes them while workers die."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from types import TracebackType

from headrace.streams.address import Address
from headrace.streams.errors import LogUnavailable
from headrace.streams.publisher import Publisher, Row

from tests.kill.job import lines

SENSORS = 40
BEGAN = 1_767_225_600.0  # 2026-01-01
STEP = 0.4
"""Seconds of event time between two ticks: a minute is over after 150 of them."""
AGAIN_AFTER = 0.5
"""Seconds until what a broker did not acknowledge is published again; it may then lie there twice, as events may."""

Rows = list[tuple[str, Row]]


def ticks(seed: int) -> Iterator[tuple[str, Row]]:
    """Endless ticks: mostly in order, some behind, some too late, some broken."""
    chance = random.Random(f"ticks {seed}")
    for n in itertools.count():
        sensor = f"s{chance.randrange(SENSORS)}"
        behind = chance.choice([0] * 12 + [2, 4, 8, 20, 33, 70])
        at = datetime.fromtimestamp(BEGAN + n * STEP - behind, UTC).isoformat()
        tick: dict[str, object] = {
            "sensor": sensor, "amount": chance.randrange(-9, 100), "level": chance.randrange(-400, 400) / 7, "at": at
        }  # fmt: skip
        if chance.random() < 0.01:
            tick[chance.choice(["amount", "level", "at"])] = chance.choice([None, "much", [1]])
        yield "ticks", Row(sensor.encode(), json.dumps(tick).encode())


def shopping(share: int) -> Iterator[tuple[str, Row]]:
    """The shop's sample, of every `share`-th customer."""
    yield from lines(share)


def runs(rows: Sequence[tuple[str, Row]]) -> Iterator[tuple[str, list[Row]]]:
    """Rows of one topic that follow one another."""
    for topic, some in itertools.groupby(rows, key=lambda one: one[0]):
        yield topic, [row for _, row in some]


class Feed:
    """Publishes events at a rate until it is stopped or they end, through whatever happens to the brokers.

    Rows of two topics are acknowledged in their order, so that none comes before one that precedes it.
    """

    def __init__(self, broker: Address, events: Iterator[tuple[str, Row]], rate: float) -> None:
        self.published = 0
        self.again = 0
        self.ended = False
        self._broker = broker
        self._events = events
        self._rate = rate
        self._stopping = threading.Event()
        self._failed: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="feed")

    def __enter__(self) -> Feed:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """Return once what was begun is published. Raises what the thread failed with."""
        self._stopping.set()
        self._thread.join()
        if self._failed is not None:
            raise self._failed

    def _run(self) -> None:
        try:
            asyncio.run(self._publish())
        except BaseException as error:
            self._failed = error
        self.ended = True

    async def _publish(self) -> None:
        publisher = Publisher(self._broker)
        await publisher.start()
        began = time.monotonic()
        try:
            while not self._stopping.is_set():
                due = int((time.monotonic() - began) * self._rate) - self.published
                rows = list(itertools.islice(self._events, due)) if due > 0 else []
                if due > 0 and not rows:
                    return
                for topic, some in runs(rows):
                    await self._send(publisher, topic, some)
                self.published += len(rows)
                await asyncio.sleep(0.05)
        finally:
            await publisher.close()

    async def _send(self, publisher: Publisher, topic: str, rows: list[Row]) -> None:
        while True:
            try:
                await publisher.send(topic, rows)
                return
            except LogUnavailable:
                self.again += 1
                await asyncio.sleep(AGAIN_AFTER)
