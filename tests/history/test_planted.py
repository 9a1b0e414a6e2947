"""Each kind of anomaly is found where a broker has the flaw that makes it: what the checker says of a sound one counts."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from headrace.streams.broker import Broker

from tests.history import broken
from tests.history.checker import Kind, anomalies
from tests.history.conftest import LEAKS
from tests.history.history import History
from tests.history.workload import Settings, record

SECONDS = 1.5
SEED = 7

pytestmark = [*LEAKS]

FOUND = {
    "drops-batches": {Kind.LOST},
    "repeats-batches": {Kind.DOUBLED},
    "swaps-batches": {Kind.REORDERED},
    "has-two-histories": {Kind.TWO_VALUES},
    "skips-batches": {Kind.POLL_SKIP},
    "forgets-where-readers-are": {Kind.POLL_BACK},
    "shows-the-aborted": {Kind.ABORTED_READ},
    "shows-the-open": {Kind.EARLY_READ, Kind.BEYOND_OPEN},
    "tears-transactions": {Kind.FRACTURED, Kind.ABORTED_READ},
    "forgets-markers": {Kind.STUCK},
    "forgets-offsets-of-transactions": {Kind.FRACTURED, Kind.OFFSET_BACK},
    "drops-commits": {Kind.OFFSET_BACK},
    "commits-too-much": {Kind.POLL_SKIP},
}
"""The flaws of brokers that live, and what must be found of each."""


async def run(folder: Path) -> History:
    async with Broker(folder) as broker:
        return await record(Settings(bootstrap=broker.address, seed=SEED, seconds=SECONDS, settling=3.0))


@pytest.mark.parametrize("flaw", FOUND)
def test_a_flaw_is_found_and_named(flaw: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken.plant(flaw, monkeypatch)
    found = {anomaly.kind for anomaly in anomalies(asyncio.run(run(tmp_path)))}
    print(flaw, {kind.value for kind in found})
    assert FOUND[flaw] <= found
