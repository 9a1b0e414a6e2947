"""river's KSWIN with its test called directly: the same detector to the bit, in a fraction of the time.

Most of what a call of `scipy.stats.ks_2samp` costs is for axes and missing values, of which there are none here.
"""

from __future__ import annotations

import collections
import itertools
import pickle
import warnings
from functools import cache
from typing import Any

from river import drift
from scipy import stats  # type: ignore[import-untyped]

_KSWIN: Any = drift.KSWIN
_test: Any = getattr(stats.ks_2samp, "__wrapped__", None)

TRIALS = 60
"""Values that a detector and its like are shown side by side before it is trusted."""


def update(detector: Any, value: float) -> None:
    """Show one of river's a value, as its own `update` does."""
    if type(detector) is _KSWIN and faithful():
        _update(detector, value)
    else:
        detector.update(value)


@cache
def faithful() -> bool:
    """Whether river and scipy, as they are installed here, do the same; tried once in a process."""
    try:
        mine, theirs = (_KSWIN(alpha=0.05, window_size=20, stat_size=6, seed=1) for _ in range(2))
        for n in range(TRIALS):
            value = n * 0.7 % 1.0 + (n > TRIALS // 2)
            _update(mine, value)
            theirs.update(value)
            if pickle.dumps(mine) != pickle.dumps(theirs):
                return False
    except (AttributeError, TypeError, ValueError):
        return False
    return True


def _update(detector: Any, value: float) -> None:
    if detector.drift_detected:
        detector._reset()
    detector.n += 1
    detector.window.append(value)
    detector._drift_detected = False
    size, recent = detector.window_size, detector.stat_size
    if len(detector.window) < size:
        return
    drawn = [detector.window[place] for place in detector._rng.sample(range(size - recent), recent)]
    newest = list(itertools.islice(detector.window, size - recent, size))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category=RuntimeWarning)
        distance, detector.p_value = _test(drawn, newest, method="auto")
    if detector.p_value <= detector.alpha and distance > 0.1:
        detector._drift_detected = True
        detector.window = collections.deque(newest, maxlen=size)
