"""How many entries a request claims to hold, counted before anything is made of them.

kio reserves memory for as many entries as an array says it has: a frame of 20 bytes that says 2^31 would end the
process. And each entry, of a byte or two, becomes an object of hundreds. So every request is walked over first: nothing
is made, only lengths are read.
"""

import dataclasses
import struct
import types
import typing
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, TypeAlias

from kio.index import load_request_schema

MOST_ENTRIES = 50_000
"""Entries of all arrays of one request: several for each partition that a client may name at once."""
MOST_TAGS = 64
"""Tagged fields of one entry. Kafka has two at most; a million would be walked over before the end is seen."""

_SHORT, _INT = struct.Struct(">h"), struct.Struct(">i")
_FIXED = {
    "bool": 1,
    "int8": 1,
    "int16": 2,
    "error_code": 2,
    "uint16": 2,
    "int32": 4,
    "uint32": 4,
    "timedelta_i32": 4,
    "int64": 8,
    "float64": 8,
    "timedelta_i64": 8,
    "datetime_i64": 8,
    "uuid": 16,
}
_SIZED = {"string": _SHORT, "bytes": _INT, "records": _INT}


class _Tally:
    """The entries so far."""

    __slots__ = ("entries",)

    def __init__(self) -> None:
        self.entries = 0


Walk: TypeAlias = Callable[[bytes, int, _Tally], int]
"""From where a part of a frame begins to where it ends. Raises ValueError, IndexError, struct.error."""


def check_shape(api_key: int, version: int, frame: bytes, at: int) -> None:
    """
    Walk over the body of a request, which begins at `at`.

    :raises ValueError: when it claims more entries than it can hold, or than are taken, or none at all (null) where
        there must be an array; also IndexError and struct.error, when it ends too soon.
    """
    _walk_of(api_key, version)(frame, at, _Tally())


@cache
def _walk_of(api_key: int, version: int) -> Walk:
    return _entity(load_request_schema(api_key, version))


def _entity(schema: type[Any]) -> Walk:
    flexible = bool(schema.__flexible__)
    steps: list[Walk] = []
    tags: dict[int, Walk] = {}
    fixed = 0
    for field in dataclasses.fields(schema):
        if "tag" in field.metadata:
            tags[field.metadata["tag"]] = _field(field, flexible)
            continue
        size = None if is_tuple(field.type) else _FIXED.get(field.metadata.get("kafka_type", ""))
        if size is not None:
            fixed += size
            continue
        if fixed:
            steps.append(_skip(fixed))
            fixed = 0
        steps.append(_field(field, flexible))
    if fixed:
        steps.append(_skip(fixed))
    if flexible:
        steps.append(_tags(tags))

    def walk(frame: bytes, at: int, tally: _Tally) -> int:
        for step in steps:
            at = step(frame, at, tally)
        return at

    return walk


def _field(field: "dataclasses.Field[Any]", flexible: bool) -> Walk:
    kafka_type = field.metadata.get("kafka_type", "")
    nested = entity_in(field.type)
    if is_tuple(field.type):
        item = _entity(nested) if nested else _value(kafka_type, flexible)
        return _array(field.name, item, _FIXED.get(kafka_type), flexible, type(None) in arms(field.type))
    if nested is None:
        return _value(kafka_type, flexible)
    return _nullable(_entity(nested)) if type(None) in arms(field.type) else _entity(nested)


def _value(kafka_type: str, flexible: bool) -> Walk:
    if kafka_type in _FIXED:
        return _skip(_FIXED[kafka_type])
    length = _SIZED[kafka_type]

    def compact(frame: bytes, at: int, _: _Tally) -> int:
        size, at = read_varint(frame, at)
        return at + size - 1 if size else at

    def plain(frame: bytes, at: int, _: _Tally) -> int:
        (size,) = length.unpack_from(frame, at)
        return at + length.size + max(0, int(size))

    return compact if flexible else plain


def _skip(size: int) -> Walk:
    return lambda _, at, __: at + size


def _nullable(inner: Walk) -> Walk:
    return lambda frame, at, tally: inner(frame, at + 1, tally) if frame[at] == 1 else at + 1


def _array(name: str, item: Walk, item_size: int | None, flexible: bool, nullable: bool) -> Walk:
    def walk(frame: bytes, at: int, tally: _Tally) -> int:
        if flexible:
            count, at = read_varint(frame, at)
            count -= 1
        else:
            (count,) = _INT.unpack_from(frame, at)
            at += _INT.size
        if count < 0 and not nullable:
            raise ValueError(f"{name} is null, and must be an array")
        if count <= 0:
            return at
        tally.entries += count
        if count > len(frame) - at or tally.entries > MOST_ENTRIES:
            raise ValueError(
                f"it claims {tally.entries} entries, and has {len(frame) - at} bytes left for the last {count}"
            )
        if item_size is not None:
            return at + count * item_size
        for _ in range(count):
            at = item(frame, at, tally)
        return at

    return walk


def _tags(known: Mapping[int, Walk]) -> Walk:
    def walk(frame: bytes, at: int, tally: _Tally) -> int:
        if frame[at] == 0:
            return at + 1
        count, at = read_varint(frame, at)
        if count > MOST_TAGS:
            raise ValueError(f"an entry has {count} tagged fields")
        for _ in range(count):
            tag, at = read_varint(frame, at)
            size, at = read_varint(frame, at)
            if tag in known:
                known[tag](frame, at, tally)
            at += size
        return at

    return walk


def after_tags(frame: bytes, at: int) -> int:
    """Where the tagged fields end that begin at `at`, whatever they are. Raises as `check_shape`."""
    return _UNKNOWN_TAGS(frame, at, _Tally())


def read_varint(frame: bytes, at: int) -> tuple[int, int]:
    """An unsigned integer of variable length, and where it ends. :raises IndexError: :raises ValueError:"""
    byte = frame[at]
    if byte < 0x80:
        return byte, at + 1
    value = byte & 0x7F
    for shift in range(7, 35, 7):
        at += 1
        byte = frame[at]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at + 1
    raise ValueError("a variable-length integer has more than five bytes")


_UNKNOWN_TAGS = _tags({})


def arms(annotation: object) -> tuple[object, ...]:
    return typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)


def is_tuple(annotation: object) -> bool:
    return any(typing.get_origin(arm) is tuple for arm in arms(annotation))


def entity_in(annotation: object) -> type[Any] | None:
    for arm in arms(annotation):
        inner = typing.get_args(arm)[0] if typing.get_origin(arm) is tuple else arm
        if isinstance(inner, type) and dataclasses.is_dataclass(inner):
            return inner
    return None
