"""Compiled loops of river's linear models: operation by operation as river 0.26 does them, so that bits are the same.

All parts lie in this file: numba compiles a kernel anew where its own file has changed, and only there. Exponents stand
in memory (`HALF`, `TWO`, `INVERSE`): of a constant one the compiler would make a square root or a product, and libm's
`pow`, which Python and river call, may give another last bit.
"""

from __future__ import annotations

import math
from typing import Any

import numba
from headrace.streams.kernels import kernel, part

# Cells of a feature, float64[row, feature]: what the scaler knows of it, its weight, and what the optimizer keeps.
COUNT, MEAN, VARIANCE, LOW, HIGH, LARGEST, WEIGHT, FIRST, SECOND, PAID, PLACE = range(11)
"""PAID: the L1 penalty that the weight has borne; PLACE: how many features were seen before it, -1 where it was not."""
ROWS = 11

INTERCEPT, STEPS, OWED, SEEN = range(4)
"""What is held once: the intercept, steps of the optimizer, the L1 penalty so far, features seen."""
HELD = 4

AS_IT_IS, STANDARD, CENTRED, MIN_MAX, MAX_ABS = range(5)
LOG, HINGE, FOCAL = range(3)
SGD, ADA_GRAD, ADAM, RMS_PROP, MOMENTUM, NESTEROV, ADA_DELTA, FTRL = range(8)
CONSTANT, INVERSE_SCALING, OPTIMAL = range(3)

(
    SCALER, LOSS, LOSS_A, LOSS_B, OPTIMIZER, A, B, C, D, RATE, RATE_A, RATE_B, INTERCEPT_RATE, INTERCEPT_A, INTERCEPT_B,
    L1, L2, CLIP, INITIAL, HALF, TWO, INVERSE,
) = range(22)  # fmt: skip
"""Options, float64: the kinds of scaler, loss, optimizer and learning rates with their parameters, penalties, the bound
of the gradient, what weights begin at, and the exponents 1/2, 2 and -1."""
OPTIONS = 22

_types: Any = numba.types
_GIVEN = _types.Array(numba.float64, 1, "C", readonly=True)
_ROWS_GIVEN = _types.Array(numba.float64, 2, "C", readonly=True)
_TRUTHS_GIVEN = _types.Array(numba.boolean, 1, "C", readonly=True)
_CELLS, _NUMBERS = numba.float64[:, ::1], numba.float64[::1]


@part
def _rate(kind: Any, a: Any, b: Any, step: Any) -> Any:
    """The learning rate of a scheduler."""
    if kind == CONSTANT:
        return a
    if kind == INVERSE_SCALING:
        return a / math.pow(step + 1.0, b)
    return 1.0 / (a * (b + step))


@part
def _note(x: Any, f: Any, cells: Any, held: Any, options: Any) -> None:
    """The scaler learns one value of a feature."""
    if cells[PLACE, f] < 0.0:
        cells[PLACE, f] = held[SEEN]
        held[SEEN] += 1.0
        cells[WEIGHT, f] = options[INITIAL]
    scaler = options[SCALER]
    if scaler in (STANDARD, CENTRED):
        cells[COUNT, f] += 1.0
        count, old = cells[COUNT, f], cells[MEAN, f]
        cells[MEAN, f] += (x - old) / count
        if scaler == STANDARD:
            cells[VARIANCE, f] += ((x - old) * (x - cells[MEAN, f]) - cells[VARIANCE, f]) / count
    elif scaler == MIN_MAX:
        if x < cells[LOW, f]:
            cells[LOW, f] = x
        if x > cells[HIGH, f]:
            cells[HIGH, f] = x
    elif scaler == MAX_ABS and abs(x) > cells[LARGEST, f]:
        cells[LARGEST, f] = abs(x)


@part
def _deviation(f: Any, cells: Any, options: Any) -> Any:
    return math.pow(cells[VARIANCE, f], options[HALF]) if options[SCALER] == STANDARD else 0.0


@part
def _scaled(x: Any, f: Any, deviation: Any, cells: Any, options: Any) -> Any:
    scaler = options[SCALER]
    if scaler == STANDARD:
        return (x - cells[MEAN, f]) / deviation if cells[VARIANCE, f] != 0.0 else 0.0
    if scaler == CENTRED:
        return x - cells[MEAN, f]
    if scaler == MIN_MAX:
        wide = cells[HIGH, f] - cells[LOW, f]
        return (x - cells[LOW, f]) / wide if wide != 0.0 else 0.0
    if scaler == MAX_ABS:
        return x / cells[LARGEST, f] if cells[LARGEST, f] != 0.0 else 0.0
    return x


@part
def _sigmoid(x: Any) -> Any:
    if x < -30.0:
        return 0.0
    if x > 30.0:
        return 1.0
    return 1.0 / (1.0 + math.exp(-x))


@part
def _gradient(raw: Any, truth: Any, options: Any) -> Any:
    """The loss's gradient by the raw answer."""
    y = 1.0 if truth else -1.0
    if options[LOSS] == LOG:
        weight, z = options[LOSS_A] if truth else options[LOSS_B], raw * y
        if z > 18.0:
            return weight * math.exp(-z) * -y
        if z < -18.0:
            return weight * -y
        return weight * -y / (math.exp(z) + 1.0)
    if options[LOSS] == HINGE:
        return -y if y * raw <= options[LOSS_A] else 0.0
    return y * (_sigmoid(options[LOSS_A] * (y * raw) + options[LOSS_B]) - 1.0)


@part
def _clipped(x: Any, bound: Any) -> Any:
    """As Python's min and max: what is not a number stays so."""
    if bound < x:
        x = bound
    return -bound if -bound > x else x


@part
def _step(f: Any, g: Any, rate: Any, cells: Any, options: Any) -> None:
    """The optimizer moves the weight of one feature by its gradient. rate: of this step, for Adam without its bias."""
    optimizer, half, two = options[OPTIMIZER], options[HALF], options[TWO]
    if optimizer == SGD:
        cells[WEIGHT, f] -= rate * g
    elif optimizer == ADA_GRAD:
        cells[FIRST, f] += math.pow(g, two)
        cells[WEIGHT, f] -= rate / math.pow(cells[FIRST, f] + options[A], half) * g
    elif optimizer == ADAM:
        cells[FIRST, f] = options[A] * cells[FIRST, f] + (1.0 - options[A]) * g
        cells[SECOND, f] = options[B] * cells[SECOND, f] + (1.0 - options[B]) * (g * g)
        cells[WEIGHT, f] -= cells[FIRST, f] * rate / (math.pow(cells[SECOND, f], half) + options[C])
    elif optimizer == RMS_PROP:
        cells[FIRST, f] = options[A] * cells[FIRST, f] + (1.0 - options[A]) * (g * g)
        cells[WEIGHT, f] -= rate / math.pow(cells[FIRST, f] + options[B], half) * g
    elif optimizer in (MOMENTUM, NESTEROV):
        if optimizer == NESTEROV:
            cells[WEIGHT, f] += options[A] * cells[FIRST, f]
        cells[FIRST, f] = options[A] * cells[FIRST, f] + rate * g
        cells[WEIGHT, f] -= cells[FIRST, f]
    elif optimizer == ADA_DELTA:
        cells[FIRST, f] = options[A] * cells[FIRST, f] + (1.0 - options[A]) * math.pow(g, two)
        move = (
            -math.pow(cells[SECOND, f] + options[B], half) / math.pow(cells[FIRST, f] + options[B], half) * g
        )  # fmt: skip
        cells[SECOND, f] = options[A] * cells[SECOND, f] + (1.0 - options[A]) * math.pow(move, two)
        cells[WEIGHT, f] += move
    else:
        z, n, alpha = cells[FIRST, f], cells[SECOND, f], options[A]
        if abs(z) > options[C]:
            sign = 1.0 if z > 0.0 else -1.0
            root = (options[B] + math.pow(n, half)) / alpha + options[D]
            cells[WEIGHT, f] = -math.pow(root, options[INVERSE]) * (z - sign * options[C])
        squared = math.pow(g, two)
        sigma = (math.pow(n + squared, half) - math.pow(n, half)) / alpha
        cells[FIRST, f] += g - sigma * cells[WEIGHT, f]
        cells[SECOND, f] += squared


@part
def _penalise(f: Any, cells: Any, held: Any) -> None:
    """The cumulative L1 penalty (Tsuruoka, Tsujii, Ananiadou: ACL 2009), as river has it."""
    before = cells[WEIGHT, f]
    if before > 0.0:
        after = before - (held[OWED] + cells[PAID, f])
        cells[WEIGHT, f] = after if after > 0.0 else 0.0
    elif before < 0.0:
        after = before + (held[OWED] - cells[PAID, f])
        cells[WEIGHT, f] = after if after < 0.0 else 0.0
    cells[PAID, f] += cells[WEIGHT, f] - before


@kernel(numba.void(_ROWS_GIVEN, _TRUTHS_GIVEN, _GIVEN, _CELLS, _NUMBERS, _NUMBERS))
def learn_linear(x: Any, y: Any, options: Any, cells: Any, held: Any, scaled: Any) -> None:
    """Learns rows one at a time, in order. A feature that is NaN was not there. scaled: room for one row."""
    rate_a, rate_b, nesterov = options[RATE_A], options[RATE_B], options[OPTIMIZER] == NESTEROV
    for i in range(len(x)):
        step, raw = held[STEPS], 0.0
        for f in range(x.shape[1]):
            if math.isnan(x[i, f]):
                continue
            _note(x[i, f], f, cells, held, options)
            scaled[f] = _scaled(x[i, f], f, _deviation(f, cells, options), cells, options)
            if nesterov:
                cells[WEIGHT, f] -= options[A] * cells[FIRST, f]
            raw += cells[WEIGHT, f] * scaled[f]
        gradient = _clipped(_gradient(raw + held[INTERCEPT], y[i], options), options[CLIP])
        held[INTERCEPT] -= (
            _rate(options[INTERCEPT_RATE], options[INTERCEPT_A], options[INTERCEPT_B], step) * gradient
        )  # fmt: skip
        rate = _rate(options[RATE], rate_a, rate_b, step)
        if options[OPTIMIZER] == ADAM:
            rate = rate * math.pow(1.0 - math.pow(options[B], step + 1.0), options[HALF])
            rate /= 1.0 - math.pow(options[A], step + 1.0)
        held[STEPS] = step + 1.0
        if options[L1] != 0.0:
            held[OWED] += options[L1] * _rate(options[RATE], rate_a, rate_b, step + 1.0)
        for f in range(x.shape[1]):
            if math.isnan(x[i, f]):
                continue
            g = scaled[f] * gradient
            if options[L2] != 0.0:
                g += options[L2] * cells[WEIGHT, f]
            _step(f, g, rate, cells, options)
            if options[L1] != 0.0:
                _penalise(f, cells, held)


@kernel(numba.void(_ROWS_GIVEN, _GIVEN, _CELLS, _NUMBERS, _NUMBERS, _NUMBERS))
def predict_linear(x: Any, options: Any, cells: Any, held: Any, deviation: Any, out: Any) -> None:
    """The probability of True of each row. One never seen weighs nothing. deviation: room for one row."""
    for f in range(x.shape[1]):
        deviation[f] = _deviation(f, cells, options)
    for i in range(len(x)):
        raw = 0.0
        for f in range(x.shape[1]):
            if not math.isnan(x[i, f]):
                weight = cells[WEIGHT, f] if cells[PLACE, f] >= 0.0 else 0.0
                raw += weight * _scaled(x[i, f], f, deviation[f], cells, options)
        out[i] = _sigmoid(raw + held[INTERCEPT])


LARGEST_COUNT = 2.0**53
"""A count beyond it would stand still."""


@kernel(numba.boolean(_GIVEN, _CELLS, _NUMBERS))
def sound_linear(options: Any, cells: Any, held: Any) -> Any:
    """Whether all numbers are finite and no variance is negative, of which river would take a complex root."""
    for k in range(HELD):
        if not math.isfinite(held[k]):
            return False
    for f in range(cells.shape[1]):
        if cells[PLACE, f] < 0.0:
            continue
        for row in range(PLACE):
            bound = row in (LOW, HIGH)
            if not math.isfinite(cells[row, f]) and (not bound or options[SCALER] == MIN_MAX):
                return False
        if cells[VARIANCE, f] < 0.0:
            return False
    return held[STEPS] < LARGEST_COUNT
