"""Rows of JSON into columns, compiled: one pass over the bytes of each row.

A row is taken where every byte of it is understood; whatever is odd is left (see `jsoncolumns.JsonColumns`). All parts
lie in this file: numba compiles a kernel anew where its own file has changed, and only there.

How no byte is read that is not the row's: `last` is the row's last byte that is not white, and it must be a closing
brace. Loops over digits and over what is white end there at the latest; everything else asks before it reads.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np
from headrace.streams.event import NEWEST, OLDEST
from headrace.streams.kernels import kernel, part

# What a field holds. A number that may be missing is written as float64, as are floats.
INT, FLOAT, BOOL, TEXT, TIME, ANY = range(6)
"""ANY is one that is not declared: a scalar that is checked and passed over."""

MAX_BYTES, MAX_INTEGER, AHEAD, KEY, TIME_FIELD, KEYLESS, IGNORES = range(7)
"""Places in `Schema.limits`."""


class Schema(NamedTuple):
    """The fields of an event class, and what is asked of a row.

    names:    their names, each with its closing quote and zeros up to a multiple of eight bytes, as numbers of 64 bits
    name:     where the name of each begins
    size:     its bytes, with the quote
    spare:    bits of its last number that are none of its own
    kind:     INT to TIME, of each field
    floated:  1 where its cells are floats
    optional: 1 where it may be null
    absent:   1 where it may be left out, and is then null
    cell:     its row of cells; a text has two: where it begins, and its bytes
    seen:     the last row that had it, -1 before the first; changed
    limits:   most bytes of a row, largest integer, microseconds that its time may lie ahead, the fields of key and
              time, 1 where a record needs no key, 1 where a field that is not declared is passed over
    """

    names: Any
    name: Any
    size: Any
    spare: Any
    kind: Any
    floated: Any
    optional: Any
    absent: Any
    cell: Any
    seen: Any
    limits: Any


class Strings(NamedTuple):
    """Byte strings, as `spans.Spans`."""

    data: Any
    start: Any
    length: Any


class Cells(NamedTuple):
    """What rows become.

    ok:    of each row, whether it was taken
    time:  its event time, microseconds
    cells: int64[cell, row], the bits of floats; `fcells` is the same memory as float64
    """

    ok: Any
    time: Any
    cells: Any
    fcells: Any


_named: Any = numba.types.NamedTuple
_read: Any = numba.types.Array
_bytes = _read(numba.uint8, 1, "C", readonly=True)
_given = _read(numba.int64, 1, "C", readonly=True)
_numbers = numba.int64[::1]

STRINGS = _named([_bytes, _given, _given], Strings)
SCHEMA = _named([numba.uint64[::1], _numbers, _numbers, numba.uint64[::1], *[_numbers] * 7], Schema)
CELLS = _named([numba.boolean[::1], _numbers, numba.int64[:, ::1], numba.float64[:, ::1]], Cells)

WHITE = SPACE, NEWLINE, RETURN, TAB = tuple(b" \n\r\t")
QUOTE, COMMA, COLON, OPEN, CLOSE, SLASH = b'",:{}\\'
PLUS, MINUS, DOT, UPPER_T, UPPER_Z = b"+-.TZ"
A, E, F, L, N, R, S, T, U = b"aeflnrstu"
ZERO = 48
_TOPS, _RESTS, _BELOW_SPACE, _QUOTES, _SLASHES = (
    np.uint64(0x0101010101010101 * n) for n in (0x80, 0x7F, 0x80 - SPACE, QUOTE, SLASH)
)
ODD = 1000
"""What stands for two digits that are none: beyond every month, day, hour, minute and second."""

MINUTE, DAY, SECOND = 60, 86_400, 1_000_000
EPOCH_DAYS = 719_468
"""Days from 0000-03-01 to 1970-01-01 in the Gregorian calendar."""


@part
def _at(data: Any, p: Any) -> Any:
    """A byte. Its place is unsigned, as numba spends time on places that count from the end."""
    return np.int64(data[np.uint64(p)])


@part
def _white(data: Any, p: Any) -> Any:
    """The first place from p on that is not white."""
    c = _at(data, p)
    while c in WHITE:
        p += 1
        c = _at(data, p)
    return p


@part
def _eight(data: Any, p: Any) -> Any:
    """Eight bytes at once, the first one lowest: the compiler makes one load of it."""
    eight = np.uint64(data[np.uint64(p)])
    for k in range(1, 8):
        eight |= np.uint64(data[np.uint64(p + k)]) << np.uint64(8 * k)
    return eight


# Numbers. Decimal digits become the nearest float64: by one exact division or product where digits and power of ten
# are float64 themselves (Clinger, PLDI 1990), else by the first 128 bits of the power of five (Lemire, "Number Parsing
# at a Gigabyte per Second", Software: Practice and Experience 51, 2021).

TENS = np.array([float(10**n) for n in range(23)])
"""The powers of ten that float64 holds exactly."""
EXACT = np.uint64(2**53)
FULL = np.uint64(10**18)
"""One more digit fits into 64 bits."""
LEAST_POWER, GREATEST_POWER = -342, 308
"""Beyond them 19 digits are 0 or infinity."""
SAFE_LOW, SAFE_HIGH = -27, 55
"""Powers of five within these are exact in 128 bits; beyond, a product whose low half is all ones decides nothing."""
LONGEST_EXPONENT = 10_000
_U0, _U1, _U2, _U3, _U9, _U10, _U32, _U63, _U64 = (np.uint64(n) for n in (0, 1, 2, 3, 9, 10, 32, 63, 64))
_BYTE, _LOW_HALF, _ALL = np.uint64(255), np.uint64(2**32 - 1), np.uint64(2**64 - 1)
_ROUNDED_OFF, _HIDDEN, _OVERFLOWN = np.uint64(2**9 - 1), np.uint64(2**52), np.uint64(2**53)
_SIGN = -(2**63)


def _power_of_five(power: int) -> tuple[int, int]:
    """The first 128 bits of 5**power. Of a negative power the reciprocal's, rounded up where it is short enough."""
    five: int = 5 ** abs(power)
    if power >= 0:
        first = five << 128 >> five.bit_length()
    elif power >= SAFE_LOW:
        first = (1 << five.bit_length() + 127) // five + 1
    else:
        first = (1 << 2 * five.bit_length() + 128) // five + 1
        first >>= first.bit_length() - 128
    return first >> 64, first & 2**64 - 1


FIVES = np.array([_power_of_five(n) for n in range(LEAST_POWER, GREATEST_POWER + 1)], np.uint64)


@part
def _product(a: Any, b: Any) -> Any:
    """The two halves of a product of 64 bits by 64; no sum in it overflows."""
    a1, a0, b1, b0 = a >> _U32, a & _LOW_HALF, b >> _U32, b & _LOW_HALF
    low, left, right = a0 * b0, a0 * b1, a1 * b0
    middle = (low >> _U32) + (left & _LOW_HALF) + (right & _LOW_HALF)
    high = a1 * b1 + (left >> _U32) + (right >> _U32) + (middle >> _U32)
    return high, (low & _LOW_HALF) | ((middle & _LOW_HALF) << _U32)


@part
def _nearest(digits: Any, power: Any) -> Any:
    """The bits of the float64 nearest to digits * 10**power, digits > 0; -1 where that is not known."""
    if power < LEAST_POWER or power > GREATEST_POWER:
        return -1
    shift = 0
    for step in (32, 16, 8, 4, 2, 1):
        if digits >> np.uint64(64 - step) == _U0:
            digits <<= np.uint64(step)
            shift += step
    high, low = _product(digits, FIVES[power - LEAST_POWER, 0])
    if high & _ROUNDED_OFF == _ROUNDED_OFF:
        more, _ = _product(digits, FIVES[power - LEAST_POWER, 1])
        room = _ALL - low
        if more > room:
            high += _U1
            low = more - room - _U1
        else:
            low += more
    if low == _ALL and (power < SAFE_LOW or power > SAFE_HIGH):
        return -1
    upper = np.int64(high >> _U63)
    cut = np.uint64(upper + 9)
    mantissa = high >> cut
    exponent = ((217_706 * power) >> 16) + 63 + upper - shift + 1023
    if exponent <= 0:
        if exponent <= -63:
            return 0
        mantissa >>= np.uint64(1 - exponent)
        mantissa = (mantissa + (mantissa & _U1)) >> _U1
        return np.int64(mantissa)  # subnormal, or the first that is not
    if low <= _U1 and -4 <= power <= 23 and mantissa & _U3 == _U1 and mantissa << cut == high:
        mantissa -= _U1  # exactly between two: the even one
    mantissa = (mantissa + (mantissa & _U1)) >> _U1
    if mantissa >= _OVERFLOWN:
        mantissa = _HIDDEN
        exponent += 1
    if exponent >= 2047:
        return -1
    return np.int64(mantissa - _HIDDEN) | (exponent << 52)


@part
def _digits(data: Any, p: Any) -> Any:
    """(end, digits, power of ten, whole?, more digits?) of the number without sign at p; the end is -1 for none.

    `more digits` says that what was cut off is not 0: the number lies between digits and digits + 1.
    """
    digits, power, more, first, whole = _U0, 0, False, p, True
    d = np.uint64(_at(data, p) - ZERO)
    while d <= _U9:
        if digits < FULL:
            digits = digits * _U10 + d
        else:
            power += 1
            more |= d != _U0
        p += 1
        d = np.uint64(_at(data, p) - ZERO)
    if p == first or (p > first + 1 and _at(data, first) == ZERO):
        return -1, digits, power, whole, more
    if _at(data, p) == DOT:
        whole = False
        p += 1
        first = p
        d = np.uint64(_at(data, p) - ZERO)
        while d <= _U9:
            if digits < FULL:
                digits = digits * _U10 + d
                power -= 1
            else:
                more |= d != _U0
            p += 1
            d = np.uint64(_at(data, p) - ZERO)
        if p == first:
            return -1, digits, power, whole, more
    if _at(data, p) | 32 == E:
        whole = False
        p += 1
        sign = _at(data, p)
        if sign in (MINUS, PLUS):
            p += 1
        first, exponent = p, 0
        c = _at(data, p) - ZERO
        while 0 <= c <= 9:
            if exponent < LONGEST_EXPONENT:
                exponent = exponent * 10 + c
            p += 1
            c = _at(data, p) - ZERO
        if p == first:
            return -1, digits, power, whole, more
        power += -exponent if sign == MINUS else exponent
    return p, digits, power, whole, more


@part
def _float(negative: Any, digits: Any, power: Any, more: Any, cell: Any, i: Any, out: Any) -> Any:
    """Writes the float64 nearest to a number; whether it is known."""
    if digits <= EXACT and -23 < power < 23:  # of these no digit was cut off
        x = np.float64(digits)
        x = x / TENS[-power] if power < 0 else x * TENS[power]
        out.fcells[cell, i] = -x if negative else x
        return True
    bits = np.int64(0)
    if digits != _U0:
        bits = _nearest(digits, power)
        if bits < 0 or (more and _nearest(digits + _U1, power) != bits):
            return False
    out.cells[cell, i] = bits | _SIGN if negative else bits
    return True


# Text and times.


@part
def _character(data: Any, p: Any) -> Any:
    """Bytes of the character of UTF-8 at p that is not ASCII; 0 where it is none (Unicode 16, table 3-7).

    The closing brace continues no character, so none is looked for beyond it.
    """
    c = _at(data, p)
    size = 2 if c < 0xE0 else 3 if c < 0xF0 else 4
    if c < 0xC2 or c > 0xF4:
        return 0
    low, high = 0x80, 0xBF
    if c == 0xE0:
        low = 0xA0  # less would fit into two bytes
    elif c == 0xED:
        high = 0x9F  # surrogates
    elif c == 0xF0:
        low = 0x90  # less would fit into three bytes
    elif c == 0xF4:
        high = 0x8F  # beyond U+10FFFF
    d = _at(data, p + 1)
    if d < low or d > high:
        return 0
    for k in range(2, size):
        if _at(data, p + k) & 0xC0 != 0x80:
            return 0
    return size


SHORT = 16
"""Bytes of a text that are looked at one by one before eight are at once: with fewer nothing is gained."""


@part
def _plain(eight: Any) -> Any:
    """Whether eight bytes are ASCII without quotes, backslashes and control characters. No sum passes into the next."""
    rest = eight & _RESTS
    tops = (rest + _BELOW_SPACE) & ((rest ^ _QUOTES) + _RESTS) & ((rest ^ _SLASHES) + _RESTS) & ~eight
    return tops & _TOPS == _TOPS


@part
def _text(data: Any, p: Any, last: Any) -> Any:
    """The place of the quote that ends the text from p on; -1 where it has an escape, or is none."""
    while p < last:
        stop = min(p + SHORT, last)
        while p < stop:
            c = _at(data, p)
            if c == QUOTE:
                return p
            if c < SPACE or c == SLASH:
                return -1
            size = 1 if c < 128 else _character(data, p)
            if size == 0:
                return -1
            p += size
        while p + 8 <= last and _plain(_eight(data, p)):
            p += 8
    return -1


@part
def _pair(data: Any, p: Any) -> Any:
    """The number of two digits at p; ODD for none."""
    tens, ones = np.uint64(_at(data, p) - ZERO), np.uint64(_at(data, p + 1) - ZERO)
    return np.int64(tens * _U10 + ones) if tens <= _U9 and ones <= _U9 else ODD


@part
def _moment(data: Any, p: Any, last: Any) -> Any:
    """(end, microseconds since 1970) of a time `YYYY-MM-DDTHH:MM:SS[.fraction](Z|+hh:mm|-hh:mm)"`; the end, after its
    quote, is -1 for none. As msgspec rounds, so does this: to microseconds, by the seventh digit.
    """
    if p + 20 >= last:
        return -1, 0
    century, year, month, day = _pair(data, p), _pair(data, p + 2), _pair(data, p + 5), _pair(data, p + 8)
    hour, minute, second = _pair(data, p + 11), _pair(data, p + 14), _pair(data, p + 17)
    if (
        (_at(data, p + 4) ^ MINUS) | (_at(data, p + 7) ^ MINUS) | (_at(data, p + 10) ^ UPPER_T)
        | (_at(data, p + 13) ^ COLON) | (_at(data, p + 16) ^ COLON)
    ) != 0:  # fmt: skip
        return -1, 0
    if century > 99 or year > 99 or hour > 23 or minute > 59 or second > 59:
        return -1, 0
    year += century * 100
    if year < 1 or month < 1 or month > 12 or day < 1:
        return -1, 0
    most = 30 + ((month + (month >> 3)) & 1)
    if month == 2:
        most = 29 if year % 4 == 0 and (year % 100 != 0 or year % 400 == 0) else 28
    if day > most:
        return -1, 0
    # Years begin in March here: so the leap day is the last one, and months have a rule.
    if month < 3:
        year -= 1
        month += 12
    days = 365 * year + year // 4 - year // 100 + year // 400 + (153 * month - 457) // 5 + day - 1 - EPOCH_DAYS
    seconds = days * DAY + hour * 3600 + minute * MINUTE + second
    p += 19
    micros, c = 0, _at(data, p)
    if c == DOT:
        first, unit = p + 1, SECOND
        p = first
        c = _at(data, p)
        while ZERO <= c <= ZERO + 9:
            if unit > 1:
                unit //= 10
                micros += (c - ZERO) * unit
            elif p == first + 6 and c >= ZERO + 5:
                micros += 1
            p += 1
            c = _at(data, p)
        if p == first or micros == SECOND:  # a second more may be a year too late
            return -1, 0
    if c == UPPER_Z:
        p += 1
    elif c in (PLUS, MINUS):
        if p + 6 >= last or _at(data, p + 3) != COLON:
            return -1, 0
        hour, minute = _pair(data, p + 1), _pair(data, p + 4)
        if hour > 23 or minute > 59:
            return -1, 0
        offset = (hour * 60 + minute) * MINUTE
        seconds += offset if c == MINUS else -offset
        p += 6
    else:
        return -1, 0
    return (p + 1 if _at(data, p) == QUOTE else -1), seconds * SECOND + micros


# Rows.


@part
def _field(data: Any, p: Any, last: Any, hint: Any, schema: Any) -> Any:
    """The field whose name, with its quote, lies at p; -1 for none. The hint is looked at first, then what follows."""
    f, count = hint, len(schema.kind)
    for _ in range(count):
        size, word = schema.size[f], schema.name[f]
        left, k = size, 0
        if size + 7 <= last - p:
            while left > 8 and _eight(data, p + k) == schema.names[word]:
                left -= 8
                k += 8
                word += 1
            if left <= 8 and _eight(data, p + k) << schema.spare[f] == schema.names[word] << schema.spare[f]:
                return f
        elif size <= last - p:
            while (
                k < size
                and np.uint64(_at(data, p + k)) == schema.names[word + (k >> 3)] >> np.uint64(8 * (k & 7)) & _BYTE
            ):
                k += 1
            if k == size:
                return f
        f = f + 1 if f + 1 < count else 0
    return -1


@part
def _literal(data: Any, p: Any, last: Any) -> Any:
    """(end, 1 for true, 0 for false, -1 for null); the end is -1 for anything else."""
    if p + 4 > last:
        return -1, 0
    a, b, c, d = _at(data, p), _at(data, p + 1), _at(data, p + 2), _at(data, p + 3)
    if a == T and b == R and c == U and d == E:
        return p + 4, 1
    if a == N and b == U and c == L and d == L:
        return p + 4, -1
    if a == F and b == A and c == L and d == S and _at(data, p + 4) == E:
        return p + 5, 0
    return -1, 0


@part
def _write(f: Any, value: Any, i: Any, schema: Any, out: Any) -> None:
    """Writes an integer, as a float where the field may be missing."""
    if schema.floated[f] == 1:
        out.fcells[schema.cell[f], i] = np.float64(value)
    else:
        out.cells[schema.cell[f], i] = value


@part
def _miss(f: Any, i: Any, schema: Any, out: Any) -> None:
    """Writes that a field is missing."""
    if schema.kind[f] == TEXT:
        out.cells[schema.cell[f], i] = 0
        out.cells[schema.cell[f] + 1, i] = -1
    else:
        out.fcells[schema.cell[f], i] = np.nan


@part
def _value(data: Any, p: Any, last: Any, f: Any, i: Any, schema: Any, out: Any) -> Any:
    """(end, integer) of the value at p, which field f takes; the end is -1 where it does not.

    The integer is that of an int, and the microseconds of a time.
    """
    c = _at(data, p)
    kind = schema.kind[f] if f >= 0 else ANY
    if c == QUOTE:
        if kind == TIME:
            end, micros = _moment(data, p + 1, last)
            if end >= 0:
                _write(f, micros, i, schema, out)
            return end, micros
        end = _text(data, p + 1, last)
        if end < 0 or kind not in (TEXT, ANY):
            return -1, 0
        if kind == TEXT:
            out.cells[schema.cell[f], i] = p + 1
            out.cells[schema.cell[f] + 1, i] = end - p - 1
        return end + 1, 0
    negative = c == MINUS
    if negative or ZERO <= c <= ZERO + 9:
        if kind in (BOOL, TEXT, TIME):
            return -1, 0
        end, digits, power, whole, more = _digits(data, p + 1 if negative else p)
        if negative and whole and digits == _U0:  # msgspec makes 0.0 of it, and not -0.0
            return -1, 0
        if kind == INT:
            if not whole or digits > np.uint64(schema.limits[MAX_INTEGER]):
                return -1, 0
            value = -np.int64(digits) if negative else np.int64(digits)
            _write(f, value, i, schema, out)
            return end, value
        if kind == FLOAT and end >= 0 and not _float(negative, digits, power, more, schema.cell[f], i, out):
            return -1, 0
        return end, 0
    end, truth = _literal(data, p, last)
    if end < 0 or kind == ANY:
        return end, 0
    if truth < 0:
        if schema.optional[f] == 0:
            return -1, 0
        _miss(f, i, schema, out)
        return end, 0
    if kind != BOOL:
        return -1, 0
    _write(f, truth, i, schema, out)
    return end, 0


@part
def _same(data: Any, p: Any, length: Any, keys: Any, i: Any) -> Any:
    """Whether key i is these bytes."""
    start = keys.start[i]
    if keys.length[i] != length or start < 0 or length > len(keys.data) - start:
        return False
    k = 0
    while k < length and _at(data, p + k) == _at(keys.data, start + k):
        k += 1
    return k == length


@part
def _fill(i: Any, schema: Any, out: Any) -> Any:
    """Writes that fields are missing that row i has not; whether all of them may be left out."""
    for f in range(len(schema.kind)):
        if schema.seen[f] != i:
            if schema.absent[f] == 0:
                return False
            _miss(f, i, schema, out)
    return True


LONG_AGO = -(2**62)
NO_KEY = -(2**63)
"""No event time: milliseconds are at most 2^53."""


@part
def _timely(time: Any, published: Any, ahead: Any) -> Any:
    """Whether an event time is taken, all in microseconds. The difference does not overflow."""
    return OLDEST <= time <= NEWEST and published > LONG_AGO and time - published <= ahead


@part
def _row(i: Any, values: Any, keys: Any, published: Any, schema: Any, out: Any) -> Any:
    """Reads row i; whether it was taken. Its time is NO_KEY where nothing is wrong with it so far but an empty key."""
    out.time[i] = 0
    data, p, length, limits = values.data, values.start[i], values.length[i], schema.limits
    if length < 2 or length > limits[MAX_BYTES] or p < 0 or p > len(data) - length:
        return False
    last = p + length - 1
    while last > p and _at(data, last) in WHITE:
        last -= 1
    p = _white(data, p) if _at(data, last) == CLOSE else last
    if p == last or _at(data, p) != OPEN:
        return False
    hint, found, key, key_length, time, count = 0, 0, p, 0, np.int64(0), len(schema.kind)
    c = COMMA
    while c == COMMA:
        p = _white(data, p + 1)
        if _at(data, p) != QUOTE:
            return False
        p += 1
        f = _field(data, p, last, hint, schema)
        if f >= 0:
            if schema.seen[f] == i:
                return False
            schema.seen[f] = i
            found += 1
            hint = f + 1 if f + 1 < count else 0
            p += schema.size[f]
        else:
            p = _text(data, p, last) + 1
            if p == 0 or limits[IGNORES] == 0:
                return False
        p = _white(data, p)
        if _at(data, p) != COLON:
            return False
        p = _white(data, p + 1)
        end, value = _value(data, p, last, f, i, schema, out)
        if end < 0:
            return False
        if f == limits[KEY]:
            quotes = 1 if schema.kind[f] == TEXT else 0
            key, key_length = p + quotes, end - p - 2 * quotes
            if _at(data, p) == N:
                return False
        if f == limits[TIME_FIELD]:
            time = value if schema.kind[f] == TIME else value * 1000
        p = _white(data, end)
        c = _at(data, p)
    if p != last or (found < count and not _fill(i, schema, out)):
        return False
    if key_length == 0:
        out.time[i] = NO_KEY
        return False
    if keys.length[i] < 0:
        if limits[KEYLESS] == 0:
            return False
    elif not _same(data, key, key_length, keys, i):
        return False
    out.time[i] = time
    return _timely(time, published[i], limits[AHEAD])


@kernel(numba.void(STRINGS, STRINGS, _given, SCHEMA, CELLS))
def decode(values: Any, keys: Any, published: Any, schema: Any, out: Any) -> None:
    """Reads every row: published in microseconds."""
    for i in range(len(values.start)):
        out.ok[i] = _row(i, values, keys, published, schema, out)


# Rows of one layout: what we wrote ourselves.


class Layout(NamedTuple):
    """What stands around the values of a row: literal 0, value 0, literal 1, ..., the last literal.

    words: the literals, each with zeros up to a multiple of eight bytes, as numbers of 64 bits
    word:  where each begins
    size:  its bytes
    spare: bits of its last number that are none of its own
    """

    words: Any
    word: Any
    size: Any
    spare: Any


LAYOUT = _named([numba.uint64[::1], _numbers, _numbers, numba.uint64[::1]], Layout)


@part
def _passed(data: Any, p: Any, last: Any, n: Any, layout: Any) -> Any:
    """The place after literal n, which lies at p; -1 where it does not."""
    left, word = layout.size[n], layout.word[n]
    if left > last + 1 - p:
        return -1
    while left > 8 or (left > 0 and last - p >= 7):
        spare = layout.spare[n] if left <= 8 else _U0
        if _eight(data, p) << spare != layout.words[word] << spare:
            return -1
        if left <= 8:
            return p + left
        p += 8
        left -= 8
        word += 1
    for k in range(left):
        if np.uint64(_at(data, p + k)) != layout.words[word] >> np.uint64(8 * k) & _BYTE:
            return -1
    return p + left


@part
def _laid(i: Any, values: Any, layout: Any, schema: Any, out: Any) -> Any:
    """Reads row i; whether it was taken."""
    data, p, length, count = values.data, values.start[i], values.length[i], len(schema.kind)
    if length < 2 or p < 0 or p > len(data) - length:
        return False
    last = p + length - 1
    if _at(data, last) != CLOSE:
        return False
    for f in range(count):
        p = _passed(data, p, last, f, layout)
        if p < 0 or p > last:
            return False
        p, _ = _value(data, p, last, f, i, schema, out)
        if p < 0:
            return False
    return _passed(data, p, last, count, layout) == last + 1


@kernel(numba.void(STRINGS, LAYOUT, SCHEMA, CELLS))
def decode_laid(values: Any, layout: Any, schema: Any, out: Any) -> None:
    """Reads every row of one layout: of the schema, kind, floated, optional, cell and the largest integer are asked."""
    for i in range(len(values.start)):
        out.ok[i] = _laid(i, values, layout, schema, out)
