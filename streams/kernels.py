"""Compiled loops over columns.

A kernel is a plain function over arrays with an explicit signature. numba compiles it once, at `warm()` or at
its first call, and keeps it on disk; afterwards arguments of another type raise TypeError, so nothing is ever
compiled inside a batch. With NUMBA_DISABLE_JIT=1 the same functions run as plain Python.

A table of panes (see `tables.Table`) is arrays over pool rows. A pool row is one pane of one entity; the
panes of an entity form a chain from the newest to the oldest:

    head[slot]   the newest pool row of the entity, -1 where it has none
    prev[row]    the next older pool row, -1 at the end
    pane[row]    the number of the pane, descending along the chain
    cells[row]   what the pane has folded, 8 bytes a cell; `fcells` is the same memory as float64
    flag[row]    DIRTY, DEAD
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

Function = TypeVar("Function", bound=Callable[..., Any])

KERNELS: list[Kernel] = []

INTERPRETED = os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0")
"""Kernels run as plain Python."""


class Kernel:
    """A function over arrays, compiled for exactly one signature."""

    def __init__(self, function: Callable[..., Any], signature: str) -> None:
        self.function = function
        self.signature = signature
        self.name = function.__name__
        self._run: Callable[..., Any] | None = function if INTERPRETED else None
        KERNELS.append(self)

    @property
    def compiled(self) -> bool:
        return self._run is not None

    def compile(self) -> Callable[..., Any]:
        if self._run is None:
            self._run = numba.njit(self.signature, cache=True, error_model="numpy")(self.function)
        return self._run

    def __call__(self, *args: Any) -> Any:
        return (self._run or self.compile())(*args)


def kernel(signature: str) -> Callable[[Callable[..., Any]], Kernel]:
    """Makes a function a kernel of this numba signature."""
    return lambda function: Kernel(function, signature)


def part(function: Function) -> Function:
    """Makes a function callable from kernels; it is compiled with them."""
    return cast(Function, numba.njit(error_model="numpy")(function))


def warm(progress: Callable[[str, int, int], None] | None = None) -> None:
    """Compiles every kernel or reads it from numba's cache; calls progress(name, done, all) after each."""
    for done, one in enumerate(KERNELS, 1):
        one.compile()
        if progress is not None:
            progress(one.name, done, len(KERNELS))


def compiled() -> bool:
    """Whether every kernel is ready, so that no batch will wait for the compiler."""
    return all(one.compiled for one in KERNELS)


# Functions of numbers. libm's, one value at a time: numpy's own loops may differ in the last bit with the
# position in the array and the machine's vector width.

LARGEST_EXPONENT = 709.78
"""exp of more is beyond float64; Python's math would raise, C would give infinity."""


@kernel("void(f8[::1], f8[::1])")
def log(x: Any, out: Any) -> None:
    for i in range(len(x)):
        out[i] = math.log(x[i]) if x[i] > 0.0 else math.nan


@kernel("void(f8[::1], f8[::1])")
def log1p(x: Any, out: Any) -> None:
    for i in range(len(x)):
        out[i] = math.log1p(x[i]) if x[i] > -1.0 else math.nan


@kernel("void(f8[::1], f8[::1])")
def exp(x: Any, out: Any) -> None:
    for i in range(len(x)):
        out[i] = math.exp(x[i]) if x[i] < LARGEST_EXPONENT else math.nan


@kernel("void(f8[::1], f8[::1], f8[::1])")
def power(x: Any, y: Any, out: Any) -> None:
    for i in range(len(x)):
        a, b = x[i], y[i]
        out[i] = math.nan
        if math.isnan(a) or math.isnan(b):
            continue
        if a == 0.0:
            if b >= 0.0:
                out[i] = 1.0 if b == 0.0 else 0.0
        elif (a > 0.0 or b == math.floor(b)) and b * math.log(abs(a)) < LARGEST_EXPONENT:
            out[i] = math.pow(a, b)


# What a pane folds: the accumulators. `spec` rows are (operation, column of values, first cell).

COUNT, PRESENT, ISUM, FSUM, MOMENTS, IMIN, IMAX, FMIN, FMAX, FIRST, LAST, LATEST, DECAYED, DISTINCT = range(
    14
)
NAMES = (
    "count", "present", "isum", "fsum", "moments", "imin", "imax", "fmin", "fmax", "first", "last", "latest",
    "decayed", "distinct",
)  # fmt: skip
"""Names of the accumulators in state rows: they outlive the numbers."""
WIDTH = (1, 1, 1, 1, 3, 1, 1, 1, 1, 2, 2, 1, 2, 1)
"""Cells of each accumulator."""

# How a value is read: as it is; an integer as float64, NaN where the entity is unknown; NaN also where no
# pane is.
PLAIN, FLOATED, FLOATED_OR_MISSING, VARIANCE, SINCE, FADED = range(6)

# How the number of a pane comes about: from the event time, one for all time, or the entity's next number.
BY_TIME, ALL_TIME, BY_NUMBER = range(3)

DIRTY, DEAD = 1, 2
UNKNOWN = -2
"""The slot of a missing key."""

USED, FREE, TOUCHED, ENTRIES, ENTRIES_TOUCHED, IGNORED = range(6)
"""Counters: pool rows ever used, rows on the free list, rows on the dirty list, distinct entries and their
dirty list, and events whose pane has left the ring."""

INT_MAX = 2**63 - 1
INT_MIN = -(2**63)
SECOND = 1e6


@part
def _add(a: Any, b: Any) -> Any:
    """a + b in int64, held at its ends."""
    if b > 0 and a > INT_MAX - b:
        return INT_MAX
    if b < 0 and a < INT_MIN - b:
        return INT_MIN
    return a + b


@part
def _touch(row: Any, flag: Any, dirty: Any, counters: Any) -> None:
    if flag[row] & DIRTY == 0:
        flag[row] |= DIRTY
        dirty[counters[TOUCHED]] = row
        counters[TOUCHED] += 1


@part
def _new_row(
    slot: Any, number: Any, head: Any, owner: Any, pane: Any, prev: Any, flag: Any, cells: Any, init: Any,
    free: Any, counters: Any,
) -> Any:  # fmt: skip
    if counters[FREE] > 0:
        counters[FREE] -= 1
        row = free[counters[FREE]]
    else:
        row = counters[USED]
        counters[USED] += 1
    owner[row] = slot
    pane[row] = number
    prev[row] = -1
    flag[row] = 0
    for c in range(len(init)):
        cells[row, c] = init[c]
    return row


@part
def _pane_row(
    slot: Any, number: Any, ring: Any, head: Any, owner: Any, pane: Any, prev: Any, flag: Any, cells: Any,
    init: Any, free: Any, dirty: Any, counters: Any,
) -> Any:  # fmt: skip
    """The row of a pane of an entity, made where it has none; -1 where the pane has left the ring."""
    newest = head[slot]
    if newest >= 0 and pane[newest] == number:
        return newest
    if newest < 0 or number > pane[newest]:
        row = _new_row(slot, number, head, owner, pane, prev, flag, cells, init, free, counters)
        prev[row] = newest
        head[slot] = row
        _trim(row, number - ring, pane, prev, flag, dirty, counters)
        return row
    if number <= pane[newest] - ring:
        return -1
    after = newest
    while prev[after] >= 0 and pane[prev[after]] >= number:
        after = prev[after]
    if pane[after] == number:
        return after
    row = _new_row(slot, number, head, owner, pane, prev, flag, cells, init, free, counters)
    prev[row] = prev[after]
    prev[after] = row
    return row


@part
def _trim(row: Any, last_gone: Any, pane: Any, prev: Any, flag: Any, dirty: Any, counters: Any) -> None:
    """Takes the panes up to `last_gone` off the chain that begins at `row`."""
    while prev[row] >= 0 and pane[prev[row]] > last_gone:
        row = prev[row]
    gone = prev[row]
    prev[row] = -1
    while gone >= 0:
        _touch(gone, flag, dirty, counters)
        flag[gone] |= DEAD
        gone = prev[gone]


@part
def _find(slot: Any, number: Any, head: Any, pane: Any, prev: Any) -> Any:
    row = head[slot]
    while row >= 0 and pane[row] > number:
        row = prev[row]
    return row if row >= 0 and pane[row] == number else -1


@part
def _hash(slot: Any, number: Any, acc: Any, value: Any) -> Any:
    """31 bits of an entry's key; every product fits int64, so that plain Python computes the same."""
    h = (slot & 0x7FFFFFFF) * 73856093 ^ (number & 0x7FFFFFFF) * 83492791 ^ (value & 0x7FFFFFFF) * 19349663
    h ^= (number >> 31) + acc * 2654435
    h = ((h ^ (h >> 31)) & 0x7FFFFFFF) * 0x5BD1E995
    return (h ^ (h >> 29)) & 0x7FFFFFFF


@part
def _entry(slot: Any, number: Any, acc: Any, value: Any, entries: Any, buckets: Any, counters: Any) -> Any:
    """The entry of (entity, pane, accumulator, value), made with INT_MIN as content where there is none."""
    mask = len(buckets) - 1
    at = _hash(slot, number, acc, value) & mask
    while buckets[at] != 0:
        e = buckets[at] - 1
        if (
            entries[e, 0] == slot
            and entries[e, 3] == value
            and entries[e, 1] == number
            and entries[e, 2] == acc
        ):
            return e
        at = (at + 1) & mask
    e = counters[ENTRIES]
    counters[ENTRIES] += 1
    buckets[at] = e + 1
    entries[e, 0] = slot
    entries[e, 1] = number
    entries[e, 2] = acc
    entries[e, 3] = value
    entries[e, 4] = INT_MIN
    return e


@kernel("void(i8[:,::1], i8[::1], i8)")
def rehash(entries: Any, buckets: Any, count: Any) -> None:
    """Fills empty buckets with the entries."""
    mask = len(buckets) - 1
    for e in range(count):
        at = _hash(entries[e, 0], entries[e, 1], entries[e, 2], entries[e, 3]) & mask
        while buckets[at] != 0:
            at = (at + 1) & mask
        buckets[at] = e + 1


@part
def _distinct(
    slot: Any, row: Any, ring: Any, acc: Any, value: Any, cell: Any, head: Any, pane: Any, prev: Any,
    flag: Any, cells: Any, dirty: Any, entries: Any, buckets: Any, touched: Any, counters: Any,
) -> None:  # fmt: skip
    """Moves a value to the pane where it was last seen; a pane counts the values last seen in it."""
    e = _entry(slot, 0, acc, value, entries, buckets, counters)
    last = entries[e, 4]
    if last >= pane[row]:
        return
    if last > pane[head[slot]] - ring:
        old = _find(slot, last, head, pane, prev)
        cells[old, cell] -= 1
        _touch(old, flag, dirty, counters)
    cells[row, cell] += 1
    entries[e, 4] = pane[row]
    touched[counters[ENTRIES_TOUCHED]] = e
    counters[ENTRIES_TOUCHED] += 1


@part
def _fold(
    op: Any, c: Any, row: Any, cells: Any, fcells: Any, time: Any, value: Any, fvalue: Any, rate: Any
) -> None:
    """Takes one event into an accumulator of a pane."""
    if op == COUNT:
        cells[row, c] += 1
    elif op == PRESENT:
        if fvalue == fvalue:
            cells[row, c] += 1
    elif op == ISUM:
        cells[row, c] = _add(cells[row, c], value)
    elif op == FSUM:
        if fvalue == fvalue:
            fcells[row, c] += fvalue
    elif op == MOMENTS:
        if fvalue == fvalue:
            n = fcells[row, c] + 1.0
            delta = fvalue - fcells[row, c + 1]
            fcells[row, c] = n
            fcells[row, c + 1] += delta / n
            fcells[row, c + 2] += delta * (fvalue - fcells[row, c + 1])
    elif op == IMIN:
        cells[row, c] = min(cells[row, c], value)
    elif op == IMAX:
        cells[row, c] = max(cells[row, c], value)
    elif op == FMIN:
        if not fvalue >= fcells[row, c]:
            fcells[row, c] = fvalue if fvalue == fvalue else fcells[row, c]
    elif op == FMAX:
        if not fvalue <= fcells[row, c]:
            fcells[row, c] = fvalue if fvalue == fvalue else fcells[row, c]
    elif op == FIRST:
        if time < cells[row, c]:
            cells[row, c] = time
            cells[row, c + 1] = value
    elif op == LAST:
        if time >= cells[row, c]:
            cells[row, c] = time
            cells[row, c + 1] = value
    elif op == LATEST:
        cells[row, c] = max(cells[row, c], time)
    elif op == DECAYED and fvalue == fvalue:
        latest = cells[row, c + 1]
        if latest == INT_MIN:
            fcells[row, c] = fvalue
        elif time >= latest:
            fcells[row, c] = fcells[row, c] * math.exp(-rate * (time - latest)) + fvalue
        else:
            fcells[row, c] += fvalue * math.exp(-rate * (latest - time))
        cells[row, c + 1] = max(time, latest)


@part
def _merge(
    op: Any, own: Any, s: Any, into: Any, finto: Any, c: Any, row: Any, cells: Any, fcells: Any
) -> None:
    """Takes an accumulator of a pane into a scratch one; panes come newest first, the own one last."""
    if op in (COUNT, PRESENT, DISTINCT):
        into[s] += cells[row, c]
    elif op == ISUM:
        into[s] = _add(into[s], cells[row, c])
    elif op == FSUM:
        finto[s] += fcells[row, c]
    elif op == MOMENTS:
        a, b = finto[s], fcells[row, c]
        if b > 0.0:
            delta = fcells[row, c + 1] - finto[s + 1]
            finto[s] = a + b
            finto[s + 1] += delta * (b / (a + b))
            finto[s + 2] += fcells[row, c + 2] + delta * delta * (a * b / (a + b))
    elif op == IMIN:
        into[s] = min(into[s], cells[row, c])
    elif op in (IMAX, LATEST):
        into[s] = max(into[s], cells[row, c])
    elif op == FMIN:
        if not finto[s] <= fcells[row, c]:
            finto[s] = fcells[row, c] if fcells[row, c] == fcells[row, c] else finto[s]
    elif op == FMAX:
        if not finto[s] >= fcells[row, c]:
            finto[s] = fcells[row, c] if fcells[row, c] == fcells[row, c] else finto[s]
    elif op == FIRST:
        if cells[row, c] < into[s] or (cells[row, c] == into[s] and not own):
            into[s] = cells[row, c]
            into[s + 1] = cells[row, c + 1]
    elif op == LAST:
        if cells[row, c] > into[s] or (cells[row, c] == into[s] and own):
            into[s] = cells[row, c]
            into[s + 1] = cells[row, c + 1]
    elif op == DECAYED:
        finto[s] = fcells[row, c]
        into[s + 1] = cells[row, c + 1]


@part
def _finish(
    op: Any, how: Any, s: Any, seen: Any, time: Any, rate: Any, r: Any, j: Any, into: Any, finto: Any, out:
    Any, fout: Any,
) -> None:  # fmt: skip
    """Writes what the scratch accumulator says."""
    value = s + 1 if op in (FIRST, LAST) else s
    if how == PLAIN:
        out[r, j] = into[value]
    elif how in (FLOATED, FLOATED_OR_MISSING):
        fout[r, j] = math.nan if how == FLOATED_OR_MISSING and seen == 0 else float(into[value])
    elif how == VARIANCE:
        fout[r, j] = finto[s + 2] / (finto[s] - 1.0) if finto[s] >= 2.0 else math.nan
    elif how == SINCE:
        fout[r, j] = (time - into[s]) / SECOND if seen > 0 else math.nan
    elif how == FADED:
        since = max(time - into[s + 1], 0) if into[s + 1] != INT_MIN else 0
        fout[r, j] = finto[s] * math.exp(-rate * since)


@part
def _take(
    i: Any, mode: Any, width: Any, ring: Any, u_slot: Any, u_time: Any, values: Any, fvalues: Any, spec: Any,
    rates: Any, init: Any, head: Any, owner: Any, pane: Any, prev: Any, flag: Any, cells: Any, fcells: Any,
    free: Any, dirty: Any, entries: Any, buckets: Any, touched: Any, counters: Any,
) -> None:  # fmt: skip
    """Takes event i into its pane."""
    slot = u_slot[i]
    if slot < 0:
        return
    number = 0
    if mode == BY_TIME:
        number = u_time[i] // width
    elif mode == BY_NUMBER and head[slot] >= 0:
        number = pane[head[slot]] + 1
    row = _pane_row(slot, number, ring, head, owner, pane, prev, flag, cells, init, free, dirty, counters)
    if row < 0:
        counters[IGNORED] += 1
        return
    _touch(row, flag, dirty, counters)
    for a in range(len(spec)):
        op, column, cell = spec[a, 0], spec[a, 1], spec[a, 2]
        value, fvalue = values[column, i], fvalues[column, i]
        if op == DISTINCT:
            if value >= 0:
                _distinct(
                    slot, row, ring, a, value, cell, head, pane, prev, flag, cells, dirty, entries, buckets,
                    touched, counters,
                )  # fmt: skip
        elif (op in (FIRST, LAST)) and spec[a, 3] == 1 and fvalue != fvalue:
            continue
        else:
            _fold(op, cell, row, cells, fcells, u_time[i], value, fvalue, rates[a])


@part
def _read(
    j: Any, before: Any, mode: Any, width: Any, r_slot: Any, r_time: Any, reads: Any, spec: Any, rates: Any,
    init: Any, head: Any, pane: Any, prev: Any, cells: Any, fcells: Any, scratch: Any, fscratch: Any, out:
    Any, fout: Any,
) -> None:  # fmt: skip
    """Writes the values as of row j. before: 1 to write only those that exclude the event itself, 0 the
    others.

    `scratch` holds four cells a read: three for the accumulator, and how many panes it has seen.
    """
    slot = r_slot[j]
    if slot == UNKNOWN:
        for r in range(len(reads)):
            fout[r, j] = math.nan
        return
    longest = 0
    for r in range(len(reads)):
        if reads[r, 3] == before:
            first = spec[reads[r, 0], 2]
            for c in range(WIDEST):
                scratch[r * 4 + c] = init[min(first + c, len(init) - 1)]
            scratch[r * 4 + 3] = 0
            longest = max(longest, reads[r, 1])
    newest = head[slot]
    own_number = 0
    if mode == BY_TIME:
        own_number = r_time[j] // width
    elif mode == BY_NUMBER and newest >= 0:
        own_number = pane[newest]
    own = -1
    row = newest
    while row >= 0 and pane[row] > own_number - longest:
        if pane[row] == own_number:
            own = row
        else:
            for r in range(len(reads)):
                a = reads[r, 0]
                if (
                    reads[r, 3] == before
                    and pane[row] > own_number - reads[r, 1]
                    and (pane[row] < own_number or spec[a, 0] == DISTINCT)
                ):
                    _merge(spec[a, 0], False, r * 4, scratch, fscratch, spec[a, 2], row, cells, fcells)
                    scratch[r * 4 + 3] += 1
        row = prev[row]
    for r in range(len(reads)):
        if reads[r, 3] == before:
            a = reads[r, 0]
            if own >= 0:
                _merge(spec[a, 0], True, r * 4, scratch, fscratch, spec[a, 2], own, cells, fcells)
                scratch[r * 4 + 3] += 1
            _finish(
                spec[a, 0], reads[r, 2], r * 4, scratch[r * 4 + 3], r_time[j], rates[a], r, j, scratch,
                fscratch, out, fout,
            )  # fmt: skip


WIDEST = 3


@kernel(
    "void(i8[::1], i8[::1], i8[::1], i8[::1], i8[:,::1], f8[:,::1], i8[::1], i8[::1], i8[::1], i8[:,::1],"
    "f8[::1], i8[::1], i8[:,::1], i8[::1], i8[::1], i8[::1], i8[::1], u1[::1], i8[:,::1], f8[:,::1], i8[::1],"
    "i8[::1], i8[:,::1], i8[::1], i8[::1], i8[::1], i8[::1], f8[::1], i8[:,::1], f8[:,::1])"
)
def advance(
    shape: Any, u_at: Any, u_slot: Any, u_time: Any, values: Any, fvalues: Any, r_at: Any, r_slot: Any,
    r_time: Any, spec: Any, rates: Any, init: Any, reads: Any, head: Any, owner: Any, pane: Any, prev: Any,
    flag: Any, cells: Any, fcells: Any, free: Any, dirty: Any, entries: Any, buckets: Any, touched: Any,
    counters: Any, scratch: Any, fscratch: Any, out: Any, fout: Any,
) -> None:  # fmt: skip
    """One pass over a batch: takes the events and reads the values, in the order of their positions.

    shape:          (mode, microseconds of a pane, panes in the ring, whether any read excludes the event
    itself) u_*:            events to take, [k]; values[column, k] as int64 and, the same memory, as float64
    r_*:            rows to read, [m]; out[read, m] as int64 and, the same memory, as float64
    spec, rates:    the accumulators: (operation, column, first cell, float?) and decay per microsecond
    reads:          (accumulator, panes, how, before)
    """
    mode, width, ring, any_before = shape[0], shape[1], shape[2], shape[3]
    i = 0
    for j in range(len(r_at)):
        while i < len(u_at) and u_at[i] < r_at[j]:
            _take(
                i, mode, width, ring, u_slot, u_time, values, fvalues, spec, rates, init, head, owner, pane,
                prev, flag, cells, fcells, free, dirty, entries, buckets, touched, counters,
            )  # fmt: skip
            i += 1
        if any_before == 1:
            _read(
                j, 1, mode, width, r_slot, r_time, reads, spec, rates, init, head, pane, prev, cells, fcells,
                scratch, fscratch, out, fout,
            )  # fmt: skip
        while i < len(u_at) and u_at[i] <= r_at[j]:
            _take(
                i, mode, width, ring, u_slot, u_time, values, fvalues, spec, rates, init, head, owner, pane,
                prev, flag, cells, fcells, free, dirty, entries, buckets, touched, counters,
            )  # fmt: skip
            i += 1
        _read(
            j, 0, mode, width, r_slot, r_time, reads, spec, rates, init, head, pane, prev, cells, fcells,
            scratch, fscratch, out, fout,
        )  # fmt: skip
    while i < len(u_at):
        _take(
            i, mode, width, ring, u_slot, u_time, values, fvalues, spec, rates, init, head, owner, pane, prev,
            flag, cells, fcells, free, dirty, entries, buckets, touched, counters,
        )  # fmt: skip
        i += 1
