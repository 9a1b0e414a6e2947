"""The compiled loop of `outcomes.Match`: opens events, expires them, and takes outcomes back from them, row by row."""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np
from headrace.streams.kernels import kernel, part

OPENS, SETTLES = 1, 2
"""What a row of a batch does; other rows only move the watermark on."""

LABELLED, TOUCHED = 1, 2

QUEUED, CHANGED, KNOWN, EXPIRED = range(4)
"""Counters: lines in the queue, in `changed`, in `known` and in `expired`."""


class Lines(NamedTuple):
    """Open events, by number; later ones have greater numbers.

    time:    int64, event time, microseconds
    left:    float64, the quantity not yet taken back
    match:   int64, the number of what it is matched on, negative where part of that is missing
    older:   int64, the line of the same match before it in the order of (time, number), -1 at the end
    newer:   int64, the one after it
    flag:    uint8, LABELLED, TOUCHED
    queue:   int64, a heap of lines: the first to expire is on top
    changed: int64, lines of which `left` or LABELLED changed
    known:   int64[2, n], positions in the batch and lines that were settled there for the first time
    expired: int64[2, n], positions and lines that expired before the row there
    newest:  int64, of each match, its latest line or -1
    """

    time: Any
    left: Any
    match: Any
    older: Any
    newer: Any
    flag: Any
    queue: Any
    changed: Any
    known: Any
    expired: Any
    newest: Any
    counters: Any


def none() -> Lines:
    """No lines."""
    time, match, older, newer, queue, changed, newest = np.zeros((7, 0), np.int64)
    left, flag, counters = np.zeros(0), np.zeros(0, np.uint8), np.zeros(4, np.int64)
    known, expired = np.zeros((2, 2, 0), np.int64)
    return Lines(time, left, match, older, newer, flag, queue, changed, known, expired, newest, counters)


_types: Any = numba.types
_INTS, _FLOATS, _FLAGS, _PAIRS = numba.int64[::1], numba.float64[::1], numba.uint8[::1], numba.int64[:, ::1]
LINES = _types.NamedTuple([_INTS, _FLOATS, *[_INTS] * 3, _FLAGS, *[_INTS] * 2, *[_PAIRS] * 2, *[_INTS] * 2], Lines)


@part
def _before(a: Any, b: Any, lines: Any) -> Any:
    """Whether line a expires before line b."""
    return lines.time[a] < lines.time[b] or (lines.time[a] == lines.time[b] and a < b)


@part
def _push(line: Any, lines: Any) -> None:
    queue, at = lines.queue, lines.counters[QUEUED]
    lines.counters[QUEUED] += 1
    while at > 0 and _before(line, queue[(at - 1) >> 1], lines):
        queue[at] = queue[(at - 1) >> 1]
        at = (at - 1) >> 1
    queue[at] = line


@part
def _pop(lines: Any) -> None:
    queue = lines.queue
    lines.counters[QUEUED] -= 1
    size, at = lines.counters[QUEUED], 0
    last = queue[size]
    while 2 * at + 1 < size:
        child = 2 * at + 1
        if child + 1 < size and _before(queue[child + 1], queue[child], lines):
            child += 1
        if not _before(queue[child], last, lines):
            break
        queue[at] = queue[child]
        at = child
    queue[at] = last


@part
def _open(line: Any, lines: Any) -> None:
    _push(line, lines)
    match = lines.match[line]
    if match >= 0:
        newer, older = -1, lines.newest[match]
        while older >= 0 and lines.time[older] > lines.time[line]:
            newer, older = older, lines.older[older]
        lines.newer[line], lines.older[line] = newer, older
        if older >= 0:
            lines.newer[older] = line
        if newer >= 0:
            lines.older[newer] = line
        else:
            lines.newest[match] = line


@part
def _expire(at: Any, horizon: Any, lines: Any) -> None:
    """Ends what is older than the horizon."""
    while lines.counters[QUEUED] > 0 and lines.time[lines.queue[0]] < horizon:
        line = lines.queue[0]
        _pop(lines)
        n = lines.counters[EXPIRED]
        lines.expired[0, n], lines.expired[1, n] = at, line
        lines.counters[EXPIRED] += 1
        # Of its match it is the oldest: whatever was older expired before it.
        if lines.match[line] >= 0:
            newer = lines.newer[line]
            if newer >= 0:
                lines.older[newer] = -1
            else:
                lines.newest[lines.match[line]] = -1


@part
def _settle(at: Any, time: Any, match: Any, quantity: Any, within: Any, lines: Any) -> None:
    """Takes a quantity back from the most recent lines."""
    line = -1
    if match >= 0:
        line = lines.newest[match]
    while line >= 0 and quantity > 0.0 and time <= lines.time[line] + within:
        left = lines.left[line]
        if left > 0.0 and lines.time[line] <= time:
            took = min(quantity, left)
            quantity -= took
            lines.left[line] = left - took
            if lines.flag[line] & TOUCHED == 0:
                lines.changed[lines.counters[CHANGED]] = line
                lines.counters[CHANGED] += 1
            if lines.flag[line] & LABELLED == 0:
                n = lines.counters[KNOWN]
                lines.known[0, n], lines.known[1, n] = at, line
                lines.counters[KNOWN] += 1
            lines.flag[line] |= LABELLED | TOUCHED
        line = lines.older[line]


@kernel(numba.void(*[_INTS] * 2, _FLAGS, *[_INTS] * 2, _FLOATS, *[numba.int64] * 2, LINES))
def advance(
    time: Any,
    watermark: Any,
    role: Any,
    row: Any,
    match: Any,
    quantity: Any,
    within: Any,
    lateness: Any,
    lines: Any,
) -> None:
    """Takes the rows of a batch one at a time.

    role: of each row, OPENS, SETTLES or 0; row: the line that it opens, or its place in `match` and `quantity`
    """
    for at in range(len(time)):
        _expire(at, watermark[at] - lateness - within, lines)
        if role[at] == OPENS:
            _open(row[at], lines)
        elif role[at] == SETTLES:
            _settle(at, time[at], match[row[at]], quantity[row[at]], within, lines)


@kernel(numba.void(numba.int64, numba.int64, LINES))
def reopen(first: Any, last: Any, lines: Any) -> None:
    """Opens the lines from `first` up to `last`."""
    for line in range(first, last):
        _open(line, lines)
