"""Answers are written as kio writes them: of every API and version, whatever they say."""

from __future__ import annotations

import dataclasses
import datetime
import io
from typing import Any

import pytest
from headrace.streams.broker.api import APIS
from headrace.streams.broker.messages import write_response
from headrace.streams.broker.shape import arms, entity_in, is_tuple
from headrace.streams.broker.writers import Records
from hypothesis import given, settings
from hypothesis import strategies as st
from kio.index import load_response_schema
from kio.schema.errors import ErrorCode
from kio.serial import entity_writer

from tests.streams.broker.building import builder

VERSIONS = [(api.key, version) for api in APIS.values() for version in range(api.oldest, api.newest + 1)]
_INTEGERS = {"int8": 7, "int16": 15, "int32": 31, "int64": 63}
_PLAIN: dict[str, st.SearchStrategy[Any]] = {
    "bool": st.booleans(),
    "float64": st.floats(allow_nan=False),
    "error_code": st.sampled_from(ErrorCode),
    "timedelta_i32": st.integers(0, 2**31 - 1).map(lambda ms: datetime.timedelta(milliseconds=ms)),
    "timedelta_i64": st.integers(0, 2**40).map(lambda ms: datetime.timedelta(milliseconds=ms)),
    "datetime_i64": st.integers(0, 2**41).map(lambda ms: datetime.datetime.fromtimestamp(ms / 1000, datetime.UTC)),
    "uint16": st.integers(0, 2**16 - 1),
    "uint32": st.integers(0, 2**32 - 1),
    "uuid": st.uuids(),
    "string": st.text(max_size=200),
    "bytes": st.binary(max_size=200),
    "records": st.binary(max_size=200),
    **{kind: st.integers(-(2**bits), 2**bits - 1) for kind, bits in _INTEGERS.items()},
}


def values(schema: type[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Mappings for an entity, of which any field may be missing but a time; and a name that is no field."""
    fields = {field.name: _value(field) for field in dataclasses.fields(schema)}
    times = {field.name for field in dataclasses.fields(schema) if field.metadata.get("kafka_type") == "datetime_i64"}
    always = {name: fields.pop(name) for name in times}
    return st.fixed_dictionaries(always, optional={**fields, "of another version": st.none()})


def _value(field: dataclasses.Field[Any]) -> st.SearchStrategy[Any]:
    nested = entity_in(field.type)
    value = values(nested) if nested else _PLAIN[field.metadata["kafka_type"]]
    if is_tuple(field.type):
        value = st.lists(value, max_size=3)
    return st.none() | value if type(None) in arms(field.type) and "tag" not in field.metadata else value


@pytest.mark.parametrize(("api_key", "version"), VERSIONS)
@settings(max_examples=5)
@given(st.data())
def test_every_answer_is_written_as_kio_writes_it(api_key: int, version: int, data: st.DataObject) -> None:
    schema = load_response_schema(api_key, version)
    fields = data.draw(values(schema))
    wanted = io.BytesIO()
    wanted.write((7).to_bytes(4) + (b"\0" if schema.__header_schema__.__flexible__ else b""))
    entity_writer(schema)(wanted, builder(schema)(fields))
    [frame] = write_response(api_key, version, 7, fields)
    assert frame == len(wanted.getvalue()).to_bytes(4) + wanted.getvalue()


def test_large_records_are_pieces_of_their_own_and_small_ones_are_put_together() -> None:
    batches = [b"a" * 20_000, b"b", b"c", b"d" * 20_000]
    answer = {"responses": [{"partitions": [{"records": Records(batches)}]}]}
    pieces = write_response(1, 11, 7, answer)
    assert pieces[1:] == [b"a" * 20_000, b"bc", b"d" * 20_000]
    [whole] = write_response(1, 11, 7, {"responses": [{"partitions": [{"records": b"".join(batches)[:9]}]}]})
    assert len(pieces[0]) == len(whole) - 9
