"""A task's inputs, merged in event-time order.

Each input is one partition of one topic. Its rows keep their order; rows of several inputs are merged by
(greatest event time seen so far in the input, input, position), so that the merge is a function of the data alone.
While an input is empty but not known to be idle, rows that its next row might precede are held back.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from headrace.streams.batch import NEVER, Batch, Fields, Record, Rows, texts_of
from headrace.streams.codecs import Decoded, Decoder
from headrace.streams.durations import DAY
from headrace.streams.errors import InvalidEvent
from headrace.streams.log import Fetched, Partition
from headrace.streams.spans import Spans
from numpy.typing import NDArray

logger = logging.getLogger("headrace.streams")

MAX_BUFFERED_ROWS = 20_000
"""Rows decoded and waiting in one input; a faster input is not read further until they are taken."""

MAX_BUFFERED_BYTES = 64_000_000
"""Bytes of their values: so many rows of the largest events would be 20 GB. What one fetch brings comes on top."""

WAKE = DAY
"""How far behind the task's watermark, beyond lateness, an input that was idle may go on: what is rare (returns) comes
beside what is frequent (orders), and a moment's difference between two topics makes no event late."""

_NO_TIMES = np.zeros(0, np.int64)


@dataclass(slots=True, frozen=True)
class Source:
    """What a task reads: a topic by its codec, its time rules, and where refused rows go.

    rejected, late: topics, or empty where the source is one of our own: there only others write what is refused, and
                    it is left out with a warning
    refusing:       False where another task publishes what is refused of this topic; here it is left out
    wake:           microseconds, as WAKE; 0 where windows that the task's watermark has closed are made of these events
    """

    topic: str
    codec: Decoder
    out_of_orderness: int = 0
    lateness: int = 0
    rejected: str = ""
    late: str = ""
    refusing: bool = True
    wake: int = 0


@dataclass(slots=True)
class _Chunk:
    """Decoded rows of one fetch. order: int64[n], the input's greatest event time once each row was seen."""

    fetched: Fetched
    decoded: Decoded
    order: NDArray[np.int64]
    bytes: int
    taken: int = 0


@dataclass(slots=True)
class Input:
    """One partition of a source: its decoded rows, how far it is taken, and its greatest event time.

    high:   microseconds, over the rows taken
    offset: the next row to be taken
    """

    source: Source
    partition: Partition
    offset: int = 0
    high: int = NEVER
    caught_up: bool = False
    _chunks: list[_Chunk] = field(default_factory=list)
    _seen: int = NEVER
    _fetched_to: int = 0

    def resume(self, offset: int, high: int) -> None:
        """Forget what is buffered; go on at this offset with this greatest event time."""
        self.offset = self._fetched_to = offset
        self.high = self._seen = high
        self.caught_up = False
        self._chunks.clear()

    @property
    def buffered(self) -> int:
        return sum(len(c.fetched) - c.taken for c in self._chunks)

    @property
    def full(self) -> bool:
        """Whether it is read no further until rows are taken."""
        return self.buffered >= MAX_BUFFERED_ROWS or sum(c.bytes for c in self._chunks) >= MAX_BUFFERED_BYTES

    @property
    def position(self) -> int:
        """Where fetching goes on."""
        return self._fetched_to

    def feed(self, fetched: Fetched) -> None:
        """Decode and buffer what was fetched."""
        self.caught_up = fetched.caught_up
        self._fetched_to = fetched.next_offset
        if not len(fetched):
            if not self._chunks:
                self.offset = fetched.next_offset
            return
        decoded = self.source.codec.decode(fetched.values, fetched.keys, fetched.timestamp * 1000)
        order = np.full(len(fetched), NEVER, np.int64)
        order[decoded.rows] = decoded.time
        order[0] = max(int(order[0]), self._seen)
        order = np.maximum.accumulate(order)
        self._seen = int(order[-1])
        self._chunks.append(_Chunk(fetched, decoded, order, _size(fetched.values)))

    def waiting(self) -> NDArray[np.int64]:
        """The order times of the buffered rows."""
        if not self._chunks:
            return np.zeros(0, np.int64)
        return np.concatenate([c.order[c.taken :] for c in self._chunks])

    def take(self, count: int) -> list[tuple[_Chunk, int, int]]:
        """The next `count` rows as (chunk, from, to)."""
        parts = []
        while count:
            chunk = self._chunks[0]
            end = min(len(chunk.fetched), chunk.taken + count)
            parts.append((chunk, chunk.taken, end))
            count -= end - chunk.taken
            chunk.taken = end
            self.high = max(self.high, int(chunk.order[end - 1]))
            if end == len(chunk.fetched):
                self._chunks.pop(0)
                self.offset = self._chunks[0].fetched.offset[0].item() if self._chunks else chunk.fetched.next_offset
            else:
                self.offset = int(chunk.fetched.offset[end])
        return parts


@dataclass(slots=True)
class Taken:
    """What a merge took: the batch, and the records of refused and late rows."""

    batch: Batch
    refused: list[Record]
    rows: int


class Merge:
    """Takes rows of several inputs in one order."""

    def __init__(self, inputs: list[Input]) -> None:
        self.inputs = inputs
        self.watermark = NEVER
        self._slack = max(i.source.out_of_orderness for i in inputs)

    def available(self, idle: frozenset[int]) -> int:
        """How many rows could be taken now."""
        return sum(self._safe(idle))

    def blocking(self, idle: frozenset[int]) -> list[int]:
        """Inputs that are empty and hold others back."""
        if not any(i.buffered for i in self.inputs):
            return []
        return [n for n, i in enumerate(self.inputs) if not i.buffered and n not in idle]

    def _safe(self, idle: frozenset[int]) -> list[int]:
        """Per input, how many of its rows no row still to come can precede."""
        bounds = []
        for n, i in enumerate(self.inputs):
            if i.buffered:
                bounds.append((i._seen, n))
            elif n not in idle:
                bounds.append((i.high, n))
        safe = []
        for n, i in enumerate(self.inputs):
            waiting = i.waiting()
            count = len(waiting)
            for bound, m in bounds:
                if m != n:
                    side: Literal["left", "right"] = "right" if n < m else "left"
                    count = min(count, int(np.searchsorted(waiting, bound, side)))
            safe.append(count)
        return safe

    def take(self, limit: int, idle: frozenset[int]) -> Taken:
        """The next rows in order, at most `limit`. idle: inputs that hold no others back."""
        safe = self._safe(idle)
        if not any(safe):
            return Taken(Batch(_NO_TIMES, _NO_TIMES, {}), [], 0)
        order, source, counts = self._order(safe, limit)
        place = np.arange(len(order))
        watermark = np.maximum(np.maximum.accumulate(order) - self._slack, self.watermark)
        time = np.zeros(len(order), np.int64)
        streams: dict[str, Rows] = {}
        refused: list[Record] = []
        keep = np.ones(len(order), np.bool_)
        for n, count in enumerate(counts):
            if count:
                self._take_input(n, count, place[source == n], watermark, time, keep, streams, refused)
        self.watermark = int(watermark[-1])
        return Taken(_compact(time, watermark, keep, streams), refused, len(order))

    def _order(self, safe: list[int], limit: int) -> tuple[NDArray[np.int64], NDArray[np.int64], list[int]]:
        """(order times, input of each row, rows per input) of the next rows in merged order."""
        times = [i.waiting()[:count] for i, count in zip(self.inputs, safe, strict=True)]
        order = np.concatenate(times)
        source = np.repeat(np.arange(len(times)), [len(t) for t in times])
        if len(times) > 1:
            # A stable sort keeps each input's own order and puts the lower input first among equals.
            merged = np.argsort(order, kind="stable")
            order, source = order[merged], source[merged]
        order, source = order[:limit], source[:limit]
        return order, source, np.bincount(source, minlength=len(times)).tolist()

    def _take_input(
        self,
        n: int,
        count: int,
        place: NDArray[np.int64],
        watermark: NDArray[np.int64],
        time: NDArray[np.int64],
        keep: NDArray[np.bool_],
        streams: dict[str, Rows],
        refused: list[Record],
    ) -> None:
        """Move an input's next rows to their places in the batch."""
        source = self.inputs[n].source
        before = self.inputs[n].high
        parts = []
        done = 0
        for chunk, start, end in self.inputs[n].take(count):
            at = place[done : done + end - start]
            done += end - start
            wrong = [pair for pair in chunk.decoded.refused if start <= pair[0] < end]
            if wrong:
                keep[at[np.array([i for i, _ in wrong]) - start]] = False
                refused += _rejected(source, chunk.fetched, wrong)
            first, last = np.searchsorted(chunk.decoded.rows, (start, end))
            rows = chunk.decoded.rows[first:last]
            here = chunk.decoded.time[first:last]
            spot = at[rows - start]
            time[spot] = here
            # Late is judged by the input's own watermark before the row, and by the task's: one that was idle
            # no longer held it back, and what has been closed or forgotten cannot be corrected.
            seen = np.concatenate(([before], chunk.order[start : end - 1]))[rows - start]
            before = int(chunk.order[end - 1])
            mark = np.maximum(seen - source.out_of_orderness, watermark[spot] - source.wake)
            on_time = here >= mark - source.lateness
            for j in np.flatnonzero(~on_time).tolist():
                keep[spot[j]] = False
                if source.refusing:
                    refused.append(_late(source, chunk.fetched, int(rows[j])))
            parts.append((spot[on_time], chunk, first + np.flatnonzero(on_time), rows[on_time]))
        if any(len(part[0]) for part in parts):
            streams[source.topic] = _rows(self.inputs[n].partition, parts)


def _size(values: Sequence[bytes | None]) -> int:
    return values.size if isinstance(values, Spans) else sum(len(v) for v in values if v)


def _rows(
    partition: Partition, parts: list[tuple[NDArray[np.int64], _Chunk, NDArray[np.int64], NDArray[np.int64]]]
) -> Rows:
    decoded = [(chunk.decoded.fields, rows) for _, chunk, rows, _ in parts]
    texts = {
        name: Spans.joined([fields.texts[name].take(rows) for fields, rows in decoded if isinstance(fields, Fields)])
        for name in texts_of(decoded[0][0])
        if all(name in texts_of(fields) for fields, _ in decoded)
    }
    names = [name for name in (*decoded[0][0], *texts_of(decoded[0][0])) if name not in texts]
    columns = {name: np.concatenate([fields[name][rows] for fields, rows in decoded]) for name in names}
    return Rows(
        at=np.concatenate([p[0] for p in parts]),
        fields=Fields(columns, texts),
        topic=partition.topic,
        partition=partition.number,
        offset=np.concatenate([p[1].fetched.offset[p[3]] for p in parts]),
        published=np.concatenate([p[1].fetched.timestamp[p[3]] for p in parts]) * 1000,
    )


def _compact(
    time: NDArray[np.int64], watermark: NDArray[np.int64], keep: NDArray[np.bool_], streams: dict[str, Rows]
) -> Batch:
    """The batch without the rows that were refused."""
    if not keep.all():
        moved = np.cumsum(keep) - 1
        for rows in streams.values():
            rows.at = moved[rows.at]
        time, watermark = time[keep], watermark[keep]
    return Batch(time, watermark, streams)


def _origin(topic: str, partition: int, offset: int) -> tuple[tuple[str, bytes], ...]:
    return (("topic", topic.encode()), ("partition", b"%d" % partition), ("offset", b"%d" % offset))


def _rejected(source: Source, fetched: Fetched, wrong: list[tuple[int, InvalidEvent]]) -> list[Record]:
    """The records of refused rows, none where nobody publishes them."""
    topic, number = fetched.partition
    rows = np.array([i for i, _ in wrong])
    offsets = fetched.offset[rows].tolist()
    if not source.rejected:
        for offset, (_, error) in zip(offsets, wrong, strict=True):
            logger.warning("%s-%d-%d is left out: %s", topic, number, offset, error.reason)
    if not source.rejected or not source.refusing:
        return []
    found = []
    keys, values = _chosen(fetched.keys, rows), _chosen(fetched.values, rows)
    for key, value, offset, (_, error) in zip(keys, values, offsets, wrong, strict=True):
        why = (("reason", error.reason.encode()), ("field", error.field.encode()))
        found.append(Record(source.rejected, key, value, None, None, why + _origin(topic, number, offset)))
    return found


def _chosen(values: Sequence[bytes | None], rows: NDArray[np.int64]) -> Iterable[bytes | None]:
    return values.take(rows) if isinstance(values, Spans) else [values[i] for i in rows.tolist()]


def _late(source: Source, fetched: Fetched, i: int) -> Record:
    if not source.late:
        raise InvalidEvent(f"{source.topic} goes back in time at offset {fetched.offset[i]}")
    why = (("reason", b"later than the watermark and the allowed lateness"),)
    origin = _origin(*fetched.partition, int(fetched.offset[i]))
    return Record(source.late, fetched.keys[i], fetched.values[i], None, None, why + origin)
