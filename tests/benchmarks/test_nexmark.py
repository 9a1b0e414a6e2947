"""Nexmark's benchmark, less what it measures: the events, the answers computed apart, and the beats of Flink."""

from __future__ import annotations

from collections import Counter

import pytest
from headrace.streams.jsoncodec import codec

from benchmarks.nexmark.__main__ import FLINK, HEADRACE, as_json, ratios
from benchmarks.nexmark.checks import EXPECTED, Given, answered, differ
from benchmarks.nexmark.events import EPOCH, Events, made
from benchmarks.nexmark.flink import Sample, job, rates, sections
from benchmarks.nexmark.queries import QUERIES, Auction, Bid, Person
from benchmarks.peers.children import Failed


@pytest.fixture(scope="module")
def events() -> Events:
    return made(20 * 10_000)


def test_events_keep_the_proportions_and_distributions_of_nexmark(events: Events) -> None:
    counts = {topic: len(rows) for topic, rows in events.rows.items()}
    assert counts == {"person": 4_000, "auction": 12_000, "bid": 184_000}
    bids = [value for i, value in enumerate(events.values["bid"]) if i % 10 == 0]
    hot = sum(bid["auction"] % 100 == 0 for bid in bids) / len(bids)
    assert 0.48 < hot < 0.53
    assert 0.73 < sum(bid["bidder"] % 100 == 1 for bid in bids) / len(bids) < 0.78
    prices = Counter(len(str(bid["price"])) for bid in bids)
    assert all(0.13 < prices[digits] / len(bids) < 0.2 for digits in range(3, 9))
    assert bids[0]["dateTime"] == "2015-07-15T00:00:00.000Z"
    assert 80 < sum(len(bid["extra"]) for bid in bids) / len(bids) + 32 < 120
    assert [value["id"] for value in events.values["person"][:3]] == [1000, 1001, 1002]


def test_every_event_holds_its_contract(events: Events) -> None:
    for event in (Person, Auction, Bid):
        for row in events.rows[event.contract.topic][:EPOCH]:
            codec(event).decode_one(row.value)


def test_bids_are_the_same_whatever_else_is_made() -> None:
    assert made(5_000).rows["bid"] == made(4_600, ("bid",)).rows["bid"]


BIDS = [
    {"auction": auction, "bidder": 7, "price": price, "extra": "x", "dateTime": f"2015-07-15T00:00:{second:02}.000Z"}
    for second, auction, price in [(0, 123, 5), (1, 124, 9), (1, 124, 9), (9, 125, 1), (31, 1, 1)]
]
GIVEN = Given({"bid": BIDS}, [0, 20_000, 5_000, 30_000, 40_000])
ZERO = 1_436_918_400_000


def test_answers_of_a_few_bids() -> None:
    assert EXPECTED["q2"](GIVEN) == {(0, 123, 5)}
    assert (ZERO + 10_000, 124, 7, 9, "x") in EXPECTED["q7"](GIVEN)
    assert EXPECTED["q5"](GIVEN) >= {(ZERO + 2_000, 2, 124), (ZERO + 16_000, 1, 125)}
    assert max(end for end, *_ in EXPECTED["q5"](GIVEN)) == ZERO + 16_000  # the next end is not heard of
    assert EXPECTED["q11"](GIVEN) == {(7, ZERO, ZERO + 9_000, 4)}
    assert EXPECTED["q12"](GIVEN) == {(7, 10_000, 1), (7, 30_000, 2), (7, 40_000, 1)}


def test_what_is_lost_or_said_twice_is_told() -> None:
    row = {"id": "bid-0-0", "auction": 123, "price": 5}
    assert differ("q2", GIVEN, [row]) == ""
    assert "1 are lost" in differ("q2", GIVEN, [])
    with pytest.raises(AssertionError, match="twice"):
        answered("q2", [row, row])


def test_flink_has_a_section_for_every_query() -> None:
    assert sections("-- a\nb;\n-- c d\n-- e\nf;\n") == {"a": "b;\n-- c d\n", "e": "f;\n"}
    for query in QUERIES:
        said = job(query, "host:1")
        assert "INSERT INTO told" in said
        assert f"'topic' = 'flink-{query}'" in said
        assert "{" not in said


def test_the_second_half_is_timed_however_often_its_topic_is_read() -> None:
    seen = [Sample(0, 0, 0), Sample(1, 1, 90), Sample(2, 1.5, 110), Sample(4, 2, 150), Sample(6, 3, 200)]
    assert rates(seen, 200) == pytest.approx((90 / 4, 90 / 1.5))
    assert rates(seen, 100) == pytest.approx((45 / 4, 45 / 1.5))
    with pytest.raises(Failed, match="after 0 of 5"):
        rates([Sample(0, 0, 0)], 5)


def test_the_result_has_a_row_for_each_query_and_engine_by_its_median() -> None:
    kept = as_json("here", "Kafka", {("q0", HEADRACE): [(6, 9), (4, 8), (5, 7)], ("q0", FLINK): [(2, 4)]})
    assert [(row["name"], row["engine"], row["events_per_s"]) for row in kept["rows"]] == [
        ("q0", HEADRACE, 5), ("q0", FLINK, 2),
    ]  # fmt: skip
    assert set(kept["versions"]) == {"Apache Kafka", HEADRACE, FLINK}
    [line] = ratios(kept)
    assert line.split() == ["q0", "2.5", "times", "Flink", "SQL,", "2.0", "by", "the", "processor's", "time"]
