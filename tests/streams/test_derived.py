"""Sets over the rows of other sets, over everything, with a condition, and by the time of publication."""

from __future__ import annotations

import types
from collections import defaultdict
from datetime import datetime
from typing import Any

import numpy as np
import orjson
import pytest
from headrace.streams import aggregations as agg
from headrace.streams.aggregations import Stream
from headrace.streams.batch import Batch, Outputs, Record, Rows, one_by_one, record_by_record
from headrace.streams.derived import RowCodec
from headrace.streams.errors import DeclarationError, InvalidEvent
from headrace.streams.event import Event
from headrace.streams.expressions import col
from headrace.streams.features import Features, declaration, operator
from headrace.streams.spans import Spans
from headrace.streams.windows import last_n, session, sliding, tumbling
from hypothesis import given, settings
from hypothesis import strategies as st

from .columns import Told, batch
from .oracle import SECOND, Span, window_rows

START = 1_699_999_980 * SECOND


class Bid(Event, topic="bids", key="item", time="at"):
    item: str
    by: int
    price: int
    note: str | None
    rate: float | None
    at: datetime


class Seller(Event, topic="sellers", key="id", time="at"):
    id: int
    name: str
    at: datetime


class Offer(Event, topic="offers", key="seller", time="at"):
    id: int
    seller: int
    at: datetime


class Patient(Event, topic="patient", key="item", time="at", lateness="5s"):
    item: str
    at: datetime


class Counts(Features, of=Bid, by="item", window=sliding("4s", every="2s")):
    n = agg.count()
    best = agg.last(col.note, order=col.price)


class Hot(Features, of=Counts, window=tumbling("2s")):
    item = agg.last(col.item, order=col.n)
    n = agg.max(col.n)
    of = agg.count()


class PerItem(Features, of=Counts, by="item"):
    results = agg.count()
    most = agg.max(col.n, "1d")
    _start = col.start
    start_at = col.start


STREAMS = [agg.stream(Bid)]


def bid(time: float, item: str = "a", price: int = 1, **more: Any) -> Told:
    at = START + round(time * SECOND)
    row = {"item": item, "by": 7, "price": price, "note": f"{item}{price}", "rate": None, "at": at}
    return ("bids", at, row | more)


def marks(events: list[Told]) -> list[int]:
    found: list[int] = np.maximum.accumulate([time for _, time, _ in events]).tolist()
    return found


def run(
    features: type[Features],
    batches: list[Batch],
    restart: bool = False,
) -> list[Record]:
    """What an operator publishes of these batches; restart: it begins from its state before each."""
    step, out, state = operator(features), Outputs(), dict[bytes, bytes]()
    for one in batches:
        step.process(one, out)
        for key, value in one_by_one(step.changes()):
            if value is None:
                state.pop(key, None)
            else:
                state[key] = value
        if restart:
            step = operator(features)
            step.load(iter(sorted(state.items())))
    return list(record_by_record(out))


def cut(events: list[Told], cuts: list[int], streams: list[Stream] = STREAMS) -> list[Batch]:
    mark, offsets = marks(events), dict[str, int]()
    ends = [*cuts, len(events)]
    parts = [(a, b) for a, b in zip([0, *cuts], ends, strict=True) if a < b]
    return [batch(streams, events[a:b], mark[a:b], offsets) for a, b in parts]


def taken(above: type[Features], records: list[Record], cuts: list[int]) -> list[Batch]:
    """The records of a set as batches of a task of its own."""
    stream = agg.stream(above)
    made, mark = [], 0
    for a, b in zip([0, *cuts], [*cuts, len(records)], strict=True):
        if a < b:
            some = [record.value for record in records[a:b]]
            codec = RowCodec(stream, declaration(above))
            found = codec.decode(Spans.of(some), Spans.of([None] * len(some)), np.zeros(len(some), np.int64))
            assert found.refused == []
            rows = Rows(np.arange(len(some)), found.fields, stream.name, 0, np.arange(a, b), np.zeros(b - a, np.int64))
            watermark = np.maximum.accumulate(np.maximum(found.time, mark))
            mark = int(watermark[-1])
            made.append(Batch(found.time, watermark, {stream.name: rows}))
    return made


def values(records: list[Record]) -> list[dict[str, Any]]:
    return [orjson.loads(record.value or b"") for record in records]


def micros(moment: str) -> int:
    return round(datetime.fromisoformat(moment).timestamp() * SECOND)


@st.composite
def bids(draw: st.DrawFn) -> list[Told]:
    now, events = 0.0, []
    for _ in range(draw(st.integers(1, 25))):
        now += draw(st.sampled_from([0, 0, 0.5, 1, 2, 5]))
        events.append(bid(now, draw(st.sampled_from(["a", "b", 'c"', "é"])), draw(st.integers(-3, 3))))
    return events


def hot(events: list[Told]) -> list[dict[str, Any]]:
    """The greatest of the counts of each end, one event at a time; of equal ones that of the last item by its text."""
    told = [(row["item"], time, row) for _, time, row in events]
    closed = defaultdict(list)
    for row in window_rows(told, marks(events), 0, Span(4 * SECOND, 2 * SECOND)):
        closed[row["end"]].append((len(row["rows"]), row["key"]))
    found = []
    for end in sorted(closed)[:-1]:
        n, item = max(closed[end], key=lambda one: (one[0], one[1].encode()))
        found.append({"end": end, "item": item, "n": n, "of": len(closed[end])})
    return found


@settings(derandomize=True, max_examples=50, deadline=None)
@given(bids(), st.data())
def test_the_greatest_of_counts_equals_the_oracle_wherever_batches_are_cut(events: list[Told], data: Any) -> None:
    def cuts(most: int) -> list[int]:
        return sorted(data.draw(st.sets(st.integers(0, most), max_size=5)))

    counts = run(Counts, cut(events, []))
    assert run(Counts, cut(events, cuts(len(events))), restart=True) == counts
    whole = run(Hot, taken(Counts, counts, []))
    assert run(Hot, taken(Counts, counts, cuts(len(counts))), restart=True) == whole
    found = [{**row, "end": micros(row["end"])} for row in values(whole)]
    assert [{k: row[k] for k in ("end", "item", "n", "of")} for row in found] == hot(events)
    assert all(record.key is None for record in whole)


def test_features_as_of_each_result_are_keyed_as_these_and_name_them() -> None:
    counts = run(Counts, cut([bid(0), bid(1, "b"), bid(1), bid(9)], []))
    made = run(PerItem, taken(Counts, counts, []))
    assert [(r.key, v["id"], v["results"], v["most"]) for r, v in zip(made, values(made), strict=True)] == [
        (b"a", "features.Counts-0-0", 1, 2),
        (b"b", "features.Counts-0-1", 1, 1),
        (b"a", "features.Counts-0-2", 2, 2),
        (b"b", "features.Counts-0-3", 2, 1),
    ]
    assert values(made)[0]["at"] == "2023-11-14T22:13:01.999999Z"
    assert "_start" not in values(made)[0]


@settings(derandomize=True, max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(-2, 2), st.none() | st.sampled_from([-1.5, 0.0, -0.0, 2.5])), max_size=12))
def test_first_and_last_by_an_order_take_the_rows_of_the_least_and_greatest(rows: list[tuple[int, Any]]) -> None:
    class Ends(Features, of=Bid, by="item"):
        dear = agg.last(col.note, order=col.price)
        cheap = agg.first(col.note, order=col.price)
        high = agg.last(col.price, order=col.rate)
        low = agg.first(col.price, order=col.rate)

    events = [bid(i, price=price, rate=rate, note=str(i)) for i, (price, rate) in enumerate(rows)]
    for i, found in enumerate(values(run(Ends, cut(events, [])))):
        past = list(enumerate(rows[: i + 1]))
        assert found["dear"] == str(max(past, key=lambda p: (p[1][0], p[0]))[0])
        assert found["cheap"] == str(min(past, key=lambda p: (p[1][0], p[0]))[0])
        rated = [(rate, n, price) for n, (price, rate) in past if rate is not None]
        assert found["high"] == (max(rated)[2] if rated else None)
        assert found["low"] == (min(rated)[2] if rated else None)


class Dear(Features, of=Bid, where=col.price % 2 == 0):
    price = col.price
    note = col.note
    seen = agg.count()


def test_rows_that_do_not_hold_the_condition_count_and_are_not_published() -> None:
    events = [bid(i, price=i, note=None if i == 2 else f'"{i}"') for i in range(6)]
    for cuts in ([], [1, 2, 5]):
        found = values(run(Dear, cut(events, cuts), restart=True))
        assert [(r["id"], r["price"], r["note"], r["seen"]) for r in found] == [
            ("bids-0-0", 0, '"0"', 1),
            ("bids-0-2", 2, None, 3),
            ("bids-0-4", 4, '"4"', 5),
        ]
    assert run(Dear, cut([bid(0, price=1)], [])) == []


class Few(Features, of=Patient, by="item", window=tumbling("4s"), where=agg.count() < 3):
    n = agg.count()


def test_a_result_that_no_longer_holds_the_condition_is_taken_back() -> None:
    stream = [agg.stream(Patient)]
    events = [("patient", START + t * SECOND, {"item": "a", "at": START + t * SECOND}) for t in (0, 4, 1, 2, 3, 20)]
    for cuts in ([], [1, 2, 3, 4, 5]):
        found = values(run(Few, cut(events, cuts, stream), restart=True))
        assert [(r["start"][-3:], r["revision"], r.get("n", "back")) for r in found] == [
            ("00Z", 0, 1), ("00Z", 1, 2), ("00Z", 2, "back"), ("04Z", 0, 1),
        ]  # fmt: skip


class NewSellers(
    Features,
    of=Seller,
    by={Seller: "id", Offer: "seller"},
    window=tumbling("10s"),
    where=(agg.count() > 0) & (agg.count(of=Offer) > 0),
):
    name = agg.last(col.name)
    offers = agg.count(of=Offer)


def test_streams_that_call_an_entity_otherwise_meet_in_its_windows() -> None:
    def seller(at: float, id: int) -> Told:
        return ("sellers", START + round(at * SECOND), {"id": id, "name": f"s{id}", "at": 0})

    def offer(at: float, by: int) -> Told:
        return ("offers", START + round(at * SECOND), {"id": 1, "seller": by, "at": 0})

    events = [
        offer(0, 2),
        seller(1, 1),
        seller(2, 2),
        offer(3, 1),
        offer(4, 1),
        offer(9, 3),
        offer(11, 2),
        seller(30, 9),
    ]
    found = values(run(NewSellers, cut(events, [], [agg.stream(Seller), agg.stream(Offer)])))
    assert [(r["id"], r["name"], r["offers"]) for r in found] == [(1, "s1", 2), (2, "s2", 1)]


class Published(Features, of=Bid, by="by", window=tumbling("10s"), clock="published"):
    n = agg.count()


def test_windows_of_the_time_of_publication_take_every_event_in_the_order_of_the_log() -> None:
    said = [1, 5, 3, 12, 9, 25]
    for cuts in ([], [1, 2, 3, 4, 5]):
        batches, at = cut([bid(100 - 10 * i) for i in range(6)], cuts), 0
        for one in batches:
            rows = one.streams["bids"]
            rows.published[:] = np.array(said[at : at + len(rows)]) * SECOND
            at += len(rows)
        found = values(run(Published, batches, restart=True))
        # The fifth was published when 12 had been: no clock goes back.
        assert [(r["by"], micros(r["end"]) // SECOND, r["n"]) for r in found] == [(7, 10, 3), (7, 20, 2)]


def made(**options: Any) -> type[Features]:
    features = options.pop("features", {"n": agg.count()})
    return types.new_class("Made", (Features,), {"of": Bid, **options}, lambda body: body.update(features))


class Quiet(Features, of=Bid, by="item", publish=False):
    n = agg.count()


class Soon(Features, of=Bid, by="item", window=tumbling("4s"), early="1s"):
    n = agg.count()


class Corrected(Features, of=Patient, by="item", window=tumbling("4s")):
    n = agg.count()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"of": Quiet}, "Quiet publishes nothing"),
        ({"of": Soon}, "Soon publishes early results (early='1s')"),
        ({"of": Corrected}, "its events may come 5s late"),
        ({"of": Counts, "features": {"n": col.price}}, "features.Counts has no field 'price'"),
        ({"of": Counts, "by": "item", "features": {"n": agg.count(of=Bid)}}, "results are read alone"),
        ({"by": "item", "features": {"n": agg.count(of=Counts)}}, "results are read alone"),
        ({"by": {Offer: "seller"}}, "says nothing of bids"),
        ({"by": {Bid: "item", Offer: "seller"}}, "by names offers, of which it reads nothing"),
        (
            {"by": {Bid: ("item", "by"), Offer: "seller"}, "features": {"n": agg.count(of=Offer)}},
            "by has 2 for bids and 1 for offers",
        ),
        (
            {"by": {Bid: "item", Offer: "seller"}, "features": {"n": agg.count(of=Offer)}},
            "col['seller'] is int in offers, not as in bids",
        ),
        ({"clock": "published"}, "window=None has no results"),
        ({"window": tumbling("1s"), "clock": "wall"}, "clock='wall' is unknown"),
        ({"window": tumbling("1s"), "where": col.price > 1}, "has no field 'price'"),
    ],
)
def test_a_declaration_that_cannot_be_says_why(options: dict[str, Any], says: str) -> None:
    with pytest.raises(DeclarationError) as error:
        made(**options)
    assert says in str(error.value)


def test_a_row_that_cannot_be_taken_stops_what_reads_it() -> None:
    [row] = values(run(Counts, cut([bid(0), bid(2.5)], [])))[:1]
    codec = RowCodec(agg.stream(Counts), declaration(Counts))
    large = orjson.dumps({**row, "n": 2**60})
    with pytest.raises(InvalidEvent, match=r"that no set can be of \(1152921504606846976 is beyond"):
        codec.decode(Spans.of([large]), Spans.of([None]), np.zeros(1, np.int64))


@pytest.mark.parametrize("window", [session("3s"), last_n(2)])
def test_results_of_every_kind_of_window_can_be_read(window: Any) -> None:
    above = types.new_class(
        "Above", (Features,), {"of": Bid, "by": "item", "window": window}, lambda body: body.update(n=agg.count())
    )
    below = types.new_class("Below", (Features,), {"of": above}, lambda body: body.update(total=agg.sum(col.n)))
    counts = run(above, cut([bid(0), bid(1), bid(9), bid(20)], []))
    found = values(run(below, taken(above, counts, [])))
    assert found[-1]["total"] == sum(row["n"] for row in values(counts))
