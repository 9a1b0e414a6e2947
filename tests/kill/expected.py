"""What must come of a partition's events in both jobs: plain Python, one event at a time, without the engine.

It knows the input topics, and of a task with two inputs the hurries: where it says that it waited for one no longer.
"""

from __future__ import annotations

import heapq
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

SECOND = 1_000_000
MINUTE = 60 * SECOND
DAY = 86_400 * SECOND
HORIZON = 30 * DAY
NEVER = -(2**62)


class Line(NamedTuple):
    """A record of an input topic."""

    offset: int
    key: bytes | None
    value: bytes


class Told(NamedTuple):
    """A record that must be published. what: tells it from every other of its topic and partition."""

    topic: str
    what: tuple[Any, ...]
    said: dict[str, Any]


def micros(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * SECOND)


def _parsed(value: bytes, types: dict[str, type]) -> dict[str, Any] | None:
    """The event with its time in microseconds, or None where it breaks its contract."""
    try:
        row = json.loads(value)
        for name, wanted in types.items():
            if type(row[name]) is not wanted and not (wanted is float and type(row[name]) is int):
                return None
        return {**row, "at": micros(row["at"])}
    except (ValueError, KeyError, TypeError):
        return None


def _refused(topic: str, kind: str, line: Line) -> Told:
    return Told(f"{topic}.{kind}", (line.offset,), {"key": line.key, "value": line.value})


# The window job.

_TICK: dict[str, type] = {"sensor": str, "amount": int, "level": float, "at": str}
_SLACK, _LATE = 5 * SECOND, 30 * SECOND


@dataclass
class _Minute:
    ticks: int = 0
    amount: int = 0
    level: float = 0.0
    highest: float = float("-inf")
    revision: int | None = None

    def take(self, row: dict[str, Any]) -> None:
        self.ticks += 1
        self.amount += row["amount"]
        self.level += row["level"]
        self.highest = max(self.highest, row["level"])

    @property
    def said(self) -> dict[str, Any]:
        return {"ticks": self.ticks, "amount": self.amount, "level": self.level, "highest": self.highest}


def window(number: int, lines: Iterable[Line]) -> Iterator[Told]:
    """Everything that the window job publishes of one partition of `ticks`, in order within each topic."""
    high = NEVER
    minutes: dict[tuple[str, int], _Minute] = {}
    open_: list[tuple[int, str]] = []
    for line in lines:
        row = _parsed(line.value, _TICK)
        if row is None:
            yield _refused("ticks", "rejected", line)
            continue
        at, sensor = row["at"], row["sensor"]
        if at < high - _SLACK - _LATE:
            yield _refused("ticks", "late", line)
            continue
        high = max(high, at)
        start = at // MINUTE * MINUTE
        if (sensor, start) not in minutes:
            minutes[sensor, start] = _Minute()
            heapq.heappush(open_, (start, sensor))
        minute = minutes[sensor, start]
        minute.take(row)
        of = f"ticks-{number}-{line.offset}"
        yield Told("features.SoFar", (of,), {"key": sensor.encode(), "sensor": sensor, "at": at, **minute.said})
        closing = [(start, sensor)] if minute.revision is not None else []
        while open_ and open_[0][0] + MINUTE <= high - _SLACK:
            closing.append(heapq.heappop(open_))
        for began, who in sorted(closing):
            closed = minutes[who, began]
            closed.revision = 0 if closed.revision is None else closed.revision + 1
            said = {"key": who.encode(), "end": began + MINUTE, "final": True, **closed.said}
            yield Told("features.PerMinute", (who, began, closed.revision), said)
        if len(minutes) > 10_000:  # what no event can reach any more
            minutes = {k: m for k, m in minutes.items() if k[1] + MINUTE > high - _SLACK - _LATE or m.revision is None}


# The returns job by customer.

_LINE: dict[str, type] = {"invoice": str, "customer": str, "item": str, "quantity": int, "price": float, "at": str}


class Hurry(NamedTuple):
    """Per input (orders, returns) the offsets before and after a batch that waited for one no longer."""

    before: list[int]
    after: list[int]


@dataclass
class _Bought:
    offset: int
    at: int
    left: int
    row: dict[str, Any]
    prediction: dict[str, Any]
    told: bool = False


@dataclass
class _Customer:
    """lines, spent, taken, sent; count, mean and sum of squared deviations of prices by Welford's recurrence."""

    lines: int = 0
    spent: float = 0.0
    taken: int = 0
    sent: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def buy(self, row: dict[str, Any]) -> dict[str, Any]:
        self.lines += 1
        self.spent += row["quantity"] * row["price"]
        deviation = row["price"] - self.mean
        self.mean += deviation / self.lines
        self.squares += deviation * (row["price"] - self.mean)
        spread = self.squares / (self.lines - 1) if self.lines > 1 else 0.0
        return {"lines": self.lines, "spent": self.spent, "taken": self.taken, "sent": self.sent, "spread": spread}


@dataclass
class _Item:
    lines: int = 0
    bought: int = 0
    dearest: float = 0.0
    taken: int = 0
    lines_of: list[_Bought] = field(default_factory=list)

    def buy(self, row: dict[str, Any]) -> dict[str, Any]:
        self.lines += 1
        self.bought += row["quantity"]
        self.dearest = max(self.dearest, row["price"])
        return {"bought": self.bought, "dearest": self.dearest, "kept": self.lines - self.taken}


def _valid(topic: str, value: bytes) -> dict[str, Any] | None:
    row = _parsed(value, _LINE)
    if row is None or not row["customer"] or row["price"] <= 0:
        return None
    return row if (row["quantity"] > 0 if topic == "orders" else row["quantity"] < 0) else None


def _taken(
    orders: Sequence[Line], returns: Sequence[Line], hurries: Sequence[Hurry]
) -> Iterator[tuple[str, Line, dict[str, Any] | None, int]]:
    """(topic, line, row or None, greatest time of its topic before it) in the order in which the task takes them.

    That is the order of their times; but a batch that did not wait comes before what followed it.
    """
    timed: list[list[tuple[int, int, int, Line, dict[str, Any] | None, int]]] = [[], []]
    for place, (topic, lines) in enumerate((("orders", orders), ("returns", returns))):
        high = NEVER
        for line in lines:
            row = _valid(topic, line.value)
            before, high = high, max(high, row["at"]) if row else high
            timed[place].append((high, place, line.offset, line, row, before))
    positions = [0, 0]
    for cut in [c for hurry in hurries for c in (hurry.before, hurry.after)] + [[2**62, 2**62]]:
        part = []
        for place in (0, 1):
            begin = positions[place]
            while positions[place] < len(timed[place]) and timed[place][positions[place]][2] < cut[place]:
                positions[place] += 1
            part += timed[place][begin : positions[place]]
        for _, place, _, line, row, before in sorted(part, key=lambda one: one[:3]):
            yield ("orders", "returns")[place], line, row, before


def customers(number: int, orders: Sequence[Line], returns: Sequence[Line], hurries: Sequence[Hurry]) -> Iterator[Told]:
    """Everything that the returns job publishes of one partition, in order within each topic; of a prediction and an
    outcome what does not depend on the version that scored."""
    watermark = NEVER
    waiting: list[tuple[int, int, _Bought]] = []
    shoppers: defaultdict[str, _Customer] = defaultdict(_Customer)
    items: defaultdict[tuple[str, str], _Item] = defaultdict(_Item)
    for topic, line, row, high in _taken(orders, returns, hurries):
        if row is None:
            yield _refused(topic, "rejected", line)
            continue
        at = row["at"]
        if at < max(high, max(watermark, at) - DAY):
            yield _refused(topic, "late", line)
            continue
        watermark = max(watermark, at)
        while waiting and waiting[0][0] < watermark:
            matures, _, over = heapq.heappop(waiting)
            items[over.row["customer"], over.row["item"]].lines_of.remove(over)
            if not over.told:
                yield _outcome(over, False, matures, matures)
        shopper, item = shoppers[row["customer"]], items[row["customer"], row["item"]]
        if topic == "orders":
            yield from _order(number, line, row, shopper, item, waiting)
            continue
        shopper.sent += 1
        left = -row["quantity"]
        for bought in sorted(item.lines_of, key=lambda b: (b.at, b.offset), reverse=True):
            if not bought.at <= at <= bought.at + HORIZON:
                continue
            took = min(left, bought.left)
            left, bought.left = left - took, bought.left - took
            if took and not bought.told:
                bought.told = True
                shopper.taken += 1
                item.taken += 1
                yield _outcome(bought, True, at, watermark)


def _order(
    number: int,
    line: Line,
    row: dict[str, Any],
    shopper: _Customer,
    item: _Item,
    waiting: list[tuple[int, int, _Bought]],
) -> Iterator[Told]:
    of = f"orders-{number}-{line.offset}"
    customer, at = row["customer"], row["at"]
    both = {"key": customer.encode(), "customer": customer, "at": at}
    of_customer, of_item = shopper.buy(row), item.buy(row)
    yield Told("features.Customer", (of,), {**both, **of_customer})
    yield Told("features.CustomerItem", (of,), {**both, "item": row["item"], **of_item})
    prediction = {
        "id": of,
        "key": customer,
        "at": at,
        "features": {name: float(value) for name, value in {**of_customer, **of_item}.items()},
    }
    said = {name: prediction[name] for name in ("at", "features")}
    yield Told("predictions.returns", (of,), {**said, "key": customer.encode()})
    bought = _Bought(line.offset, at, row["quantity"], row, prediction)
    item.lines_of.append(bought)
    heapq.heappush(waiting, (at + HORIZON, line.offset, bought))


def _outcome(bought: _Bought, returned: bool, known: int, watermark: int) -> Told:
    made = bought.prediction
    said = {
        **{name: made[name] for name in ("at", "features")},
        "key": made["key"].encode(),
        "known": known,
        "matures": made["at"] + HORIZON,
        "watermark": watermark,
        "outcome": returned,
    }
    return Told("outcomes.returns", (made["id"],), said)
