"""Each kind of anomaly is found where a broker has the flaw that makes it, so "none found" says something."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from headrace.streams.broker import Broker

from tests.history import broken
from tests.history.checker import Kind, anomalies
from tests.history.conftest import REAL_CLIENTS
from tests.history.history import History
from tests.history.nemesis import Harm, LocalBroker
from tests.history.workload import Settings, record

SECONDS, LEAST = 1.0, 600
"""Of load, and of records: what a flaw needs to show itself, on a busy machine too."""
SEED = 7

pytestmark = REAL_CLIENTS

FOUND = {
    "drops-batches": {Kind.LOST},
    "repeats-batches": {Kind.DOUBLED},
    "swaps-batches": {Kind.REORDERED},
    "has-two-histories": {Kind.TWO_VALUES},
    "skips-batches": {Kind.POLL_SKIP},
    "forgets-where-readers-are": {Kind.POLL_BACK},
    "shows-the-aborted": {Kind.ABORTED_READ},
    "shows-the-open": {Kind.EARLY_READ, Kind.BEYOND_OPEN},
    "tears-transactions": {Kind.FRACTURED, Kind.LOST},
    "forgets-markers": {Kind.STUCK},
    "forgets-offsets-of-transactions": {Kind.FRACTURED, Kind.OFFSET_BACK},
    "lets-zombies-live": {Kind.ZOMBIE},
    "drops-commits": {Kind.OFFSET_BACK},
    "commits-too-much": {Kind.PHANTOM},
}
"""The flaws of brokers that live, and what must be found of each."""


SETTLING = {"forgets-markers": 2.0, "lets-zombies-live": 2.0}
"""Seconds until a last reader is said to be stuck, where that is what comes of a flaw."""


async def run(flaw: str, folder: Path) -> History:
    async with Broker(folder) as broker:
        settling = SETTLING.get(flaw, 60.0)
        return await record(
            Settings(bootstrap=broker.address, seed=SEED, seconds=SECONDS, least=LEAST, settling=settling)
        )


@pytest.mark.parametrize("flaw", FOUND)
def test_a_flaw_is_found_and_named(flaw: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken.plant(flaw, monkeypatch)
    check(asyncio.run(run(flaw, tmp_path)), FOUND[flaw])


def check(history: History, wanted: set[Kind]) -> None:
    found = anomalies(history)
    kinds = {anomaly.kind for anomaly in found}
    assert wanted <= kinds, f"{len(found)} anomalies:\n" + "\n".join(map(str, found[:20]))


def test_a_broker_that_keeps_what_it_acknowledged_in_memory_is_found_when_it_is_killed(tmp_path: Path) -> None:
    broker = LocalBroker(tmp_path, "forgets-at-death")
    broker.start()
    harm = Harm([broker], SEED, between=(0.7, 1.2), away=(0.1, 0.2), kinds=["kill"])
    settings = Settings(
        bootstrap=broker.address.bootstrap, seed=SEED, seconds=3.0, least=LEAST, patience=1.0, settling=6.0
    )
    try:
        history = asyncio.run(record(settings, harm))
    finally:
        broker.kill()
    check(history, {Kind.LOST, Kind.TWO_VALUES})


def test_a_sound_broker_has_no_anomalies_when_answers_are_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken.plant("loses-answers", monkeypatch)
    found = anomalies(asyncio.run(run("", tmp_path)))
    assert not found, "\n".join(map(str, found[:20]))
