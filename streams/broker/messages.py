"""Kafka's messages by kio, one shape for all versions of an API.

The versions of a message differ in fields, not in names. So a handler reads a request by name, with a default
for what an older version lacks, and answers with a mapping in which every version finds its fields and
ignores the rest.
"""

import dataclasses
import datetime
import struct
import typing
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from kio.index import load_request_schema, load_response_schema
from kio.schema.errors import ErrorCode
from kio.serial import entity_reader, entity_writer

from .errors import FrameMalformed
from .log import StoredBatch
from .shape import after_tags, check_shape, entity_in, is_tuple

# Any: kio has one class for each version of a message, without a common base that would carry the fields.
Message = Any
Fields = Mapping[str, Any]
Piece = bytes | StoredBatch

_PREFIX = struct.Struct(">hhi")
_FRAME = struct.Struct(">i")
# Smaller fields are put together: a system call takes no more than a thousand pieces.
_APART_BYTES = 16 * 1024
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


@dataclasses.dataclass(frozen=True, slots=True)
class Envelope:
    """The head of a request, and where its body begins."""

    api_key: int
    version: int
    correlation_id: int
    body_at: int


def read_envelope(frame: bytes) -> Envelope:
    """:raises FrameMalformed: when the frame is too short to say what it asks."""
    try:
        api_key, version, correlation_id = _PREFIX.unpack_from(frame)
        (client_id_length,) = struct.unpack_from(">h", frame, _PREFIX.size)
    except struct.error as error:
        raise FrameMalformed(f"A frame of {len(frame)} bytes holds no request header.") from error
    return Envelope(api_key, version, correlation_id, _PREFIX.size + 2 + max(client_id_length, 0))


def client_id(frame: bytes) -> str:
    (length,) = struct.unpack_from(">h", frame, _PREFIX.size)
    start = _PREFIX.size + 2
    return frame[start : start + max(length, 0)].decode(errors="replace")


def read_request(frame: bytes, envelope: Envelope) -> Message:
    """:raises FrameMalformed: when the body is not a message of that API and version."""
    read, flexible = _request_reader(envelope.api_key, envelope.version)
    try:
        # The header's tagged fields carry nothing a broker needs; they are walked over.
        start = after_tags(frame, envelope.body_at) if flexible else envelope.body_at
        check_shape(envelope.api_key, envelope.version, frame, start)
        # Bytes after the end are let be, as in Kafka: librdkafka leaves some when it asks for no topic.
        message, _ = read(frame, start)
    except Exception as error:  # kio raises many kinds; any of them means that the bytes are not the message
        raise FrameMalformed(
            f"A request of API {envelope.api_key} version {envelope.version} could not be read: {error!r}."
        ) from error
    return message


class Records:
    """Batches one after the other in the place of bytes, so that nobody puts them together."""

    __slots__ = ("batches", "size")

    def __init__(self, batches: Sequence[Piece]) -> None:
        self.batches = batches
        self.size = sum(map(len, batches))

    def __len__(self) -> int:
        return self.size


class _Pieces:
    """What kio writes to: records stay as they are, so that they are copied by nobody before the socket."""

    def __init__(self, *first: bytes) -> None:
        self.found: list[Piece] = []
        self._small = list(first)

    def write(self, data: Piece | Records) -> int:
        if isinstance(data, Records):
            for batch in data.batches:
                self.write(batch)
        elif isinstance(data, bytes) and len(data) < _APART_BYTES:
            self._small.append(data)
        else:
            self.end()
            self.found.append(data)
        return len(data)

    def end(self) -> None:
        if self._small:
            self.found.append(b"".join(self._small))
            self._small.clear()


def write_response(api_key: int, version: int, correlation_id: int, fields: Fields) -> list[Piece]:
    """The whole frame in pieces, its length first. The first piece is what comes before the first large one."""
    build, write, flexible_header = _response_writer(api_key, version)
    pieces = _Pieces(_FRAME.pack(correlation_id), b"\0" if flexible_header else b"")
    write(pieces, build(fields))
    pieces.end()
    first, *others = pieces.found
    size = len(first) + sum(map(len, others))
    return [_FRAME.pack(size) + whole(first), *others]


def whole(piece: Piece) -> bytes:
    """:raises BrokenOff:"""
    return piece if isinstance(piece, bytes) else piece.read()


def milliseconds(delta: datetime.timedelta) -> int:
    return delta // datetime.timedelta(milliseconds=1)


def moment(wall_ms: int) -> datetime.datetime | None:
    return None if wall_ms < 0 else datetime.datetime.fromtimestamp(wall_ms / 1000, datetime.UTC)


@cache
def _request_reader(api_key: int, version: int) -> tuple[Callable[[bytes, int], tuple[Message, int]], bool]:
    schema = load_request_schema(api_key, version)
    return entity_reader(schema), bool(schema.__header_schema__.__flexible__)


@cache
def _response_writer(api_key: int, version: int) -> tuple[Callable[[Fields], Message], Any, bool]:
    schema = load_response_schema(api_key, version)
    return builder(schema), entity_writer(schema), bool(schema.__header_schema__.__flexible__)


def builder(schema: type[Any]) -> Callable[[Fields], Message]:
    """A function that makes `schema` from a mapping, which may hold names of other versions."""
    nested: list[tuple[str, Callable[[Fields], Message]]] = []
    single: list[tuple[str, Callable[[Fields], Message]]] = []
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

    def build(fields: Fields) -> Message:
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
