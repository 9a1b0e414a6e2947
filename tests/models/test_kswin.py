"""KSWIN with its test called directly is river's own, to the bit."""

from __future__ import annotations

import pickle
import random
from typing import Any

import pytest
from headrace.models import artifacts, kswin
from river import drift

KSWIN: Any = drift.KSWIN


@pytest.mark.parametrize("settings", [{}, {"window_size": 40, "stat_size": 15, "alpha": 0.02}, {"alpha": 1e-4}])
@pytest.mark.parametrize("ties", [False, True])
def test_after_every_value_the_detector_is_rivers_own(settings: dict[str, Any], ties: bool) -> None:
    assert kswin.faithful()
    chance = random.Random(3)
    mine, theirs = (KSWIN(seed=7, **settings) for _ in range(2))
    alarms = 0
    for n in range(260):
        value = chance.gauss(0.0 if n < 150 else 2.0, 1.0)
        value = round(value) * 1.0 if ties else value
        kswin.update(mine, value)
        theirs.update(value)
        alarms += theirs.drift_detected
        assert mine.drift_detected == theirs.drift_detected
        assert pickle.dumps(mine) == pickle.dumps(theirs)
        if n == 155:
            mine = artifacts.load(artifacts.dump(mine))
            theirs = artifacts.load(artifacts.dump(theirs))
    assert alarms > 0


def test_a_test_that_says_otherwise_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def other(*samples: list[float], method: str) -> tuple[float, float]:
        return 0.0, 0.5

    monkeypatch.setattr(kswin, "_test", other)
    kswin.faithful.cache_clear()
    try:
        assert not kswin.faithful()
        mine, theirs = (KSWIN(seed=7) for _ in range(2))
        for n in range(150):
            kswin.update(mine, n / 7 % 1.0)
            theirs.update(n / 7 % 1.0)
        assert pickle.dumps(mine) == pickle.dumps(theirs)
    finally:
        kswin.faithful.cache_clear()
