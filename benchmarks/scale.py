"""`python -m benchmarks.scale [--quick | --workers]`: what an event costs, against the number of keys and of features.

A task on RocksDB, fed in this process: JSON in; features as JSON, changelog records and the write of state out. The log
is left out: it costs the same whatever the state. Figures are processor time of the process, its threads that order
the store included. Each row is a process of its own: first every key comes once, then come events of keys drawn evenly,
each as likely, and of keys drawn as they mostly are, few of them often. The last row starts again on what the largest
left, and tells the seconds to its first output.

Writes benchmarks/results/scale.json, and beside it the charts.

`--workers` measures something else: events/s over workers and partitions (see workers).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from headrace.streams import kernels
from headrace.streams.behind import on_disk
from headrace.streams.expressions import Expression
from headrace.streams.log import Fetched, Partition
from headrace.streams.memory import Memory, parse_size
from headrace.streams.task import Task

import headrace as hr
from benchmarks import results, workers
from benchmarks.drawing import chart
from benchmarks.figures import machine
from headrace import plan
from tests.stack import kafka

KEYS = (1_000, 10_000, 100_000, 1_000_000, 5_000_000)
FEATURES = (1, 10, 30, 100)
QUICK = 100_000
"""Keys at most of a quick run."""
BOUND = "1GB"
EVENTS = 100_000
"""Of each kind of traffic."""
BATCH = 2_000
FEATURE_KEYS = 10_000
PER_SECOND, BEGAN = 500, 1_767_225_600
"""Events in a second of event time, from 2026 on."""
SKEW = 1.2
"""Of Zipf's law: of a million keys, the first thousand have four events of five."""

Row = dict[str, Any]


class Order(hr.Event, topic="orders", key="customer", time="at"):
    customer: str
    item: str
    quantity: int
    price: float
    at: datetime


def features(count: int) -> type[hr.Features]:
    """So many aggregations; ten of them are like those of a customer."""
    quantity, price, item = hr.col.quantity, hr.col.price, hr.col.item
    kinds: list[Callable[[str], Expression]] = [
        lambda over: hr.count(over),
        lambda over: hr.sum(quantity * price, over),
        lambda over: hr.mean(price, over),
        lambda over: hr.max(price, over),
        lambda over: hr.variance(price, over),
        lambda over: hr.min(quantity, over),
        lambda over: hr.last(quantity, over),
        lambda over: hr.sum(quantity, over),
    ]
    spans = ["1h", "7d", "30d", "1d", "6h", "2h", "14d", "3d", "12h", "60d", "5d", "21d", "4h"]
    every: list[Expression] = [hr.count("1h"), hr.distinct(item, "30d"), hr.since_last(), hr.mean(price, hr.last_n(5))]
    every += [kind(span) for span in spans for kind in kinds]
    every = list({e.text: e for e in every}.values())[:count]
    assert len(every) == count
    named = {f"f{n}": e for n, e in enumerate(every)}
    return types.new_class("Customer", (hr.Features,), {"of": Order, "by": "customer"}, lambda body: body.update(named))


class Job:
    """A task on a store, fed batch by batch. spent: seconds of processor time in it."""

    def __init__(self, folder: Path, count: int, bound: str) -> None:
        app = hr.App("scale", features=[features(count)])
        self.memory = Memory(parse_size(bound))
        [stage] = plan.stages(app, memory=self.memory)
        self.task: Task = stage.build(0, on_disk(folder))[0]
        self.task.resume()
        self.spent, self._random, self._offset = 0.0, np.random.default_rng(5), self.task.inputs[0].position

    def take(self, keys: Sequence[int]) -> None:
        """An event of each key."""
        random, count = self._random, len(keys)
        amounts = zip(
            keys, random.integers(1, 9, count).tolist(), random.integers(0, 9_000, count).tolist(), strict=True
        )
        values = [
            b'{"customer":"c%d","item":"i%d","quantity":%d,"price":%d.25,"at":"%s"}'
            % (key, price % 500, quantity, price, self._at(n))
            for n, (key, quantity, price) in enumerate(amounts, self._offset)
        ]
        offsets = np.arange(self._offset, self._offset + count)
        self._offset += count
        names = [b"c%d" % key for key in keys]
        stamps = np.full(count, 4_000_000_000_000)
        fetched = Fetched(Partition("orders", 0), offsets, stamps, names, values, self._offset, self._offset)
        began = time.process_time()
        self.task.feed(fetched)
        while (work := self.task.work(BATCH)) is not None:
            self.task.logged(work.changes)
            self.task.keep(work, self._offset)
        self.spent += time.process_time() - began

    @staticmethod
    def _at(n: int) -> bytes:
        second, rest = divmod(n, PER_SECOND)
        return b"%s.%03dZ" % (str(np.datetime64(BEGAN + second, "s")).encode(), rest * 1_000 // PER_SECOND)

    def cost(self, keys: Iterator[Sequence[int]]) -> float:
        """Microseconds of processor time an event."""
        before, events = self.spent, 0
        for some in keys:
            self.take(some)
            events += len(some)
        return (self.spent - before) / events * 1e6


def each(keys: int) -> Iterator[Sequence[int]]:
    """Every key once, in no order."""
    order = np.random.default_rng(3).permutation(keys)
    for begin in range(0, keys, BATCH):
        yield order[begin : begin + BATCH].tolist()


def evenly(keys: int, events: int) -> Iterator[Sequence[int]]:
    random = np.random.default_rng(4)
    for _ in range(0, events, BATCH):
        yield random.integers(0, keys, BATCH).tolist()


def skewed(keys: int, events: int) -> Iterator[Sequence[int]]:
    random, order = np.random.default_rng(6), np.random.default_rng(3).permutation(keys)
    share = np.cumsum(1.0 / np.arange(1, keys + 1) ** SKEW)
    for _ in range(0, events, BATCH):
        yield order[np.searchsorted(share, random.random(BATCH) * share[-1])].tolist()


def resident() -> float:
    """MB that the process holds now."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def one(folder: Path, keys: int, count: int, bound: str, events: int) -> Row:
    """The row of a number of keys and of features, measured in this process."""
    kernels.warm()
    before = resident()
    job = Job(folder, count, bound)
    row: Row = {"keys": keys, "features": count, "bound": bound}
    row["first_us"] = job.cost(each(keys))
    job.cost(evenly(keys, min(events, 20_000)))
    for name, traffic in (("even", evenly), ("skewed", skewed)):
        was = job.task.residence
        row[f"{name}_us"] = job.cost(traffic(keys, events))
        now = job.task.residence
        row[f"{name}_misses"] = (now.misses - was.misses) / events
    row |= {"hot_mb": now.size / 2**20, "hot_entities": now.entities, "resident_mb": resident(), "idle_mb": before}
    job.task.close()
    row["disk_mb"] = sum(file.stat().st_size for file in folder.iterdir()) / 2**20
    return row


def restart(folder: Path, keys: int, count: int, bound: str, events: int) -> Row:
    """Seconds from nothing but the folder to the first output of a batch."""
    kernels.warm()
    began = time.perf_counter()
    job = Job(folder, count, bound)
    opened = time.perf_counter() - began
    job.take(next(evenly(keys, BATCH)))
    seconds = time.perf_counter() - began
    row = {"open_seconds": opened, "first_output_seconds": seconds, "resident_mb": resident()}
    job.task.close()
    return row


def apart(what: str, folder: Path, *arguments: object) -> Row:
    """A row measured in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.scale", "--row", what, str(folder), *map(str, arguments)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: Row = json.loads(done.stdout.splitlines()[-1])
    print(
        "  " + ", ".join(f"{k} {v:,.2f}" if isinstance(v, float) else f"{k} {v}" for k, v in found.items()), flush=True
    )
    return found


def measured(keys: Sequence[int], counts: Sequence[int], bound: str, events: int) -> dict[str, Any]:
    found: dict[str, Any] = {"by_keys": [], "by_features": []}
    with tempfile.TemporaryDirectory() as place:
        for number in keys:
            folder = Path(place) / f"keys-{number}"
            found["by_keys"].append(apart("one", folder, number, 10, bound, events))
            if number == keys[-1]:
                row = apart("restart", folder, number, 10, bound, events)
                found["restart"] = {"keys": number, "disk_mb": found["by_keys"][-1]["disk_mb"], **row}
            shutil.rmtree(folder)
        for count in counts:
            folder = Path(place) / f"features-{count}"
            found["by_features"].append(apart("one", folder, FEATURE_KEYS, count, bound, events))
            shutil.rmtree(folder)
    return found


def listed(rows: dict[str, Any]) -> list[Row]:
    """A row for each point, by its name."""
    by_keys = [{"name": f"{r['keys']:,} keys, {r['features']} features", **r} for r in rows["by_keys"]]
    by_features = [{"name": f"{r['features']} features, {r['keys']:,} keys", **r} for r in rows["by_features"]]
    start = {"name": f"a start with {rows['restart']['keys']:,} keys on disk", **rows["restart"]}
    return [{**row, "guarantee": "exactly once"} for row in (*by_keys, *by_features, start)]


def draw(rows: dict[str, Any], where: Path) -> None:
    by_keys, by_features = rows["by_keys"], rows["by_features"]
    bound = by_keys[0]["bound"]
    lines = {
        "keys that come first": [(r["keys"], r["first_us"]) for r in by_keys],
        "drawn evenly": [(r["keys"], r["even_us"]) for r in by_keys],
        "few of them often": [(r["keys"], r["skewed_us"]) for r in by_keys],
    }
    title = f"Ten aggregations, at most {bound} of state hot"
    where.joinpath("scale-keys.svg").write_text(chart(title, "keys", "µs of processor time an event", lines))
    held = {"resident, MB": [(r["keys"], r["resident_mb"]) for r in by_keys]}
    held["hot state, MB"] = [(r["keys"], r["hot_mb"]) for r in by_keys]
    where.joinpath("scale-memory.svg").write_text(chart(f"Memory, bound {bound}", "keys", "MB", held))
    costs = {"drawn evenly": [(r["features"], r["even_us"]) for r in by_features]}
    title = f"{FEATURE_KEYS:,} keys"
    where.joinpath("scale-features.svg").write_text(chart(title, "features", "µs of processor time an event", costs))


def main() -> int:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.scale", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer keys, features and events: a minute")
    parser.add_argument("--workers", action="store_true", help="events/s over 1 and 2 workers and 1 to 32 partitions")
    parser.add_argument("--bound", default=BOUND, help="of hot state")
    parser.add_argument("--out", type=Path, default=results.RESULTS, help="the folder of what it writes")
    parser.add_argument("--row", nargs="+", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.row:
        what, folder, keys, count, bound, events = chosen.row
        measure = {"one": one, "restart": restart}[what]
        print(json.dumps(measure(Path(folder), int(keys), int(count), bound, int(events))))
        return 0
    here = machine()
    if chosen.workers:
        print(here, flush=True)
        logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
        # What is started ends with its block, whatever ends this process.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
        found = asyncio.run(workers.measured())
        results.write(chosen.out / "workers.json", here, results.versions(kafka=kafka.VERSION), found)
        (chosen.out / "workers.svg").write_text(workers.draw(found))
        return 0
    print(f"{here}; bound {chosen.bound}", flush=True)
    keys = [n for n in KEYS if not chosen.quick or n <= QUICK]
    events = EVENTS // 5 if chosen.quick else EVENTS
    rows = measured(keys, FEATURES[:3] if chosen.quick else FEATURES, chosen.bound, events)
    results.write(chosen.out / "scale.json", here, results.versions(), listed(rows))
    draw(rows, chosen.out)
    print(f"written to {chosen.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
