"""Compiled loops over columns.

A kernel is a plain function over arrays with an explicit signature. numba compiles it once, at `warm()` or at
its first call, and keeps it on disk; afterwards arguments of another type raise TypeError, so nothing is ever
compiled inside a batch. With NUMBA_DISABLE_JIT=1 the same functions run as plain Python.

A table of panes (see `tables.Table`) is arrays over pool rows. A pool row is one pane of one entity; the
panes of an entity form a chain from the newest to the oldest. See `State`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

Function = TypeVar("Function", bound=Callable[..., Any])
Value = TypeVar("Value", bound=np.generic)

KERNELS: list[Kernel] = []

INTERPRETED = os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0")
"""Kernels run as plain Python."""


_njit: Any = numba.njit
"""With `_nrt=False`: kernels make no arrays; counting references to those given took most of the time."""


class Kernel:
    """A function over arrays, compiled for exactly one signature."""

    def __init__(self, function: Callable[..., Any], signature: Any) -> None:
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
            self._run = _njit(self.signature, cache=True, error_model="numpy", _nrt=False)(self.function)
        return self._run

    def __call__(self, *args: Any) -> Any:
        return (self._run or self.compile())(*args)


def kernel(signature: Any) -> Callable[[Callable[..., Any]], Kernel]:
    """Makes a function a kernel of this numba signature."""
    return lambda function: Kernel(function, signature)


def part(function: Function) -> Function:
    """Makes a function callable from kernels; it is compiled with them."""
    return cast(Function, _njit(error_model="numpy", _nrt=False, forceinline=True)(function))


def given(array: NDArray[Value]) -> NDArray[Value]:
    """The array as a kernel takes it that only reads it: to the compiler it is one type where it may be written and
    another where it may not.
    """
    view = np.ascontiguousarray(array).view()
    view.flags.writeable = False
    return view


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


# What a pane folds: the accumulators.

(
    COUNT, PRESENT, ISUM, FSUM, MOMENTS, IMIN, IMAX, FMIN, FMAX, FIRST, LAST, LATEST, DECAYED, DISTINCT, BINS,
    REGISTERS,
) = range(16)  # fmt: skip
NAMES = (
    "count", "present", "isum", "fsum", "moments", "imin", "imax", "fmin", "fmax", "first", "last", "latest",
    "decayed", "distinct", "bins", "registers",
)  # fmt: skip
"""Names of the accumulators in state rows: they outlive the numbers."""
WIDTH = (1, 1, 1, 1, 3, 1, 1, 1, 1, 2, 2, 1, 2, 1, 1, 1)
"""Cells of each accumulator."""
WIDEST = 3
FIRST_SKETCH = BINS
"""Accumulators from here on keep their content in entries, and in their cell the head of a list of these."""

# How a value is read: as it is; an integer as float64, NaN where the entity is unknown; NaN also where no
# pane is.
PLAIN, FLOATED, FLOATED_OR_MISSING, VARIANCE, SINCE, FADED, QUANTILE, RANKED, CARDINALITY = range(9)

# How a pane is numbered: by event time, one for all time, by the entity's count of events, or by the caller;
# versions are panes of one time each, of which one alone is read, the latest that is not after the event.
BY_TIME, ALL_TIME, BY_COUNT, GIVEN, VERSIONS = range(5)

DIRTY, DEAD = 1, 2
UNKNOWN = -2
"""The slot of a missing key."""

HELD, WON = 1 << 40, 1 << 41
"""Added to the number of a row, what stands for its text until the batch is over; and what is added to that once the
text has become a pane's."""

USED, FREE, TOUCHED, ENTRIES, ENTRIES_TOUCHED, IGNORED = range(6)
"""Counters: pool rows ever used, rows on the free list, rows on the dirty list, entries and their dirty list,
and events whose pane has left the ring."""

INT_MAX = 2**63 - 1
INT_MIN = -(2**63)
SECOND = 1e6

# DDSketch (Masson, Rim, Lee: PVLDB 12, 2019), with one fixed range of bins instead of collapsing ones: so the
# order of values changes nothing.
ACCURACY = 0.01
"""A quantile is within 1% of the value at its rank."""
LOG_GAMMA = math.log((1 + ACCURACY) / (1 - ACCURACY))
RANGE = math.ceil(math.log(1e12) / LOG_GAMMA)
"""Bins on each side of 1: values below 1e-12 count as 0, values beyond 1e12 as 1e12."""
ZERO_BIN = 2 * RANGE + 1
ALL_BINS = 2 * ZERO_BIN + 1

# HyperLogLog (Flajolet, Fusy, Gandouet, Meunier: AofA 2007) over a 64-bit hash, linear counting while
# registers are empty. The standard error is 1.04 / sqrt(1024) = 3.3%.
REGISTER_BITS = 10
ALL_REGISTERS = 1 << REGISTER_BITS
HLL_BIAS = 0.7213 / (1 + 1.079 / ALL_REGISTERS)


class Plan(NamedTuple):
    """What a table computes; it does not change.

    shape:   (how panes are numbered, microseconds of a pane, panes in the ring, any read before its own
    event?,
             values distinct by pane?)
    spec:    accumulators: (operation, column of values, first cell, 1: values are floats, 2: numbers of
    texts, column that orders the events or -1: their times do)
    rates:   of each accumulator, the decay per microsecond
    init:    the cells of an empty pane
    reads:   (accumulator, panes, how, before its own event?)
    options: of each read, the quantile
    scratch: four cells a read: three for the accumulator, and the panes seen; `fscratch` is the same memory
    sketch:  one bin or register each, all 0 between reads
    """

    shape: Any
    spec: Any
    rates: Any
    init: Any
    reads: Any
    options: Any
    scratch: Any
    fscratch: Any
    sketch: Any


class State(NamedTuple):
    """The panes of a table.

    head:    of each entity, the newest pool row, -1 where it has none
    owner:   of each pool row, its entity
    pane:    its number, descending along a chain
    prev:    the next older row, -1 at the end
    flag:    DIRTY, DEAD
    cells:   what it has folded; `fcells` is the same memory as float64
    free:    rows that can be used again
    dirty:   rows touched
    entries: (entity, pane or 0, accumulator, value, content, next of the pane's list + 1)
    buckets: entry + 1 by hash, open addressing
    touched: entries touched
    """

    head: Any
    owner: Any
    pane: Any
    prev: Any
    flag: Any
    cells: Any
    fcells: Any
    free: Any
    dirty: Any
    entries: Any
    buckets: Any
    touched: Any
    counters: Any


class Events(NamedTuple):
    """Rows to take or read: position in the batch, entity, time, and the pane where the caller numbers it.

    values: int64[column, row], the bits of floats; `fvalues` is the same memory as float64
    """

    at: Any
    slot: Any
    time: Any
    number: Any
    values: Any
    fvalues: Any


_ARRAYS = {
    "i": numba.int64[::1], "I": numba.int64[:, ::1], "f": numba.float64[::1], "F": numba.float64[:, ::1],
    "u": numba.uint8[::1],
}  # fmt: skip
_named: Any = numba.types.NamedTuple

PLAN = _named([_ARRAYS[kind] for kind in "iIfiIfifi"], Plan)
STATE = _named([_ARRAYS[kind] for kind in "iiiiuIFiiIiii"], State)
EVENTS = _named([_ARRAYS[kind] for kind in "iiiiIF"], Events)


@part
def _touch(row: Any, state: Any) -> None:
    if state.flag[row] & DIRTY == 0:
        state.flag[row] |= DIRTY
        state.dirty[state.counters[TOUCHED]] = row
        state.counters[TOUCHED] += 1


@part
def _new_row(slot: Any, number: Any, init: Any, state: Any) -> Any:
    if state.counters[FREE] > 0:
        state.counters[FREE] -= 1
        row = state.free[state.counters[FREE]]
    else:
        row = state.counters[USED]
        state.counters[USED] += 1
    state.owner[row] = slot
    state.pane[row] = number
    state.prev[row] = -1
    state.flag[row] = 0
    for c in range(len(init)):
        state.cells[row, c] = init[c]
    return row


@part
def _pane_row(slot: Any, number: Any, plan: Any, state: Any) -> Any:
    """The row of a pane of an entity, made where it has none; -1 where the pane has left the ring."""
    pane, prev, ring = state.pane, state.prev, plan.shape[2]
    newest = state.head[slot]
    if newest >= 0 and pane[newest] == number:
        return newest
    if newest < 0 or number > pane[newest]:
        row = _new_row(slot, number, plan.init, state)
        prev[row] = newest
        state.head[slot] = row
        if plan.shape[0] == VERSIONS:
            _trim(row, _oldest_kept(row, ring, state) - 1, state)
        elif plan.shape[0] != GIVEN:
            _trim(row, number - ring, state)
        return row
    if plan.shape[0] == VERSIONS and number < _oldest_kept(newest, ring, state):
        return -1
    if plan.shape[0] < GIVEN and number <= pane[newest] - ring:
        return -1
    after = newest
    while prev[after] >= 0 and pane[prev[after]] >= number:
        after = prev[after]
    if pane[after] == number:
        return after
    row = _new_row(slot, number, plan.init, state)
    prev[row] = prev[after]
    prev[after] = row
    if plan.shape[0] == VERSIONS:
        _trim(newest, _oldest_kept(newest, ring, state) - 1, state)
    return row


@part
def _oldest_kept(row: Any, most: Any, state: Any) -> Any:
    """The number of the last of `most` panes of the chain that begins at `row`; INT_MIN where it has fewer."""
    for _ in range(most - 1):
        row = state.prev[row]
        if row < 0:
            return INT_MIN
    return state.pane[row]


@part
def _trim(row: Any, last_gone: Any, state: Any) -> None:
    """Takes the panes up to `last_gone` off the chain that begins at `row`."""
    pane, prev = state.pane, state.prev
    while prev[row] >= 0 and pane[prev[row]] > last_gone:
        row = prev[row]
    gone = prev[row]
    prev[row] = -1
    while gone >= 0:
        _touch(gone, state)
        state.flag[gone] |= DEAD
        gone = prev[gone]


@part
def _find(slot: Any, number: Any, state: Any) -> Any:
    row = state.head[slot]
    while row >= 0 and state.pane[row] > number:
        row = state.prev[row]
    return row if row >= 0 and state.pane[row] == number else -1


@part
def _drop(slot: Any, number: Any, state: Any) -> None:
    """Takes one pane off its chain."""
    row = _find(slot, number, state)
    if row < 0:
        return
    if state.head[slot] == row:
        state.head[slot] = state.prev[row]
    else:
        newer = state.head[slot]
        while state.prev[newer] != row:
            newer = state.prev[newer]
        state.prev[newer] = state.prev[row]
    _touch(row, state)
    state.flag[row] |= DEAD


@kernel(numba.void(numba.int64[::1], numba.int64[::1], STATE))
def drop(slots: Any, numbers: Any, state: Any) -> None:
    """Deletes these panes."""
    for i in range(len(slots)):
        _drop(slots[i], numbers[i], state)


@kernel(numba.void(numba.int64[::1], STATE))
def forget(slots: Any, state: Any) -> None:
    """Deletes every pane of these entities."""
    for i in range(len(slots)):
        row = state.head[slots[i]]
        state.head[slots[i]] = -1
        while row >= 0:
            _touch(row, state)
            state.flag[row] |= DEAD
            row = state.prev[row]


@kernel(numba.void(numba.int64[::1], STATE))
def evict(slots: Any, state: Any) -> None:
    """Leaves the panes of these entities, none of them touched, to the store: their rows are free."""
    for i in range(len(slots)):
        row = state.head[slots[i]]
        state.head[slots[i]] = -1
        while row >= 0:
            state.free[state.counters[FREE]] = row
            state.counters[FREE] += 1
            row = state.prev[row]


@kernel(numba.void(numba.int64[::1], numba.int64[:, ::1], PLAN, STATE))
def admit(slots: Any, panes: Any, plan: Any, state: Any) -> None:
    """Takes committed panes, each its number and its cells, into the chains of their entities, which lack them."""
    pane, prev = state.pane, state.prev
    for i in range(len(slots)):
        number, newest = panes[i, 0], state.head[slots[i]]
        row = _new_row(slots[i], number, plan.init, state)
        for c in range(len(plan.init)):
            state.cells[row, c] = panes[i, 1 + c]
        if newest < 0 or pane[newest] < number:
            prev[row] = newest
            state.head[slots[i]] = row
        else:
            after = newest
            while prev[after] >= 0 and pane[prev[after]] > number:
                after = prev[after]
            prev[row] = prev[after]
            prev[after] = row


@part
def _hash(slot: Any, number: Any, acc: Any, value: Any) -> Any:
    """31 bits of an entry's key; every product fits int64, so that plain Python computes the same."""
    h = (slot & 0x7FFFFFFF) * 73856093 ^ (number & 0x7FFFFFFF) * 83492791 ^ (value & 0x7FFFFFFF) * 19349663
    h ^= (number >> 31) + acc * 2654435
    h = ((h ^ (h >> 31)) & 0x7FFFFFFF) * 0x5BD1E995
    return (h ^ (h >> 29)) & 0x7FFFFFFF


@part
def _entry(slot: Any, number: Any, acc: Any, value: Any, state: Any) -> Any:
    """The entry of (entity, pane, accumulator, value), made with INT_MIN as content where there is none."""
    entries, buckets = state.entries, state.buckets
    mask = len(buckets) - 1
    at = _hash(slot, number, acc, value) & mask
    while buckets[at] != 0:
        e = buckets[at] - 1
        if entries[e, 0] == slot and entries[e, 3] == value and entries[e, 1] == number and entries[e, 2] == acc:
            return e
        at = (at + 1) & mask
    e = state.counters[ENTRIES]
    state.counters[ENTRIES] += 1
    buckets[at] = e + 1
    entries[e, 0] = slot
    entries[e, 1] = number
    entries[e, 2] = acc
    entries[e, 3] = value
    entries[e, 4] = INT_MIN
    entries[e, 5] = 0
    return e


@part
def _touch_entry(e: Any, state: Any) -> None:
    state.touched[state.counters[ENTRIES_TOUCHED]] = e
    state.counters[ENTRIES_TOUCHED] += 1


@kernel(numba.void(PLAN, STATE))
def reindex(plan: Any, state: Any) -> None:
    """Fills empty buckets with the entries, and links those of each pane."""
    mask = len(state.buckets) - 1
    for a in range(len(plan.spec)):
        if plan.spec[a, 0] >= FIRST_SKETCH:
            for row in range(state.counters[USED]):
                state.cells[row, plan.spec[a, 2]] = 0
    for e in range(state.counters[ENTRIES]):
        _file(e, mask, plan, state)


@kernel(numba.void(numba.int64, PLAN, STATE))
def admit_entries(begin: Any, plan: Any, state: Any) -> None:
    """Fills buckets with the entries from one on, and links those of each pane."""
    for e in range(begin, state.counters[ENTRIES]):
        _file(e, len(state.buckets) - 1, plan, state)


@part
def _file(e: Any, mask: Any, plan: Any, state: Any) -> None:
    entries = state.entries
    at = _hash(entries[e, 0], entries[e, 1], entries[e, 2], entries[e, 3]) & mask
    while state.buckets[at] != 0:
        at = (at + 1) & mask
    state.buckets[at] = e + 1
    if plan.spec[entries[e, 2], 0] >= FIRST_SKETCH:
        row = _find(entries[e, 0], entries[e, 1], state)
        if row >= 0:
            _link(e, row, plan.spec[entries[e, 2], 2], state)


@part
def _link(e: Any, row: Any, cell: Any, state: Any) -> None:
    state.entries[e, 5] = state.cells[row, cell]
    state.cells[row, cell] = e + 1


@part
def _distinct(slot: Any, row: Any, acc: Any, value: Any, cell: Any, plan: Any, state: Any) -> None:
    """Counts a value in the pane where it was last seen, or in each pane where panes are read alone."""
    number = state.pane[row]
    if plan.shape[4] == 1:
        e = _entry(slot, number, acc, value, state)
        if state.entries[e, 4] == INT_MIN:
            state.entries[e, 4] = number
            state.cells[row, cell] += 1
            _touch_entry(e, state)
        return
    e = _entry(slot, 0, acc, value, state)
    last = state.entries[e, 4]
    if last >= number:
        return
    if last > state.pane[state.head[slot]] - plan.shape[2]:
        old = _find(slot, last, state)
        state.cells[old, cell] -= 1
        _touch(old, state)
    state.cells[row, cell] += 1
    state.entries[e, 4] = number
    _touch_entry(e, state)


@part
def _sketch(op: Any, slot: Any, row: Any, acc: Any, value: Any, content: Any, cell: Any, state: Any) -> None:
    """Adds to a bin, or raises a register."""
    e = _entry(slot, state.pane[row], acc, value, state)
    if state.entries[e, 4] == INT_MIN:
        state.entries[e, 4] = 0
        _link(e, row, cell, state)
    elif op == REGISTERS and state.entries[e, 4] >= content:
        return
    state.entries[e, 4] = content if op == REGISTERS else state.entries[e, 4] + content
    _touch_entry(e, state)


@part
def bin_of(x: Any) -> Any:
    """The bin of a number; bins ascend with their values."""
    size = abs(x)
    if size < 1e-12:
        return ZERO_BIN
    step = min(max(math.ceil(math.log(size) / LOG_GAMMA), -RANGE), RANGE) + RANGE + 1
    return ZERO_BIN + step if x > 0.0 else ZERO_BIN - step


@part
def value_of(bin: Any) -> Any:
    """The middle of a bin, within ACCURACY of everything in it."""
    if bin == ZERO_BIN:
        return 0.0
    size = math.exp((abs(bin - ZERO_BIN) - RANGE - 1) * LOG_GAMMA) * (1.0 - ACCURACY)
    return size if bin > ZERO_BIN else -size


@part
def _add(a: Any, b: Any) -> Any:
    """a + b in int64, held at its ends."""
    if b > 0 and a > INT_MAX - b:
        return INT_MAX
    if b < 0 and a < INT_MIN - b:
        return INT_MIN
    return a + b


@part
def _fold(op: Any, c: Any, row: Any, cells: Any, fcells: Any, time: Any, value: Any, fvalue: Any, rate: Any) -> None:
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
def _merge(op: Any, own: Any, s: Any, into: Any, finto: Any, c: Any, row: Any, cells: Any, fcells: Any) -> None:
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
def _finish(r: Any, j: Any, time: Any, plan: Any, out: Any, fout: Any) -> None:
    """Writes what the scratch accumulator says."""
    into, finto, s = plan.scratch, plan.fscratch, r * 4
    op, how = plan.spec[plan.reads[r, 0], 0], plan.reads[r, 2]
    seen = into[s + 3]
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
        fout[r, j] = finto[s] * math.exp(-plan.rates[plan.reads[r, 0]] * since)


@part
def _gather(r: Any, j: Any, slot: Any, own: Any, plan: Any, state: Any, fout: Any) -> None:
    """Reads a sketch, or the values of the last events by rank, over the panes of its window."""
    a, panes, how = plan.reads[r, 0], plan.reads[r, 1], plan.reads[r, 2]
    cell, sketch = plan.spec[a, 2], plan.sketch
    low, high, n = len(sketch), -1, 0
    row = state.head[slot]
    while row >= 0 and state.pane[row] > own - panes:
        if how == RANKED and state.fcells[row, cell] == state.fcells[row, cell]:
            k = n
            while k > 0 and state.fcells[sketch[k - 1], cell] > state.fcells[row, cell]:
                sketch[k] = sketch[k - 1]
                k -= 1
            sketch[k] = row
            low, high, n = 0, n, n + 1
        elif how != RANKED and state.pane[row] <= own:
            e = state.cells[row, cell]
            while e > 0:
                bin, content = state.entries[e - 1, 3], state.entries[e - 1, 4]
                sketch[bin] = max(sketch[bin], content) if how == CARDINALITY else sketch[bin] + content
                low, high, n = min(low, bin), max(high, bin), n + content
                e = state.entries[e - 1, 5]
        row = state.prev[row]
    if how == CARDINALITY:
        fout[r, j] = _cardinality(sketch)
    elif n == 0:
        fout[r, j] = math.nan
    else:
        rank = math.floor(plan.options[r] * (n - 1))
        if how == RANKED:
            fout[r, j] = state.fcells[sketch[rank], cell]
        else:
            bin, below = low, sketch[low]
            while below <= rank:
                bin += 1
                below += sketch[bin]
            fout[r, j] = value_of(bin)
    for k in range(low, high + 1):
        sketch[k] = 0


@part
def _cardinality(registers: Any) -> Any:
    empty, total = 0, 0.0
    for k in range(ALL_REGISTERS):
        if registers[k] == 0:
            empty += 1
        total += 1.0 / (1 << registers[k])
    raw = HLL_BIAS * ALL_REGISTERS * ALL_REGISTERS / total
    if raw <= 2.5 * ALL_REGISTERS and empty > 0:
        raw = ALL_REGISTERS * math.log(ALL_REGISTERS / empty)
    return math.floor(raw + 0.5)


@part
def _take(i: Any, events: Any, plan: Any, state: Any) -> None:
    """Takes event i into its pane."""
    slot = events.slot[i]
    if slot < 0:
        return
    mode, number = plan.shape[0], 0
    if mode in (BY_TIME, VERSIONS):
        number = events.time[i] // plan.shape[1]
    elif mode == BY_COUNT and state.head[slot] >= 0:
        number = state.pane[state.head[slot]] + 1
    elif mode == GIVEN:
        number = events.number[i]
    row = _pane_row(slot, number, plan, state)
    if row < 0:
        state.counters[IGNORED] += 1
        return
    _touch(row, state)
    if mode == VERSIONS:
        # A version is one row: it replaces another of its time whole, with what is missing in it.
        for c in range(len(plan.init)):
            state.cells[row, c] = plan.init[c]
    for a in range(len(plan.spec)):
        op, column, cell = plan.spec[a, 0], plan.spec[a, 1], plan.spec[a, 2]
        value, fvalue = events.values[column, i], events.fvalues[column, i]
        if plan.spec[a, 3] == 2 and value >= WON:
            value -= WON
        if op == DISTINCT:
            if value >= 0:
                _distinct(slot, row, a, value, cell, plan, state)
        elif op == BINS:
            if fvalue == fvalue:
                _sketch(op, slot, row, a, bin_of(fvalue), 1, cell, state)
        elif op == REGISTERS:
            if value >= 0:
                _sketch(op, slot, row, a, value >> 6, value & 63, cell, state)
        elif op in (FIRST, LAST) and (
            (plan.spec[a, 3] == 1 and fvalue != fvalue) or (plan.spec[a, 3] == 2 and value < 0)
        ):
            continue
        elif plan.spec[a, 4] < 0:
            _fold(op, cell, row, state.cells, state.fcells, events.time[i], value, fvalue, plan.rates[a])
        elif events.values[plan.spec[a, 4], i] != INT_MIN:
            order = events.values[plan.spec[a, 4], i]
            _fold(op, cell, row, state.cells, state.fcells, order, value, fvalue, plan.rates[a])
        if plan.spec[a, 3] == 2 and state.cells[row, cell + 1] == value:
            events.values[column, i] = value + WON


@part
def _read(j: Any, before: Any, wanted: Any, plan: Any, state: Any, out: Any, fout: Any) -> None:
    """Writes the values as of row j: those without the event itself (before = 1), or the others."""
    slot = wanted.slot[j]
    reads, spec, scratch, mode = plan.reads, plan.spec, plan.scratch, plan.shape[0]
    if slot == UNKNOWN:
        for r in range(len(reads)):
            fout[r, j] = math.nan
        return
    longest = _begin(before, plan)
    own_number = 0
    if mode == BY_TIME:
        own_number = wanted.time[j] // plan.shape[1]
    elif mode == BY_COUNT and state.head[slot] >= 0:
        own_number = state.pane[state.head[slot]]
    elif mode == GIVEN:
        own_number = wanted.number[j]
    own, row = -1, state.head[slot]
    if mode == VERSIONS:
        while row >= 0 and state.pane[row] > wanted.time[j]:
            row = state.prev[row]
        own, row = row, -1
    while row >= 0 and state.pane[row] > own_number - longest:
        if state.pane[row] == own_number:
            own = row
        else:
            for r in range(len(reads)):
                op = spec[reads[r, 0], 0]
                seen_since = op == DISTINCT and plan.shape[4] == 0
                in_window = state.pane[row] > own_number - reads[r, 1]
                if reads[r, 3] == before and in_window and (state.pane[row] < own_number or seen_since):
                    _merge(
                        op,
                        False,
                        r * 4,
                        scratch,
                        plan.fscratch,
                        spec[reads[r, 0], 2],
                        row,
                        state.cells,
                        state.fcells,
                    )
                    scratch[r * 4 + 3] += 1
        row = state.prev[row]
    for r in range(len(reads)):
        if reads[r, 3] == before:
            a = reads[r, 0]
            if reads[r, 2] >= QUANTILE:
                _gather(r, j, slot, own_number, plan, state, fout)
                continue
            if own >= 0:
                _merge(
                    spec[a, 0],
                    True,
                    r * 4,
                    scratch,
                    plan.fscratch,
                    spec[a, 2],
                    own,
                    state.cells,
                    state.fcells,
                )
                scratch[r * 4 + 3] += 1
            _finish(r, j, wanted.time[j], plan, out, fout)


@part
def _begin(before: Any, plan: Any) -> Any:
    """Empties the scratch accumulators; the panes of the longest window among them."""
    longest = 0
    for r in range(len(plan.reads)):
        if plan.reads[r, 3] == before:
            first = plan.spec[plan.reads[r, 0], 2]
            for c in range(WIDEST):
                plan.scratch[r * 4 + c] = plan.init[min(first + c, len(plan.init) - 1)]
            plan.scratch[r * 4 + 3] = 0
            if plan.reads[r, 2] < QUANTILE:
                longest = max(longest, plan.reads[r, 1])
    return longest


@kernel(numba.void(PLAN, STATE, EVENTS, EVENTS, numba.int64[:, ::1], numba.float64[:, ::1]))
def advance(plan: Any, state: Any, events: Any, wanted: Any, out: Any, fout: Any) -> None:
    """One pass over a batch: takes the events and reads the wanted rows, in the order of their positions.

    out[read, wanted row] as int64 and, the same memory, as float64. A row that is both is taken before it is
    read, but for reads that exclude their own event.
    """
    i = 0
    for j in range(len(wanted.at)):
        while i < len(events.at) and events.at[i] < wanted.at[j]:
            _take(i, events, plan, state)
            i += 1
        if plan.shape[3] == 1:
            _read(j, 1, wanted, plan, state, out, fout)
        while i < len(events.at) and events.at[i] <= wanted.at[j]:
            _take(i, events, plan, state)
            i += 1
        _read(j, 0, wanted, plan, state, out, fout)
    while i < len(events.at):
        _take(i, events, plan, state)
        i += 1


@kernel(numba.void(numba.int64, numba.int64, numba.int64, PLAN, STATE))
def absorb(slot: Any, gone: Any, into: Any, plan: Any, state: Any) -> None:
    """Merges one pane of an entity into another and deletes it."""
    source, target = _find(slot, gone, state), _find(slot, into, state)
    if source < 0:
        return
    if target < 0:
        target = _pane_row(slot, into, plan, state)
    _touch(target, state)
    for a in range(len(plan.spec)):
        if plan.spec[a, 0] < DISTINCT:
            cell = plan.spec[a, 2]
            _merge(
                plan.spec[a, 0], False, cell, state.cells[target], state.fcells[target], cell, source,
                state.cells, state.fcells,
            )  # fmt: skip
    for e in range(state.counters[ENTRIES]):
        if state.entries[e, 0] == slot and state.entries[e, 1] == gone and state.entries[e, 4] != INT_MIN:
            a = state.entries[e, 2]
            op, cell = plan.spec[a, 0], plan.spec[a, 2]
            if op == DISTINCT:
                _distinct(slot, target, a, state.entries[e, 3], cell, plan, state)
            else:
                _sketch(op, slot, target, a, state.entries[e, 3], state.entries[e, 4], cell, state)
    _drop(slot, gone, state)
