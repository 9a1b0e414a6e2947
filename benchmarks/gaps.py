"""How long a partition stands still when a worker is killed, when one is stopped, and when one joins.

Three workers share eight partitions of customers under a steady load of orders. A fourth joins, one is stopped
(SIGTERM), one is killed (SIGKILL), and one is started in its place, so that each repeat begins with three. A gap is the
longest time without a new output of a partition, as a reader of committed records sees it: of the partition that
stood longest, and of the one in the middle, which most often stayed where it was.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
from headrace.streams.address import Address
from headrace.streams.admin import ensure_topics
from headrace.streams.kafka import KafkaLog
from headrace.streams.log import Partition
from headrace.streams.publisher import Publisher, Row, encode

import headrace as hr
from benchmarks import customers
from benchmarks.delays import RATE, TICK
from benchmarks.figures import BROKERS, Broker, Figure, collected
from tests.kill.rig import Worker, Workers

PARTITIONS = 8
WORKERS = 3
CUSTOMERS = 400
CALM = 2.0
"""Seconds for which outputs must have kept up before what was done to the workers is over: a worker that is dead and
not yet missed is felt within one."""
BEHIND = 0.3
"""Seconds of load that may be on their way."""
WITHIN = 90.0
"""Seconds for outputs to keep up again."""
COPIES = {"": 0, ", with standbys": 1}
EVENTS = ("nothing happens", "a worker joins", "a worker is stopped", "a worker is killed")


def measure(repeats: int, brokers: Mapping[str, Broker] = BROKERS, copies: Mapping[str, int] = COPIES) -> list[Figure]:
    """The workers of each way stay for all repeats."""
    units = {
        f"{broker}{standby}, {event}, {which}": "ms"
        for broker in brokers
        for standby in copies
        for event in EVENTS
        for which in ("longest", "median")
    }
    values = asyncio.run(_repeats(repeats, brokers, copies))
    return collected([dict(zip(units, some, strict=True)) for some in values], units)


async def _repeats(repeats: int, brokers: Mapping[str, Broker], copies: Mapping[str, int]) -> list[list[float]]:
    found: list[list[float]] = [[] for _ in range(repeats)]
    for broker in brokers.values():
        for standby in copies.values():
            async with _scene(broker, standby) as scene:
                for values in found:
                    values += await scene.once()
    return found


@asynccontextmanager
async def _scene(broker: Broker, standby: int) -> AsyncIterator[Scene]:
    """Workers that keep up with the load."""
    with tempfile.TemporaryDirectory() as folder:
        async with broker(Path(folder) / "log") as address:
            app = hr.App(customers.app.name, features=[customers.Customer], partitions=PARTITIONS)
            await ensure_topics(address, app.topics())
            told = {"PARTITIONS": str(PARTITIONS), "STANDBY": str(standby)}
            with Workers(Path(customers.__file__), str(address), Path(folder) / "data", told=told) as workers:
                scene = Scene(address, workers)
                async with scene.load():
                    for _ in range(WORKERS):
                        workers.add()
                    await asyncio.to_thread(workers.wait_ready)
                    await scene.calm()
                    yield scene


class Scene:
    """Orders at a steady rate, and when each partition last had an output."""

    def __init__(self, address: Address, workers: Workers) -> None:
        self._log = KafkaLog(address)
        self._publisher = Publisher(address)
        self._workers = workers
        self._sending: set[asyncio.Task[object]] = set()
        self._ahead = 0
        self._last = np.full(PARTITIONS, time.perf_counter())
        self._gaps = np.zeros(PARTITIONS)

    @asynccontextmanager
    async def load(self) -> AsyncIterator[None]:
        await self._publisher.start()
        running = [asyncio.create_task(part) for part in (self._publish(), self._read())]
        try:
            yield
        finally:
            for part in running:
                part.cancel()
            await asyncio.wait([*running, *self._sending])
            await self._publisher.close()
            await self._log.close()

    async def once(self) -> list[float]:
        """The gaps of EVENTS in milliseconds, each the longest and the median of the partitions."""
        nothing = await self._gap(lambda: None)
        joins = await self._gap(self._workers.add)
        stopped = await self._gap(lambda: self._workers.stop(self._oldest()))
        killed = await self._gap(lambda: self._workers.kill(self._oldest()))
        await self._gap(self._workers.add)
        return [*nothing, *joins, *stopped, *killed]

    def _oldest(self) -> Worker:
        return self._workers.all[0]

    async def _gap(self, event: Callable[[], object]) -> tuple[float, float]:
        self._gaps[:] = 0
        await asyncio.to_thread(event)
        await asyncio.to_thread(self._workers.wait_ready)
        await self.calm()
        return 1000 * float(self._gaps.max()), 1000 * float(np.median(self._gaps))

    async def calm(self) -> None:
        """Return once the outputs have kept up with the orders for some time."""
        began = since = time.perf_counter()
        while time.perf_counter() - since < CALM:
            await asyncio.sleep(TICK)
            if self._ahead > BEHIND * RATE:
                since = time.perf_counter()
                if since - began > WITHIN:
                    said = "\n".join(worker.told() for worker in self._workers.all)
                    raise RuntimeError(f"after {WITHIN:.0f} s {self._ahead} orders have no output:\n{said}")

    async def _publish(self) -> None:
        orders, each = _orders(), round(RATE * TICK)
        began, tick = time.perf_counter(), 0
        while True:
            await asyncio.sleep(max(0.0, began + tick * TICK - time.perf_counter()))
            first = tick * each % CUSTOMERS
            self._ahead += each
            one = asyncio.create_task(self._publisher.send("orders", orders[first : first + each]))
            self._sending.add(one)
            one.add_done_callback(self._sending.discard)
            tick += 1

    async def _read(self) -> None:
        partitions = [Partition("features.Customer", n) for n in range(PARTITIONS)]
        reader = await self._log.reader(dict.fromkeys(partitions, 0))
        try:
            while True:
                for fetched in await reader.fetch(partitions, RATE, TICK):
                    self._take(fetched.partition.number, len(fetched))
        finally:
            await reader.close()

    def _take(self, partition: int, outputs: int) -> None:
        if outputs:
            now = time.perf_counter()
            self._gaps[partition] = max(self._gaps[partition], now - self._last[partition])
            self._last[partition] = now
            self._ahead -= outputs


def _orders() -> list[Row]:
    """One of each customer."""
    at = customers.BEGAN
    return [encode(customers.Order(customer=f"c{n}", quantity=1, price=1.0, at=at)) for n in range(CUSTOMERS)]
