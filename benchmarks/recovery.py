"""A task comes back with 1 GB of state: its disk empty, and its disk at hand, as one that takes over from a standby.

The state (customers) is made by the operators themselves and committed to the changelog by the engine's own writer; no
events are published for it, which would take far longer and leave the same changelog. Each start must go on from that
state: an order published before it has its features checked.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from headrace.streams.address import Address
from headrace.streams.admin import ensure_topics
from headrace.streams.batch import Batch, Change, Rows, one_by_one
from headrace.streams.kafka import KafkaLog
from headrace.streams.publisher import Publisher, encode
from headrace.streams.store import MemoryStore
from headrace.streams.subscription import Subscription
from headrace.streams.task import MARK, Mark, Task

from benchmarks.customers import BEGAN, Order, app
from benchmarks.figures import BROKERS, Figure, collected, run
from headrace import plan

STATE_BYTES = 1_000_000_000
"""Keys and values of the rows, without what the log and the store add to each."""
DAYS = 8
"""Rows of a customer: one for each day."""
AT_ONCE = 10_000
"""Orders of a batch, and rows of a transaction."""

PARTS = {
    "its disk empty": "s",
    "its disk empty, state": "MB/s",
    "its disk empty, rows": "rows/s",
    "its disk at hand": "s",
    "memory before": "MB",
    "memory at most, reading the changelog": "MB",
    "memory at most, its disk empty": "MB",
    "memory at most, its disk at hand": "MB",
}
"""Memory is of the whole process. A running task holds its state as columns; reading the changelog holds none of it."""
UNITS = {f"{broker}, {part}": unit for broker in BROKERS for part, unit in PARTS.items()}


@dataclass(frozen=True)
class State:
    """What was committed to the changelog."""

    rows: int
    bytes: int


async def make_state(address: Address, least: int) -> State:
    """Commit a state of so many bytes, about, as a worker that took the orders would have."""
    await ensure_topics(address, app.topics())
    [stage] = plan.stages(app)
    task, _ = stage.build(0, MemoryStore())
    log = KafkaLog(address)
    writer = await log.writer(f"{stage.group}-{task.number}")

    async def commit(changes: list[Change]) -> None:
        await writer.begin()
        await writer.send(task.logged(changes), task.number)
        await writer.commit()

    rows = size = 0
    row = sum(map(_size, next(_changes(task, 1))))
    task.resume()
    for changes in _changes(task, max(1, least // row // DAYS)):
        await commit(changes)
        rows += len(changes)
        size += sum(map(_size, changes))
    # None of the topic's orders are in it.
    await commit([(MARK, msgspec.json.encode(Mark([0], [0], 0, task.program)))])
    await writer.close()
    await log.close()
    return State(rows, size)


def _size(change: Change) -> int:
    key, value = change
    return len(key) + len(value or b"")


def _changes(task: Task, customers: int) -> Iterator[list[Change]]:
    """Rows of state after one batch of orders and another: each customer orders once a day."""
    [operator] = task.operators
    prefix, random = operator.name.encode() + b"\x00", np.random.default_rng(7)
    names = np.array([_name(n) for n in range(customers)], object)
    for day in range(DAYS):
        turns = random.permutation(customers)
        for first in range(0, customers, AT_ONCE):
            who = names[turns[first : first + AT_ONCE]]
            count, began = len(who), BEGAN + timedelta(days=day)
            at = int(began.timestamp()) * 1_000_000 + np.arange(first, first + count)
            fields = {
                "customer": who,
                "quantity": random.integers(1, 9, count),
                "price": np.round(random.random(count) * 100, 2),
                "at": at,
            }
            here = np.arange(count)
            operator.process(Batch(at, at, {"orders": Rows(here, fields, "orders", 0, here, here)}), [])
            yield [(prefix + key, value) for key, value in one_by_one(operator.changes())]


def _name(customer: int) -> str:
    return f"customer-{customer:07}"


def measure(repeats: int, least: int = STATE_BYTES) -> list[Figure]:
    """The state is made once for each broker; each repeat has folders of its own."""
    return collected(asyncio.run(_repeats(repeats, least)), UNITS)


async def _repeats(repeats: int, least: int) -> list[dict[str, float]]:
    found: list[list[float]] = [[] for _ in range(repeats)]
    for broker in BROKERS.values():
        with tempfile.TemporaryDirectory() as folder:
            async with broker(Path(folder) / "log") as address:
                state = await make_state(address, least)
                async with Orders(address) as orders:
                    for values in found:
                        values += await _once(orders, state, Path(folder) / "state")
    return [dict(zip(UNITS, values, strict=True)) for values in found]


async def _once(orders: Orders, state: State, folder: Path) -> list[float]:
    """The values of PARTS."""
    empty, at_hand = await orders.restored(folder), await orders.restored(folder)
    shutil.rmtree(folder)
    seconds = empty["seconds"]
    rates = [state.bytes / 1e6 / seconds, state.rows / seconds]
    return [seconds, *rates, at_hand["seconds"], empty["before"], empty["reading"], empty["peak"], at_hand["peak"]]


class Orders:
    """One order after another, each for a start to go on with."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._publisher = Publisher(address)
        self._results = Subscription(address, "features.Customer", "earliest")
        self._published = 0

    async def __aenter__(self) -> Orders:
        await self._publisher.start()
        await self._results.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._publisher.close()
        await self._results.close()

    async def restored(self, folder: Path) -> dict[str, float]:
        """What a process tells that restores the task into a folder, once its features are those of the whole state."""
        self._published += 1
        order = Order(customer=_name(0), quantity=1, price=1.0, at=BEGAN + timedelta(days=DAYS - 1, hours=1))
        await self._publisher.send("orders", [encode(order)])
        told = await run("benchmarks.restoring", self._address.bootstrap, str(folder))
        [message] = await self._results.batch(10.0, 2)
        made: Any = message.value
        assert made["orders"] == DAYS + self._published, f"not all of the state came back: {made}"
        return told
