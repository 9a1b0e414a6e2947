"""One value against its contract. The one place that publishers and the gateway call."""

from __future__ import annotations

import re
from datetime import datetime
from functools import cache
from typing import Any, TypeVar

import msgspec
from headrace.streams.errors import InvalidEvent
from headrace.streams.event import NEWEST, OLDEST, Event

E = TypeVar("E", bound=Event)

MAX_VALUE = 1_000_000
"""Bytes of one event. A broker takes batches of a mebibyte; a value beyond that would fail there, with others."""

_PATH = re.compile(r" - at `\$\.?(.*)`$", re.DOTALL)


def decode_one(event: type[E], value: bytes) -> E:
    """The event in a JSON value.

    Raises InvalidEvent, with the field, where the value breaks the contract.
    """
    if not value.strip():
        raise InvalidEvent("the value is empty")
    if len(value) > MAX_VALUE:
        raise InvalidEvent(f"the value has {len(value)} bytes; at most {MAX_VALUE} are taken")
    try:
        decoded: E = _decoder(event).decode(value)
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidEvent(f"the value is not JSON: {error}") from None
    _check_time(event.contract.time, getattr(decoded, event.contract.time))
    if getattr(decoded, event.contract.key) in ("", None):
        raise InvalidEvent("the key is empty", event.contract.key)
    return decoded


@cache
def _decoder(event: type[E]) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(event)


def _invalid(message: str) -> InvalidEvent:
    match = _PATH.search(message)
    if match:
        return InvalidEvent(message[: match.start()], match[1])
    missing = re.search(r"(?:missing required|contains unknown) field `(.*)`", message)
    return InvalidEvent(message, missing[1] if missing else "")


def _check_time(field: str, at: object) -> None:
    if isinstance(at, datetime):
        if at.tzinfo is None:
            raise InvalidEvent(f"the time {at.isoformat()} has no zone; write 2010-03-01T12:00:00Z", field)
        instant = at.timestamp() * 1e6
    elif isinstance(at, int):
        instant = at * 1000
    else:
        raise InvalidEvent(f"the time {at!r} is neither a date nor milliseconds", field)
    if not OLDEST <= instant < NEWEST:
        raise InvalidEvent(f"the time {at} is not between 1970 and 2100", field)
