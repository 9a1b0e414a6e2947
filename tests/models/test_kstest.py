"""KSWIN's test, remembered: scipy's answers to the bit, and river's detector in the same state."""

from __future__ import annotations

import random
import warnings

import numpy as np
import pytest
from headrace.models import artifacts, kstest
from hypothesis import given, settings
from hypothesis import strategies as st
from river.drift import KSWIN
from scipy import stats  # type: ignore[import-untyped]

numbers = st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([0.0, 0.25, 1.0])


@given(st.integers(1, 40).flatmap(lambda n: st.tuples(*[st.lists(numbers, min_size=n, max_size=n)] * 2)))
@settings(max_examples=200, deadline=None)
def test_statistic_and_probability_are_scipy_s_to_the_bit(samples: tuple[list[float], list[float]]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category=RuntimeWarning)
        wanted = tuple(stats.ks_2samp(*samples, method="auto"))
        assert [kstest.ks_2samp(*samples) for _ in range(2)] == [wanted] * 2, "asked, and remembered"


@pytest.mark.parametrize(("first", "second"), [([1.0, 2.0], [1.0, 2.0, 3.0]), ([1.0, np.nan], [1.0, 2.0])])
def test_samples_of_other_kinds_are_left_to_scipy(first: list[float], second: list[float]) -> None:
    np.testing.assert_array_equal(kstest.ks_2samp(first, second), stats.ks_2samp(first, second, method="auto"))


def test_the_detector_has_the_state_and_the_alarms_of_river_s_own() -> None:
    assert kstest.update is not KSWIN.update
    chance = random.Random(1)
    mine, theirs = KSWIN(alpha=0.01, seed=0), KSWIN(alpha=0.01, seed=0)
    alarms = 0
    for n in range(400):
        value = round(chance.gauss(0.3 if n < 250 else 0.6, 0.2), 2)
        kstest.update(mine, value)
        theirs.update(value)  # type: ignore[no-untyped-call]
        assert artifacts.dump(mine) == artifacts.dump(theirs)
        alarms += mine.drift_detected
    assert alarms
