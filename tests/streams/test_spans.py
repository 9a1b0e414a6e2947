"""Byte strings as a column."""

from __future__ import annotations

import numpy as np
from headrace.streams.spans import FEW, Spans, woven
from hypothesis import given
from hypothesis import strategies as st

STRINGS = st.lists(st.none() | st.binary(max_size=5), max_size=20)


@given(STRINGS)
def test_a_column_of_strings_is_a_sequence_of_them(strings: list[bytes | None]) -> None:
    spans = Spans.of(strings)
    assert list(spans) == strings
    assert [spans[i] for i in range(len(spans))] == strings
    assert spans.size == sum(len(s) for s in strings if s)
    assert Spans.of(spans) is spans


@given(STRINGS, st.data())
def test_a_part_of_a_column_shares_its_buffer(strings: list[bytes | None], data: st.DataObject) -> None:
    spans = Spans.of(strings)
    begin, end = (data.draw(st.integers(0, len(strings))) for _ in range(2))
    part = spans[begin:end]
    assert list(part) == strings[begin:end]
    assert part.data is spans.data
    rows = data.draw(st.lists(st.integers(0, len(strings) - 1), max_size=5)) if strings else []
    assert list(spans.take(np.array(rows, np.int64))) == [strings[i] for i in rows]


def test_where_a_missing_string_would_lie_does_not_matter() -> None:
    spans = Spans(np.frombuffer(b"abc", np.uint8), np.array([-7, 1, 99]), np.array([-1, 2, -1]))
    assert list(spans) == [None, b"bc", None]
    assert list(spans.packed()) == [None, b"bc", None]
    assert list(Spans.joined([spans, spans])) == [None, b"bc", None] * 2
    assert [b"<%b>" % (one or b"") for one in spans] == list(woven([b"<", b">"], [spans]))


@given(st.lists(STRINGS, min_size=1, max_size=4), st.data())
def test_columns_are_joined_and_of_one_buffer_without_a_copy(
    parts: list[list[bytes | None]], data: st.DataObject
) -> None:
    columns = [Spans.of(part) for part in parts]
    assert list(Spans.joined(columns)) == [s for part in parts for s in part]
    whole = columns[0]
    cut = data.draw(st.integers(0, len(whole)))
    joined = Spans.joined([whole[cut:], whole[:cut]])
    assert list(joined) == parts[0][cut:] + parts[0][:cut]
    assert joined.data is whole.data


def test_a_few_strings_and_many_are_told_alike() -> None:
    strings = [None if n % 7 == 0 else b"%d" % n * (n % 3) for n in range(3 * FEW)]
    for count in (0, 1, FEW - 1, FEW, 3 * FEW):
        assert list(Spans.of(strings)[-count:] if count else Spans.of([])) == (strings[-count:] if count else [])


@given(st.lists(st.tuples(st.binary(max_size=19), st.lists(st.none() | st.binary(max_size=40), min_size=3, max_size=3)),
                max_size=15), st.binary(max_size=19))  # fmt: skip
def test_rows_are_woven_of_any_number_of_columns(parts: list[tuple[bytes, list[bytes | None]]], last: bytes) -> None:
    columns = [Spans.of(column) for _, column in parts] or [Spans.of([b""] * 3)]
    literals = [literal for literal, _ in parts] or [b""]
    found = woven([*literals, last], columns)
    rows = zip(*columns, strict=True)
    pairs = [zip(literals, row, strict=True) for row in rows]
    assert list(found) == [b"".join(literal + (text or b"") for literal, text in each) + last for each in pairs]
    assert len(found.data) == found.size, "and nothing else is in the buffer"
