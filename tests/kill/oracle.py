"""What must come of the shop's lines: plain Python over the source, one line at a time, without the engine."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import msgspec

HORIZON = timedelta(days=30)


class Source(NamedTuple):
    """A line as it was published: its topic, its offset there, and its bytes."""

    topic: str
    offset: int
    value: bytes


class Outcome(NamedTuple):
    """What became of the order line at this offset, and when that was known."""

    offset: int
    returned: bool
    known: datetime


@dataclass
class _Open:
    offset: int
    at: datetime
    left: int
    told: bool = False


def valid(topic: str, line: dict[str, Any]) -> bool:
    """A line that the contracts take: someone's, at a price, so many ordered or so many given back."""
    wanted = line["quantity"] > 0 if topic == "orders" else line["quantity"] < 0
    return bool(line["customer"]) and wanted and line["price"] > 0


def predicted(lines: Iterable[Source]) -> list[int]:
    """The offsets of the orders that must be predicted, each once."""
    return [s.offset for s in lines if s.topic == "orders" and valid("orders", msgspec.json.decode(s.value))]


def outcomes(lines: Iterable[Source]) -> Iterator[Outcome]:
    """Every outcome in the order in which it is known.

    A return takes back the newest lines of the same customer and item, at most 30 days old, as many as it counts; a
    line of which nothing came back is a negative once a later line shows that its 30 days are over.
    """
    taken = [(s, msgspec.json.decode(s.value)) for s in lines]
    rows = [(datetime.fromisoformat(v["at"]), s, v) for s, v in taken if valid(s.topic, v)]
    rows.sort(key=lambda row: (row[0], row[1].topic != "orders", row[1].offset))
    waiting: deque[_Open] = deque()
    bought: dict[tuple[str, str], list[_Open]] = defaultdict(list)
    for at, source, line in rows:
        while waiting and waiting[0].at + HORIZON < at:
            over = waiting.popleft()
            if not over.told:
                yield Outcome(over.offset, False, over.at + HORIZON)
        lines_of = bought[line["customer"], line["item"]]
        if source.topic == "orders":
            lines_of.append(_Open(source.offset, at, line["quantity"]))
            waiting.append(lines_of[-1])
            continue
        left = -line["quantity"]
        for ordered in reversed(lines_of):
            if not left or ordered.at + HORIZON < at:
                break
            took = min(left, ordered.left)
            left, ordered.left = left - took, ordered.left - took
            if took and not ordered.told:
                ordered.told = True
                yield Outcome(ordered.offset, True, at)
