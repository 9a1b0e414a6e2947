"""Plain rows of flat JSON events into columns, by compiled loops over their bytes.

What they mean is said by `codecs.MsgspecCodec`, record by record; this is the fast way beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from headrace.streams import jsonkernels as kernels
from headrace.streams.batch import Column
from headrace.streams.codecs import MAX_EVENT_BYTES, MAX_INTEGER
from headrace.streams.event import Event, Field, fields
from headrace.streams.kernels import given
from headrace.streams.spans import Spans
from msgspec import inspect
from numpy.typing import NDArray

FAR = 2**62
"""Microseconds beyond every event time: a longer allowance is no other, and would overflow."""

_KINDS = {
    "int": kernels.INT, "float": kernels.FLOAT, "bool": kernels.BOOL, "str": kernels.TEXT, "time": kernels.TIME,
}  # fmt: skip

_BOUNDS = {"gt": np.greater, "ge": np.greater_equal, "lt": np.less, "le": np.less_equal}
"""Constraints of numbers (`msgspec.Meta`), by name."""


@dataclass(slots=True)
class Plain:
    """What became of the rows of a batch.

    ok:      bool[n], rows that were taken; of the others nothing below is meaningful
    keyless: bool[n], of these the rows with which nothing is wrong but that their key field is empty
    time:    int64[n], event times, microseconds
    columns: of each field that is no text, by its name, a column of length n: int64, of int, and of times in
             microseconds; bool; float64, of float and of all that may be missing, NaN where it is
    texts:   the others, spans of the values' own buffer: UTF-8 without quotes, of length -1 where it is missing
    """

    ok: NDArray[np.bool_]
    keyless: NDArray[np.bool_]
    time: NDArray[np.int64]
    columns: dict[str, Column]
    texts: dict[str, Spans]


class JsonColumns:
    """Decodes plain rows of a flat JSON event class; what it does not take is left to msgspec.

    A row that is taken has the values that `codecs.MsgspecCodec` finds in it, to the bit, and passes all its checks.
    Left are rows that it would refuse, and these, which it may take:

    - text, or a name that is not declared, with an escape or with invalid UTF-8; a declared name with an escape
    - a name twice; a list or an object in a field that is not declared; an absent field whose default is not None
    - the integer -0; numbers below those of float64, which are 0; numbers of more than 19 digits about which the first
      19 say too little
    - times other than `YYYY-MM-DDTHH:MM:SS[.fraction](Z|+hh:mm|-hh:mm)`, and those that round up to the next second
    - text of which the number of bytes does not tell whether it has as many characters as its field wants

    One at a time may decode: it notes in its own memory which fields a row had.

    event:   a class that `takes` takes
    keyless: whether a record of the topic needs no key
    """

    def __init__(self, event: type[Event], keyless: bool = True) -> None:
        found, info = fields(event), inspect.type_info(event)
        assert isinstance(info, inspect.StructType)
        assert [f.name for f in found] == [f.name for f in info.fields]
        self._fields = found
        self._bounds = [(f, _scalar(i.type)) for f, i in zip(found, info.fields, strict=True) if _bounded(i.type)]
        self._cell = [0, *accumulate(2 if f.kind == "str" else 1 for f in found)]
        # With their quotes, so that a name that begins with another is no match; msgspec lets none have quotes.
        names = [f.encode_name.encode() + b'"' for f in info.fields]
        padded = [name + bytes(-len(name) % 8) for name in names]
        at, contract = [f.name for f in found], event.contract
        limits = {
            kernels.MAX_BYTES: MAX_EVENT_BYTES,
            kernels.MAX_INTEGER: MAX_INTEGER,
            kernels.AHEAD: min(contract.ahead, FAR),
            kernels.KEY: at.index(contract.key),
            kernels.TIME_FIELD: at.index(contract.time),
            kernels.KEYLESS: keyless,
            kernels.IGNORES: not info.forbid_unknown_fields,
        }
        self._schema = kernels.Schema(
            names=np.array(np.frombuffer(b"".join(padded), "<u8"), np.uint64),
            name=_int64([0, *accumulate(len(name) // 8 for name in padded)][:-1]),
            size=_int64([len(name) for name in names]),
            spare=np.array([-len(name) % 8 * 8 for name in names], np.uint64),
            kind=_int64([_KINDS[f.kind] for f in found]),
            floated=_int64([f.kind == "float" or f.optional for f in found]),
            optional=_int64([f.optional for f in found]),
            absent=_int64([f.optional and not i.required and i.default is None
                           for f, i in zip(found, info.fields, strict=True)]),
            cell=_int64(self._cell[:-1]),
            seen=_int64([-1] * len(found)),
            limits=_int64([limits[place] for place in range(len(limits))]),
        )  # fmt: skip

    @staticmethod
    def takes(event: type[Event]) -> bool:
        """Whether every event of the class is a flat JSON object of scalars: int, float, bool, str, datetime.

        Left to msgspec whole: events with tags, `array_like` or `__post_init__`, and those with a field that has a
        `pattern`, `multiple_of`, or `tz=False`.

        Raises DeclarationError where the key or the time is of an unfit type.
        """
        if event.contract.codec != "json" or not all(f.kind in _KINDS for f in fields(event)):
            return False
        info = inspect.type_info(event)
        return (
            isinstance(info, inspect.StructType)
            and not info.array_like
            and info.tag is None
            and not hasattr(event, "__post_init__")
            and all(_taken(_scalar(field.type)) for field in info.fields)
        )

    def decode(self, values: Spans, keys: Spans, published: NDArray[np.int64]) -> Plain:
        """The columns. published: int64[n], microseconds, when each was published."""
        n = len(values)
        assert len(keys) == len(published) == n
        ok, time = np.empty(n, np.bool_), np.empty(n, np.int64)
        cells = np.empty((self._cell[-1], n), np.int64)
        floats = cells.view(np.float64)
        self._schema.seen.fill(-1)
        kernels.decode(
            _strings(values),
            _strings(keys),
            given(published),
            self._schema,
            kernels.Cells(ok, time, cells, floats),
        )
        columns: dict[str, Column] = {}
        texts: dict[str, Spans] = {}
        for field, cell in zip(self._fields, self._cell, strict=False):
            if field.kind == "str":
                texts[field.name] = Spans(values.data, cells[cell], cells[cell + 1])
            else:
                columns[field.name] = _column(field, cells[cell], floats[cell])
        keyless = ~ok & (time == kernels.NO_KEY)
        for field, bound in self._bounds:
            if isinstance(bound, inspect.StrType):
                within = _fits(texts[field.name].length, bound)
            else:
                within = _within(columns[field.name], bound)
            ok &= within
            keyless &= within
        return Plain(ok, keyless, time, columns, texts)


def _scalar(type: inspect.Type) -> inspect.Type:
    """A type without what is told of it, and without the None beside it."""
    while isinstance(type, inspect.Metadata | inspect.UnionType):
        if isinstance(type, inspect.Metadata):
            type = type.type
        else:
            [*others] = (t for t in type.types if not isinstance(t, inspect.NoneType))
            if len(others) != 1:
                return type
            [type] = others
    return type


def _taken(type: inspect.Type) -> bool:
    """Whether the values of a scalar can be checked as columns."""
    match type:
        case inspect.IntType() | inspect.FloatType():
            return type.multiple_of is None
        case inspect.StrType():
            return type.pattern is None
        case inspect.DateTimeType():
            return type.tz is not False
    return isinstance(type, inspect.BoolType)


def _bounded(type: inspect.Type) -> bool:
    return any(getattr(_scalar(type), name, None) is not None for name in (*_BOUNDS, "min_length", "max_length"))


def _within(column: Column, bound: inspect.Type) -> NDArray[np.bool_]:
    """Of each number, whether it is within its bounds; a missing one is."""
    within = np.ones(len(column), np.bool_)
    for name, holds in _BOUNDS.items():
        limit = getattr(bound, name)
        if limit is not None:
            within &= holds(column, limit)
    return within | np.isnan(column) if column.dtype == np.float64 else within


def _fits(size: NDArray[np.int64], bound: inspect.StrType) -> NDArray[np.bool_]:
    """Of each text, by its bytes, whether it surely has as many characters as it must; a missing one has.

    A character of UTF-8 has one to four bytes.
    """
    fits = np.ones(len(size), np.bool_)
    if bound.min_length is not None:
        fits &= size >= 4 * bound.min_length - 3
    if bound.max_length is not None:
        fits &= size <= bound.max_length
    return fits | (size < 0)


def _column(field: Field, whole: NDArray[np.int64], floats: NDArray[np.float64]) -> Column:
    if field.kind == "float" or field.optional:
        return floats
    return whole != 0 if field.kind == "bool" else whole


def _strings(spans: Spans) -> kernels.Strings:
    return kernels.Strings(given(spans.data), given(spans.start), given(spans.length))


def _int64(values: Sequence[int]) -> NDArray[np.int64]:
    return np.array(values, np.int64)
