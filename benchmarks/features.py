"""What features cost: `python benchmarks/features.py`. Columns in; columns, records and state changes out."""

from __future__ import annotations

import time
from datetime import datetime

import numpy as np
from headrace.streams import aggregations as agg
from headrace.streams import kernels
from headrace.streams.aggregations import Stream, stream
from headrace.streams.batch import Batch, Outputs, Rows
from headrace.streams.event import Event
from headrace.streams.expressions import col
from headrace.streams.features import Features, FeatureSet
from headrace.streams.windows import last_n

KEYS = 10_000
EVENTS = 60_000


class Order(Event, topic="orders", key="customer", time="at"):
    customer: str
    item: str
    quantity: int
    price: float
    at: datetime


class Customer(Features, of=Order, by="customer"):
    lines_1h = agg.count("1h")
    lines_7d = agg.count("7d")
    spend_1h = agg.sum(col.quantity * col.price, "1h")
    spend_7d = agg.sum(col.quantity * col.price, "7d")
    price_30d = agg.mean(col.price, "30d")
    spread_30d = agg.variance(col.price, "30d")
    dearest_30d = agg.max(col.price, "30d")
    items_30d = agg.distinct(col.item, "30d")
    gap = agg.since_last()
    recent = agg.mean(col.price, last_n(5))


def rows(count: int, seed: int = 1) -> tuple[Stream, dict[str, np.ndarray], np.ndarray]:
    random = np.random.default_rng(seed)
    at = 1_700_000_000_000_000 + np.cumsum(random.integers(1, 120_000_000, count))
    fields = {
        "customer": np.array([f"c{k}" for k in random.integers(0, KEYS, count)], object),
        "item": np.array([f"i{k}" for k in random.integers(0, 500, count)], object),
        "quantity": random.integers(1, 9, count),
        "price": np.round(random.random(count) * 100, 2),
        "at": at,
    }
    return stream(Order), fields, at


def batches(size: int, count: int) -> list[Batch]:
    source, fields, at = rows(count)
    made = []
    for begin in range(0, count, size):
        end = min(begin + size, count)
        positions = np.arange(end - begin)
        offsets = np.arange(begin, end)
        part = {name: values[begin:end].copy() for name, values in fields.items()}
        made.append(
            Batch(
                at[begin:end],
                at[begin:end],
                {source.name: Rows(positions, part, source.name, 0, offsets, offsets)},
            )
        )
    return made


def main() -> None:
    kernels.warm()
    FeatureSet(Customer).process(batches(100, 100)[0], [])
    print(f"10 aggregations, {KEYS:,} keys; process CPU time, best of 3")
    print(f"{'batch':>7} {'columns':>9} {'+ JSON':>9} {'+ changes':>10}  ns per event")
    for size in (1, 100, 1_000, 10_000):
        count = min(EVENTS, size * 2_000)
        best = [float("inf")] * 3
        for _ in range(3):
            for step, (publish, changes) in enumerate([(False, False), (True, False), (True, True)]):
                best[step] = min(best[step], _measure(batches(size, count), publish, changes) / count)
        print(f"{size:>7,} " + " ".join(f"{ns:>9,.0f}" for ns in best))
    print("a batch of one, in microseconds, is its figure in ns / 1,000")


def _measure(made: list[Batch], publish: bool, changes: bool) -> int:
    operator = FeatureSet(Customer)
    if not publish:
        operator._published = []
    began = time.process_time_ns()
    for one in made:
        out: Outputs = []
        operator.process(one, out)
        if changes:
            operator.changes()
        elif not publish:
            operator._tables  # noqa: B018
    return time.process_time_ns() - began


if __name__ == "__main__":
    main()
