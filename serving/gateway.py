"""The gateway: topics over HTTP. Events in, streams out, health and metrics."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI, Header, Query, Request, WebSocket
from fastapi.responses import JSONResponse, Response
from headrace.serving.access import SUBPROTOCOL, Guard, check_listening
from headrace.serving.board import Board
from headrace.serving.errors import Refused
from headrace.serving.feed import HELD, STALL, EventStream, Feed, feed_websocket, start_of
from headrace.serving.gauges import Gauges
from headrace.serving.intake import MAX_BODY, MAX_EVENTS, read_body, read_rows
from headrace.serving.schemas import add_schemas, schema_of
from headrace.streams.address import Address
from headrace.streams.diagnosis import unreachable
from headrace.streams.errors import BadSecurity, LogUnavailable, UnknownTopic
from headrace.streams.publisher import Publisher
from headrace.streams.subscription import Start, Subscription
from headrace.streams.topics import Processor, Topic, derived_topic, unknown_topic
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.convertors import Convertor, register_url_convertor
from starlette.routing import Match, Route
from starlette.types import Scope

logger = logging.getLogger(__name__)

MAX_POSTS = 32
"""Requests that publish at a time. Each may hold a body of `intake.MAX_BODY`, so this bounds the memory."""
MAX_SUBSCRIBERS = 64
"""Streams at a time. Each has a connection to the log of its own."""
RETRY_AFTER = {"Retry-After": "1"}
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
CONNECT_AGAIN = 1.0
"""Seconds between attempts to reach the log."""
HEALTH_WAIT = 2.0
"""Seconds for the log to answer a health check: shorter than the wait of whoever asks."""
SCRAPE_WAIT = 2.0
"""Seconds for another part's metrics: shorter than Prometheus waits, so that a part that hangs costs only itself."""
BOUNDS = {
    "posts": MAX_POSTS,
    "subscribers": MAX_SUBSCRIBERS,
    "body_bytes": MAX_BODY,
    "body_events": MAX_EVENTS,
    "stream_records": HELD,
    "stream_seconds": STALL,
}
GRACE = 3
"""Seconds for requests to end when the gateway stops. Streams are told at once."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a gateway serves, and where it listens. Beyond loopback it wants a token."""

    app: str
    broker: Address
    topics: tuple[Topic, ...]
    processors: tuple[Processor, ...] = ()
    host: str = "127.0.0.1"
    port: int = 8080
    token: str | None = None
    stall: float | None = None
    """Seconds that a streaming client may take; None: `feed.STALL`."""
    parts: tuple[tuple[str, str], ...] = ()
    """Other parts of the stack and the addresses of their metrics, which `/metrics` then has too."""


class Gateway:
    """What the routes share: the publisher, the bounds in use, the metrics."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.topics = {t.name: t for t in settings.topics}
        self.publisher = Publisher(settings.broker, client="headrace-gateway")
        self.connected = False
        self.closing = asyncio.Event()
        self.gauges = Gauges(BOUNDS)
        self.absent = unreachable(settings.broker)
        """Why it has not reached the log, where it has not."""
        self.board = Board(settings.app, settings.broker, settings.topics, settings.processors)
        self.posts = 0
        self.subscribers = 0
        self.cut: Callable[[Scope], None] = lambda _: None
        """Ends the connection of a request at once; the server provides it."""

    async def connect(self) -> None:
        """Reach the log, however long that takes; the gateway answers 503 meanwhile."""
        while not self.connected:
            try:
                await self.publisher.start()
                self.connected = True
            except LogUnavailable as error:
                self.absent = error
                await asyncio.sleep(CONNECT_AGAIN)
            except BadSecurity as error:
                self.absent = LogUnavailable(str(error))
                logger.error("the gateway stays without its log until it is started again: %s", error)
                return

    def topic(self, name: str, publishing: bool = False) -> Topic:
        """Raises Refused (404) with the near names."""
        if name not in self.topics:
            raise Refused(404, str(unknown_topic(name, self.topics, publishing=publishing)))
        return self.topics[name]

    def event_topic(self, name: str) -> Topic:
        """Raises Refused (405) where the topic is one that the program writes."""
        topic = self.topic(name, publishing=True)
        if topic.event is None:
            events = (t.name for t in self.settings.topics if t.event)
            raise Refused(405, str(derived_topic(name, events)), headers={"Allow": "GET"})
        return topic

    async def publish(self, topic: Topic, request: Request) -> dict[str, Any]:
        if self.posts >= MAX_POSTS:
            raise Refused(503, f"{MAX_POSTS} requests are publishing already: try again", headers=RETRY_AFTER)
        self.posts += 1
        self.gauges.posts.set(self.posts)
        begun = time.perf_counter()
        try:
            body = await read_body(request)
            rows = await read_rows(body, request.headers.get("content-type", ""), topic)
            if not self.connected:
                raise self.absent
            receipts = await self.publisher.send(topic.name, rows)
        except Refused as refusal:
            if refusal.status == 422:
                self.gauges.rejected.labels(topic.name).inc()
            raise
        finally:
            self.posts -= 1
            self.gauges.posts.set(self.posts)
        self.gauges.published.labels(topic.name).inc(len(receipts))
        self.gauges.publish_seconds.observe(time.perf_counter() - begun)
        doubts = [row.doubt for row in rows if row.doubt]
        places = [{"partition": r.partition, "offset": r.offset} for r in receipts]
        told = {"published": len(receipts), "receipts": places}
        return {**told, "warning": doubts[0], "doubtful": len(doubts)} if doubts else told

    async def subscribe(self, name: str, start: Start) -> Feed:
        """A feed that has its place; `release` gives it back."""
        topic = self.topic(name)
        if self.subscribers >= MAX_SUBSCRIBERS:
            raise Refused(503, f"{MAX_SUBSCRIBERS} streams are open already: try again", headers=RETRY_AFTER)
        self.subscribers += 1
        self.gauges.subscribers.set(self.subscribers)
        subscription = Subscription(self.settings.broker, topic.name, start)
        try:
            await subscription.open()
        except BaseException:
            self.release()
            raise
        if self.settings.stall is None:
            return Feed(subscription, self.closing)
        return Feed(subscription, self.closing, self.settings.stall)

    def release(self, feed: Feed | None = None) -> None:
        self.subscribers -= 1
        self.gauges.subscribers.set(self.subscribers)
        if feed is not None and "too slow" in feed.ended:
            self.gauges.slow.inc()


def create(settings: Settings) -> FastAPI:
    """The gateway as an ASGI application; the live page is mounted at its root by `page.mount`.

    Raises ServingError where it would listen beyond loopback without a token.
    """
    check_listening(settings.host, settings.token)
    gateway = Gateway(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        connecting = asyncio.create_task(gateway.connect())
        gateway.board.start(gateway.gauges.show)
        try:
            yield
        finally:
            gateway.closing.set()
            connecting.cancel()
            await asyncio.gather(connecting, return_exceptions=True)
            await gateway.board.stop()
            await gateway.publisher.close()

    # The pages of /docs and /redoc load their scripts from elsewhere; a gateway may have no way out.
    app = FastAPI(
        title=f"Headrace: {settings.app}",
        summary="Publish events to topics; subscribe to prediction streams.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.state.gateway = gateway
    app.add_middleware(Guard, token=settings.token)
    _answer_errors(app)
    _add_topics(app, gateway)
    _add_watching(app, gateway)
    add_schemas(app, settings.topics)
    _answer_elsewhere(app)
    return app


def _answer_errors(app: FastAPI) -> None:
    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> JSONResponse:
        return JSONResponse({"reason": error.reason, **error.details}, error.status, error.headers)

    @app.exception_handler(UnknownTopic)
    async def unknown(_: Request, error: UnknownTopic) -> JSONResponse:
        return JSONResponse({"reason": str(error)}, 404)

    @app.exception_handler(LogUnavailable)
    @app.exception_handler(BadSecurity)
    async def unavailable(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"reason": str(error)}, 503, RETRY_AFTER)


def _add_topics(app: FastAPI, gateway: Gateway) -> None:
    @app.get("/topics", summary="The topics, with the schemas of their events")
    async def topics() -> list[dict[str, Any]]:
        return [
            {
                "name": t.name,
                "kind": t.kind,
                "partitions": t.partitions,
                "key": t.event.contract.key if t.event else None,
                "schema": schema_of(t.event) if t.event else None,
            }
            for t in gateway.settings.topics
        ]

    @app.post("/topics/{topic}", status_code=202, summary="Publish one event (JSON) or many (NDJSON)")
    async def publish(topic: str, request: Request) -> dict[str, Any]:
        """All or nothing: every event is checked first, and where one breaks its contract none is published.
        The answer comes when the log has them safe, with a receipt for each in the order given."""
        return await gateway.publish(gateway.event_topic(topic), request)

    events: dict[int | str, dict[str, Any]] = {
        200: {"content": {"text/event-stream": {}}, "description": "the records, as they come"}
    }

    @app.get("/topics/{topic}", summary="A topic as server-sent events", response_class=Response, responses=events)
    async def subscribe(
        request: Request,
        topic: str,
        since: str | None = Query(None, alias="from", description="earliest, latest (default), or a time"),
        last_event_id: str | None = Header(None, description="the id of the last event seen; it goes before `from`"),
    ) -> Response:
        feed = await gateway.subscribe(topic, start_of(since, last_event_id))
        return EventStream(feed, gateway.release, lambda: gateway.cut(request.scope))

    @app.websocket("/topics/{topic}")
    async def subscribe_websocket(
        websocket: WebSocket,
        topic: str,
        since: str | None = Query(None, alias="from"),
        last_event_id: str | None = None,
    ) -> None:
        feed = None
        try:
            feed = await gateway.subscribe(topic, start_of(since, last_event_id))
        except Refused as error:
            await websocket.send_denial_response(JSONResponse({"reason": error.reason}, error.status, error.headers))
        except (UnknownTopic, LogUnavailable) as error:
            status = 404 if isinstance(error, UnknownTopic) else 503
            await websocket.send_denial_response(JSONResponse({"reason": str(error)}, status))
        if feed is not None:
            offered = websocket.scope.get("subprotocols", ())
            try:
                chosen = SUBPROTOCOL if SUBPROTOCOL in offered else None
                await feed_websocket(websocket, feed, chosen, lambda: gateway.cut(websocket.scope))
            finally:
                gateway.release(feed)


def _add_watching(app: FastAPI, gateway: Gateway) -> None:
    async def log_trouble() -> dict[str, str]:
        """What is wrong with the log, as an answer; empty where nothing is."""
        broker = str(gateway.settings.broker)
        try:
            async with asyncio.timeout(HEALTH_WAIT):
                if not gateway.connected:
                    raise gateway.absent
                there = await gateway.publisher.topics()
        except (LogUnavailable, TimeoutError) as error:
            reason = str(error) or f"the log at {broker} did not answer within {HEALTH_WAIT:.0f} s"
            return {"status": "unavailable", "broker": broker, "reason": reason}
        missing = sorted(set(gateway.topics) - there)
        if missing:
            reason = f"the log lacks topics of the program: {', '.join(missing)}"
            return {"status": "incomplete", "broker": broker, "reason": reason}
        return {}

    def standing() -> dict[str, Any]:
        settings, crew = gateway.settings, gateway.board.crew()
        trouble = crew.trouble()
        return {
            "status": "degraded" if trouble else "ok",
            "app": settings.app,
            "broker": str(settings.broker),
            "topics": len(settings.topics),
            "workers": len(crew.alive),
            "tasks": len(crew.places),
            "unowned": len(crew.unowned),
            **({"reason": trouble} if trouble else {}),
        }

    @app.get("/health", summary="Whether the gateway does its work: 503 where the log fails it")
    async def health() -> JSONResponse:
        """For whoever restarts the gateway. Tasks that no worker runs are told as `degraded`, with 200: starting the
        gateway again would not help them."""
        trouble = await log_trouble()
        return JSONResponse(trouble, 503) if trouble else JSONResponse(standing())

    @app.get("/ready", summary="Whether the whole pipeline answers: 503 where the log fails it, or no worker runs")
    async def ready() -> JSONResponse:
        """For whoever sends events here, or waits for predictions. 503 where nobody runs any of the tasks; where a part
        of them has no worker, which is so for seconds whenever one comes or goes, `degraded` with 200."""
        told = await log_trouble() or standing()
        idle = told["status"] == "degraded" and told["unowned"] == told["tasks"]
        return JSONResponse(told, 503 if idle or told["status"] in ("unavailable", "incomplete") else 200)

    @app.get("/workers", summary="The workers and their tasks")
    async def workers() -> dict[str, Any]:
        """`unowned` tasks are run by nobody; a worker that was silent for too long is `gone`."""
        crew = gateway.board.crew()
        return {"workers": [w.row() for w in crew.workers], "tasks": [p.row() for p in crew.places]}

    @app.get("/metrics", summary="Metrics of the whole stack, for Prometheus", response_class=Response)
    async def metrics() -> Response:
        others = await asyncio.gather(*(_scrape(url) for _, url in gateway.settings.parts))
        for (part, _), text in zip(gateway.settings.parts, others, strict=True):
            gateway.gauges.part_up.labels(part).set(bool(text))
        gateway.gauges.show_crew(gateway.board.crew())
        return Response(b"".join([generate_latest(gateway.gauges.registry), *others]), media_type=CONTENT_TYPE_LATEST)


class _Elsewhere(Convertor[str]):
    """Paths that are none of the page's own. The page is mounted at the root, and would answer them with a page."""

    regex = r"(?!_nicegui(?:/|$)).+"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("elsewhere", _Elsewhere())


def _answer_elsewhere(app: FastAPI) -> None:
    """Answer 404 and 405 in JSON, as everything else is."""
    known = [route for route in app.routes if isinstance(route, Route)]

    @app.api_route("/{path:elsewhere}", methods=list(METHODS), include_in_schema=False)
    async def elsewhere(request: Request) -> Response:
        here = [route for route in known if route.matches(request.scope)[0] is not Match.NONE]
        if not here:
            raise Refused(404, f"there is nothing at {request.url.path}: /openapi.json tells what there is")
        allowed = sorted({method for route in here for method in route.methods or ()})
        raise Refused(
            405, f"{request.method} is not taken at {request.url.path}", headers={"Allow": ", ".join(allowed)}
        )


async def _scrape(url: str) -> bytes:
    """The metrics of another part of the stack; nothing where it does not answer."""
    try:
        async with httpx.AsyncClient(timeout=SCRAPE_WAIT, trust_env=False) as client:
            return (await client.get(url)).raise_for_status().content
    except httpx.HTTPError:
        return b""


class Server(uvicorn.Server):
    """A server that tells its streams to end before it waits for them, and can cut a connection."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._gateway().cut = self.cut

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Say so once it listens: on a port lost to another gateway, that one would answer in its stead."""
        await super().startup(sockets)
        if self.started:
            print(f"ready: the gateway listens on {self.config.host} port {self.config.port}", flush=True)

    def cut(self, scope: Scope) -> None:
        """End a connection without waiting for its client to take what was sent.

        A connection that is merely closed stays, with its buffer, until the client reads: perhaps for ever.
        """
        for connection in self.server_state.connections:
            transport = getattr(connection, "transport", None)
            if transport is not None and getattr(connection, "client", None) == scope["client"]:
                transport.abort()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._gateway().closing.set()
        await super().shutdown(sockets)

    def _gateway(self) -> Gateway:
        app: Any = self.config.app
        gateway: Gateway = app.state.gateway
        return gateway


def server(app: FastAPI, settings: Settings) -> Server:
    """A server of the gateway, not started."""
    return Server(
        uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            log_level="warning",
            access_log=False,  # query strings may hold the token
            timeout_graceful_shutdown=GRACE,
            ws_max_size=64 * 1024,  # clients have nothing to say
            server_header=False,
        )
    )
