"""Feature sets over the rows of another: what a set publishes, as a stream that others can be of.

    class Bids(Features, of=Bid, by="auction", window=sliding("10s", every="2s")):
        n = count()

    class Hot(Features, of=Bids, window=tumbling("2s")):
        auction = last(col.auction, order=col.n)

The fields are those of the record on `features.<Set>`, less what may differ for one result: early rows and
corrections. What was folded cannot be taken back, so a set whose rows are corrected is of no other set.

The time of a row as of an event is that event's. That of a window's result is its last microsecond, so that windows
over results hold whole windows of these: `tumbling("2s")` the results of `sliding("10s", every="2s")` that end
together. Sessions and last-N windows have their newest event's.
"""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
from headrace.streams.aggregations import Stream
from headrace.streams.codecs import Decoded
from headrace.streams.durations import text
from headrace.streams.errors import DeclarationError, InvalidEvent
from headrace.streams.event import Event, Field
from headrace.streams.jsoncodec import codec
from headrace.streams.plans import PUBLISHED, Declaration, Plan
from headrace.streams.resultrows import missing
from headrace.streams.windows import LastN, Sliding, Tumbling
from numpy.typing import NDArray

PREFIX = "features."
"""Begins the topics that feature sets publish on."""


def rows_of(declared: Declaration, origin: object) -> Stream:
    """The stream of what a set publishes. origin: the set.

    Raises DeclarationError where another set cannot be of it.
    """
    plan = Plan(declared)
    name = declared.name
    if not (declared.publish and declared.public):
        raise DeclarationError(f"{name} publishes nothing, so no set can be of its rows: let it publish")
    if declared.early is not None:
        raise DeclarationError(
            f"{name} publishes early results (early={declared.early!r}), and a set of its rows would count them beside "
            f"the final ones: leave early away, or read {PREFIX}{name} elsewhere"
        )
    timed = declared.window is not None and not isinstance(declared.window, LastN)
    late = max(stream.lateness for stream in plan.streams.values())
    if timed and late and declared.clock != PUBLISHED:
        raise DeclarationError(
            f"{name} corrects its results, as its events may come {text(late)} late, and what a set of its rows has "
            f'folded cannot be taken back: give the events lateness="0s", and out_of_orderness for as long as they are '
            f"to be waited for"
        )
    named = [Field(n, type.kind, type.optional) for n, type in plan.key_types.items()]
    public = [Field(n, plan.types[n].kind, plan.types[n].optional) for n in declared.public]
    if declared.window is None:
        head, tail = [Field("id", "str", False)], [Field("at", "time", False)]
    else:
        head, tail = [], [Field("start", "time", not timed), Field("end", "time", False)]
        tail += [Field("revision", "int", False), Field("final", "bool", False)]
    fields = {f.name: f for f in (*head, *named, *tail, *public)}
    behind = declared.of.out_of_orderness if declared.clock != PUBLISHED and not timed else 0
    lateness = declared.of.lateness if declared.window is None else 0
    return Stream(f"{PREFIX}{name}", tuple(fields.values()), lateness, behind, origin)


class RowCodec:
    """Decodes the rows of a set into columns, and their times. They are our own, and without an event's keys.

    Raises InvalidEvent where a row cannot be taken: results that are left out would make all that follows wrong.
    """

    def __init__(self, stream: Stream, declared: Declaration) -> None:
        self._name = stream.name
        self._codec = codec(_event(stream, declared))
        self._before = 1 if isinstance(declared.window, Tumbling | Sliding) else 0

    def decode(
        self, values: Sequence[bytes | None], keys: Sequence[bytes | None], published: NDArray[np.int64]
    ) -> Decoded:
        found = self._codec.decode(values, missing(len(values)), published)
        if found.refused:
            at, error = found.refused[0]
            row = (values[at] or b"")[:200]
            raise InvalidEvent(
                f"{self._name} holds a row that no set can be of ({error.reason}): {row!r}. Mend the set that "
                f"publishes it, and begin anew with `headrace reset PROGRAM`"
            )
        return Decoded(found.rows, found.fields, found.time - self._before, [])


_HINTS: Mapping[str, Any] = {"int": int, "float": float, "bool": bool, "str": str, "time": datetime, "object": object}
_AHEAD = "100000d"
"""A window ends when it ends, however far ahead of the time at which its result is published."""


def _event(stream: Stream, declared: Declaration) -> type[Event]:
    """An event class of the stream's fields, for its codec."""
    hints = {}
    for f in stream.fields:
        hint = _HINTS[f.kind]
        hints[f.name] = hint | None if (f.optional or f.kind == "float") and f.kind != "object" else hint
    key, time = ("id", "at") if declared.window is None else ("revision", "end")
    body: dict[str, Any] = {"__annotations__": hints, "__module__": __name__}
    options = {"topic": stream.name, "key": key, "time": time, "ahead": _AHEAD, "unknown": "ignore"}
    return types.new_class(declared.name, (Event,), options, lambda space: space.update(body))
