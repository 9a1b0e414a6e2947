"""Values into columns: a codec decodes what a topic carries and says why a value is refused.

One value that breaks its contract costs only itself: it comes back as an `InvalidEvent` beside the columns of the
others. A codec joins by implementing `Codec`; this module has JSON and MessagePack, both through msgspec.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

import msgspec
import numpy as np
from headrace.streams.batch import Column
from headrace.streams.durations import micros, when
from headrace.streams.errors import InvalidEvent
from headrace.streams.event import NEWEST, OLDEST, Event, Field, fields
from numpy.typing import NDArray

MAX_EVENT_BYTES = 1_000_000
"""Larger values are refused: one of them would fill the buffers that thousands of events share."""

MAX_INTEGER = 2**53
"""Integers beyond it lose digits in every JSON reader that keeps numbers as doubles, and in float columns."""

MAX_NESTING = 100
"""Levels of lists and objects within a field. Deeper, one reader after another would fail: each of them goes down by
its own stack."""

NO_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding raises where bytes are no JSON, or JSON that is nested deeper than the stack is."""


@dataclass(slots=True)
class Decoded:
    """What became of a list of values.

    rows:    int64[k], positions of the accepted values, ascending
    fields:  their columns, each of length k; those of texts may have come as spans
    time:    int64[k], event times, microseconds
    refused: (position, reason) of the others, ascending
    """

    rows: NDArray[np.int64]
    fields: dict[str, Column]
    time: NDArray[np.int64]
    refused: list[tuple[int, InvalidEvent]]


class Decoder(Protocol):
    """Decodes the values of a topic into columns."""

    def decode(
        self, values: Sequence[bytes | None], keys: Sequence[bytes | None], published: NDArray[np.int64]
    ) -> Decoded:
        """Columns of the accepted values. published: int64, microseconds, per value."""


class Codec(Decoder, Protocol):
    """Decodes and encodes the values of one event class."""

    def decode_one(self, value: bytes) -> Event: ...

    def encode(self, event: Event) -> bytes: ...


_FORMATS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], bytes]]] = {
    "json": (msgspec.json.Decoder, msgspec.json.Encoder().encode),
    "msgpack": (msgspec.msgpack.Decoder, msgspec.msgpack.Encoder().encode),
}


class MsgspecCodec:
    """JSON or MessagePack, value by value, strict and exact.

    keyless: whether a record of a topic needs no key; over several partitions it would lie in any of them
    """

    def __init__(self, event: type[Event], keyless: bool = True) -> None:
        self._event = event
        self._keyless = keyless
        self._fields = fields(event)
        decoder, self._encode = _FORMATS[event.contract.codec]
        self._decode: Callable[[bytes], Event] = decoder(event).decode

    def encode(self, event: Event) -> bytes:
        return self._encode(event)

    def decode_one(self, value: bytes) -> Event:
        """The event, fully checked. Raises InvalidEvent."""
        event = self._parse(value)
        for field in self._fields:
            _check(field, getattr(event, field.name))
        self._check_key(event, None)
        time = getattr(event, self._event.contract.time)
        _check_time(self._event.contract.time, _micros(time), whole=isinstance(time, int))
        return event

    def decode(
        self, values: Sequence[bytes | None], keys: Sequence[bytes | None], published: NDArray[np.int64]
    ) -> Decoded:
        events: list[Event] = []
        rows: list[int] = []
        refused: list[tuple[int, InvalidEvent]] = []
        ahead = self._event.contract.ahead
        key, time_field = self._event.contract.key, self._event.contract.time
        times: list[int] = []
        for i, (value, own) in enumerate(zip(values, keys, strict=True)):
            try:
                event = self._parse(value)
                for field in self._fields:
                    if field.kind in _CHECKED:
                        _check(field, getattr(event, field.name))
                self._check_key(event, own)
                if own is None and not self._keyless:
                    raise InvalidEvent(f"the record has no key: its key is the field {key}, as text", key)
                said = getattr(event, time_field)
                time = _micros(said)
                _check_time(time_field, time, int(published[i]) + ahead, isinstance(said, int))
            except InvalidEvent as error:
                refused.append((i, error))
                continue
            events.append(event)
            rows.append(i)
            times.append(time)
        columns = {f.name: _column(f, [getattr(e, f.name) for e in events]) for f in self._fields}
        return Decoded(np.array(rows, np.int64), columns, np.array(times, np.int64), refused)

    def _parse(self, value: bytes | None) -> Event:
        if not value:
            raise InvalidEvent("the value is empty")
        if len(value) > MAX_EVENT_BYTES:
            raise InvalidEvent(f"the value has {len(value):,} bytes; at most {MAX_EVENT_BYTES:,} are taken")
        try:
            return self._decode(value)
        except msgspec.ValidationError as error:
            found = _invalid(str(error))
            if not found.field and found.reason.startswith(NO_OBJECT):
                raise InvalidEvent(found.reason + self._shape) from None
            raise found from None
        except UnicodeDecodeError as error:
            raise InvalidEvent(f"the value is not UTF-8: {error.reason} at byte {error.start}") from None
        except (msgspec.DecodeError, RecursionError) as error:
            raise InvalidEvent(f"the value is no {_NAMES[self._event.contract.codec]} ({error}){self._shape}") from None

    @property
    def _shape(self) -> str:
        """What a value should look like, for those who sent something else altogether."""
        json = self._event.contract.codec == "json"
        return f": {SHAPE}" if json else ""

    def _check_key(self, event: Event, key: bytes | None) -> None:
        name = self._event.contract.key
        value = getattr(event, name)
        if value is None or value == "":
            raise empty_key(name)
        if key is not None and key != str(value).encode():
            raise InvalidEvent(f"the record's key {key[:80]!r} is not its field {name}={value!r}", name)


def empty_key(name: str) -> InvalidEvent:
    """What is wrong with an event whose key field is empty."""
    return InvalidEvent(f"the key field {name} is empty", name)


_NAMES = {"json": "JSON", "msgpack": "MessagePack"}

SHAPE = "an event is one JSON object, in a file one a line (NDJSON)"

NO_OBJECT = "Expected `object`, got"
"""How msgspec begins where a value is an array or a number, and not an event at all."""

CODECS = tuple(_FORMATS)
"""What an event class may declare as its codec."""

_CHECKED = frozenset({"int", "float", "time", "object"})


def key_of(event: Event) -> bytes:
    """The key of the record that carries the event: its key field as text."""
    return str(getattr(event, type(event).contract.key)).encode()


def _invalid(message: str) -> InvalidEvent:
    """msgspec names the place as "... - at `$.price`"; the field is its path."""
    reason, _, place = message.partition(" - at `")
    field = place.rstrip("`").removeprefix("$").removeprefix(".")
    if not field and "`" in reason:
        field = reason.split("`")[1] if "field" in reason else ""
    return InvalidEvent(reason, field)


def _check(field: Field, value: Any, levels: int = MAX_NESTING) -> None:
    """Refuse numbers that a column cannot hold exactly, and times without a zone, also inside nested values."""
    if levels < 0:
        raise InvalidEvent(f"the field is nested deeper than {MAX_NESTING} levels", field.name)
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return
    if isinstance(value, int):
        if not -MAX_INTEGER <= value <= MAX_INTEGER:
            mend = "send it as text" if field.kind == "object" else f"to take it, declare {field.name} as str"
            raise InvalidEvent(f"{value} is beyond 2^53, where numbers lose digits; {mend}", field.name)
    elif isinstance(value, float):
        if not -1.8e308 < value < 1.8e308:
            raise InvalidEvent(f"{value} is not a finite number", field.name)
    elif isinstance(value, datetime):
        if value.tzinfo is None:
            raise InvalidEvent(f"the time {value.isoformat()} has no zone; write {value.isoformat()}Z", field.name)
    elif isinstance(value, dict):
        for inner in value.values():
            _check(field, inner, levels - 1)
    elif isinstance(value, list | tuple):
        for inner in value:
            _check(field, inner, levels - 1)
    elif isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            _check(field, getattr(value, name), levels - 1)


def _micros(time: datetime | int) -> int:
    return time * 1000 if isinstance(time, int) else micros(time)


_UNIT = " (an integer is taken for milliseconds)"
SECONDS = range(300_000_000, 4_102_444_800)
"""Integers that as seconds lie between 1979 and 2100, and as milliseconds in the first seven weeks of 1970, where
hardly an event has ever been."""


def doubt(event: Event) -> str:
    """What may be wrong with an event that is valid; empty where nothing is."""
    name = type(event).contract.time
    time = getattr(event, name)
    if isinstance(time, int) and time in SECONDS:
        return (
            f"{name}={time} looks like seconds, and an integer event time is milliseconds: it is taken for "
            f"{_iso(time * 1000)}"
        )
    return ""


def _check_time(name: str, time: int, newest: int = NEWEST, whole: bool = False) -> None:
    if time < OLDEST:
        raise InvalidEvent(f"the event time {_iso(time)} is before 1970", name)
    if time > min(newest, NEWEST):
        # Microseconds and nanoseconds land in the far future; a datetime says its unit.
        raise InvalidEvent(
            f"the event time {_iso(time)} lies too far ahead of when it was published{_UNIT if whole else ''}", name
        )


def _iso(time: int) -> str:
    try:
        return when(time).isoformat()
    except OverflowError:
        return f"{time} µs"


def _column(field: Field, values: list[Any]) -> Column:
    if field.kind == "time":
        if field.optional:
            return np.array([np.nan if v is None else _micros(v) for v in values], np.float64)
        return np.array([_micros(v) for v in values], np.int64)
    if field.kind == "float" or (field.kind in ("int", "bool") and field.optional):
        return np.array([np.nan if v is None else v for v in values], np.float64)
    if field.kind == "int":
        return np.array(values, np.int64)
    if field.kind == "bool":
        return np.array(values, np.bool_)
    column = np.empty(len(values), np.object_)
    column[:] = values
    return column
