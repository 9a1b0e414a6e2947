"""Plain rows by kernels and the others by msgspec: together what msgspec alone makes of all of them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import msgspec
import numpy as np
import pytest
from headrace.streams.batch import Column, texts_of
from headrace.streams.codecs import CODECS, Decoded, MsgspecCodec
from headrace.streams.errors import DeclarationError
from headrace.streams.event import Event
from headrace.streams.inputs import Input, Merge, Source
from headrace.streams.jsoncodec import JsonCodec, codec
from headrace.streams.log import Fetched, Partition
from headrace.streams.spans import Spans
from hypothesis import given, settings
from hypothesis import strategies as st


class Sale(Event, topic="sales", key="who", time="at"):
    who: str
    n: Annotated[int, msgspec.Meta(gt=-6)]
    at: datetime
    x: float | None = None
    flag: bool = False
    note: str | None = None


def sale(who: str = "a", **more: Any) -> bytes:
    return msgspec.json.encode({"who": who, "n": 1, "at": "2026-01-01T00:00:00Z", "flag": True, **more})


PLAIN = [sale(), sale("b", x=0.1, note="fine"), sale("é", n=-5, note=None), sale("a", x=None)]
ODD = [
    sale('quo"ted'), sale("a", note="a\nline"), sale("\0zero"), sale("tab\t", x=1e300), sale("a", note="\\"),
    sale().replace(b"2026-01-01T00:00:00Z", b"2026-01-01 00:00:00z"),  # a form of time that kernels leave
    sale().replace(b'"a"', b'"\\u0061"'), sale("a", x=1e-320), b'{"who":"a","n":1,"at":"2026-01-01T00:00:00Z"}',
]  # fmt: skip
BAD = [
    sale().replace(b"2026-01-01T00:00:00Z", b"1969-12-31T23:59:59.999999Z"),
    b"", b"{", sale(n="no"), sale(more=1), sale(n=2**60), b"\xff", sale().replace(b"2026", b"1926"), sale(n=-6),
    sale(who=""), sale("", n=-6), sale("", more=1), sale("", note="\\"), sale("").replace(b"2026", b"1926"),
]  # fmt: skip
VALUES: st.SearchStrategy[bytes | None] = st.sampled_from([*PLAIN, *PLAIN, *ODD, *BAD, None])


def columns(found: Decoded) -> dict[str, Column]:
    return {name: found.fields[name] for name in sorted({*found.fields, *texts_of(found.fields)})}


@settings(deadline=None)
@given(st.lists(VALUES, max_size=12), st.booleans())
def test_rows_of_all_kinds_are_what_msgspec_alone_makes_of_them(values: list[bytes | None], keyless: bool) -> None:
    keys = [None if i % 3 == 0 else b"a" for i in range(len(values))]
    published = np.full(len(values), 1_790_000_000_000_000)
    mine = JsonCodec(Sale, keyless).decode(values, keys, published)
    theirs = MsgspecCodec(Sale, keyless).decode(values, keys, published)
    assert mine.rows.tolist() == theirs.rows.tolist()
    assert mine.time.tolist() == theirs.time.tolist()
    assert [(i, e.reason, e.field) for i, e in mine.refused] == [(i, e.reason, e.field) for i, e in theirs.refused]
    assert repr({n: c.tolist() for n, c in columns(mine).items()}) == repr(
        {n: c.tolist() for n, c in columns(theirs).items()}
    )
    assert {n: c.dtype for n, c in columns(mine).items()} == {n: c.dtype for n, c in columns(theirs).items()}


@settings(deadline=None)
@given(st.lists(st.lists(VALUES, min_size=1, max_size=4), min_size=1, max_size=4))
def test_fetches_of_all_kinds_come_together(fetches: list[list[bytes | None]]) -> None:
    def taken(one: MsgspecCodec) -> str:
        source, offset = Input(Source("sales", one, rejected="r", late="l"), Partition("sales", 0)), 0
        for values in fetches:
            here = np.arange(offset, offset + len(values))
            offset += len(values)
            times = np.full(len(values), 1_790_000_000_000)
            source.feed(Fetched(source.partition, here, times, [None] * len(values), values, offset, offset))
        batch = Merge([source]).take(100, frozenset()).batch
        rows = batch.streams.get("sales")
        found = {} if rows is None else {name: rows.fields[name].tolist() for name in Sale.__struct_fields__}
        return repr((found, batch.time.tolist(), [] if rows is None else rows.offset.tolist()))

    assert taken(JsonCodec(Sale)) == taken(MsgspecCodec(Sale))


def test_a_text_that_needs_an_escape_is_no_span() -> None:
    published = np.full(2, 1_790_000_000_000_000)
    plain = JsonCodec(Sale).decode([sale("a"), sale("b")], [None, None], published)
    assert set(texts_of(plain.fields)) == {"who", "note"}
    odd = JsonCodec(Sale).decode([sale("a"), sale('b"')], [None, None], published)
    assert set(texts_of(odd.fields)) == {"note"}
    assert odd.fields["who"].tolist() == ["a", 'b"']


def test_what_is_not_flat_json_goes_record_by_record() -> None:
    class Nested(Event, topic="nested", key="who", time="at"):
        who: str
        at: datetime
        lines: list[int]

    class Packed(Event, topic="packed", key="who", time="at", codec="msgpack"):
        who: str
        at: datetime

    class Strange(Event, topic="strange", key="who", time="at", codec="xml"):
        who: str
        at: datetime

    assert type(codec(Sale)) is JsonCodec
    assert type(codec(Nested)) is MsgspecCodec
    assert type(codec(Packed)) is MsgspecCodec
    with pytest.raises(DeclarationError, match=f"codec='xml' is not one of {', '.join(CODECS)}"):
        codec(Strange)


def test_spans_are_taken_as_they_are() -> None:
    values = [sale("a"), sale("b")]
    found = JsonCodec(Sale).decode(Spans.of(values), Spans.of([None, b"b"]), np.full(2, 1_790_000_000_000_000))
    assert found.fields["who"].tolist() == ["a", "b"]
