"""What exactly once costs: the window job under both guarantees, on the local broker and on Apache Kafka.

Throughput as in window; latency at 1,000 events/s, from the call that publishes an event to its features read by a
reader of committed records. One worker, one partition.
"""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

from headrace.streams.admin import ensure_topics

from benchmarks.delays import RATE, WARM, measured, worker
from benchmarks.figures import BROKERS, Broker, Figure, collected
from benchmarks.latency import PROGRAMS
from benchmarks.window import OURS, app, job, publish, rows

EVENTS = 200_000
SECONDS = 15.0
PARTS = {"events/s": "events/s", "p50": "ms", "p99": "ms"}
UNITS = {
    f"{broker}, {guarantee}, {part}": unit
    for broker in BROKERS
    for guarantee in PROGRAMS
    for part, unit in PARTS.items()
}


def measure(repeats: int, events: int = EVENTS, seconds: float = SECONDS) -> list[Figure]:
    """Each repeat has logs of its own."""
    return collected([asyncio.run(_once(events, seconds)) for _ in range(repeats)], UNITS)


async def _once(events: int, seconds: float) -> dict[str, float]:
    found: list[float] = []
    for broker in BROKERS.values():
        for guarantee in PROGRAMS:
            found += await _measured(broker, guarantee, events, seconds)
    return dict(zip(UNITS, found, strict=True))


async def _measured(broker: Broker, guarantee: str, events: int, seconds: float) -> list[float]:
    """events/s, p50 and p99 of one guarantee on a new log."""
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        address = await stack.enter_async_context(broker(Path(folder) / "log"))
        await ensure_topics(address, app.topics())
        more = rows(events + int((WARM + seconds) * RATE))
        await publish(address, more[:events])
        name = guarantee.replace(" ", "_")
        rate, _ = await job("benchmarks.window_headrace", address, f"{folder}/job", events, name)
        await stack.enter_async_context(worker(PROGRAMS[guarantee], address, f"{folder}/worker"))
        p50, p99, _ = await measured(address, "trades", more[events:], OURS)
        return [rate, p50, p99]


if __name__ == "__main__":
    for figure in measure(1):
        print(figure)
