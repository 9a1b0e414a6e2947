"""A figure: what was measured, again and again; the median tells it, and the spread how far to believe it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import platform
import statistics
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.streams.address import Address, parse_address

from tests.stack.kafka import Cluster


@dataclass(frozen=True, slots=True)
class Figure:
    """One value for each repeat."""

    name: str
    unit: str
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def value(self) -> str:
        """The median, short."""
        return _short(self.median)

    def __str__(self) -> str:
        spread = f"  ({_short(min(self.values))} to {_short(max(self.values))} in {len(self.values)})"
        return f"{self.name:<58} {self.value:>12} {self.unit:<9}{spread if len(self.values) > 1 else ''}"

    def as_json(self) -> dict[str, Any]:
        return {"figure": self.name, "unit": self.unit, "median": self.median, "values": list(self.values)}


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:,.1f}"


def machine() -> str:
    """What these figures are of, and how busy it is."""
    kind = f"{os.cpu_count()} cores, Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    return f"{kind}; load {os.getloadavg()[0]:.1f} before the start"


def collected(repeats: Sequence[dict[str, float]], units: dict[str, str]) -> list[Figure]:
    """Figures from the values of each repeat, by name."""
    return [Figure(name, unit, tuple(r[name] for r in repeats)) for name, unit in units.items()]


async def run(module: str, *arguments: str) -> dict[str, float]:
    """Run a job in a process of its own; what its last line tells."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module, *arguments), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"{module} failed:\n{err.decode()}")
    told: dict[str, float] = json.loads(out.decode().splitlines()[-1])
    return told


@contextlib.asynccontextmanager
async def local_broker(folder: Path) -> AsyncIterator[Address]:
    """A local broker in a process of its own."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "headrace.streams.broker", "--data", str(folder), "--port", "0"),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        line = (await process.stdout.readline()).decode()
        yield parse_address(line.rsplit(" at ", 1)[1].rstrip(".\n"))
    finally:
        process.terminate()
        await process.wait()


@contextlib.asynccontextmanager
async def apache_kafka(folder: Path) -> AsyncIterator[Address]:
    """One node of Apache Kafka, with what Java needs to be fast rather than to start soon.

    Serial GC is what Java itself chooses for one core, and the broker has one: a collector beside it would take turns.
    """
    cluster = Cluster(folder, java=["-Xmx1g", "-XX:+UseSerialGC"])
    try:
        await asyncio.to_thread(cluster.start)
        yield cluster.address
    finally:
        cluster.close()


Broker = Callable[[Path], AbstractAsyncContextManager[Address]]
BROKERS: dict[str, Broker] = {"local broker": local_broker, "Kafka": apache_kafka}
