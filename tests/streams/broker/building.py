"""kio's messages made from mappings, in which every version of an API finds its fields and ignores the rest."""

import dataclasses
import datetime
import typing
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from headrace.streams.broker.shape import entity_in, is_tuple
from headrace.streams.broker.writers import Fields
from kio.schema.errors import ErrorCode

_ZERO: Mapping[str, object] = {
    "string": "",
    "bytes": b"",
    "records": b"",
    "bool": False,
    "error_code": ErrorCode.none,
    "timedelta_i32": datetime.timedelta(0),
    "timedelta_i64": datetime.timedelta(0),
    "uuid": uuid.UUID(int=0),
    "float64": 0.0,
}


def builder(schema: type[Any]) -> Callable[[Fields], Any]:
    """A function that makes `schema` from a mapping, which may hold names of other versions."""
    nested: list[tuple[str, Callable[[Fields], Any]]] = []
    single: list[tuple[str, Callable[[Fields], Any]]] = []
    plain: list[tuple[str, Any]] = []
    for field in dataclasses.fields(schema):
        inner = entity_in(field.type)
        if inner is not None and is_tuple(field.type):
            nested.append((field.name, builder(inner)))
            continue
        if inner is not None:
            single.append((field.name, builder(inner)))
        if field.default is not dataclasses.MISSING:
            plain.append((field.name, field.default))
        else:
            plain.append((field.name, _default(field)))

    def build(fields: Fields) -> Any:
        values = {name: fields.get(name, default) for name, default in plain}
        for name, build_inner in nested:
            items = fields.get(name, ())
            values[name] = None if items is None else tuple([build_inner(item) for item in items])
        for name, build_inner in single:
            if isinstance(values[name], Mapping):
                values[name] = build_inner(values[name])
        return schema(**values)

    return build


def _default(field: "dataclasses.Field[Any]") -> object:
    if is_tuple(field.type):
        return ()
    kafka_type = field.metadata.get("kafka_type", "")
    if type(None) in typing.get_args(field.type):
        return None
    return _ZERO.get(kafka_type, 0)
