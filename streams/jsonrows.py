"""Columns as JSON objects, one a row, without a Python value for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
import orjson
from headrace.streams import bytekernels
from headrace.streams.batch import Column, Rows
from headrace.streams.expressions import Type
from headrace.streams.spans import Spans, woven
from numpy.typing import NDArray

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
    if type.kind == "time":
        column = column.view("datetime64[us]")
    text = np.frombuffer(orjson.dumps(np.ascontiguousarray(column), option=_PRINT), np.uint8)
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


def joined(named: Mapping[str, Sequence[bytes | None]]) -> Spans:
    """One JSON object a row, from columns of JSON by name."""
    literals = [b"," + orjson.dumps(name) + b":" for name in named]
    literals[0] = b"{" + literals[0][1:]
    return woven([*literals, b"}"], [Spans.of(column) for column in named.values()])


def event_ids(rows: Rows) -> Spans:
    """The ids of events, as JSON."""
    offsets = printed(rows.offset, Type("int", False))
    return woven([f'"{rows.topic}-{rows.partition}-'.encode(), b'"'], [offsets])


def record_keys(rows: Rows, name: str) -> Spans:
    """The keys of records that are keyed as these events: by a field, as text."""
    texts = rows.texts(name)
    return Spans.of([str(key).encode() for key in rows.fields[name].tolist()]) if texts is None else texts
