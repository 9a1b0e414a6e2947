"""Nexmark's events, by the distributions of its own generator (nexmark-flink, NexmarkConfiguration's defaults).

Of 50 events one is a new person, three are new auctions and 46 bids, 10,000 of them in a second of event time, in
order. Half of the bids are for the first of the last hundred auctions, the others for one of the last hundred or so;
three quarters of bids and auctions are by one of the last hundred people, the others by one of the last thousand or
so; an id may be of one who is still to come. Prices are 100 times 10 to the power of 0 to 6. Texts fill the events up
to 200, 500 and 100 bytes on average, a bid's channel and address beside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, overload

import msgspec
import numpy as np
from headrace.streams.publisher import Row
from numpy.typing import NDArray

PERSONS, AUCTIONS, BIDS = 1, 3, 46
EPOCH = PERSONS + AUCTIONS + BIDS
"""Events after which their kinds repeat."""
PER_SECOND = 10_000
FIRST_ID = 1_000
FIRST_CATEGORY, CATEGORIES = 10, 5
HOT_AUCTION, HOT_SELLER, HOT_BIDDER, HOT_CHANNEL = 2, 4, 4, 2
"""One of so many is not for, or by, a hot one."""
BATCH = 100
"""Of so many auctions or people one is hot."""
IN_FLIGHT, ACTIVE, LEAD = 100, 1_000, 10
"""Auctions still open, people still active, and ids ahead of the newest."""
CHANNELS = 10_000
SIZES = {"person": 200, "auction": 500, "bid": 100}
BEGAN = 1_436_918_400_000
"""2015-07-15T00:00:00Z, milliseconds: the base time of the Beam generator."""

_FIRST = ["Peter", "Paul", "Luke", "John", "Saul", "Vicky", "Kate", "Julie", "Sarah", "Deiter", "Walter"]
_LAST = ["Shultz", "Abrams", "Spencer", "White", "Bartels", "Walton", "Smith", "Jones", "Noris"]
_CITIES = ["Phoenix", "Los Angeles", "San Francisco", "Boise", "Portland", "Bend", "Redmond", "Seattle", "Kent",
           "Cheyenne"]  # fmt: skip
_STATES = ["AZ", "CA", "ID", "OR", "WA", "WY"]
_HOT_CHANNELS = ["Google", "Facebook", "Baidu", "Apple"]

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Events:
    """The events of a run, in order, by topic.

    rows: what is published on each topic
    """

    rows: dict[str, list[Row]]

    @property
    def values(self) -> dict[str, Values]:
        """The same as Python objects, each made when it is asked for: together they are gigabytes."""
        return {topic: Values(rows) for topic, rows in self.rows.items()}


class Values(Sequence[dict[str, Any]]):
    """The values of rows."""

    def __init__(self, rows: list[Row]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, at: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, at: slice) -> Values: ...

    def __getitem__(self, at: int | slice) -> dict[str, Any] | Values:
        if isinstance(at, slice):
            return Values(self._rows[at])
        found: dict[str, Any] = msgspec.json.decode(self._rows[at].value)
        return found


KINDS = {"person": PERSONS, "auction": AUCTIONS, "bid": BIDS}


def made(events: int, topics: Sequence[str] = tuple(KINDS), seed: int = 1) -> Events:
    """So many events of these topics together, as they come among the others."""
    number = np.arange(-(-events * EPOCH // sum(KINDS[topic] for topic in topics)))
    offset = number % EPOCH
    of = {
        "person": offset < PERSONS,
        "auction": (offset >= PERSONS) & (offset < PERSONS + AUCTIONS),
        "bid": offset >= PERSONS + AUCTIONS,
    }
    makers: dict[str, Callable[..., Iterator[dict[str, Any]]]] = {
        "person": _persons, "auction": _auctions, "bid": _bids,
    }  # fmt: skip
    keys = {"person": "id", "auction": "seller", "bid": "auction"}
    rows: dict[str, list[Row]] = {}
    for n, topic in enumerate(KINDS):
        if topic in topics:
            random, mine = np.random.default_rng((seed, n)), number[of[topic]]
            moments = [_moment(t) for t in (BEGAN + mine * 1_000 // PER_SECOND).tolist()]
            values = makers[topic](random, mine, moments, _Texts(random))
            rows[topic] = [Row(b"%d" % v[keys[topic]], msgspec.json.encode(v)) for v in values]
    return Events(rows)


def last_person(number: Ints) -> Ints:
    """The newest person at each event, from 0."""
    return number // EPOCH * PERSONS + np.minimum(number % EPOCH, PERSONS - 1)


def last_auction(number: Ints) -> Ints:
    """The newest auction at each event, from 0; -1 before the first."""
    epoch, offset = number // EPOCH, number % EPOCH
    before = offset < PERSONS
    within = np.clip(offset - PERSONS, 0, AUCTIONS - 1)
    return np.where(before, (epoch - 1) * AUCTIONS + AUCTIONS - 1, epoch * AUCTIONS + within)


def _person(random: np.random.Generator, number: Ints) -> Ints:
    """One of the active people, or of those to come."""
    people = last_person(number) + 1
    active = np.minimum(people, ACTIVE)
    return people - active + random.integers(0, active + LEAD)


def _persons(random: np.random.Generator, number: Ints, at: list[str], texts: _Texts) -> Iterator[dict[str, Any]]:
    drawn = random.integers(0, [len(_FIRST), len(_LAST), len(_CITIES), len(_STATES)], (len(at), 4)).tolist()
    cards = random.integers(0, 10_000, (len(at), 4)).tolist()
    for id, (first, last, city, state), card, moment in zip(
        last_person(number).tolist(), drawn, cards, at, strict=True
    ):
        value = {
            "id": id + FIRST_ID,
            "name": f"{_FIRST[first]} {_LAST[last]}",
            "emailAddress": f"{texts.short(7)}@{texts.short(5)}.com",
            "creditCard": " ".join(f"{part:04}" for part in card),
            "city": _CITIES[city],
            "state": _STATES[state],
            "dateTime": moment,
        }
        taken = 8 + sum(len(value[name]) for name in ("name", "emailAddress", "creditCard", "city", "state"))
        yield value | {"extra": texts.filling(taken, SIZES["person"])}


def _auctions(random: np.random.Generator, number: Ints, at: list[str], texts: _Texts) -> Iterator[dict[str, Any]]:
    hot = random.integers(0, HOT_SELLER, len(at)) > 0
    sellers = np.where(hot, last_person(number) // BATCH * BATCH, _person(random, number)) + FIRST_ID
    initial, more = _prices(random, len(at)), _prices(random, len(at))
    # As long as a hundred auctions take to come, on average.
    horizon = IN_FLIGHT * EPOCH // AUCTIONS * 1_000 // PER_SECOND
    lasts = 1 + random.integers(0, max(2 * horizon, 1), len(at))
    columns = (last_auction(number), initial, initial + more, lasts, sellers, random.integers(0, CATEGORIES, len(at)))
    ends = BEGAN + number * 1_000 // PER_SECOND + lasts
    for (id, first, reserve, _, seller, category), moment, end in zip(
        zip(*(c.tolist() for c in columns), strict=True), at, ends.tolist(), strict=True
    ):
        name, description = texts.short(20), texts.short(100)
        yield {
            "id": id + FIRST_ID,
            "itemName": name,
            "description": description,
            "initialBid": first,
            "reserve": reserve,
            "dateTime": moment,
            "expires": _moment(end),
            "seller": seller,
            "category": category + FIRST_CATEGORY,
            "extra": texts.filling(8 * 6 + len(name) + len(description), SIZES["auction"]),
        }


def _bids(random: np.random.Generator, number: Ints, at: list[str], texts: _Texts) -> Iterator[dict[str, Any]]:
    newest = last_auction(number)
    oldest = np.maximum(newest - IN_FLIGHT, 0)
    other = oldest + random.integers(0, newest - oldest + 1 + LEAD)
    auctions = np.where(random.integers(0, HOT_AUCTION, len(at)) > 0, newest // BATCH * BATCH, other) + FIRST_ID
    hot = random.integers(0, HOT_BIDDER, len(at)) > 0
    # The second of its hundred, so that hot bidders and hot sellers are not the same.
    bidders = np.where(hot, last_person(number) // BATCH * BATCH + 1, _person(random, number)) + FIRST_ID
    channel = random.integers(0, CHANNELS, len(at))
    usual = np.where(random.integers(0, HOT_CHANNEL, len(at)) > 0, channel % len(_HOT_CHANNELS), -1)
    urls = [f"https://www.nexmark.com/{texts.short(5)}/{texts.short(5)}/{texts.short(5)}/item.htm?query=1"
            for _ in range(64)]  # fmt: skip
    columns = (auctions, bidders, _prices(random, len(at)), channel, usual)
    for (auction, bidder, price, own, hot_one), moment in zip(
        zip(*(c.tolist() for c in columns), strict=True), at, strict=True
    ):
        url = urls[own % len(urls)]
        yield {
            "auction": auction,
            "bidder": bidder,
            "price": price,
            "channel": _HOT_CHANNELS[hot_one] if hot_one >= 0 else f"channel-{own}",
            "url": url if hot_one >= 0 or own % 10 == 0 else f"{url}&channel_id={own}",
            "dateTime": moment,
            "extra": texts.filling(32, SIZES["bid"]),
        }


def _prices(random: np.random.Generator, count: int) -> Ints:
    return np.rint(10.0 ** (random.random(count) * 6.0) * 100.0).astype(np.int64)


def _moment(milliseconds: int) -> str:
    at = datetime.fromtimestamp(milliseconds // 1_000, UTC)
    return f"{at:%Y-%m-%dT%H:%M:%S}.{milliseconds % 1_000:03}Z"


class _Texts:
    """Random texts, cut from a long one: a draw for each letter would take minutes."""

    def __init__(self, random: np.random.Generator, letters: int = 1 << 16) -> None:
        self._random = random
        self._letters = random.integers(97, 123, letters).astype(np.uint8).tobytes().decode()
        self._at = 0
        self._drawn: Sequence[int] = ()

    def short(self, most: int) -> str:
        """3 letters to `most` without the last."""
        return self._cut(3 + self._draw() % (most - 3))

    def filling(self, taken: int, wanted: int) -> str:
        """As many letters as are left of `wanted`, a fifth more or less."""
        left = wanted - taken
        if left <= 0:
            return ""
        spread = round(left * 0.2)
        return self._cut(left - spread + self._draw() % (2 * spread))

    def _cut(self, length: int) -> str:
        at = self._draw() % (len(self._letters) - length)
        return self._letters[at : at + length]

    def _draw(self) -> int:
        if self._at == len(self._drawn):
            self._drawn, self._at = self._random.integers(0, 1 << 30, 1 << 16).tolist(), 0
        self._at += 1
        return self._drawn[self._at - 1]
