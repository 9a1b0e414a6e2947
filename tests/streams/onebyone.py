"""Outcomes one event at a time, in plain Python objects: what `Match` and `Settle` do by columns, written apart."""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import msgspec
import numpy as np
from headrace.streams.batch import Batch, Change, Column, Outputs, Record, Rows
from headrace.streams.durations import when
from headrace.streams.event import Field, fields
from headrace.streams.outcomes import Outcome, Prediction, Settled


class _Line(msgspec.Struct, array_like=True):
    """An open event. left: the quantity not yet taken back; labelled: its outcome is known already."""

    match: tuple[Any, ...]
    time: int
    left: float
    labelled: bool
    fields: list[Any]


class MatchOneByOne:
    """Finds outcomes: matches each outcome event with the open events it settles, and lets the others expire.

    Adds two streams to the batch, with the settled event's own fields and its offset as `~offset`:
    `Outcome.known_stream`, at the moment of the match, and `Outcome.expired_stream`, once the watermark is past the
    horizon and the outcome events' lateness. Rows are taken one at a time in batch order, so where batches are cut
    changes nothing. What is missing matches nothing.
    """

    def __init__(self, outcome: Outcome) -> None:
        assert outcome.of is not None, "a model binds its outcome"
        self.name = f"match.{outcome.known_stream}"
        self._outcome = outcome
        self._main = outcome.of.contract.topic
        self._by = outcome.event.contract.topic
        self._fields = fields(outcome.of)
        self.clear()

    def clear(self) -> None:
        self._open: dict[int, _Line] = {}
        self._by_match: dict[tuple[Any, ...], list[tuple[int, int]]] = {}
        self._expiry: list[tuple[int, int]] = []
        self._touched: set[int] = set()

    def load(self, rows: Iterable[tuple[bytes, bytes]]) -> None:
        for key, value in rows:
            self._add(int.from_bytes(key, "big"), msgspec.msgpack.decode(value, type=_Line))

    def changes(self) -> list[Change]:
        changes: list[Change] = []
        for offset in sorted(self._touched):
            line = self._open.get(offset)
            packed = None if line is None else msgspec.msgpack.encode(line)
            changes.append((offset.to_bytes(8, "big"), packed))
        self._touched.clear()
        return changes

    def told(self, at: int) -> Iterator[dict[str, Any]]:
        """Each event that may still be matched."""
        for offset, line in sorted(self._open.items()):
            match = dict(zip(self._outcome.match, line.match, strict=True))
            yield {"offset": offset, "match": match, "at": when(line.time), "left": line.left, "known": line.labelled}

    def process(self, batch: Batch, out: Outputs) -> None:
        known = _Derived()
        expired = _Derived()
        main, by = batch.streams.get(self._main), batch.streams.get(self._by)
        events: dict[int, tuple[bool, int]] = {}
        if main is not None:
            events.update((at, (True, row)) for row, at in enumerate(main.at.tolist()))
        if by is not None:
            events.update((at, (False, row)) for row, at in enumerate(by.at.tolist()))
        lines = self._lines(main, batch.time[main.at].tolist()) if main is not None else []
        returns = self._returns(by) if by is not None else []
        times, watermarks = batch.time.tolist(), batch.watermark.tolist()
        for at, watermark in enumerate(watermarks):
            self._expire(at, watermark, expired)
            is_main, row = events.get(at, (None, 0))
            if is_main:
                assert main is not None
                self._add(int(main.offset[row]), lines[row])
                self._touched.add(int(main.offset[row]))
            elif is_main is False:
                self._settle(at, times[at], *returns[row], known)
        # What expired before a row is inserted before it; what a row made known comes after it.
        _insert(batch, self._main, [(expired, self._outcome.expired_stream, 0), (known, self._outcome.known_stream, 1)])
        for derived, stream in ((expired, self._outcome.expired_stream), (known, self._outcome.known_stream)):
            if derived.at:
                batch.streams[stream].fields = derived.columns(self._fields)

    def _lines(self, rows: Rows, times: list[int]) -> list[_Line]:
        columns = [rows.fields[f.name].tolist() for f in self._fields]
        names = [f.name for f in self._fields]
        at = [names.index(m) for m in self._outcome.match]
        quantity = names.index(self._outcome.quantity) if self._outcome.quantity else None
        made = []
        for time, *values in zip(times, *columns, strict=True):
            # A float whatever the field is: a line has the same bytes before and after it was stored.
            left = float(abs(values[quantity])) if quantity is not None else 1.0
            made.append(_Line(tuple(values[i] for i in at), time, left, False, values))
        return made

    def _returns(self, rows: Rows) -> list[tuple[tuple[Any, ...], float]]:
        columns = [rows.fields[m].tolist() for m in self._outcome.match]
        many = rows.fields[self._outcome.quantity].tolist() if self._outcome.quantity else [1] * len(rows)
        return [(match, abs(q)) for match, q in zip(zip(*columns, strict=True), many, strict=True)]

    def _add(self, offset: int, line: _Line) -> None:
        self._open[offset] = line
        bisect.insort(self._by_match.setdefault(line.match, []), (line.time, offset))
        heapq.heappush(self._expiry, (line.time + self._outcome.within, offset))

    def _expire(self, at: int, watermark: int, expired: _Derived) -> None:
        while self._expiry and self._expiry[0][0] < watermark - self._outcome.lateness:
            matures, offset = heapq.heappop(self._expiry)
            line = self._open.pop(offset)
            lines = self._by_match[line.match]
            lines.remove((line.time, offset))
            if not lines:
                del self._by_match[line.match]
            self._touched.add(offset)
            if not line.labelled:
                expired.add(at, matures, offset, line.fields)

    def _settle(self, at: int, time: int, match: tuple[Any, ...], quantity: float, known: _Derived) -> None:
        """Take `quantity` back from the most recent open events."""
        for _, offset in reversed(self._by_match.get(match, ()) if None not in match else ()):
            line = self._open[offset]
            if quantity <= 0:
                break
            if line.left <= 0 or not line.time <= time <= line.time + self._outcome.within:
                continue
            took = min(quantity, line.left)
            quantity -= took
            line.left -= took
            self._touched.add(offset)
            if not line.labelled:
                line.labelled = True
                known.add(at, time, offset, line.fields)


@dataclass(slots=True)
class _Derived:
    """Rows of a derived stream while they are found: position in the batch, time, the event's offset and values."""

    at: list[int] = field(default_factory=list)
    time: list[int] = field(default_factory=list)
    offset: list[int] = field(default_factory=list)
    values: list[list[Any]] = field(default_factory=list)

    def add(self, at: int, time: int, offset: int, values: list[Any]) -> None:
        self.at.append(at)
        self.time.append(time)
        self.offset.append(offset)
        self.values.append(values)

    def columns(self, fields: Sequence[Field]) -> dict[str, Column]:
        columns: dict[str, Column] = {}
        for of, values in zip(fields, zip(*self.values, strict=True), strict=True):
            if of.kind in ("str", "object"):
                column = np.empty(len(values), np.object_)
                column[:] = values
            else:
                column = np.array(values)
            columns[of.name] = column
        columns["~offset"] = np.array(self.offset, np.int64)
        return columns


def _insert(batch: Batch, topic: str, derived: Sequence[tuple[_Derived, str, int]]) -> None:
    """Put derived rows into a batch: side 0 before the row at their position, side 1 after it."""
    extra = sum(len(d.at) for d, _, _ in derived)
    if not extra:
        return
    n = len(batch)
    positions = [np.arange(n) * 3 + 1, *(np.array(d.at, np.int64) * 3 + 2 * side for d, _, side in derived)]
    order = np.argsort(np.concatenate(positions), kind="stable")
    place = np.empty(n + extra, np.int64)
    place[order] = np.arange(n + extra)
    for rows in batch.streams.values():
        rows.at = place[rows.at]
    time = [batch.time, *(np.array(d.time, np.int64) for d, _, _ in derived)]
    mark = [batch.watermark, *(batch.watermark[np.array(d.at, np.int64)] for d, _, _ in derived)]
    batch.time, batch.watermark = np.concatenate(time)[order], np.concatenate(mark)[order]
    done = n
    for d, stream, _ in derived:
        if d.at:
            batch.streams[stream] = Rows(at=place[done : done + len(d.at)], fields={}, topic=topic)
        done += len(d.at)


class SettleOneByOne:
    """Joins each prediction with its outcome; publishes it on `outcomes.<model>` as soon as it is known.

    Predictions wait as their own bytes; the scorer leaves them as the column `prediction`.
    """

    def __init__(self, model: str, outcome: Outcome, prediction: str) -> None:
        assert outcome.of is not None, "a model binds its outcome"
        self.name = f"settle.{model}"
        self._topic = f"outcomes.{model}"
        self._outcome = outcome
        self._main = outcome.of.contract.topic
        self._prediction = prediction
        self.clear()

    def clear(self) -> None:
        self._waiting: dict[int, bytes] = {}
        self._touched: set[int] = set()

    def load(self, rows: Iterable[tuple[bytes, bytes]]) -> None:
        self._waiting.update((int.from_bytes(key, "big"), value) for key, value in rows)

    def changes(self) -> list[Change]:
        changes: list[Change] = [(o.to_bytes(8, "big"), self._waiting.get(o)) for o in sorted(self._touched)]
        self._touched.clear()
        return changes

    def told(self, at: int) -> Iterator[dict[str, Any]]:
        """Each prediction that waits for its outcome."""
        for offset, prediction in sorted(self._waiting.items()):
            yield {"offset": offset, "prediction": msgspec.Raw(prediction)}

    def process(self, batch: Batch, out: Outputs) -> None:
        main = batch.streams.get(self._main)
        if main is not None:
            offsets = main.offset.tolist()
            predictions = [value or b"" for value in main.encoded[self._prediction]]
            self._waiting.update(zip(offsets, predictions, strict=True))
            self._touched.update(offsets)
        settled: list[tuple[int, int, bool]] = []
        for stream, matched in ((self._outcome.known_stream, True), (self._outcome.expired_stream, False)):
            rows = batch.streams.get(stream)
            if rows is not None:
                offsets = rows.fields["~offset"].tolist()
                settled += [(at, o, matched) for at, o in zip(rows.at.tolist(), offsets, strict=True)]
        for at, offset, matched in sorted(settled):
            prediction = self._waiting.pop(offset)
            self._touched.add(offset)
            out.append(self._record(prediction, matched, int(batch.time[at]), int(batch.watermark[at])))

    def _record(self, prediction: bytes, matched: bool, known: int, watermark: int) -> Record:
        made = msgspec.json.decode(prediction, type=Prediction)
        settled = Settled(
            id=made.id,
            key=made.key,
            at=made.at,
            known=when(known),
            matures=made.at + timedelta(microseconds=self._outcome.within),
            # Several events expire at one row; each stands for the moment at which it matured.
            watermark=when(watermark - self._outcome.lateness if matched else known),
            outcome=matched != self._outcome.otherwise,
            score=made.score,
            baselines=made.baselines,
            version=made.version,
            features=made.features,
        )
        return Record(self._topic, made.key.encode(), msgspec.json.encode(settled), 0)
