"""The task and its runner alone, over the simulated log: crashes at every step, lost commits, zombies."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta

import pytest
from headrace.streams.batch import Record
from headrace.streams.errors import Fenced
from headrace.streams.log import Partition
from headrace.streams.runner import Runner
from headrace.streams.store import MemoryStore

from tests.simulation.log import Faults, SimulatedLog
from tests.simulation.world import Crash, World
from tests.streams import totals

FIRST = int(os.environ.get("FIRST", "1"))
SEEDS = int(os.environ.get("SEEDS", "300"))
T0 = datetime(2010, 1, 1, tzinfo=UTC)


def event(kind: str, who: str, amount: int, second: int) -> Record:
    value = {"who": who, "amount": amount, "at": (T0 + timedelta(seconds=second)).isoformat()}
    return Record(kind, who.encode(), json.dumps(value).encode(), 0)


def publish(world: World, log: SimulatedLog) -> None:
    """Payments out of order by up to 8 s (some late), refunds in order, some of them not JSON."""
    for second in range(world.random.randint(1, 60)):
        shift = world.random.choice([0, 0, 0, 1, 2, 4, 8])
        log.publish(event("payments", world.random.choice("abc"), world.random.randint(1, 99), max(0, second - shift)))
        if world.random.random() < 0.3:
            log.publish(event("refunds", world.random.choice("abc"), world.random.randint(1, 9), second))
        if world.random.random() < 0.05:
            log.publish(Record("refunds", b"a", b'{"who": "a", "amount": "many"}', 0))


def oracle(log: SimulatedLog) -> tuple[list[list[object]], list[bytes], list[bytes]]:
    """(totals, rejected values, late values): one event at a time, by the rules as the documents state them."""
    rows = []
    rejected, late = [], []
    for place, topic in enumerate(("payments", "refunds")):
        slack, allowed = (2, 3) if topic == "payments" else (0, 0)
        high = datetime.min.replace(tzinfo=UTC)
        for offset, record in enumerate(log.committed_records(topic)):
            assert record.value is not None
            value = json.loads(record.value)
            if isinstance(value["amount"], str):
                rejected.append(record.value)
                continue
            at = datetime.fromisoformat(value["at"])
            if high > T0 and at < high - timedelta(seconds=slack + allowed):
                late.append(record.value)
                continue
            high = max(high, at)
            sign = 1 if topic == "payments" else -1
            rows.append((high, place, offset, value["who"], sign * value["amount"], f"{topic}-0-{offset}"))
    total: dict[str, int] = {}
    out: list[list[object]] = []
    for *_, who, amount, name in sorted(rows):
        total[who] = total.get(who, 0) + amount
        out.append([name, total[who]])
    return out, rejected, late


def simulate(seed: int) -> tuple[SimulatedLog, list[MemoryStore]]:
    world = World(seed)
    log = SimulatedLog(world)
    publish(world, log)
    log.faults = Faults(away=world.random.choice([0, 0.02]), unknown=world.random.choice([0, 0.2]))
    rows = sum(len(log.entries(Partition(t, 0))) for t in ("payments", "refunds"))
    stores = [MemoryStore(), MemoryStore()]
    deaths = world.random.randint(0, 6)

    def crash(step: int) -> None:
        nonlocal deaths
        if deaths and world.random.random() < 0.05:
            deaths -= 1
            raise Crash

    def done() -> bool:
        taken = log.groups.get("g", {})
        return sum(taken.values()) == rows

    async def worker(store: MemoryStore) -> None:
        """Runs until it is fenced; a fenced one comes back later, as a rebalance would bring it."""
        batch = world.random.choice([1, 3, 50])
        runner = Runner(totals.task(store), log, world, "g", batch_rows=batch, idle_after=0.2, crash=crash)
        try:
            await runner.run()
        except Fenced:
            await world.sleep(world.random.random() * 3)

    async def supervisor() -> None:
        n = 0
        while not done():
            if not any(world.running(f"worker {i}") for i in range(n)) or world.random.random() < 0.03:
                # Now and then a second owner appears beside the first: the first becomes a zombie.
                world.spawn(f"worker {n}", worker(world.random.choice(stores)))
                n += 1
            await world.sleep(0.5)
            assert n < 400, "no progress"
        for i in range(n):
            if world.running(f"worker {i}"):
                world.kill(f"worker {i}")

    world.spawn("supervisor", supervisor())
    world.run()
    return log, stores


@pytest.mark.parametrize("block", range(10))
def test_totals_equal_the_oracle_whatever_dies(block: int) -> None:
    for seed in range(FIRST + block, FIRST + SEEDS, 10):
        log, _ = simulate(seed)
        out, rejected, late = oracle(log)
        got = [json.loads(r.value or b"") for r in log.committed_records("totals")]
        assert got == out, f"seed {seed}: run again with FIRST={seed} SEEDS=1"
        assert [r.value for r in log.committed_records("refunds.rejected")] == rejected, f"seed {seed}"
        assert [r.value for r in log.committed_records("payments.late")] == late, f"seed {seed}"
