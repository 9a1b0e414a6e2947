"""Plain rows of JSON by kernels: what they take is what msgspec finds, to the bit; ordinary events they all take."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import random
import struct
import subprocess
import sys
import types
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta, timezone
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import orjson
import pytest
from headrace.streams import kernels
from headrace.streams.codecs import MAX_EVENT_BYTES, MAX_INTEGER, MsgspecCodec
from headrace.streams.durations import DAY
from headrace.streams.errors import DeclarationError
from headrace.streams.event import NEWEST, Event
from headrace.streams.jsoncolumns import JsonColumns, Plain
from headrace.streams.spans import Spans
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

NOW = 1_700_000_000_000_000
ROOT = Path(__file__).parents[2]
PROFILE = settings(derandomize=True, max_examples=60, deadline=None)


class Line(Event, topic="lines", key="who", time="at"):
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


class Tick(Event, topic="ticks", key="who", time="ms", unknown="ignore", rename="camel"):
    who: int
    ms: int
    last_price: float
    note_of: str = "none"


class Braced(Event, topic="braced", key="who", time="ms", rename={"who": "who}"}):
    who: str
    ms: int


class Bound(Event, topic="bound", key="who", time="ms"):
    who: Annotated[str, msgspec.Meta(min_length=2, max_length=8)]
    ms: Annotated[int, msgspec.Meta(ge=5)]
    n: Annotated[int, msgspec.Meta(gt=-3, le=2**53 - 1)] = 0
    x: Annotated[float, msgspec.Meta(gt=0.1, lt=1e300)] = 1.0
    p: Annotated[float, msgspec.Meta(ge=-0.0)] | None = None
    q: Annotated[int, msgspec.Meta(lt=7)] | None = None
    s: Annotated[str, msgspec.Meta(max_length=3, description="short")] | None = None
    at: Annotated[datetime, msgspec.Meta(tz=True)] | None = None


GOOD: dict[type[Event], bytes] = {
    Line: b'{"who":"anna","n":1,"x":0.5,"b":true,"at":"2023-11-14T12:00:00Z","m":2,"y":-1.25e3,"c":false,'
    b'"s":"caf\xc3\xa9","seen":"1969-07-20T20:17:40.123+01:00"}',
    Tick: b'{ "who" : 7, "ms" : 1699999999999, "lastPrice" : 12.340000000000002, "noteOf" : "", "more" : [1] }',
    Bound: b'{"who":"annabel","ms":1699999999999,"n":4,"x":2.5,"p":null,"q":-7,"s":"abc","at":"2023-11-14T12:00:00Z"}',
}


def spans(values: Sequence[bytes | None]) -> Spans:
    return Spans.of(list(values))


def agree(
    event: type[Event],
    values: Sequence[bytes | None],
    keys: Sequence[bytes | None] | None = None,
    published: Sequence[int] | None = None,
    keyless: bool = True,
) -> list[bool]:
    """Which rows are taken, each of them exactly as msgspec takes it."""
    keys = keys if keys is not None else [None] * len(values)
    told = np.array(published if published is not None else [NOW] * len(values), np.int64)
    plain = JsonColumns(event, keyless).decode(spans(values), spans(keys), told)
    slow = MsgspecCodec(event, keyless).decode(values, keys, told)
    refused = [(values[row], reason) for row, reason in slow.refused if plain.ok[row]]
    assert not refused
    at = np.searchsorted(slow.rows, np.flatnonzero(plain.ok))
    assert plain.time[plain.ok].tolist() == slow.time[at].tolist()
    assert {*plain.columns, *plain.texts} == set(slow.fields)
    for name, column in plain.columns.items():
        assert column.dtype == slow.fields[name].dtype
        assert len(column) == len(values)
        mine, theirs = column[plain.ok], slow.fields[name][at]
        assert mine.tobytes() == theirs.tobytes(), (name, mine[mine != theirs], theirs[mine != theirs])
    for name, text in plain.texts.items():
        assert len(text) == len(values)
        found = [None if t is None else t.decode() for t in text.take(plain.ok)]
        assert found == slow.fields[name][at].tolist()
    taken: list[bool] = plain.ok.tolist()
    return taken


def put(event: type[Event], **raw: str | bytes) -> bytes:
    """A good event with other bytes as the values of some fields."""
    fields: dict[str, bytes] = {name: orjson.dumps(value) for name, value in orjson.loads(GOOD[event]).items()}
    fields.pop("more", None)
    fields |= {name: value.encode() if isinstance(value, str) else value for name, value in raw.items()}
    return b"{" + b",".join(b'"%s":%s' % (name.encode(), value) for name, value in fields.items()) + b"}"


# Events that are valid.

NUMBERS = st.integers(-(2**53), 2**53)
MOMENTS = st.datetimes(
    datetime(1, 1, 2), datetime(9999, 12, 30), timezones=st.sampled_from([UTC, timezone(-timedelta(hours=5.5))])
)
NOW_AND_THEN = st.datetimes(datetime(1970, 1, 2), datetime(2023, 11, 14), timezones=st.just(UTC))
KINDS: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (int, NUMBERS),
    (float, st.floats(allow_nan=False, allow_infinity=False)),
    (bool, st.booleans()),
    (str, st.text()),
    (datetime, MOMENTS),
]
SPACES: list[Callable[[Any], bytes]] = [
    orjson.dumps,
    msgspec.json.encode,
    lambda it: orjson.dumps(it, option=orjson.OPT_INDENT_2),
    lambda it: json.dumps(it, ensure_ascii=False).encode(),
    lambda it: json.dumps(it, separators=(",", ":")).encode(),
    lambda it: b" \r\n" + json.dumps(it, ensure_ascii=False, separators=("\t,\n ", " :\r")).encode() + b"\t ",
]


def declared(kinds: dict[str, Any], defaults: dict[str, Any], **options: Any) -> type[Event]:
    """An event class of these fields."""
    options |= {"topic": "made", "kw_only": True}
    fill = functools.partial(dict.update, __annotations__=kinds, **defaults)
    made: type[Event] = types.new_class("Made", (Event,), options, fill)
    return made


@st.composite
def schemas(draw: st.DrawFn) -> tuple[type[Event], st.SearchStrategy[dict[str, Any]]]:
    """An event class, and what its events say."""
    key, time = draw(st.sampled_from([str, int])), draw(st.sampled_from([datetime, int]))
    kinds: dict[str, Any] = {"the_key": key, "the_time": time}
    values: dict[str, st.SearchStrategy[Any]] = {
        "the_key": st.text(min_size=1) if key is str else NUMBERS,
        "the_time": NOW_AND_THEN if time is datetime else st.integers(0, NOW // 1000),
    }
    optional: dict[str, st.SearchStrategy[Any]] = {}
    for i in range(draw(st.integers(0, 7))):
        kind, value = draw(st.sampled_from(KINDS))
        if draw(st.booleans()):
            kinds[f"field_{i}é"], optional[f"field_{i}é"] = kind | None, st.none() | value
        else:
            kinds[f"field_{i}"], values[f"field_{i}"] = kind, value
    rename = draw(st.sampled_from([None, "camel", "kebab"]))
    unknown = draw(st.sampled_from(["reject", "ignore"]))
    names = draw(st.permutations(list(kinds)))
    options = {"key": "the_key", "time": "the_time", "unknown": unknown, "rename": rename}
    made = declared({n: kinds[n] for n in names}, dict.fromkeys(optional), **options)
    return made, st.fixed_dictionaries(values, optional=optional)


@PROFILE
@given(st.data(), schemas())
def test_of_valid_events_all_are_taken_but_those_with_escapes(
    data: st.DataObject, schema: tuple[type[Event], st.SearchStrategy[dict[str, Any]]]
) -> None:
    event, things = schema
    assert JsonColumns.takes(event)
    events = [event(**thing) for thing in data.draw(st.lists(things, min_size=1, max_size=5))]
    values, keys = [], []
    for one in events:
        names = list(msgspec.to_builtins(one).items())
        if event.contract.unknown == "ignore":
            names.append(("more", data.draw(st.none() | st.booleans() | NUMBERS | st.text() | KINDS[1][1])))
        names = data.draw(st.permutations(names))
        values.append(data.draw(st.sampled_from(SPACES))(dict(names)))
        keys.append(data.draw(st.none() | st.just(str(one.the_key).encode())))  # type: ignore[attr-defined]
    assert agree(event, values, keys) == [b"\\" not in value for value in values]
    published = [MsgspecCodec(event).encode(one) for one in events]
    assert agree(event, published) == [b"\\" not in value for value in published]


class Sale(Event, topic="sales", key="user", time="ts"):
    user: str
    ts: int
    amount: float
    item: str | None = None
    at: datetime | None = None


@pytest.mark.parametrize("write", SPACES)
def test_of_ordinary_events_none_is_left_to_msgspec(write: Callable[[Any], bytes]) -> None:
    draw, values = random.Random(5), []
    for n in range(2000):
        sale: dict[str, Any] = {"user": f"user-{draw.randrange(10_000)}", "ts": NOW // 1000 - draw.randrange(10**9)}
        sale |= {"amount": draw.choice([draw.uniform(0, 1000), draw.randrange(10**6) / 100, n, draw.expovariate(1e-9)])}
        sale |= {"item": draw.choice([None, f"item {n}", "a longer text " * draw.randrange(20)])}
        when = datetime(2020, 1, 1, tzinfo=UTC) + timedelta(microseconds=draw.randrange(10**14))
        values.append(write(sale | {"at": when.isoformat(timespec=draw.choice(["seconds", "milliseconds", "auto"]))}))
    assert all(agree(Sale, values, [orjson.loads(value)["user"].encode() for value in values]))


def test_fields_that_may_be_absent_are_missing_and_others_are_left_to_msgspec() -> None:
    assert agree(Line, [b'{"who":"a","n":1,"x":2,"b":true,"at":"2023-11-14T12:00:00Z"}']) == [True]
    assert agree(Line, [b'{"who":"a","n":1,"x":2,"at":"2023-11-14T12:00:00Z"}']) == [False]
    assert agree(Tick, [b'{"who":1,"ms":1,"lastPrice":2,"noteOf":"x"}']) == [True]
    assert agree(Tick, [b'{"who":1,"ms":1,"lastPrice":2}']) == [False]


# Constraints.


def test_what_is_beyond_its_bounds_is_left_to_msgspec_and_what_is_within_is_taken() -> None:
    numbers = {
        "ms": ["4", "5", "6"],
        "n": ["-4", "-3", "-2", "9007199254740990", "9007199254740991", "9007199254740992"],
        "x": [
            "0",
            "0.1",
            "0.10000000000000002",
            "0.09999999999999999",
            "1e300",
            "9.999999999999999e299",
            "1",
            "-1e-320",
        ],
        "p": ["0", "-0.0", "0.0", "-1e-300", "1e-300", "null", "5"],
        "q": ["6", "7", "8", "-9", "null"],
    }
    for field, texts in numbers.items():
        values = [put(Bound, **{field: text}) for text in texts]
        refused = {
            i for i, _ in MsgspecCodec(Bound).decode(values, [None] * len(values), np.full(len(values), NOW)).refused
        }
        assert agree(Bound, values) == [i not in refused for i in range(len(values))]
        assert 0 < len(refused) < len(values)


def test_a_text_is_taken_where_its_bytes_tell_that_it_is_long_enough_and_not_too_long() -> None:
    keys = ["a", "ab", "abcdefgh", "abcdefghi", "é", "éa", "éééééééé", "€", "€€", "abcde", "aéiou"]
    taken = [False, False, True, False, False, False, False, False, True, True, True]
    assert agree(Bound, [put(Bound, who=f'"{key}"') for key in keys]) == taken
    texts = ['""', '"abc"', '"abcd"', '"é"', '"éé"', '"ééé"', "null"]
    assert agree(Bound, [put(Bound, s=text) for text in texts]) == [True, True, False, True, False, False, True]


# Numbers.


def floats(texts: list[str]) -> list[bool]:
    return agree(Line, [b'{"who":"a","n":1,"b":true,"at":"2023-11-14T12:00:00Z","x":%s}' % t.encode() for t in texts])


def test_random_doubles_of_every_exponent_are_taken_to_the_bit() -> None:
    draw = random.Random(7)
    bits = [(e << 52) | draw.getrandbits(52) for e in range(2047) for _ in range(4)]
    bits += [(e << 52) | m for e in range(2047) for m in (0, 1, 2**52 - 1)] + [draw.getrandbits(20) for _ in range(500)]
    some = [struct.unpack("<d", struct.pack("<q", b | draw.choice([0, -(2**63)])))[0] for b in bits]
    assert all(floats([repr(x) for x in some]))
    assert all(floats([f"{x:.18e}" for x in some if abs(x) > 1e-300]))


def test_numbers_between_two_doubles_are_rounded_as_msgspec_rounds() -> None:
    draw = random.Random(8)
    texts = []
    for _ in range(3000):
        odd = 2 * draw.getrandbits(52) + 2**53 + 1  # 54 bits, the last of them 1: the middle
        middle = odd << draw.randrange(12) if draw.random() < 0.5 else odd
        texts += [str(middle), f"{middle}.0", f"{middle}.{'0' * draw.randrange(30)}1", f"-{middle}e0"]
        five = odd * 5 ** (shift := draw.randrange(1, 40))  # odd / 2^shift, in decimals
        digits = str(five).rjust(shift + 1, "0")
        texts += [f"{digits[:-shift]}.{digits[-shift:]}{end}" for end in ("", "0", "1", "e-7", "e90")]
        texts += [f"{draw.getrandbits(64)}e{draw.randrange(-360, 320)}"]
    assert sum(floats(texts)) > 0.6 * len(texts)  # the others have more than 19 digits and are undecided by them


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        ("0", True), ("-0", False), ("-0.0", True), ("0e5", True), ("-0e-999", True), ("1E+05", True), ("1e-05", True),
        ("5e-324", True), ("4.9406564584124654e-324", True), ("2.2250738585072011e-308", True),
        ("2.2250738585072014e-308", True), ("1.7976931348623157e308", True), ("1.7976931348623159e308", False),
        ("1e309", False), ("1e400", False), ("1e-400", False), ("-1e-99999999999999999999", False),
        ("1e99999999999999999999", False), ("9007199254740993", True), ("18446744073709551615", True),
        ("18446744073709551616", True), ("100000000000000000000000", True), ("0." + "0" * 400 + "1", False),
        ("0." + "0" * 300 + "1", True), ("1" + "0" * 300, True), ("0.1" + "0" * 500, True),
        ("12345678901234567890123", True), ("1e-342", True), ("-1e-330", True), ("9999999999999999999e-342", True),
        ("1e-343", False), ("1e18446744073709551617", False), ("1e-18446744073709551617", False),
    ],
)  # fmt: skip
def test_a_float_is_taken_where_it_is_known_to_the_bit(text: str, taken: bool) -> None:
    assert floats([text]) == [taken]


def test_integers_are_taken_up_to_two_to_the_53() -> None:
    some = [0, 7, MAX_INTEGER, MAX_INTEGER + 1, 10**18, 10**19, 2**63, 2**64, 10**400]
    texts = [str(n) for n in some] + [str(-n) for n in some[1:]]
    taken = [abs(int(text)) <= MAX_INTEGER for text in texts]
    assert agree(Line, [put(Line, n=text) for text in texts]) == taken
    assert agree(Line, [put(Line, m=text) for text in texts]) == taken
    assert agree(Tick, [put(Tick, who=text) for text in texts], [t.encode() for t in texts]) == taken


# Times.


def times(texts: list[str]) -> list[bool]:
    return agree(Line, [put(Line, seen=f'"{text}"') for text in texts])


def test_every_day_of_the_calendar_is_taken_and_no_other() -> None:
    years = (0, 1, 4, 100, 400, 1900, 1969, 1970, 2000, 2023, 2024, 2100, 9999)
    days = list(product(years, range(14), range(33)))

    def there(year: int, month: int, day: int) -> bool:
        try:
            return bool(datetime(year, month, day))
        except ValueError:
            return False

    assert times([f"{y:04}-{m:02}-{d:02}T01:02:03Z" for y, m, d in days]) == [there(*day) for day in days]
    begin = datetime(1968, 1, 1)
    assert all(times([f"{(begin + timedelta(n)).isoformat()}Z" for n in range(0, 50_000, 7)]))


def test_hours_fractions_and_zones_are_taken_as_msgspec_takes_them() -> None:
    clocks = {f"{h:02}:{m:02}:{s:02}": max(m, s) < 60 and h < 24 for h, m, s in
              product((0, 9, 23, 24), (0, 59, 60), (0, 59, 60))}  # fmt: skip
    clocks |= dict.fromkeys(["1:00:00", "01:00", "0a:00:00", "00-00-00", "00:00:0:"], False)
    fractions = dict.fromkeys(["", ".0", ".1", ".12", ".123", ".1234", ".12345", ".123456", ".1234564", ".1234565",
                               ".1234564999", ".12345650001", ".9999994", ".000000499", ".0000005"], True)  # fmt: skip
    fractions |= dict.fromkeys([".", ".9999995", ".99999950", ",1", ".1.1", ".-1"], False)
    zones = dict.fromkeys(["Z", "+00:00", "-00:00", "+05:30", "-11:59", "+23:59"], True)
    zones |= dict.fromkeys(
        ["z", "", "+24:00", "-01:60", "+0100", "+01", "+1:00", "+01:0", "+01:000", "Z ", " Z"], False
    )
    days = ("2020-02-29", "0001-01-01", "9999-12-31")
    parts = [(day, *rest) for day in days for rest in product(clocks, fractions, zones)]
    taken = [clocks[clock] and fractions[fraction] and zones[zone] for _, clock, fraction, zone in parts]
    assert times([f"{day}T{clock}{fraction}{zone}" for day, clock, fraction, zone in parts]) == taken
    assert not any(times(["2020-02-29t00:00:00Z", "2020-02-29 00:00:00Z", "20200229T000000Z", "+020-02-29T00:00:00Z"]))


def test_an_event_time_is_taken_from_1970_to_the_allowance_after_it_was_published() -> None:
    first, last = "1970-01-01T00:00:00Z", "1969-12-31T23:59:59.999999Z"
    assert agree(Line, [put(Line, at=f'"{t}"') for t in (first, last)]) == [True, False]
    at = put(Line, at='"2023-11-14T22:13:20.000001Z"')  # NOW and a microsecond
    told = [NOW - DAY, NOW - DAY + 1, NOW, -(2**63), -(2**62), 2**63 - 1, 0]
    assert agree(Line, [at] * 7, published=told) == [False, True, True, False, False, True, False]
    edge = ["2100-01-01T00:00:00Z", "2100-01-01T00:00:00.000001Z"]
    assert agree(Line, [put(Line, at=f'"{t}"') for t in edge], published=[NEWEST] * 2) == [True, False]
    whole = [0, -1, NEWEST // 1000, NEWEST // 1000 + 1, MAX_INTEGER, -MAX_INTEGER]
    taken = agree(Tick, [put(Tick, ms=str(t)) for t in whole], published=[2**63 - 1] * 6)
    assert taken == [True, False, True, False, False, False]


@pytest.mark.parametrize("ahead", ["0s", "1us", "99999999999999w"])
def test_an_allowance_of_any_size_is_kept(ahead: str) -> None:
    class Early(Event, topic="early", key="who", time="ms", ahead=ahead):
        who: str
        ms: int

    told = [NOW, NOW - 1, NOW + 1, 0, -(2**62) + 1, -(2**63), 2**63 - 1]
    agree(Early, [b'{"who":"a","ms":%d}' % (NOW // 1000)] * len(told), published=told)


# Keys.


def test_a_row_is_taken_where_its_key_is_the_records_key() -> None:
    values, keys = [GOOD[Line]] * 5, [b"anna", b"ann", b"anna ", b"", None]
    assert agree(Line, values, keys) == [True, False, False, False, True]
    assert agree(Line, values, keys, keyless=False) == [True, False, False, False, False]
    assert agree(Tick, [put(Tick, who="-12")] * 3, [b"-12", b"12", None]) == [True, False, True]
    assert agree(Line, [put(Line, who='""'), put(Line, who="null")], [b"", None]) == [False, False]


def test_a_key_that_is_missing_is_left_to_msgspec() -> None:
    class Loose(Event, topic="loose", key="who", time="ms"):
        ms: int
        who: str | None = None

    values = [b'{"ms":1,"who":"nu"}', b'{"ms":1,"who":null}', b'{"ms":1}', b'{"ms":1,"who":""}']
    assert agree(Loose, values) == [True, False, False, False]
    assert agree(Loose, values, [b"nu", b"nu", b"", b""]) == [True, False, False, False]


# Text.


def test_text_is_taken_exactly_where_it_is_utf8() -> None:
    edges = [0x7E, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xFF]
    some = [bytes([a, b, c]) for a, b, c in product(range(128, 256), edges, edges)]
    some += [bytes(four) for four in product([0xEF, 0xF0, 0xF1, 0xF3, 0xF4, 0xF5, 0xF8], edges, edges, edges)]
    some += [bytes([a]) for a in range(32, 256) if a not in b'"\\'] + [
        bytes([a, b]) for a, b in product(range(128, 256), edges)
    ]

    def valid(text: bytes) -> bool:
        try:
            return bool(text.decode())
        except UnicodeDecodeError:
            return False

    taken = [valid(text) for text in some]
    assert agree(Line, [b'{"who":"%s","n":1,"x":1,"b":true,"at":"2023-11-14T12:00:00Z"}' % t for t in some]) == taken
    more = agree(Tick, [b'{"who":1,"ms":1,"lastPrice":1,"noteOf":"","%s":"%s"}' % (t, t) for t in some])
    assert more == taken


@pytest.mark.parametrize("at", range(40))
def test_a_character_that_ends_a_text_is_seen_at_every_place(at: int) -> None:
    for odd in (b"\\n", b"\x00", b"\x1f", b"\xff", b"\xc3"):
        assert agree(Line, [put(Line, s=b'"' + b"a" * at + odd + b"b" * 9 + b'"')]) == [False]
    assert agree(Line, [put(Line, s=b'"' + b"a" * at + "é€😀".encode() + b"b" * 9 + b'"')]) == [True]


# What is odd.

ODD = [
    *("[]", "[1]", "[[[[]]]]", "{}", '{"a":1}', "[" * 200, "[" * 200 + "]" * 200, '["a",', "[1,]", "{1:2}", '{"a"}'),
    *('""', '"a"', '"\\u00e9"', '"\\ud800"', '"\\udc00\\ud800"', '"\\ud83d\\ude00"', '"\\u"', '"\\x"', '"\\"', '"'),
    *('"a', "'a'", "a", '"a\tb"', '"a\nb"', '"\x00"', '"\x7f"', '"a""b"', '"\\u0000"', '"\ufeff"', '"\u2028"', '""""'),
    *("0", "-0", "00", "01", "-01", "-", "+1", "1.", ".5", "-.5", "1.e5", "1e", "1e+", "1e5", "1E5", "1.5E-3", "0x10"),
    *("1_0", "1 0", "1,", "1.0.0", "1e5.5", "1e5e5", "--1", "-a", "1a", "1e999", "-1e999", "1e-999", "NaN", "nan"),
    *("Infinity", "-Infinity", "inf", "3.0", "1e0", "9007199254740992", "9007199254740993", "9223372036854775808"),
    *("true", "false", "null", "True", "TRUE", "tru", "truee", "nul", "nulll", "fals", "falsee", "none", "undefined"),
    *("", " ", "/**/1", "1//", "# 1", '"2023-11-14T12:00:00Z"', '"2023-11-14T12:00:00"', '"2023-11-14"', '"12:00:00Z"'),
    *('"2023-11-14T12:00:00.Z"', '"2023-11-14T12:00:00+01"', '"2023-11-14T12:00:00+01:00', '"2023-11-14T12:00:00Z""'),
    *('"2023-11-14T12:00:00.12345678901234567890Z"', '"\uff12\uff10\uff12\uff13-11-14T12:00:00Z"', '"true"', '"1"'),
    *("1}", '1,"n":1', '1,"n":1,', '1,"z":1', '1,"z":[1]', '1,"z":{"n":2}', '1 "z":1', "1;", "\ufeff1", "\v1", "\xa01"),
]  # fmt: skip
NO_TEXT = [b'"\xff"', b'"\xed\xa0\x80"', b'"\xc0\xaf"', b'"\xf4\x90\x80\x80"', b"\xff", b"\x80"]
RAW = [text.encode() for text in ODD] + NO_TEXT


@pytest.mark.parametrize("event", GOOD)
def test_an_odd_value_of_any_field_is_taken_as_msgspec_takes_it_or_not_at_all(event: type[Event]) -> None:
    names = [*(field.encode_name for field in msgspec.structs.fields(event)), "more", "wh", "who2", ""]
    values = [put(event, **{name: raw}) for name in names for raw in RAW]
    assert 20 < sum(agree(event, values)) < len(values) / 2
    agree(event, [value.replace(b":", b" :\n").replace(b",", b"\t, ") for value in values])


def documents() -> list[bytes]:
    good = GOOD[Line]
    body = good[1:-1]
    odd = [
        b"", b" ", b"{", b"}", b"{}", b"[]", b"null", b"1", b'"a"', b"{{}}", b"{]", b"{,}", b'{"', b'{"who', b'{"who"',
        b'{"who":', b"\xef\xbb\xbf" + good, good.decode().encode("utf-16"), good.decode().encode("utf-32"), good + b"x",
        good + b"\x00", good + good, good + b"," + good, good + b"\n" + good, b"[" + good + b"]", good + b"]",
        b"{" + good, good + b"}", b"{" + body + b",}", b"{," + body + b"}", b"{" + body + b",," + body + b"}",
        b"{" + body, body + b"}",
        b"{" + body + b"," + body + b"}", b"{" + body + b"]", b"{" + body + b"//}", b"/**/" + good, good + b"//",
        b"{" + body + b",null}", b"{" + body + b',"x"}', b"{" + body + b',"x":}', b"{" + body + b",1:2}",
        b"{" + body + b',"\\u006e":2}', good.replace(b'"who"', b'"wh\\u006f"'), good.replace(b'"who"', b"who"),
        good.replace(b'"who"', b"'who'"), good.replace(b":", b"="), good.replace(b":", b"::"), good.replace(b",", b";"),
        good.replace(b",", b""), good.replace(b'"', b""), b"\v" + good, good + b"\f", good + b"\xc2\xa0", good.upper(),
        good.replace(b'"n"', b'"N"'), good.replace(b'"n"', b'"n "'),
    ]  # fmt: skip
    return odd + [good[:end] for end in range(len(good))] + [good[begin:] for begin in range(1, len(good))]


def closed(event: type[Event]) -> list[bytes]:
    """Beginnings of good events, and good events with odd values at their end, that end as events do."""
    good = put(event)
    values = [put(event, **{name: b"0"})[:-2] + raw for name in [*orjson.loads(good), "more"] for raw in RAW]
    last = [good[: good.rindex(b'"%s":' % name.encode())] + b'"%s":' % name.encode() for name in orjson.loads(good)]
    values += [begin + raw for begin in last for raw in RAW]
    return [value + b"}" for value in [*values, *(good[:end] for end in range(len(good)))]]


def test_no_odd_document_is_taken_but_as_msgspec_takes_it() -> None:
    assert not any(agree(Line, documents()))
    assert any(agree(Line, closed(Line)))
    assert any(agree(Tick, closed(Tick)))
    white = [b" \t\r\n" + GOOD[Line] + b"\n\r\t ", b"\n" * 99 + GOOD[Line], GOOD[Line] + b" " * 99]
    assert all(agree(Line, white))


def test_a_missing_value_and_one_too_large_are_left() -> None:
    pad = MAX_EVENT_BYTES - len(GOOD[Line])
    values = [None, GOOD[Line] + b" " * pad, GOOD[Line] + b" " * (pad + 1), put(Line, s='"' + "é" * 400_000 + '"')]
    assert agree(Line, values) == [False, True, False, True]


BYTES = b'{}[]",:\\0123456789eE+-. \ttfnTZ\x00\x1f\x7f\x80\xc3\xa9\xff'


def mutants(event: type[Event], seed: int, count: int) -> list[bytes]:
    """Good events with bytes flipped, cut, doubled, spliced."""
    draw = random.Random(seed)
    good = [GOOD[event], put(event), *(put(event, **{"n" if event is Line else "who": f"{10**k}"}) for k in range(9))]
    made = []
    for _ in range(count):
        value = bytearray(draw.choice(good))
        for _ in range(draw.choice([1, 1, 1, 2, 3])):
            at, how, size = draw.randrange(len(value) + 1), draw.randrange(7), draw.choice([1, 1, 1, 2, 4, 9])
            if how == 0 and at < len(value):
                value[at] ^= 1 << draw.randrange(8)
            elif how == 1 and at < len(value):
                value[at] = draw.choice(BYTES)
            elif how == 2:
                value[at:at] = bytes(draw.choice(BYTES) for _ in range(size))
            elif how == 3:
                del value[at : at + size]
            elif how == 4:
                value[at:at] = value[at : at + size]
            elif how == 5:
                other = draw.choice(good)
                start = draw.randrange(len(other))
                value[at : at + size] = other[start : start + size]
            else:
                del value[at:]
                value += draw.choice(good)[at if draw.random() < 0.5 else draw.randrange(len(value) + 1) :]
        made.append(bytes(value))
    return made


@pytest.mark.parametrize("event", GOOD)
@pytest.mark.parametrize("seed", range(4))
def test_of_mutants_every_row_taken_is_what_msgspec_finds(event: type[Event], seed: int) -> None:
    values = mutants(event, seed, 8000)
    assert 0.01 < sum(agree(event, values)) / len(values) < 0.6


# What lies around a value.


def test_what_lies_behind_a_value_changes_nothing() -> None:
    values = [*documents(), *closed(Line), *mutants(Line, 9, 500)]
    alone = JsonColumns(Line).decode(spans(values), spans([None] * len(values)), np.full(len(values), NOW))
    for behind in (b"}", b'"}', b"0", b'0,"n":1}', b"\xa9", b' ,"b":true}', b'Z"}', b"e}"):
        data = np.frombuffer(behind + b"".join(value + behind for value in values), np.uint8)
        length = np.array([len(value) for value in values], np.int64)
        start = np.cumsum(length + len(behind)) - length
        plain = JsonColumns(Line).decode(
            Spans(data, start, length), spans([None] * len(values)), np.full(len(values), NOW)
        )
        assert plain.ok.tolist() == alone.ok.tolist()
        assert told(plain) == told(alone)


def told(plain: Plain) -> str:
    """What its rows say."""
    columns = [column[plain.ok].tolist() for column in plain.columns.values()]
    return repr([columns, [list(text.take(plain.ok)) for text in plain.texts.values()]])


@pytest.mark.parametrize("writable", [True, False])
def test_buffers_that_may_be_written_and_that_may_not_are_read_alike(writable: bool) -> None:
    def copied(values: Spans) -> Spans:
        return Spans(values.data.copy(), values.start.copy(), values.length.copy())

    value, key, told = copied(spans([GOOD[Line]])), copied(spans([b"anna"])), np.full(1, NOW)
    for array in (value.data, value.start, value.length, key.data, key.start, key.length, told):
        array.flags.writeable = writable
    assert JsonColumns(Line).decode(value, key, told).ok.tolist() == [True]
    assert value.data.flags.writeable == writable


def test_parts_of_a_batch_and_one_batch_after_the_other_are_read_alike() -> None:
    values = spans([GOOD[Line], b"{}", put(Line, m="null"), GOOD[Line]])
    keys, reader = spans([None] * 4), JsonColumns(Line)
    for part in (slice(None), slice(1, 3), slice(None, None, 2), slice(None, None, -1), slice(0, 0)):
        plain = reader.decode(values[part], keys[part], np.full(4, NOW)[part])
        assert plain.ok.tolist() == [True, False, True, True][part]


# Which events, and how.


def test_it_takes_flat_events_of_scalars() -> None:
    assert JsonColumns.takes(Line)
    assert JsonColumns.takes(Tick)

    class Told(Event, topic="told", key="who", time="ms"):
        who: str
        ms: Annotated[int, msgspec.Meta(description="when it was")]

    class Packed(Event, topic="packed", key="who", time="ms", codec="msgpack"):
        who: str
        ms: int

    class Even(Event, topic="even", key="who", time="ms"):
        who: str
        ms: Annotated[int, msgspec.Meta(multiple_of=2)]

    class Matched(Event, topic="matched", key="who", time="ms"):
        who: Annotated[str, msgspec.Meta(pattern="^a")]
        ms: int

    class Naive(Event, topic="naive", key="who", time="ms"):
        who: str
        ms: int
        at: Annotated[datetime, msgspec.Meta(tz=False)] | None = None

    class Nested(Event, topic="nested", key="who", time="ms"):
        who: str
        ms: int
        tags: list[str]

    class Either(Event, topic="either", key="who", time="ms"):
        who: str
        ms: int
        x: int | str

    class Rowlike(Event, topic="rowlike", key="who", time="ms", array_like=True):
        who: str
        ms: int

    class Tagged(Event, topic="tagged", key="who", time="ms", tag=True):
        who: str
        ms: int

    class Checked(Event, topic="checked", key="who", time="ms"):
        who: str
        ms: int

        def __post_init__(self) -> None:
            raise ValueError

    class Unfit(Event, topic="unfit", key="who", time="ms"):
        who: float
        ms: int

    assert JsonColumns.takes(Told)
    assert JsonColumns.takes(Bound)
    for event in (Packed, Even, Matched, Naive, Nested, Either, Rowlike, Tagged, Checked):
        assert not JsonColumns.takes(event)
    with pytest.raises(DeclarationError):
        JsonColumns.takes(Unfit)


def test_every_field_of_very_many_is_told_from_the_others() -> None:
    names = [f"f{n}" for n in range(100)] + [
        begin * n + end for n in range(1, 30) for begin in "xé" for end in ("", "y")
    ]
    many = declared({"who": str, "ms": int, **dict.fromkeys(names, float)}, {}, key="who", time="ms")
    value: dict[str, Any] = {"who": "a", "ms": 1} | {name: n / 7 for n, name in enumerate(names)}
    draw, values = random.Random(6), [value, dict(reversed(value.items()))]
    values += [dict(draw.sample(list(value.items()), len(value))) for _ in range(30)]
    values += [{name: n for name in value if name != last} | {last: 1} for n, last in enumerate(names)]
    assert all(agree(many, [orjson.dumps(one | {"who": "a"}) for one in values]))
    wrong = [name + "y" for name in names] + [name[:-1] for name in names] + ["z" + name[1:] for name in names]
    odd = [value | {name: 1} for name in wrong if name not in names]
    assert not any(agree(many, [orjson.dumps(one) for one in odd]))


def outside() -> tuple[Spans, Spans]:
    """Values and keys, each but the first of which leaves its buffer."""
    data, key = np.frombuffer(GOOD[Line], np.uint8), np.frombuffer(b"anna", np.uint8)
    size, far = len(data), 2**62
    start = np.array([0, 1, -1, 0, size, far, 0, far, -far, -far, 0, 0, 0], np.int64)
    length = np.array([size, size, size, size + 1, 5, far, far, -far, 2, far + size, size, size, size], np.int64)
    begin = np.array([0] * 10 + [1, -1, far], np.int64)
    return Spans(data, start, length), Spans(key, begin, np.full(13, 4, np.int64))


def test_a_span_that_leaves_its_buffer_is_not_read() -> None:
    plain = JsonColumns(Line).decode(*outside(), np.full(13, NOW))
    assert plain.ok.tolist() == [True] + [False] * 12


def digest() -> str:
    """What is made of odd values, each in a buffer of its own: without the compiler a read beyond it raises."""
    plain = JsonColumns(Line).decode(*outside(), np.full(13, NOW))
    one, made = spans([None]), [str(plain.ok.tolist())]
    braced = [b'{"ms":1,"who}":"a"}', b'{"ms":1,"who}', b'{"who}', b'{"who}}', b'{"who}"}', b" {", b"}{", b"  ", b" }"]
    made += [str(JsonColumns(Braced).decode(spans([value]), one, np.full(1, NOW)).ok) for value in braced]
    for event in GOOD:
        reader = JsonColumns(event)
        name = "x" if event is Line else "lastPrice"
        values = [*mutants(event, 3, 300), *documents()[::3], *closed(event)]
        values += [put(event, **{name: f"{math.pi}e{n}"}) for n in range(-330, 320, 13)]
        for value in values:
            plain = reader.decode(spans([value]), one, np.full(1, NOW))
            made.append(f"{plain.ok[0]} {plain.time[plain.ok]} {told(plain)}")
    return hashlib.sha256("".join(made).encode()).hexdigest()


def test_without_the_compiler_the_same_rows_are_taken_and_nothing_is_read_beyond_a_value() -> None:
    command = [
        sys.executable,
        "-W",
        "error",
        "-c",
        "from tests.streams.test_jsoncolumns import digest; print(digest())",
    ]
    environment = os.environ | {"NUMBA_DISABLE_JIT": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == digest()


def test_types_that_the_kernel_does_not_know_are_refused_rather_than_compiled() -> None:
    if kernels.INTERPRETED:
        pytest.skip("nothing is compiled here")
    published: NDArray[Any] = np.zeros(1)
    with pytest.raises(TypeError):
        JsonColumns(Line).decode(spans([b"{}"]), spans([None]), published)
