"""Spans of time, as programs write them ("90s", "7d") and as the data plane counts them (microseconds)."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from headrace.streams.errors import DeclarationError

SECOND = 1_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR

_UNITS = {"us": 1, "ms": 1_000, "s": SECOND, "m": MINUTE, "h": HOUR, "d": DAY, "w": 7 * DAY}


def microseconds(span: str) -> int:
    """The span in microseconds.

    >>> microseconds("1h30m") // SECOND
    5400

    Raises DeclarationError where the text is not a sequence of numbers with us, ms, s, m, h, d or w.
    """
    parts = re.findall(r"(\d+(?:\.\d+)?)(us|ms|s|m|h|d|w)", span) if isinstance(span, str) else []
    if not parts or "".join(n + u for n, u in parts) != span.replace(" ", ""):
        raise DeclarationError(f'{span!r} is not a span of time: write "90s", "15m", "1h30m", "7d" or "2w"')
    return round(sum(float(n) * _UNITS[u] for n, u in parts))


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def when(micros: int) -> datetime:
    """The moment that lies so many microseconds after 1970-01-01T00:00Z."""
    return _EPOCH + timedelta(microseconds=micros)


def clock(millis: float) -> datetime:
    """The moment that lies so many milliseconds after 1970-01-01T00:00Z, as records of the log tell times.

    Anyone may have written them: beyond the calendar it is the calendar's first or last moment.
    """
    try:
        return _EPOCH + timedelta(milliseconds=millis)
    except OverflowError:
        return (datetime.max if millis > 0 else datetime.min).replace(tzinfo=UTC)


def micros(moment: datetime) -> int:
    """Microseconds from 1970-01-01T00:00Z to the moment."""
    return (moment - _EPOCH) // timedelta(microseconds=1)


def text(span: int) -> str:
    """A span of microseconds as `microseconds` reads it: the largest unit that divides it."""
    for unit in ("w", "d", "h", "m", "s", "ms", "us"):
        if span % _UNITS[unit] == 0:
            return f"{span // _UNITS[unit]}{unit}"
    raise AssertionError("us divides every integer")
