"""A topic as a stream to one client: server-sent events or a WebSocket."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import msgspec
from headrace.serving.errors import Refused
from headrace.streams.errors import StreamsError
from headrace.streams.subscription import Message, Start, Subscription, headers_of, parse_start
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

HEARTBEAT = 10.0
"""Seconds. Proxies close what is silent for longer than some tens of seconds."""
STALL = 10.0
"""Seconds that a client may take to receive what is waiting for it. One that takes longer would hold its place and
its buffer for ever; it is told so, and goes on later by Last-Event-ID, for the log keeps its place."""
FAREWELL = 2.0
"""Seconds to tell a client why its stream ends."""
HELD = 200
"""Records that are held for one client."""
PIECE = 64 * 1024
"""Bytes sent at a time. The connection holds one piece that the client has not taken; a larger one would be a larger
buffer, and would hide for longer that nobody reads."""
CLOSED = "the gateway is stopping"
SLOW = "the client is too slow: it took nothing for {:.0f} s; go on from the last id"


class Envelope(msgspec.Struct, omit_defaults=True):
    """A record as clients get it. `bytes` (base64) stands for a value that is not JSON.

    `id` holds the next offset of each partition: what Last-Event-ID brings back.
    """

    id: str
    topic: str
    partition: int
    offset: int
    key: str | None
    timestamp: str
    headers: dict[str, str] = {}
    value: msgspec.Raw = msgspec.Raw(b"null")  # immutable
    bytes: str | None = None


def envelope(message: Message, positions: dict[int, int]) -> tuple[str, bytes]:
    """The id and the JSON of a record, on one line."""
    at = ",".join(f"{p}:{o}" for p, o in sorted(positions.items()))
    out = Envelope(
        at, message.topic, message.partition, message.offset, message.key, message.timestamp.isoformat()[:-6] + "Z"
    )
    out.headers = headers_of(message)
    if (line := message.line) is not None:
        out.value = line
    else:
        out.bytes = base64.b64encode(message.data or b"").decode()
    return at, msgspec.json.encode(out)


def parse_id(text: str) -> dict[int, int]:
    """The positions of an id. Raises Refused where it is none."""
    if not re.fullmatch(r"\d{1,6}:\d{1,18}(,\d{1,6}:\d{1,18})*", text):
        raise Refused(400, f"Last-Event-ID {text[:80]!r} is no id of this gateway: it looks like 0:12,1:40")
    return {int(p): int(o) for p, o in (pair.split(":") for pair in text.split(","))}


def start_of(since: str | None, last_id: str | None) -> Start:
    """Where a client wants to start. Raises Refused where it cannot be read."""
    if last_id:
        return parse_id(last_id)
    try:
        return parse_start(since or "latest")
    except StreamsError as error:
        raise Refused(400, f"from: {error}") from None


class Feed:
    """The records of a subscription for one client, until it goes, stalls or the gateway closes."""

    def __init__(self, subscription: Subscription, closing: asyncio.Event, stall: float = STALL) -> None:
        self._subscription = subscription
        self._closing = closing
        self._stall = stall
        self.ended = ""
        """Why the stream ended, where the gateway ended it."""

    async def run(self, send: Callable[[list[tuple[str, bytes]]], Awaitable[None]], gone: Awaitable[object]) -> None:
        """Send batches (an empty one is a heartbeat) until `gone` is done or the feed has ended."""
        feeding = asyncio.ensure_future(self._feed(send))
        others = [asyncio.ensure_future(gone), asyncio.ensure_future(self._closing.wait())]
        try:
            await asyncio.wait([feeding, *others], return_when=asyncio.FIRST_COMPLETED)
            if feeding.done() and isinstance(error := feeding.exception(), StreamsError):
                self.ended = str(error)
            elif feeding.done():
                feeding.result()
            elif others[1].done():
                self.ended = CLOSED
        finally:
            for task in (feeding, *others):
                task.cancel()
            await asyncio.gather(feeding, *others, return_exceptions=True)
            await self._subscription.close()

    async def _feed(self, send: Callable[[list[tuple[str, bytes]]], Awaitable[None]]) -> None:
        async for batch in self._batches():
            for piece in _pieces(batch):
                try:
                    async with asyncio.timeout(self._stall):
                        await send(piece)
                except TimeoutError:
                    self.ended = SLOW.format(self._stall)
                    return

    async def _batches(self) -> AsyncIterator[list[tuple[str, bytes]]]:
        positions = dict(self._subscription.next)
        while True:
            messages = await self._subscription.batch(HEARTBEAT, HELD)
            batch = []
            for message in messages:
                positions[message.partition] = message.offset + 1
                batch.append(envelope(message, positions))
            yield batch


def _pieces(batch: list[tuple[str, bytes]]) -> Iterator[list[tuple[str, bytes]]]:
    """The batch in pieces of about PIECE bytes; an empty batch is one empty piece."""
    piece: list[tuple[str, bytes]] = []
    size = 0
    for item in batch:
        piece.append(item)
        size += len(item[1])
        if size >= PIECE:
            yield piece
            piece, size = [], 0
    if piece or not batch:
        yield piece


class EventStream(Response):
    """A feed as server-sent events. The last event of a stream that the gateway ends is `end`, with the reason."""

    media_type = "text/event-stream"

    def __init__(self, feed: Feed, done: Callable[[Feed], None], cut: Callable[[], None]) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._feed = feed
        self._done = done
        self._cut = cut

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def body(data: bytes, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": more})

        async def records(batch: list[tuple[str, bytes]]) -> None:
            await body(b"".join(b"id: %s\ndata: %s\n\n" % (i.encode(), d) for i, d in batch) or b": alive\n\n")

        async def gone() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await body(b"retry: 1000\n\n")
            await self._feed.run(records, gone())
            if self._feed.ended:
                async with asyncio.timeout(FAREWELL):
                    reason = msgspec.json.encode({"reason": self._feed.ended})
                    await body(b"event: end\ndata: %s\n\n" % reason, more=False)
        except (TimeoutError, OSError):
            # Not even the reason could be told: the client sees the connection end, and goes on by its last id.
            self._cut()
        finally:
            self._done(self._feed)


async def feed_websocket(websocket: WebSocket, feed: Feed, subprotocol: str | None, cut: Callable[[], None]) -> None:
    """A feed over a WebSocket, a record a message. It closes with 1013 where the client is too slow, else 1001.

    cut: ends the connection where the client does not even take the reason
    """
    await websocket.accept(subprotocol=subprotocol)

    async def records(batch: list[tuple[str, bytes]]) -> None:
        for _, data in batch:
            with contextlib.suppress(WebSocketDisconnect):  # `gone` will see it too
                await websocket.send_text(data.decode())

    async def gone() -> None:
        while (await websocket.receive())["type"] != "websocket.disconnect":
            pass

    await feed.run(records, gone())
    if feed.ended:
        try:
            async with asyncio.timeout(FAREWELL):
                await websocket.close(1001 if feed.ended == CLOSED else 1013, feed.ended)
        except (TimeoutError, RuntimeError, OSError, WebSocketDisconnect):
            cut()
