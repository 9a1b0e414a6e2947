"""Latency of the returns pipeline at 1,000 events/s: from the call that publishes an order to its prediction read.

The whole stack runs; orders go out a hundredth of a second's worth at a time, as fast as the clock says and no
faster; a subscriber reads committed predictions as any client does.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from headrace.streams.address import Address
from headrace.streams.publisher import Publisher, Row
from headrace.streams.subscription import Subscription

from benchmarks.figures import Figure, collected
from headrace.stack import Stack

EXAMPLE = Path(__file__).parent.parent / "examples" / "returns"
RATE = 1_000
TICK = 0.01
"""Seconds between calls to publish."""
SECONDS = 15.0
WARM = 5.0
"""Seconds before the first latency counts."""
SILENCE = 10.0
"""Seconds without a prediction after which the rest is given up: what is rejected gets none."""
UNITS = {"p50, publish to prediction": "ms", "p99, publish to prediction": "ms", "published": "events/s"}


def measure(repeats: int, seconds: float = SECONDS) -> list[Figure]:
    """Each repeat goes on with the orders that follow."""
    return collected(asyncio.run(_repeats(repeats, seconds)), UNITS)


async def _repeats(repeats: int, seconds: float) -> list[dict[str, float]]:
    sys.path.insert(0, str(EXAMPLE))
    import retail

    orders = [line.row for line in retail.lines(retail.SAMPLE) if line.topic == "orders" and line.row.key]
    with tempfile.TemporaryDirectory() as folder:
        async with Stack(EXAMPLE / "pipeline.py", data=folder) as stack:
            found, at = [], 0
            for _ in range(repeats):
                count = int((WARM + seconds) * RATE)
                through = await measured(stack.broker, "orders", orders[at : at + count], "predictions.returns")
                found.append(dict(zip(UNITS, through, strict=True)))
                at += count
    return found


async def measured(broker: Address, topic: str, rows: list[Row], results: str) -> tuple[float, float, float]:
    """Publish rows at the rate, and read results on until every row has its own or nothing more comes.

    Returns p50 and p99 in milliseconds, and the rate.
    """
    subscription = Subscription(broker, results, "latest")
    await subscription.open()
    publisher = Publisher(broker)
    await publisher.start()
    published: dict[int, float] = {}
    seen: dict[int, float] = {}
    ended = asyncio.Event()

    async def read() -> None:
        while len(seen) < len(rows):
            messages = await subscription.batch(1.0, 10_000)
            now = time.perf_counter()
            for message in messages:
                made = message.value
                assert isinstance(made, dict)
                seen.setdefault(int(str(made["id"]).rpartition("-")[2]), now)
            if ended.is_set() and not messages and now - max(seen.values(), default=now) > SILENCE:
                return

    async def send(some: list[Row], now: float) -> None:
        for receipt in await publisher.send(topic, some):
            published[receipt.offset] = now

    reading = asyncio.create_task(read())
    began = time.perf_counter()
    sending = []
    each = round(RATE * TICK)
    for tick, at in enumerate(range(0, len(rows), each)):
        await asyncio.sleep(max(0.0, began + tick * TICK - time.perf_counter()))
        sending.append(asyncio.create_task(send(rows[at : at + each], time.perf_counter())))
    await asyncio.gather(*sending)
    seconds = time.perf_counter() - began
    ended.set()
    await reading
    await publisher.close()
    await subscription.close()
    counted = [seen[o] - at for o, at in published.items() if o in seen and at >= began + WARM]
    p50, p99 = (1000 * np.percentile(counted, (50, 99))).tolist()
    return p50, p99, len(rows) / seconds
