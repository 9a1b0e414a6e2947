"""The local broker is killed, paused and restarted under load, and the history shows nothing that it must not.

A part of its answers is lost on the way, so that clients send again what was already done. `make history SECONDS=600`
is the long run; SEED=... draws again what the clients and the nemesis of an earlier run drew.
"""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path

import pytest

from tests.history.conftest import REAL_CLIENTS
from tests.history.findings import assert_sound
from tests.history.nemesis import Harm, LocalBroker
from tests.history.workload import Settings, record

SECONDS = float(os.environ.get("SECONDS", "8"))
SEED = int(os.environ.get("SEED", random.randrange(2**32)))
LEAST = int(50 * SECONDS)
"""Records acknowledged; ten times as many on a quiet machine."""

pytestmark = [pytest.mark.timeout(SECONDS * 2 + 300), *REAL_CLIENTS]


def test_a_local_broker_killed_paused_and_restarted_has_a_history_without_anomalies(tmp_path: Path) -> None:
    broker = LocalBroker(tmp_path, "loses-answers")
    broker.start()
    settings = Settings(bootstrap=broker.address.bootstrap, seed=SEED, seconds=SECONDS, least=LEAST, patience=1.0)
    harm = Harm([broker], SEED, between=(0.4, 1.2), away=(0.1, 1.2))
    try:
        history = asyncio.run(record(settings, harm))
    finally:
        broker.kill()
    assert_sound(history, tmp_path / "history.jsonl", SEED, LEAST)
    assert {fault.kind for fault in harm.done} == set(harm.kinds)
