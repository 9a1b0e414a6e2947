"""Events from a request: read within bounds, checked against their contract before any is published."""

from __future__ import annotations

import asyncio

from headrace.serving.errors import Refused
from headrace.streams.errors import InvalidEvent
from headrace.streams.publisher import Row, encode
from headrace.streams.topics import Topic
from starlette.requests import ClientDisconnect, Request

MAX_BODY = 4 * 1024 * 1024
"""Bytes of one request. More is a file: `headrace publish` sends it in pieces."""
BODY_WAIT = 60.0
"""Seconds for a body to come: the largest over a slow line. One that never ends would hold its place for ever."""
MAX_EVENTS = 20_000
"""Events of one request: what is checked within the time that a client waits without wondering."""
MAX_ERRORS = 100
"""Invalid events that an answer tells of. Beyond that they are all wrong in the same way."""
TURN = 500
"""Events checked before other requests get their turn."""

JSON = frozenset({"", "application/json"})
NDJSON = frozenset({"application/x-ndjson", "application/ndjson", "application/jsonl"})


async def read_body(request: Request) -> bytes:
    """The body. Raises Refused: 413 where it is too large, without having held it; 408 where it does not end; 400
    where its sender goes."""
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > MAX_BODY:
        raise _too_large(announced)
    parts, size = [], 0
    try:
        async with asyncio.timeout(BODY_WAIT):
            async for part in request.stream():
                size += len(part)
                if size > MAX_BODY:
                    raise _too_large(f"more than {MAX_BODY}")
                parts.append(part)
    except ClientDisconnect:
        raise Refused(400, "the connection ended within the body, and nothing is published") from None
    except TimeoutError:
        of = f" of {announced}" if announced else ""
        raise Refused(
            408,
            f"the body did not end within {BODY_WAIT:.0f} s ({size}{of} bytes came), and nothing is published: send it "
            f"whole, or fewer events at a time",
            headers={"Connection": "close"},
        ) from None
    return b"".join(parts)


async def read_rows(body: bytes, content_type: str, topic: Topic) -> list[Row]:
    """The rows of a body: one event of JSON, or a line each of NDJSON (blank lines do not count).

    Raises Refused: 415 for another type; 413 for too many events; 422 with reason and field (and line) where
    an event breaks its contract.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind in JSON:
        try:
            return [encode(_text(body), topic.event)]
        except InvalidEvent as error:
            raise Refused(422, error.reason, field=error.field, published=0) from None
    if kind not in NDJSON:
        raise Refused(415, f"content type {kind} is not taken: send application/json or application/x-ndjson")
    lines = [(n, line) for n, line in enumerate(body.split(b"\n"), 1) if line.strip()]
    if not lines:
        raise Refused(422, "the body holds no event", field="", published=0)
    if len(lines) > MAX_EVENTS:
        raise Refused(413, f"the body holds {len(lines)} events; at most {MAX_EVENTS} are taken at a time")
    return await _check(lines, topic)


async def _check(lines: list[tuple[int, bytes]], topic: Topic) -> list[Row]:
    rows, errors = [], []
    for n, (number, line) in enumerate(lines, 1):
        try:
            rows.append(encode(_text(line), topic.event))
        except InvalidEvent as error:
            errors.append({"line": number, "field": error.field, "reason": error.reason})
            if len(errors) == MAX_ERRORS:
                break
        if n % TURN == 0:
            await asyncio.sleep(0)
    if errors:
        first = errors[0]
        raise Refused(422, str(first["reason"]), field=first["field"], line=first["line"], errors=errors, published=0)
    return rows


def _text(value: bytes) -> str:
    try:
        return value.strip(b" \t\r\n").decode()
    except UnicodeDecodeError as error:
        raise InvalidEvent(f"the value is not UTF-8: {error.reason} at byte {error.start}") from None


def _too_large(size: str) -> Refused:
    return Refused(
        413,
        f"the body has {size} bytes; at most {MAX_BODY} are taken: send fewer events at a time",
        headers={"Connection": "close"},
    )
