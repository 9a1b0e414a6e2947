"""What the returns pipeline gives, by its rules, written apart from the engine: plain lists, one event at a time."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

PRIOR = 0.015
HORIZON = timedelta(days=30)
HALF_LIFE = timedelta(days=30)
FIELDS = {
    "invoice": str, "customer": str, "item": str, "description": str, "quantity": int, "price": float,
    "country": str, "at": str,
}  # fmt: skip
ANCIENT = datetime.min.replace(tzinfo=UTC)


@dataclass
class Published:
    """A record of a source topic, as the log has it."""

    offset: int
    key: bytes | None
    value: bytes | None
    age: int = 0
    """How many times everything before it had been taken."""


@dataclass
class Line:
    """An order line taken: its row, what is left of its quantity, and when it was known to be taken back."""

    offset: int
    at: datetime
    row: dict[str, Any]
    left: int
    open: bool = True
    known: datetime | None = None


@dataclass
class Outcome:
    id: str
    at: datetime
    known: datetime
    watermark: datetime
    outcome: bool

    @property
    def matures(self) -> datetime:
        return self.at + HORIZON


@dataclass
class Told:
    """What the pipeline publishes, but for what a model says."""

    rejected: dict[str, list[bytes | None]] = field(default_factory=lambda: {"orders": [], "returns": []})
    late: dict[str, list[bytes | None]] = field(default_factory=lambda: {"orders": [], "returns": []})
    features: list[dict[str, Any]] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)


def valid(topic: str, record: Published) -> dict[str, Any] | None:
    """The event, or None where it breaks its contract."""
    try:
        row = json.loads(record.value or b"")
    except ValueError:
        return None
    if not isinstance(row, dict) or set(row) != set(FIELDS):
        return None
    for name, kind in FIELDS.items():
        value = row[name]
        if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else kind):
            return None
    if row["quantity"] * (1 if topic == "orders" else -1) <= 0 or row["price"] <= 0:
        return None
    if not row["customer"] or (record.key is not None and record.key != row["customer"].encode()):
        return None
    return row


class Shop:
    """Takes one event after another."""

    def __init__(self) -> None:
        self.told = Told()
        self.lines: list[Line] = []
        self.watermark = ANCIENT
        self.cancelled: list[tuple[datetime, dict[str, Any]]] = []

    def order(self, offset: int, at: datetime, row: dict[str, Any]) -> None:
        self.expire(at)
        self.lines.append(Line(offset, at, row, row["quantity"]))
        self.told.features.append({"id": f"orders-0-{offset}", "at": at, "row": row, **self.features(at, row)})

    def take_back(self, at: datetime, row: dict[str, Any]) -> None:
        self.expire(at)
        self.cancelled.append((at, row))
        quantity = -row["quantity"]
        for line in reversed(self.lines):
            same = (line.row["customer"], line.row["item"]) == (row["customer"], row["item"])
            if same and line.open and line.left and quantity and line.at <= at <= line.at + HORIZON:
                took = min(quantity, line.left)
                quantity, line.left = quantity - took, line.left - took
                if line.known is None:
                    line.known = at
                    self.settle(line, at, self.watermark, True)

    def expire(self, at: datetime) -> None:
        """Close the lines whose horizon the watermark has passed, the oldest first."""
        self.watermark = max(self.watermark, at)
        for line in sorted((li for li in self.lines if li.open), key=lambda li: (li.at, li.offset)):
            if line.at + HORIZON < self.watermark:
                line.open = False
                if line.known is None:
                    self.settle(line, line.at + HORIZON, line.at + HORIZON, False)

    def settle(self, line: Line, known: datetime, watermark: datetime, outcome: bool) -> None:
        self.told.outcomes.append(Outcome(f"orders-0-{line.offset}", line.at, known, watermark, outcome))

    def features(self, at: datetime, row: dict[str, Any]) -> dict[str, Any]:
        """All of the whole history, as of an order line that has been taken."""

        def of(*by: str) -> tuple[list[Line], list[Line]]:
            mine = [li for li in self.lines if all(li.row[b] == row[b] for b in by)]
            return mine, [li for li in mine if li.known is not None]

        def odds(pair: tuple[list[Line], list[Line]]) -> float:
            lines, returned = pair
            return math.log((len(returned) + 40 * PRIOR) / (len(lines) + 40) / PRIOR)

        def rate(pair: tuple[list[Line], list[Line]]) -> float:
            lines, returned = pair
            return (len(returned) + 50 * PRIOR) / (len(lines) + 50)

        def faded(moments: list[datetime]) -> float:
            newest = max([at, *moments])
            return math.fsum(0.5 ** ((newest - moment) / HALF_LIFE) for moment in moments)

        customer, item = of("customer"), of("item")
        cancelled = [r for _, r in self.cancelled if r["customer"] == row["customer"]]
        cancels = [r for _, r in self.cancelled if r["item"] == row["item"]]
        values = [worth(li.row) for li in customer[0]]
        mean = math.fsum(values) / len(values)
        spread = math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1) if len(values) > 1 else 0.0
        prices = [math.log(li.row["price"]) for li in item[0]]
        returned = [worth(li.row) for li in item[1]]
        recent = faded([li.known for li in item[1] if li.known is not None]), faded([li.at for li in item[0]])
        return {
            "customer": {
                "customer_odds": odds(customer),
                "value_against_cancelled": worth(row)
                - (math.fsum(worth(r) for r in cancelled) + 5) / (len(cancelled) + 2),
                "value_deviation": math.sqrt(spread),
            },
            "item": {
                "item_cancels": math.log((len(cancels) + 40 * PRIOR) / (len(item[0]) + 40) / PRIOR),
                "item_odds_recent": math.log((recent[0] + 40 * PRIOR) / (recent[1] + 40) / PRIOR),
                "item_lines": math.log1p(len(item[0])),
                "value_against_returned": worth(row) - (math.fsum(returned) + 5) / (len(returned) + 2),
                "price_against_usual": math.log(row["price"]) - math.fsum(prices) / len(prices),
            },
            "others": {
                "item_quantity_odds": odds(of("item", "quantity")),
                "customer_quantity_odds": odds(of("customer", "quantity")),
                "item_country_odds": odds(of("item", "country")),
                "customer_item_odds": odds(of("customer", "item")),
            },
            "baselines": {"item": rate(item), "customer": rate(customer)},
        }


def worth(row: dict[str, Any]) -> float:
    return math.log(max(row["price"] * abs(row["quantity"]), 0.01))


def told(orders: Sequence[Published], returns: Sequence[Published]) -> Told:
    """Everything of the two source topics, merged by age and the greatest event time that each has seen."""
    shop = Shop()
    taken = []
    for place, (topic, records) in enumerate((("orders", orders), ("returns", returns))):
        high = ANCIENT
        for record in records:
            row = valid(topic, record)
            if row is None:
                shop.told.rejected[topic].append(record.value)
                continue
            at = datetime.fromisoformat(row["at"])
            late, high = at < high, max(at, high)
            taken.append((record.age, high, place, record.offset, topic, at, late, row, record.value))
    newest = ANCIENT
    for _, high, place, offset, topic, at, late, row, value in sorted(taken, key=lambda event: event[:4]):
        newest = max(newest, high)
        # After a silence a topic may go on where it was, but no more than a day behind the other.
        if late or at < newest - timedelta(days=1):
            shop.told.late[topic].append(value)
        elif place == 0:
            shop.order(offset, at, row)
        else:
            shop.take_back(at, row)
    return shop.told


@dataclass
class Version:
    """A version that learning must give. offset: of the outcomes, all before it seen."""

    offset: int
    learnt: int
    positives: int
    estimator: Any

    @property
    def rate(self) -> float:
        return (self.positives + 100 * PRIOR) / (self.learnt + 100)


def in_order_of_maturity(outcomes: Sequence[tuple[int, dict[str, Any]]]) -> list[tuple[int, list[dict[str, Any]]]]:
    """(offset after it, outcomes that it lets mature) of each record (offset, settled) of the outcomes."""
    waiting: list[tuple[datetime, int, dict[str, Any]]] = []
    found = []
    for offset, settled in outcomes:
        waiting.append((moment(settled["matures"]), offset, settled))
        ready = sorted((w for w in waiting if w[0] <= moment(settled["watermark"])), key=lambda w: w[:2])
        waiting = [w for w in waiting if w[0] > moment(settled["watermark"])]
        found.append((offset + 1, [s for _, _, s in ready]))
    return found


def learnt(matured: Sequence[tuple[int, list[dict[str, Any]]]], estimator: Any, every: int) -> list[Version]:
    """The versions that learning these outcomes publishes, the estimator being learnt from its beginning."""
    found: list[Version] = []
    n = positives = published = 0
    for offset, ready in matured:
        for settled in ready:
            estimator.learn_one({k: v for k, v in settled["features"].items() if v is not None}, settled["outcome"])
            n, positives = n + 1, positives + settled["outcome"]
        if ready and n - published >= every:
            published = n
            found.append(Version(offset, n, positives, copy.deepcopy(estimator)))
    return found


def metrics(settled: Sequence[dict[str, Any]], every: int) -> list[dict[str, Any]]:
    """What prequential evaluation publishes of mature outcomes, by counting pairs."""
    found = []
    judged: list[dict[str, Any]] = []
    for one in settled:
        if moment(one["at"]) < moment(settled[0]["at"]) + HORIZON:
            continue
        judged.append(one)
        if len(judged) % every == 0:
            report: dict[str, Any] = {"outcomes": len(judged), "version": one["version"], "at": one["matures"]}
            for prefix, score in _SCORES.items():
                report |= {prefix + name: value for name, value in _quality(judged, score).items()}
            found.append(report)
    return found


_SCORES: dict[str, Callable[[dict[str, Any]], float]] = {
    "": lambda one: one["score"],
    "base_": lambda one: one["baselines"]["base"],
    "item_": lambda one: one["baselines"]["item"],
    "customer_": lambda one: one["baselines"]["customer"],
}


def _quality(judged: Sequence[dict[str, Any]], score: Callable[[dict[str, Any]], float]) -> dict[str, float | None]:
    pairs = [(score(one), bool(one["outcome"])) for one in judged]
    # Scores that fall into one bin of the logit count as ties.
    bins = [(bin_of(s), truth) for s, truth in pairs]
    yes, no = [b for b, truth in bins if truth], [b for b, truth in bins if not truth]
    wins = [1.0 if y > n else 0.5 if y == n else 0.0 for y in yes for n in no]
    above = [[truth for b, truth in bins if b >= y] for y in yes]
    return {
        "roc_auc": sum(wins) / len(wins) if wins else None,
        "average_precision": sum(sum(a) / len(a) for a in above) / len(yes) if yes else None,
        "log_loss": sum(loss(s, truth) for s, truth in pairs) / len(pairs),
    }


def bin_of(score: float) -> int:
    """Of the 1024 between logits of -12 and 12; what lies beyond falls into the outermost."""
    logit = math.log(kept(score) / (1 - kept(score)))
    return min(1023, max(0, int((logit + 12) / 24 * 1024)))


def loss(score: float, outcome: bool) -> float:
    return -math.log(kept(score) if outcome else 1 - kept(score))


def kept(score: float) -> float:
    """A score as it is judged: a millionth away from certainty,."""
    return min(max(score, 1e-6), 1 - 1e-6)


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)
