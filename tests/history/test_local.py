"""The local broker is killed, paused and restarted under load, and the history shows nothing that it must not.

A part of its answers is lost on the way, so that clients send again what was already done. `make history SECONDS=600`
is the long run; SEED=... draws again what the clients and the nemesis of an earlier run drew.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from pathlib import Path

import pytest

from tests.history.checker import anomalies
from tests.history.conftest import LEAKS
from tests.history.history import Fault, History, Outcome, Send, Transaction
from tests.history.nemesis import Harm, LocalBroker
from tests.history.workload import Settings, record

SECONDS = float(os.environ.get("SECONDS", "10"))
SEED = int(os.environ.get("SEED", random.randrange(2**32)))

pytestmark = [pytest.mark.timeout(SECONDS * 2 + 200), *LEAKS]


def check(history: History, file: Path) -> None:
    """Nothing is wrong, and enough has happened for that to say something."""
    history.save(file)
    found = anomalies(history)
    assert not found, f"SEED={SEED}; {len(found)} anomalies in {file}:\n" + "\n".join(map(str, found[:20]))
    sends = Counter(send.outcome for send in history.all(Send))
    ends = Counter((transaction.commit, transaction.outcome) for transaction in history.all(Transaction))
    print(f"SEED={SEED}", sends, ends, Counter(fault.kind for fault in history.all(Fault)))
    assert sends[Outcome.OK] > 20 * SECONDS
    assert ends[True, Outcome.OK] > SECONDS
    assert ends[False, Outcome.OK] > SECONDS / 2
    assert sends[Outcome.FAIL] > 0


def test_a_local_broker_killed_paused_and_restarted_has_a_history_without_anomalies(tmp_path: Path) -> None:
    broker = LocalBroker(tmp_path, "loses-answers")
    broker.start()
    settings = Settings(bootstrap=broker.address.bootstrap, seed=SEED, seconds=SECONDS, patience=1.0)
    harm = Harm([broker], SEED, between=(0.5, 1.5), away=(0.1, 1.3))
    try:
        history = asyncio.run(record(settings, harm))
    finally:
        broker.kill()
    check(history, tmp_path / "history.jsonl")
    assert {fault.kind for fault in harm.done} == set(harm.kinds)
