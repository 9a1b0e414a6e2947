"""Columns as JSON objects, one a row, without a Python value for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import orjson
from headrace.streams import bytekernels
from headrace.streams.batch import Column, Rows
from headrace.streams.durations import SECOND
from headrace.streams.expressions import Type
from headrace.streams.spans import Spans, quoted, woven
from numpy.typing import NDArray

MOST_DIGITS = 20
"""Of an int64 with its sign."""

_WHOLE_SECOND, _MICROSECONDS = 22, 29
"""Bytes of a time, quoted: "2026-01-01T00:00:00Z" and "2026-01-01T00:00:00.000001Z"."""

_PRINT = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NAIVE_UTC | orjson.OPT_UTC_Z


def printed(column: Column, type: Type) -> Spans:
    """Each value as JSON; missing as null, times as RFC 3339 in UTC."""
    if column.dtype == object:
        return Spans.of([orjson.dumps(value) for value in column.tolist()])
    if type.kind in ("int", "time") and column.dtype == np.float64:
        missing = np.isnan(column)
        texts = printed(np.where(missing, 0, column).astype(np.int64), Type(type.kind, False))
        null = len(texts.data)
        data = np.concatenate([texts.data, np.frombuffer(b"null", np.uint8)])
        return Spans(data, np.where(missing, null, texts.start), np.where(missing, 4, texts.length))
    times = type.kind == "time"
    told = np.ascontiguousarray(column.view("datetime64[us]") if times else column)
    text = np.frombuffer(orjson.dumps(told, option=_PRINT), np.uint8)
    if times:
        length = np.where(column % SECOND == 0, _WHOLE_SECOND, _MICROSECONDS)
        ends = np.cumsum(length + 1)
        if len(ends) and ends[-1] + 1 == len(text):
            return Spans(text, ends - length, length)
    start, length = np.empty((2, len(column)), np.int64)
    bytekernels.cut(text, start, length)
    return Spans(text, start, length)


def floats(column: NDArray[np.float64], texts: Spans | None = None) -> Spans:
    """Each number as msgspec writes it; missing as null. texts: the column as `printed` prints it, where it was."""
    texts = printed(column, Type("float", True)) if texts is None else texts
    large = np.flatnonzero(np.abs(column) >= _PLUS)
    if not len(large):
        return texts
    others = Spans.of([msgspec.json.encode(value) for value in column[large].tolist()])
    place = np.arange(len(column))
    place[large] = len(column) + np.arange(len(large))
    return Spans.joined([texts, others]).take(place)


_PLUS = 1e16
"""From here on orjson writes an exponent with its sign, msgspec without."""


def encoded_texts(column: Column) -> Spans:
    """Each text as JSON; missing as null."""
    return Spans.of([msgspec.json.encode(text) for text in column.tolist()])


def written(texts: Spans) -> Spans | Piece:
    """Texts that need no escape as JSON; missing as null."""
    there = texts.length >= 0
    if there.all():
        return Piece(b'"', texts, b'"')
    whole = quoted(texts.take(there))
    null = len(whole.data)
    start, length = np.full(len(texts), null), np.full(len(texts), 4)
    start[there], length[there] = whole.start, whole.length
    return Spans(np.concatenate([whole.data, np.frombuffer(b"null", np.uint8)]), start, length)


@dataclass(frozen=True, slots=True)
class Piece:
    """A column of JSON whose values begin alike and end alike."""

    before: bytes
    spans: Spans
    after: bytes

    def whole(self) -> Spans:
        return woven([self.before, self.after], [self.spans])


def joined(named: Mapping[str, Sequence[bytes | None] | Piece]) -> Spans:
    """One JSON object a row, from columns of JSON by name."""
    literals: list[bytes] = []
    columns: list[Spans] = []
    after = b""
    for name, column in named.items():
        piece = column if isinstance(column, Piece) else Piece(b"", Spans.of(column), b"")
        literals.append(after + (b"," if literals else b"{") + orjson.dumps(name) + b":" + piece.before)
        columns.append(piece.spans)
        after = piece.after
    return woven([*literals, after + b"}"], columns)


def event_ids(rows: Rows) -> Piece:
    """The ids of events, as JSON."""
    return Piece(f'"{rows.topic}-{rows.partition}-'.encode(), digits(rows.offset), b'"')


def record_keys(rows: Rows, name: str) -> Spans:
    """The keys of records that are keyed as these events: by a field, as text."""
    texts = rows.texts(name)
    if texts is not None:
        return texts
    column = rows.fields[name]
    return digits(column) if column.dtype == np.int64 else Spans.of([str(key).encode() for key in column.tolist()])


def digits(column: Column, before: bytes = b"") -> Spans:
    """Integers as text, each behind `before`.

    column: int64[n]
    """
    literal = np.frombuffer(before, np.uint8)
    wide = len(literal) + MOST_DIGITS
    out, length = np.empty(wide * len(column), np.uint8), np.empty(len(column), np.int64)
    start = np.arange(0, wide * len(column), wide)
    bytekernels.digits(column, literal, out, start, length)
    return Spans(out, start, length)
