"""Events as rows of bytes, by columns: how what waits for its outcome is kept, in memory and as state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from headrace.streams import bytekernels
from headrace.streams.batch import Column, Fields, Rows
from headrace.streams.event import Field
from headrace.streams.spans import Spans, woven
from numpy.typing import NDArray

STAMP = np.dtype([("left", "<f8"), ("known", "u1")])
"""What changes of a row while it waits, at its begin: the quantity not yet taken back, and whether its outcome is
known."""


class EventRows:
    """Events of some fields as rows of bytes, and back.

    A row is its head and then the bytes of its texts (UTF-8) and objects (MessagePack), one after the other. Numbers
    stand in the head, as float64 where they may be missing; of texts and objects their lengths, -1 where missing.
    """

    def __init__(self, fields: Sequence[Field]) -> None:
        self._texts = [f for f in fields if f.kind in ("str", "object")]
        self._numbers = [f for f in fields if f.kind not in ("str", "object")]
        number, length = ("number", "<i8", (len(self._numbers),)), ("length", "<i4", (len(self._texts),))
        self._head = np.dtype([("stamp", STAMP), ("time", "<i8"), number, length])

    def packed(self, rows: Rows, time: NDArray[np.int64], left: NDArray[np.float64]) -> Spans:
        """Rows of events at these times, of which so much is left and nothing is known."""
        heads = np.zeros(len(rows), self._head)
        heads["stamp"]["left"], heads["time"] = left, time
        for i, field in enumerate(self._numbers):
            column = rows.fields[field.name]
            heads["number"][:, i] = column.view(np.int64) if column.dtype == np.float64 else column
        spans = [rows.texts(f.name) for f in self._texts]
        texts = [_encoded(rows.fields[f.name], f) if s is None else s for s, f in zip(spans, self._texts, strict=True)]
        for i, text in enumerate(texts):
            heads["length"][:, i] = text.length
        return woven([b""] * (len(texts) + 2), [records(heads), *texts])

    def heads(self, rows: Spans) -> NDArray[Any]:
        """The heads of rows, with their `stamp` and `time`."""
        size = np.full(len(rows), self._head.itemsize, np.int64)
        return Spans(rows.data, rows.start, size).packed().data.view(self._head)

    def fields(self, rows: Spans) -> Fields:
        """The columns of rows."""
        heads = self.heads(rows)
        columns: dict[str, Column] = {}
        texts: dict[str, Spans] = {}
        for i, field in enumerate(self._numbers):
            cells = np.ascontiguousarray(heads["number"][:, i])
            whole = field.kind in ("int", "bool", "time") and not field.optional
            columns[field.name] = cells != 0 if field.kind == "bool" and whole else cells
            if not whole:
                columns[field.name] = cells.view(np.float64)
        start = rows.start + self._head.itemsize
        for i, field in enumerate(self._texts):
            spans = Spans(rows.data, start, heads["length"][:, i].astype(np.int64))
            start = start + np.maximum(spans.length, 0)
            if field.kind == "str" and _bare(spans):
                texts[field.name] = spans
            else:
                columns[field.name] = _decoded(spans, field)
        return Fields(columns, texts)


def records(heads: NDArray[Any]) -> Spans:
    """Records of one size as byte strings."""
    size = heads.dtype.itemsize
    return Spans(heads.view(np.uint8), np.arange(len(heads)) * size, np.full(len(heads), size, np.int64))


def _encoded(column: Column, field: Field) -> Spans:
    if field.kind == "str":
        return Spans.of([None if text is None else text.encode() for text in column.tolist()])
    return Spans.of([None if value is None else msgspec.msgpack.encode(value) for value in column.tolist()])


def _decoded(spans: Spans, field: Field) -> NDArray[np.object_]:
    column = np.empty(len(spans), np.object_)
    if field.kind == "str":
        column[:] = [None if text is None else text.decode() for text in spans]
    else:
        for i, value in enumerate(spans):  # one by one: of lists of one length numpy would make a table
            column[i] = None if value is None else msgspec.msgpack.decode(value)
    return column


def _bare(texts: Spans) -> bool:
    """Whether all are in JSON as they are, as a column of spans promises."""
    found = np.empty(len(texts), np.bool_)
    bytekernels.bare(texts.data, texts.start, texts.length, found)
    return bool(found.all())


def told_apart(columns: Sequence[Column | Spans]) -> Spans:
    """A byte string a row that is equal where all its values are equal, numbers by their value whatever their type;
    missing where one of them is."""
    parts: list[Spans] = []
    missing = np.zeros(len(columns[0]), np.bool_)
    for column in columns:
        if isinstance(column, Spans):
            part = _tagged(b"s", column)
        elif column.dtype == np.object_:
            part = _canonical(column.tolist())
        else:
            part = _number(column.astype(np.float64))
        missing |= part.length < 0
        parts.append(part)
    found = woven([b""] * (len(parts) + 1), parts)
    return Spans(found.data, found.start, np.where(missing, -1, found.length))


_TAG = np.dtype([("tag", "S1"), ("length", "<i4")])
_NUMBER = np.dtype([("tag", "S1"), ("value", "<f8")])


def _tagged(tag: bytes, texts: Spans) -> Spans:
    """With what kind they are and their length before them, so that no two rows of several are alike by chance."""
    heads = np.zeros(len(texts), _TAG)
    heads["tag"], heads["length"] = tag, texts.length
    found = woven([b"", b"", b""], [records(heads), texts])
    return Spans(found.data, found.start, np.where(texts.length < 0, -1, found.length))


def _number(values: NDArray[np.float64]) -> Spans:
    heads = np.zeros(len(values), _NUMBER)
    heads["tag"], heads["value"] = b"n", values + 0.0  # -0.0 is 0.0
    found = records(heads)
    return Spans(found.data, found.start, np.where(np.isnan(values), -1, found.length))


def _canonical(values: list[Any]) -> Spans:
    """As columns of texts and numbers write values, and others as JSON."""
    if all(value is None or isinstance(value, str) for value in values):
        return _tagged(b"s", Spans.of([None if text is None else text.encode() for text in values]))
    return Spans.of([_canonical_one(msgspec.to_builtins(value)) for value in values])


def _canonical_one(value: Any) -> bytes | None:
    if value is None:
        return None
    if isinstance(value, str):
        [found] = _tagged(b"s", Spans.of([value.encode()]))
    elif isinstance(value, bool | int | float):
        [found] = _number(np.array([value], np.float64))
    else:
        [found] = _tagged(b"j", Spans.of([msgspec.json.encode(value)]))
    return found
