"""How long a task stands still: its state restored, its worker killed, stopped, or joined by another.

A state of 1 GB (customers) is made by the operators themselves and committed to the changelog by the engine's own
writer; no events are published for it, which would take far longer and leave the same changelog. A task then starts
with its disk empty, again with its disk at hand, and takes over from a standby. Each start must go on from that state:
an order published before it has its features checked.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from headrace.streams.address import Address
from headrace.streams.admin import ensure_topics
from headrace.streams.batch import Batch, Change, Rows
from headrace.streams.kafka import KafkaLog
from headrace.streams.publisher import Publisher, encode
from headrace.streams.store import MemoryStore
from headrace.streams.subscription import Subscription
from headrace.streams.task import MARK, Mark, Task

from benchmarks.customers import Order, app
from benchmarks.figures import run
from headrace import plan

STATE_BYTES = 1_000_000_000
"""Keys and values of the rows, without what the log and the store add to each."""
DAYS = 8
"""Rows of a customer: one for each day."""
AT_ONCE = 10_000
"""Orders of a batch, and rows of a transaction."""
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


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
        await writer.commit(stage.group, {})

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
            yield [(prefix + key, value) for key, value in operator.changes()]


def _name(customer: int) -> str:
    return f"customer-{customer:07}"


async def restore(address: Address, folder: Path, least: int, repeats: int) -> list[dict[str, float]]:
    """What each repeat took, and held."""
    state = await make_state(address, least)
    found = []
    async with Orders(address) as orders:
        for turn in range(repeats):
            cold = await orders.restored(folder / f"{turn}")
            warm = await orders.restored(folder / f"{turn}")
            over = await orders.restored(folder / f"{turn}-standby", "standby")
            shutil.rmtree(folder)
            found.append(
                {
                    "disk empty": cold["seconds"],
                    "disk empty, bytes of state": state.bytes / 1e6 / cold["seconds"],
                    "disk empty, rows of state": state.rows / cold["seconds"],
                    "disk empty, peak memory": cold["peak"],
                    "disk at hand": warm["seconds"],
                    "disk at hand, peak memory": warm["peak"],
                    "standby follows": over["followed"],
                    "standby follows, peak memory": over["following"],
                    "standby takes over": over["seconds"],
                    "before any, memory": cold["before"],
                }
            )
    return found


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

    async def restored(self, folder: Path, *how: str) -> dict[str, float]:
        """What a process tells that restores the task into a folder, once its features are those of the whole state."""
        self._published += 1
        order = Order(customer=_name(0), quantity=1, price=1.0, at=BEGAN + timedelta(days=DAYS - 1, hours=1))
        await self._publisher.send("orders", [encode(order)])
        told = await run("benchmarks.restoring", self._address.bootstrap, str(folder), *how)
        [message] = await self._results.batch(10.0, 2)
        made: Any = message.value
        assert made["orders"] == DAYS + self._published, f"not all of the state came back: {made}"
        return told
