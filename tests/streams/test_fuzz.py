"""Whatever bytes a topic carries: each value becomes a row or a rejection, and nothing around it changes."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Annotated, Any

import msgspec
import numpy as np
import pytest
from headrace.streams.codecs import Codec
from headrace.streams.event import Event
from headrace.streams.inputs import Input, Merge, Source
from headrace.streams.jsoncodec import codec
from headrace.streams.log import Fetched, Partition
from hypothesis import given, settings
from hypothesis import strategies as st

PUBLISHED = 1_262_304_000_000
"""Milliseconds: 2010-01-01."""


class Place(msgspec.Struct):
    shop: str
    shelf: int | None = None


class Line(Event, topic="lines", key="who", time="at"):
    who: str
    n: Annotated[int, msgspec.Meta(gt=0)]
    x: float
    at: datetime
    m: int | None = None
    seen: datetime | None = None
    tags: list[str | int] = msgspec.field(default_factory=list)
    place: Place | None = None


class Tick(Event, topic="ticks", key="n", time="ms", codec="msgpack", unknown="ignore"):
    n: int
    ms: int
    x: float | None = None
    more: dict[str, Any] = msgspec.field(default_factory=dict)


GOOD: dict[type[Event], dict[str, Any]] = {
    Line: {"who": "anna", "n": 1, "x": 0.5, "at": "2009-12-31T12:00:00Z", "place": {"shop": "here"}},
    Tick: {"n": 7, "ms": PUBLISHED - 1000, "x": 1.5, "more": {"a": [1, 2]}},
}
FORMATS: dict[type[Event], Any] = {Line: json.dumps, Tick: msgspec.msgpack.encode}
NUMBERS = st.one_of(st.integers(-(2**70), 2**70), st.floats(), st.sampled_from([2**53, 2**53 + 1, 2**63, 1e308, 0, -1]))
ANYTHING = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=8) | st.datetimes().map("{:%Y-%m-%dT%H:%M:%SZ}".format),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=6,
)


def written(event: type[Event], value: Any) -> bytes:
    if event is Line:
        return json.dumps(value).encode()
    try:
        return msgspec.msgpack.encode(value)
    except OverflowError:  # MessagePack has no such integer
        return b"\xc1"


def values(event: type[Event]) -> st.SearchStrategy[bytes | None]:
    """Good values, good ones with a field or some bytes changed, other data, and bytes."""
    good = GOOD[event]
    names = st.sampled_from([*event.__struct_fields__, "colour", ""])
    replaced = st.tuples(names, ANYTHING).map(lambda pair: written(event, good | {pair[0]: pair[1]}))
    whole = written(event, good)
    at = st.integers(0, len(whole) - 1)
    spoilt = st.tuples(at, at, st.binary(max_size=3)).map(lambda s: whole[: s[0]] + s[2] + whole[s[1] :])
    surrogate = st.just(json.dumps(good).encode().replace(b"anna", rb"\ud800"))
    other = ANYTHING.map(lambda value: written(event, value))
    return st.one_of(st.just(whole), replaced, spoilt, other, st.binary(max_size=40), st.none(), surrogate)


KEYS = st.one_of(st.none(), st.sampled_from([b"anna", b"7", b"", b"\xff\xfe"]), st.binary(max_size=4))


@pytest.mark.parametrize("event", [Line, Tick])
def test_every_value_is_a_row_or_a_refusal_and_a_row_is_what_it_is_alone(event: type[Event]) -> None:
    one: Codec = codec(event)

    @settings(max_examples=300, deadline=None)
    @given(st.lists(st.tuples(values(event), KEYS), max_size=8))
    def check(records: list[tuple[bytes | None, bytes | None]]) -> None:
        published = np.full(len(records), PUBLISHED * 1000)
        found = one.decode([v for v, _ in records], [k for _, k in records], published)
        refused = [i for i, _ in found.refused]
        assert sorted([*found.rows.tolist(), *refused]) == list(range(len(records)))
        assert sorted(refused) == refused
        assert sorted(found.rows.tolist()) == found.rows.tolist()
        assert all(error.reason for _, error in found.refused)
        for place, row in enumerate(found.rows.tolist()):
            value, key = records[row]
            alone = one.decode([value], [key], published[:1])
            assert alone.time[0] == found.time[place]
            for name, column in alone.fields.items():
                assert column.dtype == found.fields[name].dtype
                assert repr(column[0]) == repr(found.fields[name][place])

    check()


@pytest.mark.parametrize("event", [Line, Tick])
def test_what_is_refused_is_carried_to_the_byte_with_its_reason_and_its_place(event: type[Event]) -> None:
    topic = event.contract.topic

    @settings(max_examples=200, deadline=None)
    @given(st.lists(st.tuples(values(event), KEYS), min_size=1, max_size=8), st.integers(1, 4))
    def check(records: list[tuple[bytes | None, bytes | None]], limit: int) -> None:
        source = Source(topic, codec(event), rejected=f"{topic}.rejected", late=f"{topic}.late")
        one = Input(source, Partition(topic, 0))
        n = len(records)
        keys, read = [k for _, k in records], [v for v, _ in records]
        offsets = np.arange(n) * 2 + 5
        one.feed(Fetched(one.partition, offsets, np.full(n, PUBLISHED), keys, read, int(offsets[-1]) + 2, 99))
        merge = Merge([one])
        taken, rows = [], 0
        while one.buffered:
            part = merge.take(limit, frozenset())
            taken += part.refused
            rows += len(part.batch)
        assert rows + len(taken) == n
        for record in taken:
            headers = dict(record.headers)
            place = (int(headers["offset"]) - 5) // 2
            assert (record.value, record.key) == records[place]
            assert headers["reason"].decode()
            assert (headers["topic"], headers["partition"]) == (topic.encode(), b"0")

    check()
