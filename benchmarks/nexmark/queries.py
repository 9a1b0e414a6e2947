"""Nexmark's queries as a user of Headrace writes them; `flink.sql` has them as nexmark-flink does."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import headrace as hr


class Person(hr.Event, topic="person", key="id", time="dateTime"):
    id: int
    name: str
    emailAddress: str
    creditCard: str
    city: str
    state: str
    dateTime: datetime
    extra: str


class Auction(hr.Event, topic="auction", key="seller", time="dateTime"):
    id: int
    itemName: str
    description: str
    initialBid: int
    reserve: int
    dateTime: datetime
    expires: datetime
    seller: int
    category: int
    extra: str


class Bid(hr.Event, topic="bid", key="auction", time="dateTime"):
    auction: int
    bidder: int
    price: int
    channel: str
    url: str
    dateTime: datetime
    extra: str


class Q0(hr.Features, of=Bid):
    """Every bid as it is."""

    auction = hr.col.auction
    bidder = hr.col.bidder
    price = hr.col.price
    extra = hr.col.extra


class Q1(hr.Features, of=Bid):
    """Prices in euros."""

    auction = hr.col.auction
    bidder = hr.col.bidder
    price = 0.908 * hr.col.price
    extra = hr.col.extra


class Q2(hr.Features, of=Bid, where=hr.col.auction % 123 == 0):
    """The bids for some auctions."""

    auction = hr.col.auction
    price = hr.col.price


class AuctionBids(hr.Features, of=Bid, by="auction", window=hr.sliding("10s", every="2s")):
    num = hr.count()


class Q5(hr.Features, of=AuctionBids, window=hr.tumbling("2s")):
    """The auction with most bids in the last 10 seconds, every 2 seconds; of several that whose id as text is last."""

    auction = hr.last(hr.col.auction, order=hr.col.num)
    num = hr.max(hr.col.num)


class Q7(hr.Features, of=Bid, window=hr.tumbling("10s")):
    """The highest bid of every 10 seconds; of several the last."""

    auction = hr.last(hr.col.auction, order=hr.col.price)
    bidder = hr.last(hr.col.bidder, order=hr.col.price)
    price = hr.max(hr.col.price)
    extra = hr.last(hr.col.extra, order=hr.col.price)


class Q8(
    hr.Features,
    of=Person,
    by={Person: "id", Auction: "seller"},
    window=hr.tumbling("10s"),
    where=(hr.count() > 0) & (hr.count(of=Auction) > 0),
):
    """The people who came and opened an auction within the same 10 seconds."""

    name = hr.last(hr.col.name)


class Q11(hr.Features, of=Bid, by="bidder", window=hr.session("10s")):
    """How many bids a person made in each of their sessions."""

    bid_count = hr.count()


class Q12(hr.Features, of=Bid, by="bidder", window=hr.tumbling("10s"), clock="published"):
    """How many bids a person made in every 10 seconds of the time at which bids were published."""

    bid_count = hr.count()


@dataclass(frozen=True, slots=True)
class Query:
    """What a query runs.

    result: the set whose rows answer it
    reads:  the topics of events whose count is its number of events
    """

    name: str
    result: type[hr.Features]
    reads: tuple[str, ...] = ("bid",)

    @property
    def app(self) -> hr.App:
        return hr.App(f"nexmark-{self.name}", features=[self.result])

    @property
    def topic(self) -> str:
        return f"features.{self.result.__name__}"


QUERIES = {
    query.name: query
    for query in (
        Query("q0", Q0), Query("q1", Q1), Query("q2", Q2), Query("q5", Q5), Query("q7", Q7),
        Query("q8", Q8, ("person", "auction")), Query("q11", Q11), Query("q12", Q12),
    )
}  # fmt: skip
