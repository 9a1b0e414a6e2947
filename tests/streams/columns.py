"""Batches for tests, made of events one at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from headrace.streams.aggregations import Stream
from headrace.streams.batch import Batch, Column, Rows
from headrace.streams.event import Field

Told = tuple[str, int, dict[str, Any]]
"""An event: stream, time in microseconds, fields."""


def column(field: Field, values: list[Any]) -> Column:
    if field.kind == "float" or (field.optional and field.kind in ("int", "time", "bool")):
        return np.array([np.nan if v is None else v for v in values], np.float64)
    if field.kind in ("int", "time"):
        return np.array(values, np.int64)
    if field.kind == "bool" and not field.optional:
        return np.array(values, np.bool_)
    made = np.empty(len(values), object)
    made[:] = values
    return made


def batch(
    streams: Sequence[Stream],
    events: Sequence[Told],
    watermark: Sequence[int] = (),
    first: dict[str, int] | None = None,
) -> Batch:
    """The events as one batch. first: the offset of each stream's first row; it is moved on."""
    offsets = {} if first is None else first
    rows = {}
    for stream in streams:
        at = [i for i, (name, _, _) in enumerate(events) if name == stream.name]
        if at:
            begin = offsets.get(stream.name, 0)
            offsets[stream.name] = begin + len(at)
            fields = {f.name: column(f, [events[i][2][f.name] for i in at]) for f in stream.fields}
            rows[stream.name] = Rows(
                np.array(at),
                fields,
                stream.name,
                0,
                np.arange(begin, begin + len(at)),
                np.zeros(len(at), np.int64),
            )
    time = np.array([t for _, t, _ in events], np.int64)
    return Batch(time, np.array(watermark, np.int64) if len(watermark) else time, rows)
