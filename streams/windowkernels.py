"""Compiled loops over the windows of a set (see `openwindows.OpenWindows`)."""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
from headrace.streams.kernels import INT_MAX, INT_MIN, kernel, part

CLOSED, SHOWN, TOUCHED, DEAD, STORED = 1, 2, 4, 8, 16
"""What is noted of a window: its result was published as final; its last row stands; it changed since it was last
written; it is no more; a row of state says so."""

USED, FREE, DIRTY, LEAST = range(4)
"""Counters: windows ever used, those on the free list and on the dirty list, and the least watermark that wakes one."""

ROW = 8
"""Cells of a row of a session: position, window, entity, number, start, end, revision, whether it takes back."""

NOTHING, WHOLE, BACK = range(3)
"""What becomes of a row: it is not published; it is; what was published of its window before is taken back."""


class Windows(NamedTuple):
    """Windows that are open, or closed and still to be corrected.

    buckets:  window + 1 by hash, a power of two of them
    after:    the next window of the same bucket, + 1
    slot, number, start, end, revision: whose it is, which, its span, and how many final rows it had
    due:      when its next early row is, or -1
    closes:   in a batch, the position at which it closes: -1 where it was closed before, INT_MAX where it stays open
    first:    in a batch, the position of the event that opened it
    wake:     the watermark at which it closes, is told early or leaves
    flags:    CLOSED, SHOWN, TOUCHED, DEAD, STORED
    free, dirty: windows that can be used again, and that changed
    """

    buckets: Any
    after: Any
    slot: Any
    number: Any
    start: Any
    end: Any
    revision: Any
    due: Any
    closes: Any
    first: Any
    wake: Any
    flags: Any
    free: Any
    dirty: Any
    counters: Any


_types: Any = numba.types
_INTS = numba.int64[::1]
WINDOWS = _types.NamedUniTuple(_INTS, 15, Windows)


@part
def _bucket(slot: Any, number: Any, mask: Any) -> Any:
    """Every product fits int64, so that plain Python computes the same."""
    h = ((slot & 0x7FFFFFFF) * 73856093) ^ ((number & 0x7FFFFFFF) * 83492791) ^ ((number >> 31) & 0x7FFFFFFF)
    h = ((h ^ (h >> 31)) & 0x7FFFFFFF) * 0x5BD1E995
    return (h ^ (h >> 29)) & mask


@part
def _touch(w: Any, windows: Any) -> None:
    if windows.flags[w] & TOUCHED == 0:
        windows.flags[w] |= TOUCHED
        windows.dirty[windows.counters[DIRTY]] = w
        windows.counters[DIRTY] += 1


@part
def _sleep(w: Any, wake: Any, windows: Any) -> None:
    windows.wake[w] = wake
    windows.counters[LEAST] = min(windows.counters[LEAST], wake)


@part
def _open(slot: Any, number: Any, bucket: Any, start: Any, end: Any, at: Any, windows: Any) -> Any:
    if windows.counters[FREE] > 0:
        windows.counters[FREE] -= 1
        w = windows.free[windows.counters[FREE]]
    else:
        w = windows.counters[USED]
        windows.counters[USED] += 1
    windows.slot[w], windows.number[w], windows.start[w], windows.end[w] = slot, number, start, end
    windows.revision[w], windows.due[w], windows.closes[w], windows.first[w] = 0, -1, INT_MAX, at
    windows.flags[w] = 0
    windows.after[w] = windows.buckets[bucket]
    windows.buckets[bucket] = w + 1
    _touch(w, windows)
    return w


@part
def _forget(w: Any, bucket: Any, windows: Any) -> None:
    """Takes a window off its bucket."""
    if windows.buckets[bucket] == w + 1:
        windows.buckets[bucket] = windows.after[w]
    else:
        other = windows.buckets[bucket] - 1
        while windows.after[other] != w + 1:
            other = windows.after[other] - 1
        windows.after[other] = windows.after[w]
    windows.flags[w] |= DEAD
    windows.wake[w] = INT_MAX
    _touch(w, windows)


@kernel(numba.void(_INTS, _INTS, _INTS, numba.int64, numba.int64, WINDOWS, _INTS))
def take(at: Any, slot: Any, number: Any, step: Any, size: Any, windows: Any, which: Any) -> None:
    """The window of each event, opened where there is none: number n begins at n steps. step 0: it never closes."""
    mask = len(windows.buckets) - 1
    for i in range(len(at)):
        bucket = _bucket(slot[i], number[i], mask)
        w = windows.buckets[bucket] - 1
        while w >= 0 and (windows.slot[w] != slot[i] or windows.number[w] != number[i]):
            w = windows.after[w] - 1
        if w < 0:
            start = number[i] * step
            w = _open(slot[i], number[i], bucket, start, start + size, at[i], windows)
            _sleep(w, INT_MAX if step == 0 else start + size, windows)
        windows.first[w] = min(windows.first[w], at[i])
        which[i] = w


@kernel(numba.int64(numba.int64, WINDOWS, _INTS))
def woken(watermark: Any, windows: Any, out: Any) -> Any:
    """Writes the windows that a watermark wakes; how many. LEAST then is that of the others."""
    count, least = 0, INT_MAX
    for w in range(windows.counters[USED]):
        if windows.wake[w] <= watermark:
            out[count] = w
            count += 1
        else:
            least = min(least, windows.wake[w])
    windows.counters[LEAST] = least
    return count


@kernel(numba.void(_INTS, numba.boolean, WINDOWS))
def forget(which: Any, sessions: Any, windows: Any) -> None:
    mask = len(windows.buckets) - 1
    for i in range(len(which)):
        w = which[i]
        _forget(w, _bucket(windows.slot[w], 0 if sessions else windows.number[w], mask), windows)


@kernel(numba.void(numba.boolean, WINDOWS))
def rehash(sessions: Any, windows: Any) -> None:
    """Fills empty buckets with the windows that are."""
    mask = len(windows.buckets) - 1
    for w in range(windows.counters[USED]):
        if windows.flags[w] & DEAD == 0:
            bucket = _bucket(windows.slot[w], 0 if sessions else windows.number[w], mask)
            windows.after[w] = windows.buckets[bucket]
            windows.buckets[bucket] = w + 1


@part
def _reached(watermark: Any, time: Any) -> Any:
    """The first position at which the watermark is at a time."""
    low, high = 0, len(watermark)
    while low < high:
        middle = (low + high) // 2
        if watermark[middle] < time:
            low = middle + 1
        else:
            high = middle
    return low


@part
def _tell(at: Any, w: Any, back: Any, windows: Any, rows: Any, counts: Any) -> None:
    row = counts[0]
    rows[row, 0], rows[row, 1], rows[row, 2], rows[row, 3] = at, w, windows.slot[w], windows.number[w]
    rows[row, 4], rows[row, 5], rows[row, 6], rows[row, 7] = windows.start[w], windows.end[w], windows.revision[w], back
    counts[0] += 1


@part
def _close(at: Any, w: Any, leaves: Any, windows: Any, rows: Any, counts: Any) -> None:
    _tell(at, w, 0, windows, rows, counts)
    windows.revision[w] += 1
    windows.flags[w] |= CLOSED
    _sleep(w, leaves, windows)
    _touch(w, windows)


@kernel(
    numba.void(
        _INTS, _INTS, _INTS, _INTS, numba.int64, numba.int64, WINDOWS, _INTS, numba.int64[:, ::1], numba.int64[:, ::1],
        _INTS,
    )
)  # fmt: skip
def join(
    at: Any, slot: Any, time: Any, watermark: Any, gap: Any, linger: Any, windows: Any, number: Any, rows: Any,
    merges: Any, counts: Any,
) -> None:  # fmt: skip
    """The session of each event: a new one, the one it extends, or the first of two that it bridges.

    rows:   of sessions that close, are corrected or taken back; see ROW
    merges: (position, entity, the session that is gone, the one that has absorbed it)
    counts: of both
    A session that ends between two events of its entity is closed when the second comes.
    """
    mask = len(windows.buckets) - 1
    for i in range(len(at)):
        p, s, t = at[i], slot[i], time[i]
        before = watermark[p - 1] if p > 0 else INT_MIN
        session, other = -1, -1
        w = windows.buckets[_bucket(s, 0, mask)] - 1
        while w >= 0:
            if windows.slot[w] == s:
                end = windows.end[w] + gap
                if windows.flags[w] & CLOSED == 0 and end <= before:
                    _close(_reached(watermark, end), w, end + linger, windows, rows, counts)
                if windows.start[w] - gap < t and t < end:
                    if session < 0:
                        session = w
                    elif windows.start[w] < windows.start[session]:
                        session, other = w, session
                    else:
                        other = w
            w = windows.after[w] - 1
        if session < 0:
            session = _open(s, t, _bucket(s, 0, mask), t, t, p, windows)
        if other >= 0:
            _tell(p, other, 1, windows, rows, counts)
            m = counts[1]
            merges[m, 0], merges[m, 1] = p, s
            merges[m, 2], merges[m, 3] = windows.number[other], windows.number[session]
            counts[1] += 1
            windows.end[session] = max(windows.end[session], windows.end[other])
            _forget(other, _bucket(s, 0, mask), windows)
        if t < windows.start[session]:
            _tell(p, session, 1, windows, rows, counts)
            windows.start[session] = t
            windows.revision[session] = 0
        windows.end[session] = max(windows.end[session], t)
        _touch(session, windows)
        end = windows.end[session] + gap
        if end <= watermark[p]:
            _close(p, session, end + linger, windows, rows, counts)
        else:
            windows.flags[session] &= ~CLOSED
            _sleep(session, end, windows)
        number[i] = windows.number[session]


@kernel(numba.void(_INTS, _INTS, numba.boolean[::1], WINDOWS, _INTS))
def settle(window: Any, back: Any, holds: Any, windows: Any, verdict: Any) -> None:
    """What becomes of each row, in their order: one that does not hold takes back what stands of its window."""
    for i in range(len(window)):
        w = window[i]
        shown = windows.flags[w] & SHOWN != 0
        if back[i] == 0 and holds[i]:
            verdict[i] = WHOLE
            windows.flags[w] |= SHOWN
        else:
            verdict[i] = BACK if shown else NOTHING
            windows.flags[w] &= ~SHOWN
        if shown != (windows.flags[w] & SHOWN != 0):
            _touch(w, windows)
