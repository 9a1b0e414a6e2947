"""Kafka's messages by kio, one shape for all versions of an API.

The versions of a message differ in fields, not in names. So a handler reads a request by name, with a default
for what an older version lacks, and answers with a mapping in which every version finds its fields and
ignores the rest.
"""

import datetime
import struct
from collections.abc import Callable
from functools import cache
from typing import Any

from kio.index import load_request_schema
from kio.serial import entity_reader
from msgspec import Struct

from .errors import FrameMalformed
from .shape import after_tags, check_shape
from .writers import Fields, Piece, Pieces, response_writer

# Any: kio has one class for each version of a message, without a common base that would carry the fields.
Message = Any

_PREFIX = struct.Struct(">hhi")
_FRAME = struct.Struct(">i")


class Envelope(Struct, frozen=True):
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


def write_response(api_key: int, version: int, correlation_id: int, fields: Fields) -> list[Piece]:
    """The whole frame in pieces, its length first. The first piece is what comes before the first large one."""
    write, flexible_header = response_writer(api_key, version)
    pieces = Pieces()
    pieces.put(_FRAME.pack(correlation_id) + (b"\0" if flexible_header else b""))
    write(fields, pieces)
    first, *others = pieces.end()
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
