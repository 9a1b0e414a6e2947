"""Record batches as columns: what aiokafka writes is read, what is built aiokafka reads, and bad bytes harm nobody."""

from __future__ import annotations

import contextlib
import os
import random
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder
from aiokafka.record.util import decode_varint
from headrace.streams import kernels, recordbatches
from headrace.streams.errors import MalformedBatch
from headrace.streams.recordbatches import (
    APPEND_TIME,
    BASE,
    END,
    NEXT,
    RECORDS,
    Columns,
    build,
    columns,
    heads,
    intact,
    read,
    seal,
    whole,
)  # fmt: skip
from headrace.streams.spans import Spans
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).parents[2]

NUMBERS = st.integers(-(2**62), 2**62) | st.integers(0, 300) | st.just(1_700_000_000_000)
STRINGS = st.none() | st.binary(max_size=200)
HEADERS = st.lists(st.tuples(st.text(max_size=5), STRINGS), max_size=3)

Row = tuple[int, int, bytes | None, bytes | None]
"""offset, timestamp, key, value."""


@pytest.fixture(autouse=True, scope="module")
def warm() -> None:
    """Compiling takes longer than a test of one example may."""
    recordbatches.warm()


@st.composite
def batches(draw: st.DrawFn) -> bytes:
    """A batch as it lies on a log: of any codec, with gaps, headers, and either kind of time."""
    codec, base = draw(st.integers(0, 4)), draw(st.integers(0, 2**40))
    builder = DefaultRecordBatchBuilder(2, codec, draw(st.integers(0, 1)), 7, 1, 0, 1 << 20)
    steps = draw(st.lists(st.integers(1, 100), min_size=1, max_size=30))
    for offset in np.cumsum(steps).tolist():
        builder.append(offset, draw(NUMBERS), draw(STRINGS), draw(STRINGS), draw(HEADERS))
    return stamped(bytes(builder.build()), base, draw(st.booleans()))


def stamped(batch: bytes, base: int, append_time: bool = False) -> bytes:
    """As a broker has it."""
    data = bytearray(batch)
    struct.pack_into(">q", data, 0, base)
    data[22] |= APPEND_TIME if append_time else 0
    return bytes(data)


def theirs(batch: bytes, first: int = 0) -> list[Row]:
    return [(r.offset, r.timestamp, r.key, r.value) for r in DefaultRecordBatch(batch) if r.offset >= first]


def head(batch: bytes | bytearray) -> list[int]:
    found: list[int] = heads(np.frombuffer(batch, np.uint8), 0, 1)[0].tolist()
    return found


def rows(found: Columns) -> list[Row]:
    return list(zip(found.offset.tolist(), found.timestamp.tolist(), found.keys, found.values, strict=True))


@given(batches(), st.data())
def test_what_aiokafka_writes_is_read_as_aiokafka_reads_it(batch: bytes, data: st.DataObject) -> None:
    said = head(batch)
    first = data.draw(st.integers(said[BASE], said[NEXT]))
    assert rows(read(batch, first)) == theirs(batch, first)
    assert read(memoryview(batch), first).keys[:] is not None


@given(st.lists(batches(), max_size=4), st.data())
def test_several_batches_of_a_buffer_are_read_as_one(some: list[bytes], data: st.DataObject) -> None:
    some = [stamped(batch, 4000 * n) for n, batch in enumerate(some)]
    buffer = b"".join(some)
    array = np.frombuffer(buffer, np.uint8)
    table = heads(array, 0, 1_000_000)
    assert table[:, END].tolist() == np.cumsum([len(batch) for batch in some]).tolist()
    first = data.draw(st.integers(0, 4000 * len(some)))
    assert rows(columns(array, table, first)) == [row for batch in some for row in theirs(batch, first)]
    if some:
        assert len(heads(array[:-1], 0, 1_000_000)) == len(some) - 1
        assert not whole(buffer[:-1], len(buffer) - len(some[-1]))
        wanted = data.draw(st.integers(1, 100))
        claimed = [len(theirs(batch)) for batch in some]
        enough = next((n for n in range(len(some)) if sum(claimed[: n + 1]) >= wanted), len(some) - 1)
        assert len(heads(array, 0, wanted)) == enough + 1


@given(st.lists(st.tuples(NUMBERS, STRINGS, STRINGS)), st.integers(61, 2000), st.booleans())
def test_what_is_built_is_to_the_byte_what_aiokafka_builds(
    records: list[tuple[int, bytes | None, bytes | None]], most: int, transactional: bool
) -> None:
    times = np.array([time for time, _, _ in records], np.int64)
    built = build(Spans.of([k for _, k, _ in records]), Spans.of([v for _, _, v in records]), times, most)
    for data, _ in built:
        seal(data, 2**40, 3, 2**31 - 1, transactional)

    def theirs(rows: list[tuple[int, bytes | None, bytes | None]]) -> bytes:
        builder = DefaultRecordBatchBuilder(2, 0, int(transactional), 2**40, 3, 2**31 - 1, 1 << 20)
        for n, (time, key, value) in enumerate(rows):
            assert builder.append(n, time, key, value, []) is not None
        return bytes(builder.build())

    at = 0
    for data, count in built:
        assert bytes(data) == theirs(records[at : at + count])
        assert len(data) <= most or count == 1
        more = records[at : at + count + 1]
        at += count
        assert at == len(records) or len(theirs(more)) > most
    assert at == len(records)


def test_columns_in_any_order_of_any_buffer_are_built() -> None:
    strings = [b"a", None, b"", b"ddd", b"ee"]
    spans, times = Spans.of(strings), np.arange(5)
    [(data, count)] = build(spans[::-1], spans[::-1].take(np.array([4, 3, 2, 1, 0])), times[::-1], 1 << 20)
    assert count == 5
    seal(data, -1, -1, -1, False)
    assert theirs(bytes(data)) == list(zip(range(5), [4, 3, 2, 1, 0], strings[::-1], strings, strict=True))
    assert build(spans[:0], spans[:0], times[:0], 100) == []


def test_an_empty_batch_that_compaction_left_has_no_records() -> None:
    batch = bytearray(DefaultRecordBatchBuilder(2, 0, 0, 7, 1, 0, 100).build())
    struct.pack_into(">i", batch, 23, 99)
    said = head(batch)
    assert (said[NEXT], said[RECORDS]) == (100, 0)
    assert len(read(batch, 0)) == 0


def sample(codec: int = 0, count: int = 20) -> bytes:
    builder = DefaultRecordBatchBuilder(2, codec, 0, 7, 1, 0, 1 << 20)
    for i in range(count):
        builder.append(i, i * 1000, b"key" if i % 3 else None, b"v" * (i % 90), [("h", b"x")] if i % 5 == 0 else [])
    return bytes(builder.build())


def flipped(dice: random.Random, batch: bytearray) -> None:
    for _ in range(dice.randint(1, 4)):
        batch[dice.randrange(12, len(batch))] = dice.randrange(256)


def cut(dice: random.Random, batch: bytearray) -> None:
    del batch[dice.randrange(61, len(batch)) :]
    struct.pack_into(">i", batch, 8, len(batch) - 12)


def miscounted(dice: random.Random, batch: bytearray) -> None:
    struct.pack_into(">i", batch, 57, dice.choice([-1, -(2**31), 2**31 - 1, 0, 19, 21]))


def lengthened(dice: random.Random, batch: bytearray) -> None:
    """A number in it that goes on for as long as a number may, and longer."""
    at = dice.randrange(61, len(batch))
    batch[at : at + dice.randint(1, 11)] = b"\xff" * dice.randint(1, 11) + bytes([dice.randrange(256)])
    struct.pack_into(">i", batch, 8, len(batch) - 12)


@pytest.mark.parametrize("codec", range(5))
@pytest.mark.parametrize("harm", [flipped, cut, miscounted, lengthened])
def test_bytes_that_are_no_batch_are_told_and_never_read_beyond(
    codec: int, harm: Callable[[random.Random, bytearray], None]
) -> None:
    dice = random.Random(codec)
    good = sample(codec, 200 if codec else 20)
    refused = 0
    for _ in range(2_000):
        batch = bytearray(good)
        harm(dice, batch)
        try:
            found = read(batch, 0)
        except MalformedBatch:
            refused += 1
            continue
        for spans in (found.keys, found.values):
            assert (spans.length >= -1).all()
            assert (spans.start >= 0).all()
            assert (spans.start + np.maximum(spans.length, 0) <= len(spans.data)).all()
    assert refused


def test_what_is_read_and_refused_is_what_aiokafka_reads_and_refuses() -> None:
    dice = random.Random(11)
    good = sample()
    # Not lengths and attributes: these are a byte, and aiokafka takes them for a number of any length.
    kept, at = [*range(12, 61)], 61
    while at < len(good):
        begins = at
        length, at = decode_varint(bytearray(good), at)
        kept += range(begins, at + 1)
        at += length
    for _ in range(5_000):
        batch = bytearray(good)
        flipped(dice, batch)
        for place in kept:
            batch[place] = good[place]
        expected: list[Row] | None = None
        try:
            expected = [(r.offset, r.timestamp, r.key, r.value) for r in DefaultRecordBatch(bytes(batch))]
        except UnicodeDecodeError:  # of a header's name, which we do not read
            continue
        except CorruptRecordException:
            pass
        found: list[Row] | None = None
        with contextlib.suppress(MalformedBatch):
            found = rows(read(batch, -(2**63)))
        assert (found is None) == (expected is None)
        if expected and [row[0] for row in expected] == sorted({row[0] for row in expected}):
            assert found == expected


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        (b"", "0 bytes are no whole record batch"),
        (sample()[:-1], "no whole record batch"),
        (sample() + b"\0", "no whole record batch"),
        (sample()[:16] + b"\1" + sample()[17:], "message format 1"),
        (sample()[:8] + b"\0\0\0\x30" + sample()[12:], "48 bytes is shorter than its header"),
        (sample()[:22] + b"\5" + sample()[23:], "compressed by codec 5"),
        (sample()[:22] + b"\4" + sample()[23:], "not compressed by zstd"),
        (sample()[:57] + b"\x7f\xff\xff\xff" + sample()[61:], "no room for the 2,147,483,647 records"),
        (sample()[:60] + b"\x13" + sample()[61:], "are no records"),
    ],
)
def test_an_error_says_what_is_wrong_with_the_bytes(batch: bytes, said: str) -> None:
    with pytest.raises(MalformedBatch, match=said):
        read(batch, 0)


def test_a_sum_tells_bytes_that_changed() -> None:
    batch = bytearray(sample())
    said = head(batch)
    assert intact(batch, said)
    batch[-1] ^= 1
    assert not intact(batch, said)


def digest(seeds: Sequence[int] = range(30)) -> str:
    """What is read and built of some fixed batches, good and bad."""
    made: list[object] = []
    for seed in seeds:
        dice = random.Random(seed)
        batch = bytearray(sample(0, 10))
        if seed % 2:
            flipped(dice, batch)
        try:
            found = read(batch, seed % 5)
        except MalformedBatch as error:
            made.append(str(error))
            continue
        made.append(rows(found))
        with np.errstate(over="ignore"):
            made.append([(bytes(d), n) for d, n in build(found.keys, found.values, found.timestamp, 200)])
    return repr(made)


def test_without_the_compiler_the_same_is_read_and_built() -> None:
    command = [sys.executable, "-c", "from tests.streams.test_recordbatches import digest; print(digest())"]
    environment = os.environ | {"NUMBA_DISABLE_JIT": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == digest()


def test_they_are_among_the_kernels_that_a_worker_warms() -> None:
    assert set(recordbatches.KERNELS) <= set(kernels.KERNELS)
    recordbatches.warm()
    assert recordbatches.ready()
