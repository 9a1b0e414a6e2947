"""The broker's sockets: connections, frames, time; and `Broker`, which has all of it."""

import asyncio
import contextlib
import ipaddress
import logging
import socket
import ssl
import struct
from collections.abc import Awaitable, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from kio.schema.errors import ErrorCode

from . import sasl
from .api import API_VERSIONS, APIS, Api, versions_answer
from .call import Call
from .clock import Clock, SystemClock
from .errors import (
    AddressRefused,
    BrokenOff,
    BrokerError,
    FrameMalformed,
    Refusal,
    StoreFailed,
    Unanswerable,
    Unauthenticated,
    UsersUnreadable,
)
from .flight import Flight
from .limits import Limits
from .messages import Envelope, client_id, read_envelope, read_request, write_response
from .metrics import Metrics
from .node import Node, open_node
from .users import Users
from .wire import Wire
from .writers import Fields, Piece

log = logging.getLogger(__name__)

_LENGTH = struct.Struct(">i")
# Connections that are still writing an answer when the broker stops get this long.
_STOP_GRACE_SECONDS = 2.0
# What the system holds of an answer that is not read yet (twice this, on Linux). Left to grow, it is megabytes, which
# have left the processor's cache when the client comes to read them.
_SEND_BUFFER_BYTES = 256 * 1024
# When the process has no more file descriptors, accepting at once again would fail at once again.
_ACCEPT_AGAIN_SECONDS = 0.1


class Broker:
    """
    The local broker as a library: `async with Broker(folder) as broker: broker.address`.

    advertise:  the host by which clients reach it, where that is not the one it listens on
    tls:        the files of a certificate and its key, in PEM form
    users:      the file of those who may use it (see `users`)

    :raises AddressRefused: when started on an address that others reach, without `tls` and `users`.
    :raises FolderInUse: when started on the folder of another broker.
    :raises FolderUnreadable: when the folder is no broker's, or damaged.
    :raises UsersUnreadable:
    """

    def __init__(
        self,
        folder: str | Path,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        limits: Limits | None = None,
        clock: Clock | None = None,
        fsync: bool = False,
        accept_loss: bool = False,
        auto_create: bool = False,
        default_partitions: int = 1,
        advertise: str = "",
        tls: tuple[str | Path, str | Path] | None = None,
        users: str | Path | None = None,
    ) -> None:
        self._folder = Path(folder)
        self._host = host
        self._port = port
        self.limits = limits or Limits()
        self.metrics = Metrics()
        self._flight = Flight(self.limits.inflight_bytes)
        self._clock = clock or SystemClock()
        self._fsync = fsync
        self._accept_loss = accept_loss
        self._auto_create = auto_create
        self._default_partitions = default_partitions
        self._advertise = advertise
        self._tls_files = tls
        self._tls: ssl.SSLContext | None = None
        self._users_file = users
        self._users: Users | None = None
        self._place = ("", 0)
        self._node: Node | None = None
        self._listener: socket.socket | None = None
        self._watching: list[asyncio.Task[None]] = []
        self._housekeeping: list[asyncio.Task[None]] = []
        self._connections: set[asyncio.Task[None]] = set()
        self._strangers = 0
        self.metrics.watch_flight(self._flight)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def address(self) -> str:
        """What clients are given as bootstrap server."""
        if self._listener is None:
            raise BrokerError("The broker is not running; start it first.")
        host, port = self._place
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    @property
    def _running(self) -> Node:
        if self._node is None:
            raise BrokerError("The broker is not running; start it first.")
        return self._node

    async def start(self) -> None:
        host = await self._checked_host()
        self._tls = None if self._tls_files is None else _context(*self._tls_files)
        self._users = None if self._users_file is None else Users(Path(self._users_file))
        self._open()
        try:
            listener = _listen(host, self._port, self.limits.connections)
        except OSError as error:
            self._running.store.close()
            self._node = None
            raise AddressRefused(f"The broker cannot listen on {host} port {self._port}: {error}.") from error
        self._listener = listener
        self._place = (self._advertise or listener.getsockname()[0], listener.getsockname()[1])
        self._running.host, self._running.port = self._place
        self._keep_house()
        self._watching = [asyncio.create_task(self._accept(listener)), asyncio.create_task(self._keep_store())]

    async def _checked_host(self) -> str:
        """The address to listen on. :raises AddressRefused:"""
        addresses = await _addresses(self._host)
        if not all(address.is_loopback for address in addresses):
            missing = [
                option
                for option, given in (("--tls-cert and --tls-key", self._tls_files), ("--users", self._users_file))
                if not given
            ]
            if missing:
                raise AddressRefused(
                    f"Without TLS and users the local broker listens on this machine alone, and {self._host!r} is "
                    f"{', '.join(map(str, addresses))}. Give 127.0.0.1, or {' and '.join(missing)}."
                )
            if addresses[0].is_unspecified and not self._advertise:
                raise AddressRefused(f"Clients cannot connect to {self._host}: say by what host they can, --advertise.")
        return str(addresses[0])

    def _open(self) -> None:
        node = open_node(
            self._folder,
            limits=self.limits,
            clock=self._clock,
            metrics=self.metrics,
            flight=self._flight,
            fsync=self._fsync,
            accept_loss=self._accept_loss,
            auto_create=self._auto_create,
            default_partitions=self._default_partitions,
        )
        node.host, node.port = self._place
        self._node = node

    async def stop(self) -> None:
        """Answers on their way are sent; waiting requests are dropped, as if the connection had been lost."""
        if self._listener is None:
            return
        await _end(*self._watching)
        self._listener.close()
        self._listener = None
        await self._end_work()
        if self._node is not None:
            self._node.store.close()
        self._node = None

    async def _end_work(self) -> None:
        await _end(*self._housekeeping, *self._connections)

    async def clean(self) -> None:
        """Run retention and compaction now."""
        await self._running.cleaner.clean()

    def tick(self) -> None:
        """Look at the deadlines of groups and transactions now."""
        self._running.tick()

    # Time.

    def _keep_house(self) -> None:
        node = self._running
        self._housekeeping = [
            asyncio.create_task(self._keep_deadlines(node)),
            asyncio.create_task(self._keep_clean(node)),
        ]

    async def _keep_deadlines(self, node: Node) -> None:
        while True:
            await asyncio.sleep(node.limits.deadline_check_ms / 1000)
            try:
                node.tick()
            except StoreFailed:
                pass  # the store has said so
            except Exception:
                log.exception("The deadlines of groups and transactions could not be kept.")

    async def _keep_clean(self, node: Node) -> None:
        while True:
            await asyncio.sleep(node.limits.cleaning_interval_ms / 1000)
            try:
                node.transactions.forget_old_ids(node.clock.wall_ms())
                await node.cleaner.clean()
            except StoreFailed:
                pass
            except Exception:
                log.exception("Retention and compaction failed; they are tried again.")

    async def _keep_store(self) -> None:
        """Open a store that failed anew, when it takes writes again.

        By the path of a start, since what a failed write left is not known: clients see a broker that was restarted.
        Until then nothing is acknowledged; what was is served, as far as it is safe.
        """
        while True:
            await asyncio.sleep(self.limits.reopen_ms / 1000)
            node = self._node
            self.metrics.store_failed.set(node is None or bool(node.store.failure))
            if node is not None:
                room = bool(node.store.failure) and await asyncio.to_thread(node.store.has_room)
                if not room:
                    continue
            await self._end_work()
            if node is not None:
                node.store.close()
                self._node = None
            try:
                self._open()
            except (BrokerError, StoreFailed) as error:
                log.error("The store cannot be opened again, it is tried every second: %s", error)
                continue
            self._keep_house()
            log.warning("The store takes writes again; the broker goes on.")

    # Connections.

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, peer = await loop.sock_accept(listener)
            except OSError as error:
                log.warning("No connection can be accepted: %s.", error)
                await asyncio.sleep(_ACCEPT_AGAIN_SECONDS)
                continue
            known = self._tls is None and self._users is None
            full = len(self._connections) >= self.limits.connections
            if full or (not known and self._strangers >= self.limits.unauthenticated_connections):
                self.metrics.refused.inc()
                which, bound = "", self.limits.connections
                if not full:
                    which, bound = " unauthenticated", self.limits.unauthenticated_connections
                log.warning("A connection above the bound of %d%s ones was closed.", bound, which)
                connection.close()
                continue
            if self._node is None:
                connection.close()
                continue
            task = asyncio.create_task(self._serve(self._node, connection, str(peer[0])))
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)

    async def _serve(self, node: Node, connection: socket.socket, peer: str) -> None:
        self.metrics.connections.inc()
        wire = None
        try:
            wire = await self._admit(connection)
            await wire.serve(partial(self._answer, node, wire, f"/{peer}"))
        except FrameMalformed as error:
            node.metrics.malformed.inc()
            log.warning("The connection of %s was closed: %s", peer, error)
        except (Unauthenticated, UsersUnreadable) as error:
            node.metrics.unauthenticated.inc()
            log.warning("The connection of %s was closed: %s", peer, error)
        except (Unanswerable, BrokenOff, Refusal) as error:
            log.info("The connection of %s was closed: %s", peer, error)
        except StoreFailed:
            pass  # the store has said so; the client tries again, as when a broker has died
        except (asyncio.IncompleteReadError, OSError):
            pass  # the client has gone, or speaks no TLS
        except asyncio.CancelledError:
            pass  # the broker stops
        except Exception:
            log.exception("A connection was closed because its request failed inside the broker.")
        finally:
            self.metrics.connections.dec()
            if wire is not None:
                wire.close()
            else:
                connection.close()

    async def _admit(self, connection: socket.socket) -> Wire:
        """The wire of a connection, once it is known who is at the other end, where that is asked."""
        if self._tls is None and self._users is None:
            return await self._wire(connection)
        self._strangers += 1
        self.metrics.strangers.set(self._strangers)
        try:
            async with asyncio.timeout(self.limits.authentication_ms / 1000):
                wire = await self._wire(connection)
                if self._users is not None:
                    try:
                        await self._authenticate(self._users, wire)
                    except BaseException:
                        wire.close()
                        raise
            return wire
        except TimeoutError:
            raise Unauthenticated(f"It was not known whose it is after {self.limits.authentication_ms} ms.") from None
        finally:
            self._strangers -= 1
            self.metrics.strangers.set(self._strangers)

    async def _wire(self, connection: socket.socket) -> Wire:
        loop = asyncio.get_running_loop()
        connection.setblocking(False)
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        wire = Wire(self.limits, self._flight)
        await loop.connect_accepted_socket(lambda: wire, connection, ssl=self._tls)
        return wire

    async def _authenticate(self, users: Users, wire: Wire) -> None:
        async def receive() -> bytes:
            (length,) = _LENGTH.unpack(await wire.read(_LENGTH.size))
            if not 0 <= length <= self.limits.unauthenticated_frame_bytes:
                raise FrameMalformed(
                    f"A frame of {length} bytes before it was known whose it is; at most "
                    f"{self.limits.unauthenticated_frame_bytes} are taken."
                )
            return await wire.read(length)

        async def send(answer: list[Piece]) -> None:
            rest = wire.send(answer)
            if rest is not None:
                await rest

        await sasl.authenticate(users, receive, send, _versions)

    def _answer(self, node: Node, wire: Wire, host: str, frame: bytes) -> Awaitable[None] | None:
        """Answer a request, for which room was taken; what is to be awaited before the next one of its connection.

        One at a time, as in Kafka: answers are in order, and a client holds one answer at most.
        """
        size = len(frame)
        node.metrics.received.inc(size)
        try:
            response = self._respond(node, frame, host)
        except BaseException:
            node.flight.leave(size)
            raise
        if response is not None and not isinstance(response, list):
            return self._answer_later(node, wire, size, response)
        node.flight.leave(size)
        return None if response is None else self._send(node, wire, response)

    async def _answer_later(self, node: Node, wire: Wire, size: int, responding: Awaitable[list[Piece] | None]) -> None:
        try:
            response = await responding
        finally:
            node.flight.leave(size)
        rest = None if response is None else self._send(node, wire, response)
        del response
        if rest is not None:
            await rest

    def _send(self, node: Node, wire: Wire, response: list[Piece]) -> Awaitable[None] | None:
        size = sum(map(len, response))
        node.metrics.sent.inc(size)
        # What is told of may have been written a moment ago, by whomever.
        rest = wire.send(response) if node.store.is_settled else _send_settled(node, wire, response)
        return None if rest is None else _in_flight(node, size, rest)

    def _respond(self, node: Node, frame: bytes, host: str) -> list[Piece] | Awaitable[list[Piece] | None] | None:
        envelope = read_envelope(frame)
        api = APIS.get(envelope.api_key)
        if api is None:
            raise FrameMalformed(f"There is no API {envelope.api_key} here.")
        if not api.oldest <= envelope.version <= api.newest:
            return _unsupported(envelope)
        call = Call(node, read_request(frame, envelope), envelope.version, client_id(frame), host)
        try:
            answer = api.answer(call)
        except Exception as error:
            _count(node, api, error)
            raise
        if answer is None or isinstance(answer, Mapping):
            return _written(node, api, envelope, answer)
        return _respond_later(node, api, envelope, answer)


def _count(node: Node, api: Api, error: Exception) -> None:
    """Requests that fail inside the broker are counted."""
    if not isinstance(error, Unanswerable | StoreFailed | Refusal):
        node.metrics.failures.labels(api.name).inc()


async def _respond_later(node: Node, api: Api, envelope: Envelope, answer: Awaitable[Fields]) -> list[Piece] | None:
    try:
        fields = await answer
    except Exception as error:
        _count(node, api, error)
        raise
    return _written(node, api, envelope, fields)


def _written(node: Node, api: Api, envelope: Envelope, fields: Fields | None) -> list[Piece] | None:
    node.metrics.answered(api.name).inc()
    if fields is None:
        return None
    return write_response(envelope.api_key, envelope.version, envelope.correlation_id, fields)


async def _send_settled(node: Node, wire: Wire, response: list[Piece]) -> None:
    await node.store.settled()
    rest = wire.send(response)
    if rest is not None:
        del response
        await rest


async def _in_flight(node: Node, size: int, sending: Awaitable[None]) -> None:
    node.flight.take(size)
    try:
        await sending
    finally:
        node.flight.leave(size)


def _versions(envelope: Envelope, frame: bytes) -> tuple[list[Piece], bool]:
    """The answer to ApiVersions before it is known who asks, and whether its version is one of ours."""
    api = APIS[API_VERSIONS]
    if not api.oldest <= envelope.version <= api.newest:
        return _unsupported(envelope), False
    read_request(frame, envelope)
    fields = versions_answer(ErrorCode.none)
    return write_response(API_VERSIONS, envelope.version, envelope.correlation_id, fields), True


def _unsupported(envelope: Envelope) -> list[Piece]:
    """A client that is newer than the broker asks for versions in a version the broker may not know."""
    if envelope.api_key != API_VERSIONS:
        raise FrameMalformed(f"API {envelope.api_key} has no version {envelope.version} here.")
    fields = versions_answer(ErrorCode.unsupported_version)
    return write_response(API_VERSIONS, 0, envelope.correlation_id, fields)


async def _end(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=_STOP_GRACE_SECONDS)


def _context(cert: str | Path, key: str | Path) -> ssl.SSLContext:
    """:raises AddressRefused: when the files are no certificate and its key."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)

    def ask() -> str:
        raise AddressRefused(f"The key {key} is encrypted: give a file that holds it in the clear.")

    try:
        context.load_cert_chain(cert, key, ask)
    except (ssl.SSLError, OSError) as error:
        raise AddressRefused(f"{cert} and {key} are no certificate and its key in PEM form: {error}.") from error
    return context


def _listen(host: str, port: int, backlog: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setblocking(False)
        listener.bind((host, port))
        listener.listen(backlog)
    except BaseException:
        listener.close()
        raise
    return listener


async def _addresses(host: str) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise AddressRefused(f"The address {host!r} is not known: {error}.") from error
    return [ipaddress.ip_address(str(entry[4][0])) for entry in found]
