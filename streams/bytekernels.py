"""Compiled loops over byte strings that lie in buffers (see `spans.Spans`)."""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np
from headrace.streams.kernels import UNKNOWN, kernel, part

SPACE, QUOTE, COMMA, MINUS, ZERO, OPEN, BACKSLASH, CLOSE = 32, 34, 44, 45, 48, 91, 92, 93
OPEN_BRACE, CLOSE_BRACE = 123, 125
LEAST, LEAST_TENTH = -(2**63), -922337203685477580
"""The least int64, which has no positive, and its tenth."""
USED, FREE, BYTES = range(3)
"""Counters of `Names`: numbers given so far, those that are free, and the bytes of the arena that are taken."""

_types: Any = numba.types
BYTES_GIVEN = _types.Array(numba.uint8, 1, "C", readonly=True)
"""What a kernel reads, and may be memory that nobody may write."""
_INTS = numba.int64[::1]
_OUT = numba.uint8[::1]


@kernel(numba.void(BYTES_GIVEN, _INTS, _INTS))
def cut(text: Any, start: Any, length: Any) -> None:
    """The places of the values of a JSON array without spaces, whose values have no comma in them."""
    p = 1
    for i in range(len(start)):
        start[i] = p
        while text[p] != COMMA and text[p] != CLOSE:
            p += 1
        length[i] = p - start[i]
        p += 1


@part
def copy(data: Any, start: Any, length: Any, out: Any, at: Any) -> None:
    """Copies so many bytes. Places are unsigned: with one that may be negative the compiler copies byte by byte."""
    source, target = np.uint64(start), np.uint64(at)
    for i in range(np.uint64(max(length, 0))):
        out[target + i] = data[source + i]


@kernel(numba.void(BYTES_GIVEN, _INTS, _INTS, _OUT, _INTS))
def gather(data: Any, start: Any, length: Any, out: Any, out_start: Any) -> None:
    """Copies strings to their places in another buffer."""
    for i in range(len(start)):
        copy(data, start[i], length[i], out, out_start[i])


@kernel(numba.void(BYTES_GIVEN, _INTS, numba.int64, _INTS))
def numbers(data: Any, start: Any, width: Any, out: Any) -> None:
    """Signed integers of so many bytes, eight at most, the most significant first."""
    for i in range(len(start)):
        p = start[i]
        value = int(data[p])
        if value >= 128:  # so that plain Python, whose integers have no end, computes the same
            value -= 256
        for x in range(p + 1, p + width):
            value = value * 256 + int(data[x])
        out[i] = value


@part
def _word(data: Any, start: Any, out: Any, at: Any) -> None:
    """Copies eight bytes: read before any is written, they are one load and one store."""
    s, t = np.uint64(start), np.uint64(at)
    a, b, c, d = data[s], data[s + np.uint64(1)], data[s + np.uint64(2)], data[s + np.uint64(3)]
    e, f, g, h = data[s + np.uint64(4)], data[s + np.uint64(5)], data[s + np.uint64(6)], data[s + np.uint64(7)]
    out[t], out[t + np.uint64(1)], out[t + np.uint64(2)], out[t + np.uint64(3)] = a, b, c, d
    out[t + np.uint64(4)], out[t + np.uint64(5)], out[t + np.uint64(6)], out[t + np.uint64(7)] = e, f, g, h


@part
def _append(data: Any, start: Any, length: Any, out: Any, at: Any, end: Any) -> Any:
    """Copies a short string by words, where there is room for whole ones before `end`; where the next begins."""
    if length <= 0:
        return at
    words = (length + 7) >> 3
    if at + 8 * words > end or start + 8 * words > len(data):
        copy(data, start, length, out, at)
    else:
        for w in range(words):
            _word(data, start + 8 * w, out, at + 8 * w)
    return at + length


TOGETHER = 6
"""Columns that `weave` takes at a time."""


@kernel(numba.void(*(BYTES_GIVEN, _INTS), *(BYTES_GIVEN, _INTS, _INTS) * TOGETHER, _OUT, _INTS, _INTS))
def weave(
    literals: Any, ends: Any,
    data: Any, start: Any, length: Any, data1: Any, start1: Any, length1: Any, data2: Any, start2: Any, length2: Any,
    data3: Any, start3: Any, length3: Any, data4: Any, start4: Any, length4: Any, data5: Any, start5: Any, length5: Any,
    out: Any, at: Any, row_ends: Any,
) -> None:
    """Appends to each row a literal and a string, six times.

    ends: of each literal, int64[6]; at: where the rows end so far, which moves on; row_ends: where they will end
    """  # fmt: skip
    for i in range(len(at)):
        p, end = at[i], row_ends[i]
        p = _append(literals, 0, ends[0], out, p, end)
        p = _append(data, start[i], length[i], out, p, end)
        p = _append(literals, ends[0], ends[1] - ends[0], out, p, end)
        p = _append(data1, start1[i], length1[i], out, p, end)
        p = _append(literals, ends[1], ends[2] - ends[1], out, p, end)
        p = _append(data2, start2[i], length2[i], out, p, end)
        p = _append(literals, ends[2], ends[3] - ends[2], out, p, end)
        p = _append(data3, start3[i], length3[i], out, p, end)
        p = _append(literals, ends[3], ends[4] - ends[3], out, p, end)
        p = _append(data4, start4[i], length4[i], out, p, end)
        p = _append(literals, ends[4], ends[5] - ends[4], out, p, end)
        at[i] = _append(data5, start5[i], length5[i], out, p, end)


@kernel(numba.void(BYTES_GIVEN, _INTS, _INTS, numba.boolean[::1]))
def bare(data: Any, start: Any, length: Any, out: Any) -> None:
    """Whether each text stands in JSON as it is: no control character, quote or backslash is in it."""
    for i in range(len(start)):
        out[i] = True
        for x in range(start[i], start[i] + length[i]):
            c = data[np.uint64(x)]
            if c < SPACE or c in (QUOTE, BACKSLASH):
                out[i] = False
                break


@kernel(numba.void(BYTES_GIVEN, _INTS, _INTS, numba.int64[:, ::1]))
def members(data: Any, start: Any, length: Any, out: Any) -> None:
    """Where the members of JSON objects without spaces begin.

    out: int64[k, n], of the first k members, the brace or comma before each; the end where there are fewer
    """
    for i in range(len(start)):
        p, end = start[i], start[i] + length[i]
        found, depth = 0, 0
        while p < end and found < len(out):
            c = data[np.uint64(p)]
            if c == QUOTE:
                p += 1
                while p < end and data[np.uint64(p)] != QUOTE:
                    p += 2 if data[np.uint64(p)] == BACKSLASH else 1
            elif c in (OPEN_BRACE, OPEN):
                depth += 1
                if depth == 1:
                    out[found, i] = p
                    found += 1
            elif c in (CLOSE_BRACE, CLOSE):
                depth -= 1
            elif c == COMMA and depth == 1:
                out[found, i] = p
                found += 1
            p += 1
        while found < len(out):
            out[found, i] = end
            found += 1


@kernel(numba.void(_INTS, BYTES_GIVEN, _OUT, _INTS, _INTS))
def digits(column: Any, before: Any, out: Any, start: Any, length: Any) -> None:
    """Integers as text, each behind the same bytes, from where it starts; there is room for 20 digits and signs."""
    for i in range(len(column)):
        rest, q = column[i], start[i]
        for x in range(len(before)):
            out[q] = before[x]
            q += 1
        if rest < 0:
            out[q] = MINUS
            q += 1
        else:
            rest = -rest  # the least int64 has no positive
        count, left = 1, rest
        while left <= -10:
            left = -(-left // 10) if left != LEAST else LEAST_TENTH
            count += 1
        for x in range(count):
            tenth = -(-rest // 10) if rest != LEAST else LEAST_TENTH
            out[q + count - 1 - x] = ZERO + (10 * tenth - rest)
            rest = tenth
        length[i] = q + count - start[i]


class Names(NamedTuple):
    """Byte strings by number, and the number of each by its hash.

    buckets:  a power of two of them, a number + 1 each, 0 where there is none
    hash, start, length: of each number; length -1: the number is free
    arena:    their bytes
    free:     numbers that are free, the next one last
    counters: USED, FREE, BYTES
    """

    buckets: Any
    hash: Any
    start: Any
    length: Any
    arena: Any
    free: Any
    counters: Any


NAMES = _types.NamedTuple([_INTS] * 4 + [_OUT] + [_INTS] * 2, Names)


@part
def _hash(data: Any, start: Any, length: Any) -> Any:
    """31 bits; every product fits int64, so that plain Python computes the same."""
    h = 2166136261
    for x in range(start, start + length):
        h = ((h ^ int(data[np.uint64(x)])) * 16777619) & 0xFFFFFFFF
    h = ((h ^ (h >> 15)) & 0x7FFFFFFF) * 0x2C1B3C6D
    return (h ^ (h >> 31)) & 0x7FFFFFFF


@kernel(numba.void(BYTES_GIVEN, _INTS, _INTS, _INTS))
def hashes(data: Any, start: Any, length: Any, out: Any) -> None:
    for i in range(len(start)):
        out[i] = int(_hash(data, start[i], length[i]))


BLOCK = 64
"""Bytes of a line of the processor's cache, in which all bits of one hash lie."""


@part
def _mixed(h: Any) -> Any:
    """31 other bits; every product fits int64, so that plain Python computes the same."""
    h = ((h ^ (h >> 16)) & 0x7FFFFFFF) * 0x45D9F3B
    h = ((h ^ (h >> 16)) & 0x7FFFFFFF) * 0x2C1B3C6D
    return (h ^ (h >> 31)) & 0x7FFFFFFF


@kernel(numba.void(_INTS, _OUT))
def note(hashes: Any, bits: Any) -> None:
    """Sets the six bits of each hash."""
    blocks = len(bits) // BLOCK
    for i in range(len(hashes)):
        block, h = hashes[i] % blocks * BLOCK, hashes[i]
        for _ in range(2):
            h = _mixed(h + 1)
            for k in range(3):
                bit = (h >> (9 * k)) & 511
                bits[block + (bit >> 3)] |= 1 << (bit & 7)


@kernel(numba.void(_INTS, _OUT, _OUT))
def noted(hashes: Any, bits: Any, out: Any) -> None:
    """Sets out to 1 where all bits of the hash are set."""
    blocks = len(bits) // BLOCK
    for i in range(len(hashes)):
        block, h, every = hashes[i] % blocks * BLOCK, hashes[i], True
        for _ in range(2):
            h = _mixed(h + 1)
            for k in range(3):
                bit = (h >> (9 * k)) & 511
                if int(bits[block + (bit >> 3)]) & (1 << (bit & 7)) == 0:
                    every = False
        if every:
            out[i] = 1


@kernel(numba.void(BYTES_GIVEN, _INTS, _INTS, NAMES, _INTS))
def number(data: Any, start: Any, length: Any, names: Any, out: Any) -> None:
    """The number of each string, given to those that are new; UNKNOWN where it is missing. There is room for all."""
    mask = len(names.buckets) - 1
    for i in range(len(start)):
        size, p = length[i], start[i]
        out[i] = UNKNOWN
        if size < 0:
            continue
        h = int(_hash(data, p, size))
        at, found = h & mask, -1
        while names.buckets[at] != 0:
            one = names.buckets[at] - 1
            if names.hash[one] == h and names.length[one] == size:
                q, same = names.start[one], True
                for x in range(size):
                    if names.arena[np.uint64(q + x)] != data[np.uint64(p + x)]:
                        same = False
                        break
                if same:
                    found = one
                    break
            at = (at + 1) & mask
        if found < 0:
            if names.counters[FREE] > 0:
                names.counters[FREE] -= 1
                found = names.free[names.counters[FREE]]
            else:
                found = names.counters[USED]
                names.counters[USED] += 1
            q = names.counters[BYTES]
            names.counters[BYTES] += size
            copy(data, p, size, names.arena, q)
            names.hash[found], names.start[found], names.length[found] = h, q, size
            names.buckets[at] = found + 1
        out[i] = found


@kernel(numba.void(BYTES_GIVEN, _INTS, _INTS, NAMES, _INTS))
def find(data: Any, start: Any, length: Any, names: Any, out: Any) -> None:
    """The number of each string; -1 where it has none."""
    mask = len(names.buckets) - 1
    for i in range(len(start)):
        size, p = length[i], start[i]
        h = int(_hash(data, p, size))
        at = h & mask
        out[i] = -1
        while names.buckets[at] != 0:
            one = names.buckets[at] - 1
            if names.hash[one] == h and names.length[one] == size:
                q, same = names.start[one], True
                for x in range(size):
                    if names.arena[q + x] != data[p + x]:
                        same = False
                        break
                if same:
                    out[i] = one
                    break
            at = (at + 1) & mask


@kernel(numba.void(NAMES))
def rehash(names: Any) -> None:
    """Fills empty buckets with the numbers in use."""
    mask = len(names.buckets) - 1
    for one in range(names.counters[USED]):
        if names.length[one] >= 0:
            at = names.hash[one] & mask
            while names.buckets[at] != 0:
                at = (at + 1) & mask
            names.buckets[at] = one + 1
