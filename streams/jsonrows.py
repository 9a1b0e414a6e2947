"""Columns as JSON objects, one a row, without a Python value for each number."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import orjson
from headrace.streams.batch import Column
from headrace.streams.expressions import Type


def printed(column: Column, type: Type) -> list[bytes]:
    """Each value as JSON; missing as null, times as RFC 3339 in UTC."""
    if column.dtype == object:
        return [orjson.dumps(value) for value in column.tolist()]
    if type.kind in ("int", "time") and column.dtype == np.float64:
        missing = np.isnan(column)
        texts = printed(np.where(missing, 0, column).astype(np.int64), Type(type.kind, False))
        for i in np.flatnonzero(missing).tolist():
            texts[i] = b"null"
        return texts
    if type.kind == "time":
        column = column.view("datetime64[us]")
    return orjson.dumps(np.ascontiguousarray(column), option=_PRINT)[1:-1].split(b",")


_PRINT = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NAIVE_UTC | orjson.OPT_UTC_Z


def joined(named: Mapping[str, Any]) -> Iterable[bytes]:
    """One JSON object a row from printed columns by name."""
    fields = (orjson.dumps(name).replace(b"%", b"%%") + b":%b" for name in named)
    template = b"{" + b",".join(fields) + b"}"
    return map(template.__mod__, zip(*named.values(), strict=True))
