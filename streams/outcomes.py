"""The outcome join: what really became of an event, and when that was known."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
import numpy as np
from headrace.streams import bytekernels, matching
from headrace.streams.aggregations import Stream
from headrace.streams.batch import Batch, Block, Column, Outputs, Rows, Touched, texts_of
from headrace.streams.durations import microseconds, when
from headrace.streams.errors import DeclarationError
from headrace.streams.event import Event, fields
from headrace.streams.eventrows import STAMP, EventRows, records, told_apart
from headrace.streams.expressions import Type
from headrace.streams.index import Ints, Names, grown_to
from headrace.streams.jsonrows import printed
from headrace.streams.spans import Spans, woven
from headrace.streams.waiting import Waiting
from numpy.typing import NDArray


class Outcome:
    """How an event's outcome is found.

    event:     the event that brings the outcome (a return)
    of:        the event whose outcome it is (an order line); a model gives its own `on` where this is left out
    match:     fields equal in both; the most recent open event is matched first: the latest by event time, and of
               those at one time the last to come
    within:    the horizon, itself included: an event without a match by then has the outcome `otherwise`, which is
               known once the watermark has passed the horizon and the lateness of `event`
    prior:     the share of True outcomes expected before the first one is seen; what a model answers until then
    quantity:  a field counted in both: a match takes back that much, what is left goes on to the next open event

    Raises DeclarationError where a field does not exist in both events or the prior is not between 0 and 1.
    """

    def __init__(
        self,
        event: type[Event],
        *,
        match: Sequence[str],
        within: str,
        prior: float | None = None,
        otherwise: bool = False,
        of: type[Event] | None = None,
        quantity: str | None = None,
    ) -> None:
        if prior is None or not 0.0 < prior < 1.0:
            raise DeclarationError(
                f"Outcome: prior={prior} is not a share between 0 and 1: say how many outcomes you expect to be True "
                f"before the first is seen, such as prior=0.02"
            )
        self.event = event
        self.match = tuple(match)
        self.within = microseconds(within)
        self.otherwise = otherwise
        self.prior = prior
        self.quantity = quantity
        self.of = of
        if not self.match:
            raise DeclarationError('Outcome: match names no field; write match=["customer", "item"]')
        self._check(event)
        if of is not None:
            self._check(of)

    def bind(self, of: type[Event]) -> None:
        """Say whose outcome it is, where the declaration left it to the model."""
        if self.of is not None and self.of is not of:
            raise DeclarationError(f"Outcome of {self.of.__name__} cannot be the outcome of a model on {of.__name__}")
        self._check(of)
        self.of = of

    @property
    def stream(self) -> Stream:
        """Matches as a stream that features can aggregate.

        Raises DeclarationError before it is known whose outcomes they are.
        """
        if self.of is None:
            raise DeclarationError("features of an Outcome need to know whose it is: write hr.Outcome(..., of=<Event>)")
        contract = self.event.contract  # a match has the time of the event that brought it
        return Stream(self.known_stream, fields(self.of), contract.lateness, contract.out_of_orderness, self)

    @property
    def lateness(self) -> int:
        """Microseconds that an outcome event may come behind the watermark and still be matched."""
        return self.event.contract.lateness

    @property
    def known_stream(self) -> str:
        """The derived stream of matches: the settled event's fields, at the moment its outcome was known."""
        of = self.of.contract.topic if self.of else "?"
        return f"{self.event.contract.topic}~{of}"

    @property
    def expired_stream(self) -> str:
        """The derived stream of events that reached the horizon without a match."""
        return f"{self.known_stream}~expired"

    def _check(self, event: type[Event]) -> None:
        known = {f.name: f for f in fields(event)}
        wanted = [*self.match, *([self.quantity] if self.quantity else [])]
        for name in wanted:
            if name not in known:
                raise DeclarationError(f"Outcome: {event.__name__} has no field {name!r} ({', '.join(known)})")
        if self.quantity and (known[self.quantity].kind not in ("int", "float") or known[self.quantity].optional):
            raise DeclarationError(
                f"Outcome: quantity={self.quantity!r} is {known[self.quantity].kind} in {event.__name__}; "
                f"it must be a number that is never missing"
            )


class Match:
    """Finds outcomes: matches each outcome event with the open events it settles, and lets the others expire.

    Adds two streams to the batch, with the settled event's own fields, its offset as `~offset` and its time as `~time`:
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
        self._rows = EventRows(fields(outcome.of))
        self._waiting = Waiting()
        self._matches = Names()
        self.clear()

    def clear(self) -> None:
        self._waiting.clear()
        self._matches.clear()
        self._lines = matching.none()

    def load(self, rows: Iterable[tuple[bytes, bytes]]) -> None:
        for numbers in self._waiting.load(rows):
            packed = self._waiting.rows(numbers)
            heads = self._rows.heads(packed)
            self._lay(numbers, heads["time"], heads["stamp"]["left"], self._rows.fields(packed))
            self._lines.flag[numbers] = heads["stamp"]["known"] * matching.LABELLED
            matching.reopen(int(numbers[0]), int(numbers[-1]) + 1, self._lines)

    def changes(self) -> Sequence[Touched]:
        found = self._waiting.changes()
        kept = self._waiting.pack()
        if kept is not None:
            self._pack(kept)
        if self._matches.crowded:
            used = self._lines.match[self._waiting.here]
            self._matches.release(self._matches.unused(used[used >= 0]))
        return found

    def told(self, at: int) -> Iterator[dict[str, Any]]:
        """Each event that may still be matched."""
        here = self._waiting.here
        for begin in range(0, len(here), TOLD_AT_ONCE):
            numbers = here[begin : begin + TOLD_AT_ONCE]
            found = self._rows.fields(self._waiting.rows(numbers))
            matches = zip(*(found[name].tolist() for name in self._outcome.match), strict=True)
            for number, values in zip(numbers.tolist(), matches, strict=True):
                yield {
                    "offset": int(self._waiting.offset[number]),
                    "match": dict(zip(self._outcome.match, values, strict=True)),
                    "at": when(int(self._lines.time[number])),
                    "left": float(self._lines.left[number]),
                    "known": bool(self._lines.flag[number] & matching.LABELLED),
                }

    def process(self, batch: Batch, out: Outputs) -> None:
        role, row = np.zeros(len(batch), np.uint8), np.zeros(len(batch), np.int64)
        match, quantity = np.zeros(0, np.int64), np.zeros(0, np.float64)
        main, by = batch.streams.get(self._main), batch.streams.get(self._by)
        if main is not None and main is not by:
            role[main.at], row[main.at] = matching.OPENS, self._begin(main, batch.time[main.at])
        if by is not None:
            role[by.at], row[by.at] = matching.SETTLES, np.arange(len(by))
            match, quantity = self._numbers(by.fields), self._quantity(by)
        lines = self._lines
        within, lateness = self._outcome.within, self._outcome.lateness
        matching.advance(batch.time, batch.watermark, role, row, match, quantity, within, lateness, lines)
        known, expired = (
            pairs[:, : lines.counters[count]].copy()
            for pairs, count in ((lines.known, matching.KNOWN), (lines.expired, matching.EXPIRED))
        )
        expired = expired[:, lines.flag[expired[1]] & matching.LABELLED == 0]
        self._keep()
        # What expired before a row is inserted before it; what a row made known comes after it.
        made = [
            self._derived(self._outcome.expired_stream, 0, expired, lines.time[expired[1]] + within),
            self._derived(self._outcome.known_stream, 1, known, batch.time[known[0]]),
        ]
        insert(batch, self._main, made)

    def _begin(self, rows: Rows, time: Ints) -> Ints:
        """Takes events that open; their numbers."""
        left = self._quantity(rows)
        numbers = self._waiting.add(rows.offset, self._rows.packed(rows, time, left))
        self._lay(numbers, time, left, rows.fields)
        return numbers

    def _lay(self, numbers: Ints, time: Ints, left: NDArray[np.float64], of: dict[str, Column]) -> None:
        """Puts lines into the arrays; nothing points to them yet."""
        match = self._numbers(of)
        lines = self._lines
        if len(self._waiting) > len(lines.time):
            size = 2 * len(self._waiting)
            grown = {name: grown_to(getattr(lines, name), size) for name in _OF_LINES}
            pairs = {name: np.zeros((2, size), np.int64) for name in ("known", "expired")}
            self._lines = lines = lines._replace(**grown, **pairs)
        lines.time[numbers], lines.left[numbers], lines.match[numbers] = time, left, match
        lines.flag[numbers] = 0

    def _numbers(self, of: dict[str, Column]) -> Ints:
        """The number of what each row is matched on."""
        texts = texts_of(of)
        match = self._matches.numbers(told_apart([texts[m] if m in texts else of[m] for m in self._outcome.match]))
        newest = self._lines.newest
        if len(self._matches) > len(newest):
            grown = np.full(2 * len(self._matches), -1, np.int64)
            grown[: len(newest)] = newest
            self._lines = self._lines._replace(newest=grown)
        return match

    def _quantity(self, rows: Rows) -> NDArray[np.float64]:
        if self._outcome.quantity is None:
            return np.ones(len(rows), np.float64)
        return np.abs(rows.fields[self._outcome.quantity].astype(np.float64))

    def _keep(self) -> None:
        """Notes what the loop changed where the rows wait."""
        lines, counters = self._lines, self._lines.counters
        changed = lines.changed[: counters[matching.CHANGED]].copy()
        if len(changed):
            stamps = np.zeros(len(changed), STAMP)
            stamps["left"], stamps["known"] = lines.left[changed], matching.LABELLED
            self._waiting.stamp(changed, 0, records(stamps))
            lines.flag[changed] = matching.LABELLED
        if counters[matching.EXPIRED]:
            self._waiting.remove(lines.expired[1, : counters[matching.EXPIRED]])
        counters[[matching.CHANGED, matching.KNOWN, matching.EXPIRED]] = 0

    def _derived(self, stream: str, side: int, found: Ints, time: Ints) -> Derived:
        at, lines = found
        if not len(at):
            return Derived(stream, side, at, time, {})
        # A copy: what later operators publish of it is read when the rows here have been packed.
        columns = self._rows.fields(self._waiting.rows(lines).packed())
        columns["~offset"] = self._waiting.offset[lines]
        columns["~time"] = self._lines.time[lines]
        return Derived(stream, side, at, time, columns)

    def _pack(self, kept: Ints) -> None:
        """Renumbers the lines as the rows that wait were renumbered."""
        lines = self._lines
        now = np.full(len(lines.time) + 1, -1, np.int64)  # the last one stands for none
        now[kept] = np.arange(len(kept))
        size = 2 * len(kept)
        moved = {name: grown_to(getattr(lines, name)[kept], size) for name in ("time", "left", "match", "flag")}
        links = {name: grown_to(now[getattr(lines, name)[kept]], size) for name in ("older", "newer")}
        queue = grown_to(now[lines.queue[: lines.counters[matching.QUEUED]]], size)
        pairs = {name: np.zeros((2, size), np.int64) for name in ("known", "expired")}
        self._lines = lines._replace(
            **moved, **links, **pairs, queue=queue, changed=np.zeros(size, np.int64), newest=now[lines.newest]
        )


_OF_LINES = ("time", "left", "match", "older", "newer", "flag", "queue", "changed")

TOLD_AT_ONCE = 2_000
"""Rows of state told at a time: as Python's objects they take several times the room."""


@dataclass(slots=True)
class Derived:
    """Rows of a derived stream: before (side 0) or after (side 1) the rows at these positions of the batch."""

    stream: str
    side: int
    at: Ints
    time: Ints
    fields: dict[str, Column]


def insert(batch: Batch, topic: str, derived: Sequence[Derived]) -> None:
    """Put derived rows into a batch."""
    derived = [d for d in derived if len(d.at)]
    if not derived:
        return
    n = len(batch)
    order = np.argsort(np.concatenate([np.arange(n) * 3 + 1, *(d.at * 3 + 2 * d.side for d in derived)]), kind="stable")
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    for rows in batch.streams.values():
        rows.at = place[rows.at]
    time = [batch.time, *(d.time for d in derived)]
    mark = [batch.watermark, *(batch.watermark[d.at] for d in derived)]
    batch.time, batch.watermark = np.concatenate(time)[order], np.concatenate(mark)[order]
    done = n
    for d in derived:
        batch.streams[d.stream] = Rows(at=place[done : done + len(d.at)], fields=d.fields, topic=topic)
        done += len(d.at)


class Settle:
    """Joins each prediction with its outcome; publishes it on `outcomes.<model>` as soon as it is known.

    Predictions wait as their own bytes; the scorer leaves them in `Rows.encoded` as the column `prediction`.
    """

    def __init__(self, model: str, outcome: Outcome, prediction: str) -> None:
        assert outcome.of is not None, "a model binds its outcome"
        self.name = f"settle.{model}"
        self._topic = f"outcomes.{model}"
        self._outcome = outcome
        self._main = outcome.of.contract.topic
        self._prediction = prediction
        self._waiting = Waiting()

    def clear(self) -> None:
        self._waiting.clear()

    def load(self, rows: Iterable[tuple[bytes, bytes]]) -> None:
        for _ in self._waiting.load(rows):
            pass

    def changes(self) -> Sequence[Touched]:
        found = self._waiting.changes()
        self._waiting.pack()
        return found

    def told(self, at: int) -> Iterator[dict[str, Any]]:
        """Each prediction that waits for its outcome."""
        for number in self._waiting.here:
            [prediction] = self._waiting.rows(number[None])
            yield {"offset": int(self._waiting.offset[number]), "prediction": msgspec.Raw(prediction or b"")}

    def process(self, batch: Batch, out: Outputs) -> None:
        main = batch.streams.get(self._main)
        if main is not None:
            self._waiting.add(main.offset, main.encoded[self._prediction])
        named = ((self._outcome.known_stream, True), (self._outcome.expired_stream, False))
        settled = [(batch.streams[stream], matched) for stream, matched in named if stream in batch.streams]
        if not settled:
            return
        at = np.concatenate([rows.at for rows, _ in settled])
        order = np.argsort(at)
        at = at[order]
        offset, time = (np.concatenate([rows.fields[c] for rows, _ in settled])[order] for c in ("~offset", "~time"))
        matched = np.repeat([truth for _, truth in settled], [len(rows) for rows, _ in settled])[order]
        known = batch.time[at]
        numbers = self._waiting.find(offset)
        predictions = self._waiting.rows(numbers)
        self._waiting.remove(numbers)
        moments = {
            "known": known,
            "matures": time + self._outcome.within,
            # Several events expire at one row; each stands for the moment at which it matured.
            "watermark": np.where(matched, batch.watermark[at] - self._outcome.lateness, known),
        }
        keys, values = settled_rows(predictions, moments, matched != self._outcome.otherwise)
        out.append(Block(self._topic, keys, values, 0))


def settled_rows(predictions: Spans, moments: Mapping[str, Ints], outcome: NDArray[np.bool_]) -> tuple[Spans, Spans]:
    """The keys of the records of predictions (see `Prediction`), and these joined with their outcomes (see `Settled`).

    moments: known, matures, watermark; microseconds
    """
    begin = np.empty((9, len(predictions)), np.int64)
    bytekernels.members(predictions.data, predictions.start, predictions.length, begin)
    event, key, at, score, _, _, route, _, features = begin
    end = predictions.start + predictions.length
    said, judged, seen = (
        Spans(predictions.data, first, last - first)
        for first, last in ((event, score), (score, route), (features, end))
    )
    texts = [printed(moment, Type("time", False)) for moment in moments.values()]
    truth = Spans(_TRUTHS, np.where(outcome, 0, 4), np.where(outcome, 4, 5))
    literals = [b"", *(f',"{name}":'.encode() for name in moments), b',"outcome":', b"", b"", b""]
    values = woven(literals, [said, *texts, truth, judged, seen])
    first = key + len(b',"key":"')
    keys = Spans(predictions.data, first, at - first - 1).packed()
    if (keys.data == bytekernels.BACKSLASH).any():
        keys = Spans.of([msgspec.json.decode(one or b"", type=Prediction).key.encode() for one in predictions])
    return keys, values


_TRUTHS = np.frombuffer(b"truefalse", np.uint8)


class Prediction(msgspec.Struct, frozen=True):
    """What a model said of an event, on `predictions.<model>`.

    id:         the event: topic, partition, offset
    baselines:  other answers to the same question; "base" is the share of True among the outcomes learnt so far
    route:      how it was made ("embedded")
    latency_ms: from the event's publication to the prediction
    """

    id: str
    key: str
    at: datetime
    score: float
    baselines: dict[str, float]
    version: str
    route: str
    latency_ms: float
    features: dict[str, float | str | None]


class Settled(msgspec.Struct, frozen=True):
    """A prediction joined with what became of the event, on `outcomes.<model>`.

    known:     when the outcome was known; matures: the prediction's time plus the horizon
    watermark: no outcome that matured before it is still to come
    """

    id: str
    key: str
    at: datetime
    known: datetime
    matures: datetime
    watermark: datetime
    outcome: bool
    score: float
    baselines: dict[str, float]
    version: str
    features: dict[str, float | str | None]
