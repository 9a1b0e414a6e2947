"""Record batches (magic 2) as columns: read whole and built whole, without an object for each record.

Layout: org.apache.kafka.common.record.DefaultRecordBatch and DefaultRecord.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from struct import Struct
from typing import Any

import numba
import numpy as np
from aiokafka.codec import gzip_decode, has_lz4, has_snappy, has_zstd, lz4_decode, snappy_decode, zstd_decode
from crc32c import crc32c
from headrace.streams.errors import MalformedBatch
from headrace.streams.kernels import INT_MAX, kernel, part
from headrace.streams.spans import Spans
from numpy.typing import NDArray

Buffer = bytes | bytearray | memoryview

HEADER = Struct(">qiibIhiqqqhii")
"""Base offset, length of what follows it, leader's epoch, magic, CRC, attributes, last offset delta, base time, latest
time, producer's id, epoch and sequence, and how many records follow."""
HEADER_SIZE = HEADER.size
_LENGTH = Struct(">qi")
_PRODUCER = Struct(">qhi")
_MAGIC_AT, _CRC_AT, _ATTRIBUTES_AT, _LAST_AT, _TIME_AT, _LATEST_AT, _PRODUCER_AT, _COUNT_AT = (
    16, 17, 21, 23, 27, 35, 43, 57,
)  # fmt: skip

CODEC, APPEND_TIME, TRANSACTIONAL, CONTROL = 0x07, 0x08, 0x10, 0x20
"""Bits of the attributes."""

LEAST = 7
"""Bytes of the smallest record: a header that claims more records than there is room for gets no memory for them."""

MOST_AROUND = 36
"""Bytes of a record beside its key and value at most, and of a missing one's length, which is -1, what it lacks."""

_CODECS: dict[int, tuple[str, Callable[[], bool], Callable[[bytes], bytes]]] = {
    1: ("gzip", lambda: True, gzip_decode),
    2: ("snappy", has_snappy, snappy_decode),
    3: ("lz4", has_lz4, lz4_decode),
    4: ("zstd", has_zstd, zstd_decode),
}

_BYTES = numba.types.Array(numba.uint8, 1, "C", readonly=True)
_COLUMN = numba.int64[::1]
_TABLE = numba.int64[:, ::1]
_THREE: Any = numba.types.UniTuple(numba.int64, 3)  # type: ignore[no-untyped-call]


BEGIN, END, RECORDS, BASE, TIME, OWN_TIMES, NEXT, ATTRIBUTES, CRC, PRODUCER = range(10)
"""What is said of a batch before its records, as a row of a table: where these lie in the buffer, how many they are,
base offset, the time in milliseconds that theirs are added to or, where they have none of their own, that of all; the
offset after the batch; attributes, sum, producer's id."""

Heads = NDArray[np.int64]
"""int64[m, 10]."""

AT_ONCE = 500
"""Batches whose heads are read at one go, at most: a bound for the table."""


def intact(data: Buffer, head: Sequence[int]) -> bool:
    """Whether the bytes of a batch are those that were summed."""
    begin = head[BEGIN] - HEADER_SIZE + _ATTRIBUTES_AT
    return int(crc32c(memoryview(data)[begin : head[END]])) == head[CRC]


@dataclass(slots=True, eq=False)
class Columns:
    """Records in order, as columns of length n.

    offset:    int64[n]
    timestamp: int64[n], milliseconds
    """

    offset: NDArray[np.int64]
    timestamp: NDArray[np.int64]
    keys: Spans
    values: Spans

    def __len__(self) -> int:
        return len(self.offset)

    def __getitem__(self, rows: slice) -> Columns:
        return Columns(self.offset[rows], self.timestamp[rows], self.keys[rows], self.values[rows])

    @classmethod
    def joined(cls, parts: Sequence[Columns]) -> Columns:
        """All of them, one after the other."""
        return cls(
            np.concatenate([p.offset for p in parts]),
            np.concatenate([p.timestamp for p in parts]),
            Spans.joined([p.keys for p in parts]),
            Spans.joined([p.values for p in parts]),
        )


def whole(data: Buffer, at: int = 0) -> bool:
    """Whether a batch begins there that the buffer does not end inside of."""
    return len(data) - at >= _LENGTH.size and at + _LENGTH.size + _LENGTH.unpack_from(data, at)[1] <= len(data)


def heads(data: NDArray[np.uint8], at: int, wanted: int) -> Heads:
    """The heads of the batches from there on, until they have so many records, or no whole batch follows.

    Raises MalformedBatch where what follows first is none.
    """
    table = np.empty((min(AT_ONCE, (len(data) - at) // HEADER_SIZE), PRODUCER + 1), np.int64)
    found = table[: survey(data, at, wanted, table)]
    if not len(found) and whole(data.data, at):
        _, length = _LENGTH.unpack_from(data.data, at)
        if length < HEADER_SIZE - _LENGTH.size:
            raise MalformedBatch(f"a record batch of {length} bytes is shorter than its header")
        magic = int(data[at + _MAGIC_AT])
        raise MalformedBatch(f"a record batch is of message format {magic}; format 2 is read, Kafka's own since 0.11")
    return found


def read(batch: Buffer, first: int) -> Columns:
    """The records of one batch from an offset on. Keys and values lie in the batch, or in what it was decompressed to.

    Raises MalformedBatch.
    """
    data = np.frombuffer(batch, np.uint8)
    table = heads(data, 0, 1)
    if not len(table) or table[0, END] != len(data):
        raise MalformedBatch(f"{len(data)} bytes are no whole record batch")
    return columns(data, table, first)


def columns(data: NDArray[np.uint8], table: Heads, first: int) -> Columns:
    """The records of these batches of a buffer from an offset on, read at one go. Keys and values lie in the buffer, or
    in what these batches were decompressed to.

    Raises MalformedBatch.
    """
    said = table.tolist()
    if any(head[ATTRIBUTES] & CODEC for head in said):
        # Several become one buffer, as keys and values are spans of one.
        parts = [_plain(data, head) for head in said]
        table = table.copy()
        table[:, END] = np.cumsum([len(p) for p in parts])
        table[:, BEGIN] = table[:, END] - [len(p) for p in parts]
        data, said = np.frombuffer(b"".join(parts) if len(parts) > 1 else parts[0], np.uint8), table.tolist()
    rows = 0
    for head in said:
        if not 0 <= head[RECORDS] * LEAST <= head[END] - head[BEGIN]:
            base, count = head[BASE], head[RECORDS]
            raise MalformedBatch(f"the batch at offset {base:,} has no room for the {count:,} records that it claims")
        rows += head[RECORDS]
    out = np.empty((6, rows), np.int64)
    found = parse(data, table, first, out)
    if found < 0:
        raise MalformedBatch(f"the bytes of the batch at offset {table[-1 - found, BASE]:,} are no records")
    offset, timestamp, key, key_length, value, value_length = out if found == rows else out[:, :found]
    return Columns(offset, timestamp, Spans(data, key, key_length), Spans(data, value, value_length))


def _plain(data: NDArray[np.uint8], head: Sequence[int]) -> bytes:
    """The bytes of a batch's records."""
    records = data[head[BEGIN] : head[END]].tobytes()
    codec = head[ATTRIBUTES] & CODEC
    if not codec:
        return records
    name, there, decode = _CODECS.get(codec, (f"codec {codec}", lambda: False, bytes))
    if not there():
        raise MalformedBatch(f"a record batch is compressed by {name}, which cannot be read here")
    try:
        return decode(records)
    except Exception as error:  # each codec has errors of its own for bytes that are none of its
        raise MalformedBatch(f"the batch at offset {head[BASE]:,} is not compressed by {name}: {error}") from error


def build(keys: Spans, values: Spans, timestamp: NDArray[np.int64], most: int) -> list[tuple[bytearray, int]]:
    """Uncompressed batches of these records, without headers, and how many each holds.

    timestamp: int64[n], milliseconds
    most:      bytes of a batch; a record that is larger goes alone

    Producer and sum are left open: `seal` puts them in.
    """
    rows = [np.ascontiguousarray(a) for a in (keys.start, keys.length, values.start, values.length, timestamp)]

    def bound(some: slice) -> int:
        """Bytes that these take at most."""
        told = rows[1][some]
        return int(told.sum()) + int(rows[3][some].sum()) + MOST_AROUND * len(told)

    left, row = bound(slice(None)), 0
    made: list[tuple[bytearray, int]] = []
    while row < len(keys):
        room = min(left, max(most, bound(slice(row, row + 1)))) if left > most else left
        batch = bytearray(HEADER_SIZE + room)
        end, to, latest = lay(keys.data, values.data, *rows, row, most, np.frombuffer(batch, np.uint8))
        del batch[end:]
        times = int(timestamp[row]), latest
        HEADER.pack_into(batch, 0, 0, end - _LENGTH.size, -1, 2, 0, 0, to - row - 1, *times, -1, -1, -1, to - row)
        made.append((batch, to - row))
        if to < len(keys):
            left -= bound(slice(row, to))
        row = to
    return made


def seal(batch: bytearray, producer_id: int, epoch: int, sequence: int, transactional: bool) -> None:
    """Say who produced a built batch, and sum it."""
    batch[_ATTRIBUTES_AT + 1] = TRANSACTIONAL if transactional else 0
    _PRODUCER.pack_into(batch, _PRODUCER_AT, producer_id, epoch, sequence)
    batch[_CRC_AT:_ATTRIBUTES_AT] = crc32c(memoryview(batch)[_ATTRIBUTES_AT:]).to_bytes(4, "big")


def ready() -> bool:
    """Whether nothing is left to compile."""
    return all(one.compiled for one in KERNELS)


def warm() -> None:
    """Compile what reads and builds, or take it from numba's cache."""
    for one in KERNELS:
        one.compile()


@part
def _big(data: Any, at: Any, width: Any) -> Any:
    """A signed number of so many bytes, the highest first."""
    value = np.int64(data[at])
    value -= (value & 128) << 1
    for i in range(at + 1, at + width):
        value = (value << 8) | np.int64(data[i])
    return value


@kernel(numba.int64(_BYTES, numba.int64, numba.int64, _TABLE))
def survey(data: Any, at: Any, wanted: Any, table: Any) -> Any:
    """Heads of batches, until they have so many records, the table is full, or no whole batch of magic 2 follows.

    Returns how many there are.
    """
    row = 0
    while row < len(table) and wanted > 0 and at + HEADER_SIZE <= len(data):
        length = _big(data, at + 8, 4)
        end = at + 12 + length
        if length < HEADER_SIZE - 12 or end > len(data) or data[at + _MAGIC_AT] != 2:
            break
        base, attributes = _big(data, at, 8), _big(data, at + _ATTRIBUTES_AT, 2)
        own = (attributes & APPEND_TIME) == 0
        head = table[row]
        head[BEGIN] = at + HEADER_SIZE
        head[END] = end
        head[RECORDS] = _big(data, at + _COUNT_AT, 4)
        head[BASE] = base
        head[TIME] = _big(data, at + (_TIME_AT if own else _LATEST_AT), 8)
        head[OWN_TIMES] = 1 if own else 0
        head[NEXT] = base + _big(data, at + _LAST_AT, 4) + 1
        head[ATTRIBUTES] = attributes
        head[CRC] = _big(data, at + _CRC_AT, 4) & 0xFFFFFFFF
        head[PRODUCER] = _big(data, at + _PRODUCER_AT, 8)
        wanted -= max(head[RECORDS], 1)
        at = end
        row += 1
    return row


@part
def _number(data: Any, at: Any, end: Any) -> Any:
    """(a zigzag varint, where it ends); one that does not end in time ends behind the end, where nothing follows."""
    value, shift = np.int64(0), np.int64(0)
    while at < end and shift < 64:
        byte = np.int64(data[at])
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return ((value >> 1) & INT_MAX) ^ -(value & 1), at
        shift += 7
    return np.int64(0), end + 1


@kernel(numba.int64(_BYTES, _TABLE, numba.int64, _TABLE))
def parse(data: Any, batches: Any, first: Any, out: Any) -> Any:
    """Records from an offset on, as columns.

    batches: their heads; how many records they claim is no less than 0
    out:     rows of offset, timestamp, key's start and length, value's start and length

    Returns how many records were written; -1 - i where batch i is malformed.
    """
    row = 0
    for b in range(len(batches)):
        at, stop = batches[b, BEGIN], batches[b, END]
        for _ in range(batches[b, RECORDS]):
            length, at = _number(data, at, stop)
            if length < 0 or length > stop - at:
                return -1 - b
            end = at + length
            at += 1  # a record's attributes: none are in use
            delta, at = _number(data, at, end)
            step, at = _number(data, at, end)
            key_length, key = _number(data, at, end)
            if key_length > end - key:
                return -1 - b
            value_length, value = _number(data, key + max(key_length, 0), end)
            if value_length > end - value:
                return -1 - b
            headers, at = _number(data, value + max(value_length, 0), end)
            if headers < 0:
                return -1 - b
            while headers > 0:
                length, at = _number(data, at, end)
                if length < 0 or length > end - at:
                    return -1 - b
                length, at = _number(data, at + length, end)
                if length > end - at:
                    return -1 - b
                at += max(length, 0)
                headers -= 1
            if at != end:
                return -1 - b
            offset = batches[b, BASE] + step
            if offset >= first:
                out[0, row] = offset
                out[1, row] = batches[b, TIME] + delta * batches[b, OWN_TIMES]
                out[2, row] = key
                out[3, row] = max(key_length, -1)
                out[4, row] = value
                out[5, row] = max(value_length, -1)
                row += 1
                first = offset + 1
        if at != stop:
            return -1 - b
    return row


@part
def _width(value: Any) -> Any:
    """Bytes of a number as a zigzag varint."""
    value = (value << 1) ^ (value >> 63)
    width = 1
    while value & ~127:
        value = (value >> 7) & (INT_MAX >> 6)
        width += 1
    return width


@part
def _put(value: Any, out: Any, at: Any) -> Any:
    """Write a number as a zigzag varint; returns where it ends."""
    value = (value << 1) ^ (value >> 63)
    while value & ~127:
        out[at] = (value & 127) | 128
        value = (value >> 7) & (INT_MAX >> 6)
        at += 1
    out[at] = value
    return at + 1


@part
def _put_bytes(data: Any, start: Any, length: Any, out: Any, at: Any) -> Any:
    """Write bytes with their length, -1 for missing ones; returns where they end."""
    at = _put(length, out, at)
    length = max(length, 0)
    # Unsigned: an index that may be negative keeps the compiler from copying many bytes at a time.
    source, target = np.uint64(start), np.uint64(at)
    for i in range(np.uint64(length)):
        out[target + i] = data[source + i]
    return at + length


@kernel(_THREE(_BYTES, _BYTES, _COLUMN, _COLUMN, _COLUMN, _COLUMN, _COLUMN, numba.int64, numba.int64, numba.uint8[::1]))
def lay(
    keys: Any, values: Any, key: Any, key_length: Any, value: Any, value_length: Any, time: Any, row: Any, most: Any,
    out: Any,
) -> Any:  # fmt: skip
    """Lay out records from a row on, behind room for the header, until a batch would have more bytes than `most`.

    Returns the bytes, the row that comes next, and the latest time.
    """
    at, first, latest = HEADER_SIZE, row, time[row]
    while row < len(time):
        delta, number = time[row] - time[first], row - first
        size = 2 + _width(delta) + _width(number) + _width(key_length[row]) + _width(value_length[row])
        size += max(key_length[row], 0) + max(value_length[row], 0)
        if row > first and at + _width(size) + size > most:
            break
        at = _put(size, out, at)
        out[at] = 0
        at = _put(number, out, _put(delta, out, at + 1))
        at = _put_bytes(keys, key[row], key_length[row], out, at)
        at = _put_bytes(values, value[row], value_length[row], out, at)
        out[at] = 0
        at += 1
        latest = max(latest, time[row])
        row += 1
    return at, row, latest


KERNELS = (survey, parse, lay)
