"""Compiled loops that judge predictions: sums are made in the order of the outcomes, so cuts change no bit.

All parts lie in this file: numba compiles a kernel anew where its own file has changed, and only there.
"""

from __future__ import annotations

import math
from typing import Any

import numba
from headrace.streams.kernels import kernel, part

BINS = 1024
"""Of the logit between -LIMIT and LIMIT: 0.023 wide, which moves ROC AUC by less than 0.0005 on the returns data."""

LIMIT = 12.0

CLIP = 1e-6
"""Scores are kept this far from 0 and 1, so that one certain mistake does not make log loss infinite."""

LOG_LOSS, BRIER, ERROR, OUTCOME = range(4)
TOTAL, COUNT = range(2)
"""What is held of a mean that is being made."""

_types: Any = numba.types
_SCORES = _types.Array(numba.float64, 1, "C", readonly=True)
_TRUTHS = _types.Array(numba.boolean, 1, "C", readonly=True)
_NUMBERS = numba.float64[::1]


@part
def _clipped(score: Any) -> Any:
    return min(max(score, CLIP), 1 - CLIP)


@part
def _log_loss(clipped: Any, truth: Any) -> Any:
    return -math.log(clipped if truth else 1 - clipped)


@kernel(numba.void(_SCORES, _TRUTHS, numba.int64[:, ::1], _NUMBERS))
def judge(scores: Any, truth: Any, counts: Any, losses: Any) -> None:
    """Counts scores that are no NaN by truth and bin, and adds their log losses to the one number of `losses`."""
    for i in range(len(scores)):
        if math.isnan(scores[i]):
            continue
        clipped = _clipped(scores[i])
        logit = math.log(clipped / (1 - clipped))
        place = min(BINS - 1, max(0, int((logit + LIMIT) / (2 * LIMIT) * BINS)))
        counts[1 if truth[i] else 0, place] += 1
        losses[0] += _log_loss(clipped, truth[i])


@kernel(numba.void(numba.int64, _SCORES, _TRUTHS, numba.float64, _NUMBERS))
def errors(kind: Any, scores: Any, truth: Any, two: Any, out: Any) -> None:
    """The error of each score. two: 2, as an argument: of a constant the compiler makes a product, Python calls pow."""
    for i in range(len(scores)):
        if kind == LOG_LOSS:
            out[i] = _log_loss(_clipped(scores[i]), truth[i])
        elif kind == BRIER:
            out[i] = math.pow(scores[i] - (1.0 if truth[i] else 0.0), two)
        elif kind == ERROR:
            out[i] = 1.0 if (scores[i] >= 0.5) != truth[i] else 0.0
        else:
            out[i] = 1.0 if truth[i] else 0.0


@kernel(numba.int64(_SCORES, numba.int64, _NUMBERS, _NUMBERS, numba.int64[::1]))
def means(values: Any, mean_of: Any, held: Any, shown: Any, rows: Any) -> Any:
    """The mean of so many values in turn, and the row of the last of each; how many there are. held: TOTAL, COUNT."""
    found = 0
    for i in range(len(values)):
        held[TOTAL] += values[i]
        held[COUNT] += 1.0
        if held[COUNT] >= mean_of:
            shown[found], rows[found] = held[TOTAL] / held[COUNT], i
            held[TOTAL], held[COUNT] = 0.0, 0.0
            found += 1
    return found
