"""A micro-batch as columns, and what an operator may do with it.

A `Batch` is rows in processing order. Rows of several streams lie interleaved in it; the fields of one stream's
rows are columns in `Rows`. Times are int64 microseconds since 1970-01-01T00:00Z everywhere in the data plane.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from headrace.streams.spans import Spans
from numpy.typing import NDArray

if TYPE_CHECKING:
    from headrace.streams.memory import Residence
    from headrace.streams.store import Shelf

Column = NDArray[np.float64] | NDArray[np.int64] | NDArray[np.bool_] | NDArray[np.object_]
"""One field over rows. int, datetime (microseconds): int64. bool: bool. float, and int, datetime and bool that may
be missing: float64, NaN where missing. str and everything else: object, None where missing."""


NEVER = -(2**62)
"""The event time before anything was seen."""


class Fields(dict[str, Column]):
    """Columns by name. texts: columns of texts as spans of UTF-8; one becomes a column when it is asked for by name."""

    def __init__(self, columns: Mapping[str, Column], texts: Mapping[str, Spans]) -> None:
        super().__init__(columns)
        self.texts = texts

    def carry(self, name: str, spans: Spans) -> None:
        """Adds a column of texts."""
        self.texts = {**self.texts, name: spans}

    def __missing__(self, name: str) -> Column:
        spans = self.texts[name]
        column = np.empty(len(spans), np.object_)
        column[:] = [None if text is None else text.decode() for text in spans]
        self[name] = column
        return column


def texts_of(fields: Mapping[str, Column]) -> Mapping[str, Spans]:
    """The columns of texts that came as spans."""
    return fields.texts if isinstance(fields, Fields) else {}


@dataclass(slots=True)
class Rows:
    """The rows of one stream within a batch.

    at:        int64[k], positions in the batch, ascending
    fields:    columns of length k; feature operators add theirs as `Set.name`
    partition: the source partition all these rows came from
    offset:    int64[k], offsets in the source partition; with topic and partition they name the event
    published: int64[k], microseconds, when the producer published the record
    encoded:   columns of byte strings that operators leave for those after them, by name
    """

    at: NDArray[np.int64]
    fields: dict[str, Column]
    topic: str = ""
    partition: int = 0
    offset: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    published: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    encoded: dict[str, Spans] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.at)

    def texts(self, name: str) -> Spans | None:
        """A column of texts as spans, where it came so."""
        return texts_of(self.fields).get(name)

    def only(self, rows: NDArray[np.int64]) -> Rows:
        """Those of these rows, whose fields are copies."""
        texts = {name: spans.take(rows) for name, spans in texts_of(self.fields).items()}
        columns = {name: column[rows] for name, column in self.fields.items() if name not in texts}
        offset, published = self.offset[rows], self.published[rows]
        return Rows(self.at[rows], Fields(columns, texts), self.topic, self.partition, offset, published)

    def event_id(self, row: int) -> str:
        return f"{self.topic}-{self.partition}-{self.offset[row]}"


@dataclass(slots=True)
class Batch:
    """Rows in processing order.

    time:      int64[n], event time, microseconds
    watermark: int64[n], microseconds, the task's watermark once this row has been taken; never decreases
    streams:   the rows of each stream that has some, by the stream's name
    """

    time: NDArray[np.int64]
    watermark: NDArray[np.int64]
    streams: dict[str, Rows]

    def __len__(self) -> int:
        return len(self.time)


@dataclass(slots=True, frozen=True)
class Record:
    """One record to be produced. partition None: that of the task. timestamp in ms, None: when it is sent."""

    topic: str
    key: bytes | None
    value: bytes | None
    partition: int | None = None
    timestamp: int | None = None
    headers: tuple[tuple[str, bytes], ...] = ()


@dataclass(slots=True, frozen=True)
class Block:
    """Many records of one topic, in order, as columns. partition, timestamp: of all of them, as a Record's."""

    topic: str
    keys: Spans
    values: Spans
    partition: int | None = None
    timestamp: int | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def records(self) -> Iterator[Record]:
        """One by one."""
        for key, value in zip(self.keys, self.values, strict=True):
            yield Record(self.topic, key, value, self.partition, self.timestamp)


Outputs = list[Record | Block]
"""What operators emit, in order."""


def record_by_record(outputs: Iterable[Record | Block]) -> Iterator[Record]:
    """One by one."""
    for output in outputs:
        if isinstance(output, Block):
            yield from output.records()
        else:
            yield output


Change = tuple[bytes, bytes | None]
"""A touched row of state: its key, and its value or None where it was deleted."""


@dataclass(slots=True, frozen=True)
class Touched:
    """Many touched rows of state, as columns."""

    keys: Spans
    values: Spans

    def __len__(self) -> int:
        return len(self.keys)


Changes = list[Change | Touched]


def one_by_one(changes: Iterable[Change | Touched]) -> Iterator[Change]:
    for change in changes:
        if isinstance(change, Touched):
            yield from zip(change.keys, change.values, strict=True)
        else:
            yield change


class Operator(Protocol):
    """A step of a task: a batch and state in, columns and records out. It knows no clock, no log and no asyncio.

    State lives in hot structures; `changes` tells the rows touched since it was last called, so that the task
    can write them to the changelog and, after the commit, to RocksDB. After `clear` and `load` of all committed
    rows the operator is exactly what it was at that commit.
    """

    name: str

    def process(self, batch: Batch, out: Outputs) -> None: ...

    def changes(self) -> Sequence[Change | Touched]: ...

    def load(self, rows: Iterable[tuple[bytes, bytes]]) -> None: ...

    def clear(self) -> None: ...


@runtime_checkable
class Lazy(Protocol):
    """An operator that begins with the rows of the store, read when they are needed, in place of `load` of them all."""

    def attach(self, shelf: Shelf) -> None: ...


@runtime_checkable
class Resident(Protocol):
    """An operator that tells of its hot state, and may give some back. kept: all it told as changes is in the store."""

    @property
    def residence(self) -> Residence: ...

    def kept(self) -> None: ...


@runtime_checkable
class Told(Protocol):
    """An operator that can tell its state in rows that a person can read. at: microseconds, the time as of which."""

    def told(self, at: int) -> Iterator[dict[str, Any]]: ...
