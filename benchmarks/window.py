"""The window job: keyed 60 s event-time tumbling count and sum; JSON in, JSON for each event out.

Headrace's task (exactly once: outputs, changelog and offsets in one transaction) and Faust's table (in memory, at
least once, the fastest it has) read the same topic of the same local broker, one process each, one after the other.
Each is timed by itself, from its first events past the warm-up to its last output acknowledged. What both say of the
events that both read must be equal.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from headrace.streams.address import Address
from headrace.streams.admin import ensure_topics
from headrace.streams.publisher import Publisher, Row
from headrace.streams.subscription import Subscription
from headrace.streams.topics import Topic

import headrace as hr
from benchmarks.figures import Figure, collected, local_broker, run

KEYS = 1_000
EVENTS = 300_000
FAUST_SHARE = 15
"""Faust reads one event in so many: the same share of time, about."""
WARM = 5
"""One event in so many goes before the clock starts."""
PER_SECOND = 500
"""Events in a second of event time."""
OURS, THEIRS = "features.PerMinute", "faust-per-minute"
UNITS = {
    "headrace, exactly once": "events/s",
    "faust table, at least once": "events/s",
    "headrace / faust": "times",
    "headrace, by processor time of its process": "events/s",
    "faust table, by processor time of its process": "events/s",
    "headrace / faust, by processor time": "times",
}
"""Processor time is what a busy machine does not stretch: both jobs are one thread's work."""


class Trade(hr.Event, topic="trades", key="symbol", time="at"):
    symbol: str
    quantity: int
    price: float
    at: datetime


class PerMinute(hr.Features, of=Trade, by="symbol"):
    trades = hr.count(hr.tumbling("60s"))
    volume = hr.sum(hr.col.quantity, hr.tumbling("60s"))


app = hr.App("window", features=[PerMinute])


def rows(events: int) -> list[Row]:
    random = np.random.default_rng(7)
    symbols, quantities = random.integers(0, KEYS, events).tolist(), random.integers(1, 1000, events).tolist()
    began = datetime(2026, 1, 1, tzinfo=UTC)
    made = []
    for n, (symbol, quantity) in enumerate(zip(symbols, quantities, strict=True)):
        at = began + timedelta(seconds=n / PER_SECOND)
        value = {"symbol": f"s{symbol}", "quantity": quantity, "price": quantity / 8, "at": at}
        made.append(Row(b"s%d" % symbol, msgspec.json.encode(value)))
    return made


def measure(repeats: int, events: int = EVENTS) -> list[Figure]:
    """Throughput of both, and how many times one is the other. Raises AssertionError where their results differ."""
    few = events // FAUST_SHARE
    return collected([asyncio.run(_once(events, few)) for _ in range(repeats)], UNITS)


async def _once(events: int, few: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        async with local_broker(Path(folder) / "log") as broker:
            await ensure_topics(broker, [*app.topics(), Topic(THEIRS, "features", 1)])
            await publish(broker, rows(events))
            theirs = await job("benchmarks.window_faust", broker, folder, few)
            ours = await job("benchmarks.window_headrace", broker, folder, events)
            wanted, found = await _results(broker, THEIRS, few), await _results(broker, OURS, few)
            assert wanted == found, "the two versions of the window job differ"
            assert len(found) == few
    rates = [rate for mine, other in zip(ours, theirs, strict=True) for rate in (mine, other, mine / other)]
    return dict(zip(UNITS, rates, strict=True))


async def publish(broker: Address, made: list[Row]) -> None:
    publisher = Publisher(broker)
    await publisher.start()
    for at in range(0, len(made), 5_000):
        await publisher.send("trades", made[at : at + 5_000])
    await publisher.close()


async def job(module: str, broker: Address, folder: str, events: int, *more: str) -> tuple[float, float]:
    """Run a job over the first so many events; events/s, and events per second of processor time."""
    told = await run(module, broker.bootstrap, folder, str(events), *more)
    return told["events"] / told["seconds"], told["events"] / told["processor_seconds"]


async def _results(broker: Address, topic: str, most: int) -> dict[str, Any]:
    """What was said of each of the first so many events."""
    subscription = Subscription(broker, topic, "earliest")
    await subscription.open()
    found: dict[str, Any] = {}
    try:
        while len(found) < most:
            messages = await subscription.batch(10.0, most)
            assert messages, f"{topic} ends after {len(found)} of {most} events"
            for message in messages:
                made: Any = message.value
                if int(made["id"].rpartition("-")[2]) < most:
                    assert made["id"] not in found, f"{made['id']} was told twice"
                    found[made["id"]] = (made["symbol"], made["trades"], made["volume"])
    finally:
        await subscription.close()
    return found


class Clock:
    """Runs from the first event past the warm-up."""

    def __init__(self, events: int) -> None:
        self.events = events
        self._from = events // WARM
        self._began: tuple[int, float, float] | None = None

    def seen(self, count: int) -> None:
        if self._began is None and count >= self._from:
            self._began = (count, time.perf_counter(), time.process_time())

    def told(self) -> str:
        assert self._began is not None
        count, began, spent = self._began
        seconds, processor = time.perf_counter() - began, time.process_time() - spent
        return json.dumps({"events": self.events - count, "seconds": seconds, "processor_seconds": processor})
