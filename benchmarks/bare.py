"""The returns example as a bare Python loop: the same features and river model, no log, no state, nothing durable.

What one writes first, and what the main job is measured against: `python -m benchmarks.bare [sample | full]`. Events
are JSON in memory, in the order of time; each order line gets its twelve features, its score, and its outcome at
maturity; a dict for each kind of entity. `tests/benchmarks` holds it to the pipeline's own features.
"""

from __future__ import annotations

import math
import sys
import time
from collections import defaultdict, deque
from collections.abc import Hashable, Iterable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

EXAMPLE = Path(__file__).parent.parent / "examples" / "returns"
sys.path.insert(0, str(EXAMPLE))

import pipeline  # noqa: E402
import retail  # noqa: E402

APP, PRIOR, USUAL = pipeline.app, pipeline.PRIOR, pipeline.USUAL
WITHIN = timedelta(days=30)
FADE = math.log(2) / WITHIN.total_seconds()


class Rate:
    """How often, and how often it was taken back."""

    __slots__ = ("back", "lines")

    def __init__(self) -> None:
        self.lines = self.back = 0

    def odds(self) -> float:
        return math.log((self.back + 40 * PRIOR) / (self.lines + 40) / PRIOR)


class Faded:
    """A count that halves in thirty days."""

    __slots__ = ("at", "value")

    def __init__(self) -> None:
        self.value = 0.0
        self.at: datetime | None = None

    def read(self, at: datetime) -> float:
        return 0.0 if self.at is None else self.value * math.exp(-FADE * max(0.0, (at - self.at).total_seconds()))

    def add(self, at: datetime) -> None:
        if self.at is not None and at < self.at:
            self.value += math.exp(-FADE * (self.at - at).total_seconds())
        else:
            self.value, self.at = self.read(at) + 1.0, at


class Customer(Rate):
    __slots__ = ("cancelled", "m2", "mean", "values")

    def __init__(self) -> None:
        super().__init__()
        self.cancelled, self.values, self.mean, self.m2 = 0, 0.0, 0.0, 0.0

    def add(self, value: float) -> None:
        """Welford's recurrence."""
        self.lines += 1
        delta = value - self.mean
        self.mean += delta / self.lines
        self.m2 += delta * (value - self.mean)


class Item(Rate):
    __slots__ = ("cancelled", "faded", "faded_back", "prices", "values")

    def __init__(self) -> None:
        super().__init__()
        self.cancelled, self.values, self.prices = 0, 0.0, 0.0
        self.faded, self.faded_back = Faded(), Faded()


class Open:
    """An order line whose outcome is not yet learnt."""

    __slots__ = ("at", "back", "event", "left", "x")

    def __init__(self, event: Any, x: dict[Hashable, Any]) -> None:
        self.event, self.x, self.at, self.left, self.back = event, x, event.at, event.quantity, False


class Loop:
    """All of it. `order` gives the features and the score of a line."""

    def __init__(self) -> None:
        self.model = pipeline.returns.learner.clone()
        self.learnt = 0
        self.customers: dict[str, Customer] = defaultdict(Customer)
        self.items: dict[str, Item] = defaultdict(Item)
        self.rates: dict[tuple[Any, ...], Rate] = defaultdict(Rate)
        self._waiting: deque[Open] = deque()
        self._open: dict[tuple[str, str], list[Open]] = defaultdict(list)

    def order(self, event: Any) -> tuple[dict[Hashable, Any], float]:
        self._mature(event.at)
        value = math.log(max(event.price * abs(event.quantity), 0.01))
        customer, item = self.customers[event.customer], self.items[event.item]
        rates = self._rates(event)
        customer.add(value)
        item.lines += 1
        item.prices += math.log(event.price)
        item.faded.add(event.at)
        for rate in rates:
            rate.lines += 1
        faded, faded_back = item.faded.read(event.at), item.faded_back.read(event.at)
        x: dict[Hashable, Any] = {
            "customer_odds": customer.odds(),
            "value_against_cancelled": value - (customer.values + 2 * USUAL) / (customer.cancelled + 2),
            "value_deviation": math.sqrt(customer.m2 / (customer.lines - 1)) if customer.lines > 1 else 0.0,
            "item_cancels": math.log((item.cancelled + 40 * PRIOR) / (item.lines + 40) / PRIOR),
            "item_odds_recent": math.log((faded_back + 40 * PRIOR) / (faded + 40) / PRIOR),
            "item_lines": math.log1p(item.lines),
            "value_against_returned": value - (item.values + 2 * USUAL) / (item.back + 2),
            "price_against_usual": math.log(event.price) - item.prices / item.lines,
            "item_quantity_odds": rates[0].odds(),
            "customer_quantity_odds": rates[1].odds(),
            "item_country_odds": rates[2].odds(),
            "customer_item_odds": rates[3].odds(),
        }
        score = self.model.predict_proba_one(x).get(True, PRIOR) if self.learnt else PRIOR
        line = Open(event, x)
        self._waiting.append(line)
        self._open[event.customer, event.item].append(line)
        return x, score

    def taken_back(self, event: Any) -> None:
        self._mature(event.at)
        value = math.log(max(event.price * abs(event.quantity), 0.01))
        customer, item = self.customers[event.customer], self.items[event.item]
        customer.values += value
        customer.cancelled += 1
        item.cancelled += 1
        left = abs(event.quantity)
        for line in reversed(self._open.get((event.customer, event.item), ())):
            if left <= 0:
                break
            if line.left <= 0:
                continue
            took = min(left, line.left)
            left -= took
            line.left -= took
            if not line.back:
                line.back = True
                self._known(line.event, event.at)

    def _known(self, event: Any, at: datetime) -> None:
        """A line was taken back: what features count of that."""
        item = self.items[event.item]
        self.customers[event.customer].back += 1
        item.back += 1
        item.values += math.log(max(event.price * abs(event.quantity), 0.01))
        item.faded_back.add(at)
        for rate in self._rates(event):
            rate.back += 1

    def _rates(self, event: Any) -> list[Rate]:
        return [
            self.rates["iq", event.item, event.quantity],
            self.rates["cq", event.customer, event.quantity],
            self.rates["ic", event.item, event.country],
            self.rates["ci", event.customer, event.item],
        ]

    def _mature(self, now: datetime) -> None:
        """Learn what is thirty days old."""
        while self._waiting and self._waiting[0].at + WITHIN < now:
            line = self._waiting.popleft()
            self.model.learn_one(line.x, line.back)
            self.learnt += 1
            lines = self._open[line.event.customer, line.event.item]
            lines.remove(line)
            if not lines:
                del self._open[line.event.customer, line.event.item]


def run(events: Iterable[tuple[str, bytes]]) -> Iterator[tuple[dict[Hashable, Any], float]]:
    """The features and the score of each valid order line. events: topic and JSON of each, in the order of time."""
    loop = Loop()
    decode = {
        "orders": msgspec.json.Decoder(pipeline.OrderLine).decode,
        "returns": msgspec.json.Decoder(pipeline.Return).decode,
    }
    for topic, value in events:
        try:
            event: Any = decode[topic](value)
        except msgspec.ValidationError:
            continue
        if not event.customer:
            continue
        if topic == "orders":
            yield loop.order(event)
        else:
            loop.taken_back(event)


def retail_lines(which: str) -> list[retail.Line]:
    """Every line of the file, as the example publishes it."""
    return retail.lines(retail.file(which))


def lines(which: str) -> list[tuple[str, bytes]]:
    """The topic and the JSON of every line."""
    return [(line.topic, line.row.value) for line in retail_lines(which)]


def main(which: str = "sample") -> None:
    """Prints, as JSON, how many events it took and the seconds of the processor."""
    events = lines(which)
    began = time.process_time()
    predictions = sum(1 for _ in run(events))
    spent = time.process_time() - began
    print(msgspec.json.encode({"events": len(events), "predictions": predictions, "processor_seconds": spent}).decode())


if __name__ == "__main__":
    main(*sys.argv[1:])
