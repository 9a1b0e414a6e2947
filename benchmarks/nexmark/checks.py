"""What each query answers, computed apart in plain Python from the events, one at a time.

An answer is a set of tuples. Windows that the last event has not closed are not answered.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

SECOND = 1_000
"""Times are milliseconds since 1970."""

Row = dict[str, Any]
Answer = set[tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Given:
    """What a query has read: the values of each topic in order, and when each bid was published."""

    values: Mapping[str, Sequence[Row]]
    published: Sequence[int]


def time_of(moment: str) -> int:
    """Milliseconds of a time as JSON has it."""
    return round(datetime.fromisoformat(moment).timestamp() * 1_000)


def _q0(given: Given) -> Answer:
    return {(i, b["auction"], b["bidder"], b["price"], b["extra"]) for i, b in enumerate(given.values["bid"])}


def _q1(given: Given) -> Answer:
    return {(i, b["auction"], b["bidder"], 0.908 * b["price"], b["extra"]) for i, b in enumerate(given.values["bid"])}


def _q2(given: Given) -> Answer:
    bids = enumerate(given.values["bid"])
    return {(i, b["auction"], b["price"]) for i, b in bids if b["auction"] % 123 == 0}


def _q5(given: Given) -> Answer:
    size, every = 10 * SECOND, 2 * SECOND
    counts: defaultdict[int, Counter[int]] = defaultdict(Counter)
    newest = 0
    for bid in given.values["bid"]:
        newest = time_of(bid["dateTime"])
        for n in range(size // every):
            counts[newest // every * every + every * (n + 1)][bid["auction"]] += 1
    # The second step hears of a window's end by the results of the next one.
    ends = sorted(end for end in counts if end <= newest)[:-1]
    return {(end, *max(((n, str(a), a) for a, n in counts[end].items()))[::2]) for end in ends}


def _q7(given: Given) -> Answer:
    best: dict[int, Row] = {}
    newest = 0
    for bid in given.values["bid"]:
        newest = time_of(bid["dateTime"])
        end = _end(newest)
        if end not in best or bid["price"] >= best[end]["price"]:
            best[end] = bid
    return {(end, b["auction"], b["bidder"], b["price"], b["extra"]) for end, b in best.items() if end <= newest}


def _q8(given: Given) -> Answer:
    came = {(p["id"], _end(time_of(p["dateTime"]))): p["name"] for p in given.values["person"]}
    opened = {(a["seller"], _end(time_of(a["dateTime"]))) for a in given.values["auction"]}
    newest = max(time_of(given.values[topic][-1]["dateTime"]) for topic in ("person", "auction"))
    return {(id, end, name) for (id, end), name in came.items() if (id, end) in opened and end <= newest}


def _q11(given: Given) -> Answer:
    gap = 10 * SECOND
    open_: dict[int, tuple[int, int, int]] = {}
    found: Answer = set()
    newest = 0
    for bid in given.values["bid"]:
        newest, bidder = time_of(bid["dateTime"]), bid["bidder"]
        start, last, n = open_.get(bidder, (newest, newest, 0))
        if newest - last >= gap:
            found.add((bidder, start, last, n))
            start, n = newest, 0
        open_[bidder] = (start, newest, n + 1)
    return found | {(bidder, *one) for bidder, one in open_.items() if one[1] + gap <= newest}


def _q12(given: Given) -> Answer:
    counts: Counter[tuple[int, int]] = Counter()
    newest = 0
    for bid, published in zip(given.values["bid"], given.published, strict=True):
        newest = max(newest, published)
        counts[bid["bidder"], _end(newest)] += 1
    return {(bidder, end, n) for (bidder, end), n in counts.items() if end <= newest}


def _end(time: int) -> int:
    """The end of the 10 seconds that a time lies in."""
    return (time // (10 * SECOND) + 1) * 10 * SECOND


EXPECTED: dict[str, Callable[[Given], Answer]] = {
    "q0": _q0, "q1": _q1, "q2": _q2, "q5": _q5, "q7": _q7, "q8": _q8, "q11": _q11, "q12": _q12,
}  # fmt: skip

_NAMES = {
    "q0": ("id", "auction", "bidder", "price", "extra"), "q1": ("id", "auction", "bidder", "price", "extra"),
    "q2": ("id", "auction", "price"), "q5": ("end", "num", "auction"),
    "q7": ("end", "auction", "bidder", "price", "extra"), "q8": ("id", "end", "name"),
    "q11": ("bidder", "start", "end", "bid_count"), "q12": ("bidder", "end", "bid_count"),
}  # fmt: skip


def answered(query: str, rows: Sequence[Row]) -> Answer:
    """What a query's records say. Raises AssertionError where one comes twice or is not final."""
    found = set(_tuples(query, rows))
    assert len(found) == len(rows), f"{query} said {len(rows) - len(found)} things twice"
    return found


def _tuples(query: str, rows: Sequence[Row]) -> Iterator[tuple[Any, ...]]:
    for row in rows:
        assert row.get("final", True), f"{query} says {row}, which is not final"
        assert "retracted" not in row, f"{query} takes {row} back"
        made = []
        for name in _NAMES[query]:
            value = row[name]
            if name in ("start", "end"):
                value = time_of(value)
            elif name == "id" and isinstance(value, str):
                value = int(value.rpartition("-")[2])
            made.append(value)
        yield tuple(made)


def differ(query: str, given: Given, rows: Sequence[Row]) -> str:
    """In what way a query's records are not what they should be; empty where they are."""
    wanted, found = EXPECTED[query](given), answered(query, rows)
    if wanted == found:
        return ""
    lost, more = sorted(wanted - found)[:3], sorted(found - wanted)[:3]
    return f"{query}: {len(wanted - found)} are lost, such as {lost}; {len(found - wanted)} are not its own: {more}"
