"""Codecs: JSON and MessagePack have one meaning."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec
import numpy as np
import pytest
from headrace.streams.batch import Column
from headrace.streams.codecs import MAX_NESTING, Codec, Decoded, key_of
from headrace.streams.errors import DeclarationError, InvalidEvent
from headrace.streams.event import Event, fields
from headrace.streams.jsoncodec import codec
from hypothesis import given, settings
from hypothesis import strategies as st

NOW = 1_700_000_000_000_000


class Place(msgspec.Struct, frozen=True):
    shop: str
    shelf: int | None = None


class Json(Event, topic="things", key="who", time="at", codec="json"):
    who: str
    n: int
    x: float
    b: bool
    at: datetime
    m: int | None = None
    y: float | None = None
    c: bool | None = None
    s: str | None = None
    seen: datetime | None = None
    tags: list[str] = msgspec.field(default_factory=list)
    place: Place | None = None


class Packed(Event, topic="things", key="who", time="at", codec="msgpack"):
    who: str
    n: int
    x: float
    b: bool
    at: datetime
    m: int | None = None
    y: float | None = None
    c: bool | None = None
    s: str | None = None
    seen: datetime | None = None
    tags: list[str] = msgspec.field(default_factory=list)
    place: Place | None = None


CODECS: list[Codec] = [codec(Json), codec(Packed)]
DTYPES = {"n": "int64", "x": "float64", "b": "bool", "at": "int64", "m": "float64", "y": "float64", "c": "float64",
          "seen": "float64", "who": "object", "s": "object", "tags": "object", "place": "object"}  # fmt: skip


def decode(of: Codec, values: list[bytes | None], keys: list[bytes | None] | None = None) -> Decoded:
    return of.decode(values, keys or [None] * len(values), np.full(len(values), NOW))


def listed(column: Column) -> list[Any]:
    return [None if isinstance(v, float) and math.isnan(v) else v for v in column.tolist()]


NUMBERS = st.integers(-(2**53), 2**53)
MOMENTS = st.datetimes(
    datetime(1970, 1, 2), datetime(2023, 11, 14), timezones=st.sampled_from([UTC, timezone(timedelta(hours=5.5))])
)
THINGS = st.fixed_dictionaries(
    {"who": st.text(min_size=1, max_size=5), "n": NUMBERS, "x": st.floats(allow_nan=False, allow_infinity=False),
     "b": st.booleans(), "at": MOMENTS},
    optional={"m": st.none() | NUMBERS, "y": st.none() | st.floats(allow_nan=False, allow_infinity=False),
              "c": st.none() | st.booleans(), "s": st.none() | st.text(max_size=9), "seen": st.none() | MOMENTS,
              "tags": st.lists(st.text(max_size=3), max_size=3),
              "place": st.none() | st.builds(Place, st.text(max_size=3), st.none() | NUMBERS)},
)  # fmt: skip


@settings(derandomize=True, max_examples=80, deadline=None)
@given(st.lists(THINGS, max_size=4))
def test_both_formats_give_the_same_columns_of_the_same_dtypes(things: list[dict[str, Any]]) -> None:
    events = [[of(**thing) for thing in things] for of in (Json, Packed)]
    found = [decode(c, [c.encode(e) for e in mine]) for c, mine in zip(CODECS, events, strict=True)]
    assert found[0].refused == found[1].refused == []
    assert found[0].time.tolist() == found[1].time.tolist()
    for name, column in found[0].fields.items():
        assert str(column.dtype) == str(found[1].fields[name].dtype) == DTYPES[name]
        assert listed(column) == listed(found[1].fields[name])
    for mine, of in zip(events, CODECS, strict=True):
        assert [of.decode_one(of.encode(event)) for event in mine] == mine


GOOD = {"who": "a", "n": 1, "x": 0.5, "b": True, "at": "2023-11-14T00:00:00Z"}
REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"n": "1"}, "Expected `int`, got `str`", "n"),
    ({"n": None}, "Expected `int`, got", "n"),
    ({"n": 3.0}, "Expected `int`, got `float`", "n"),
    ({"n": 1.5}, "Expected `int`", "n"),
    ({"n": 2**53 + 1}, "is beyond 2^53", "n"),
    ({"m": -(2**53) - 1}, "is beyond 2^53", "m"),
    ({"x": "0.5"}, "Expected `float`, got `str`", "x"),
    ({"b": 1}, "Expected `bool`, got `int`", "b"),
    ({"s": 3}, "Expected `str | null`, got `int`", "s"),
    ({"at": "yesterday"}, "Invalid RFC3339", "at"),
    ({"at": "2023-11-14T00:00:00"}, "has no zone", "at"),
    ({"seen": "2023-11-14T00:00:00"}, "has no zone", "seen"),
    ({"who": ""}, "the key field who is empty", "who"),
    ({"more": 1}, "unknown field `more`", "more"),
    ({"tags": ["a", 1]}, "Expected `str`, got `int`", "tags[1]"),
    ({"place": {"shop": "x", "shelf": 2**60}}, "is beyond 2^53", "place"),
    ({"place": {}}, "missing required field `shop`", "place"),
]


@pytest.mark.parametrize("format", ["json", "msgpack"])
@pytest.mark.parametrize(("wrong", "reason", "field"), REFUSED, ids=[str(r[0]) for r in REFUSED])
def test_both_formats_refuse_the_same_for_the_same_reason(
    wrong: dict[str, Any], reason: str, field: str, format: str
) -> None:
    pack = msgspec.json.encode if format == "json" else msgspec.msgpack.encode
    good = pack(GOOD)
    found = decode(CODECS[format == "msgpack"], [good, pack(GOOD | wrong), good])
    assert found.rows.tolist() == [0, 2]
    [(at, error)] = found.refused
    assert (at, error.field) == (1, field)
    assert reason in error.reason


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["x", "y"])
def test_a_number_that_is_none_is_refused_in_both(number: float, name: str) -> None:
    for of, value in zip(CODECS, [json.dumps(GOOD | {name: number}).encode(), msgspec.msgpack.encode(GOOD |
                         {name: number})], strict=True):  # fmt: skip
        [(_, error)] = decode(of, [value]).refused
        assert isinstance(error, InvalidEvent)


@pytest.mark.parametrize("depth", [50, 400, 700, 850, 900, 5_000, 100_000])
def test_deep_nesting_costs_only_itself(depth: int) -> None:
    class Loose(Event, topic="loose", key="who", time="at"):
        who: str
        any: Any
        at: int

    good = b'{"who":"a","any":1,"at":1}'
    deep = b'{"who":"a","any":' + b"[" * depth + b"]" * depth + b',"at":1}'
    found = decode(codec(Loose), [good, deep, good])
    assert found.rows.tolist() == ([0, 1, 2] if depth <= MAX_NESTING else [0, 2])


def test_a_record_keyed_otherwise_than_its_field_is_refused() -> None:
    found = decode(CODECS[0], [msgspec.json.encode(GOOD)] * 2, [b"a", b"b"])
    [(at, error)] = found.refused
    assert (at, error.field) == (1, "who")
    assert key_of(CODECS[0].decode_one(msgspec.json.encode(GOOD))) == b"a"


def test_a_codec_that_does_not_exist_is_refused_where_it_is_declared() -> None:
    class Avro(Event, topic="things", key="who", time="at", codec="avro"):
        who: str
        at: int

    with pytest.raises(DeclarationError, match="codec='avro' is not one of json, msgpack"):
        codec(Avro)


class Numbered(Event, topic="things", key="who", time="at"):
    who: float
    at: int


class Named(Event, topic="things", key="who", time="at"):
    who: str
    at: str


class Timeless(Event, topic="things", key="who", time="at"):
    who: str
    at: datetime | None


@pytest.mark.parametrize(
    ("event", "says"),
    [
        (Numbered, "event Numbered: key='who' is float; a key is a str or an int"),
        (Named, "event Named: time='at' is str; an event time is a datetime, or an int of milliseconds"),
        (Timeless, "event Timeless: time='at' is time or missing"),
    ],
)
def test_a_key_or_time_of_an_unfit_type_is_refused_before_any_event(event: type[Event], says: str) -> None:
    with pytest.raises(DeclarationError) as error:
        fields(event)
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"key": "whom"}, "key='whom' is not one of its fields (who, at)"),
        ({"time": "when"}, "time='when' is not one of its fields"),
        ({"topic": "a b"}, "topic 'a b' may have 1 to 200 letters"),
        ({"lateness": "soon"}, "'soon' is not a span of time"),
        ({"lateness": 5}, "5 is not a span of time"),
        ({"out_of_orderness": "-1s"}, "'-1s' is not a span of time"),
        ({"unknown": "keep"}, "unknown='keep' is neither \"reject\" nor \"ignore\""),
        ({"key": None}, "event Wrong lacks key"),
    ],
)
def test_an_event_that_cannot_be_says_why(more: dict[str, Any], says: str) -> None:
    options: dict[str, Any] = {"topic": "things", "key": "who", "time": "at"}
    with pytest.raises(DeclarationError) as error:

        class Wrong(Event, **(options | more)):
            who: str
            at: int

    assert says in str(error.value)


@pytest.mark.parametrize("event", [Json, Packed])
def test_a_record_without_key_is_refused_where_its_topic_has_several_partitions(event: type[Event]) -> None:
    value = codec(event).encode(event(who="anna", n=1, x=1.0, b=True, at=datetime(2020, 1, 1, tzinfo=UTC)))
    assert decode(codec(event), [value, value], [None, b"anna"]).rows.tolist() == [0, 1]
    found = decode(codec(event, keyless=False), [value, value], [None, b"anna"])
    assert found.rows.tolist() == [1]
    [(row, reason)] = found.refused
    assert (row, reason.reason, reason.field) == (0, "the record has no key: its key is the field who, as text", "who")
