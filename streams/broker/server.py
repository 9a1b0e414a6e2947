"""The broker's sockets: connections, frames, time; and `Broker`, which has all of it."""

import asyncio
import contextlib
import ipaddress
import logging
import socket
import struct
from inspect import isawaitable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from kio.schema.errors import ErrorCode

from .api import API_VERSIONS, APIS, versions_answer
from .call import Call
from .clock import Clock, SystemClock
from .errors import AddressRefused, BrokerError, FrameMalformed, Unanswerable
from .limits import Limits
from .messages import Envelope, client_id, read_envelope, read_request, write_response
from .metrics import Metrics
from .node import Node, open_node

log = logging.getLogger(__name__)

_LENGTH = struct.Struct(">i")
# One read of the socket; larger frames are put together from several.
_READ_BUFFER_BYTES = 256 * 1024
# Connections that are still writing an answer when the broker stops get this long.
_STOP_GRACE_SECONDS = 2.0


class Broker:
    """
    The local broker as a library: `async with Broker(folder) as broker: broker.address`.

    :raises AddressRefused: when started on an address that is not of this machine alone.
    :raises FolderInUse: when started on the folder of another broker.
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
        auto_create: bool = False,
        default_partitions: int = 1,
    ) -> None:
        self._folder = Path(folder)
        self._host = host
        self._port = port
        self.limits = limits or Limits()
        self._clock = clock or SystemClock()
        self._fsync = fsync
        self._auto_create = auto_create
        self._default_partitions = default_partitions
        self._node: Node | None = None
        self._server: asyncio.Server | None = None
        self._housekeeping: list[asyncio.Task[None]] = []
        self._connections: dict[asyncio.Task[Any], asyncio.StreamWriter] = {}

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
        node = self._running
        host = f"[{node.host}]" if ":" in node.host else node.host
        return f"{host}:{node.port}"

    @property
    def metrics(self) -> Metrics:
        return self._running.metrics

    @property
    def _running(self) -> Node:
        if self._node is None:
            raise BrokerError("The broker is not running; start it first.")
        return self._node

    async def start(self) -> None:
        host = await _loopback(self._host)
        node = open_node(
            self._folder,
            limits=self.limits,
            clock=self._clock,
            fsync=self._fsync,
            auto_create=self._auto_create,
            default_partitions=self._default_partitions,
        )
        try:
            self._server = await asyncio.start_server(
                self._serve, host, self._port, limit=_READ_BUFFER_BYTES, backlog=self.limits.connections
            )
        except OSError as error:
            node.store.close()
            raise AddressRefused(f"The broker cannot listen on {host} port {self._port}: {error}.") from error
        node.host, node.port = self._server.sockets[0].getsockname()[:2]
        self._node = node
        self._housekeeping = [
            asyncio.create_task(self._keep_deadlines(node)),
            asyncio.create_task(self._keep_clean(node)),
        ]

    async def stop(self) -> None:
        """Answers on their way are sent; waiting requests are dropped, as if the connection had been lost."""
        if self._node is None or self._server is None:
            return
        self._server.close()
        for task in (*self._housekeeping, *self._connections):
            task.cancel()
        if self._connections or self._housekeeping:
            await asyncio.wait((*self._housekeeping, *self._connections), timeout=_STOP_GRACE_SECONDS)
        await self._server.wait_closed()
        self._node.store.close()
        self._node = self._server = None

    async def clean(self) -> None:
        """Run retention and compaction now."""
        await self._running.cleaner.clean()

    def tick(self) -> None:
        """Look at the deadlines of groups and transactions now."""
        self._running.tick()

    # Time.

    async def _keep_deadlines(self, node: Node) -> None:
        while True:
            await asyncio.sleep(node.limits.deadline_check_ms / 1000)
            try:
                node.tick()
            except Exception:
                log.exception("The deadlines of groups and transactions could not be kept.")

    async def _keep_clean(self, node: Node) -> None:
        while True:
            await asyncio.sleep(node.limits.cleaning_interval_ms / 1000)
            try:
                node.transactions.forget_old_ids(node.clock.wall_ms())
                await node.cleaner.clean()
            except Exception:
                log.exception("Retention and compaction failed; they are tried again.")

    # Connections.

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        node = self._running
        task = asyncio.current_task()
        assert task is not None
        if len(self._connections) >= node.limits.connections:
            node.metrics.refused.inc()
            log.warning("A connection above the bound of %d was closed.", node.limits.connections)
            writer.close()
            return
        self._connections[task] = writer
        node.metrics.connections.inc()
        try:
            await self._converse(node, reader, writer)
        except FrameMalformed as error:
            node.metrics.malformed.inc()
            log.warning("The connection of %s was closed: %s", writer.get_extra_info("peername"), error)
        except Unanswerable as error:
            log.info("The connection of %s was closed: %s", writer.get_extra_info("peername"), error)
        except (asyncio.IncompleteReadError, OSError):
            pass  # the client has gone
        except asyncio.CancelledError:
            pass  # the broker stops; streams report a cancelled task as an error
        except Exception:
            log.exception("A connection was closed because its request failed inside the broker.")
        finally:
            node.metrics.connections.dec()
            del self._connections[task]
            writer.close()

    async def _converse(self, node: Node, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request at a time, as in Kafka: answers are in order, and a client holds one answer at most."""
        transport = writer.transport
        transport.set_write_buffer_limits(high=node.limits.unsent_bytes)
        _send_at_once(writer)
        peer = writer.get_extra_info("peername")
        host = f"/{peer[0]}" if peer else ""
        while True:
            (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
            if not 0 < length <= node.limits.frame_bytes:
                raise FrameMalformed(f"A frame of {length} bytes; 1 to {node.limits.frame_bytes} are taken.")
            frame = await reader.readexactly(length)
            node.metrics.received.inc(length)
            response = await self._respond(node, frame, host)
            if response is not None:
                node.metrics.sent.inc(sum(map(len, response)))
                writer.writelines(response)
                await writer.drain()

    async def _respond(self, node: Node, frame: bytes, host: str) -> list[bytes] | None:
        envelope = read_envelope(frame)
        api = APIS.get(envelope.api_key)
        if api is None:
            raise FrameMalformed(f"There is no API {envelope.api_key} here.")
        if not api.oldest <= envelope.version <= api.newest:
            return _unsupported(envelope)
        call = Call(node, read_request(frame, envelope), envelope.version, client_id(frame), host)
        try:
            answer = api.answer(call)
            fields = await answer if isawaitable(answer) else answer
        except Unanswerable:
            raise
        except Exception:
            node.metrics.failures.labels(api.name).inc()
            raise
        node.metrics.requests.labels(api.name).inc()
        if fields is None:
            return None
        return write_response(envelope.api_key, envelope.version, envelope.correlation_id, fields)


def _unsupported(envelope: Envelope) -> list[bytes]:
    """A client that is newer than the broker asks for versions in a version the broker may not know."""
    if envelope.api_key != API_VERSIONS:
        raise FrameMalformed(f"API {envelope.api_key} has no version {envelope.version} here.")
    fields = versions_answer(ErrorCode.unsupported_version)
    return write_response(API_VERSIONS, 0, envelope.correlation_id, fields)


def _send_at_once(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    if connection is not None:
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


async def _loopback(host: str) -> str:
    """The host's address, if it is one that only this machine can reach."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise AddressRefused(f"The address {host!r} is not known: {error}.") from error
    addresses = [str(entry[4][0]) for entry in found]
    if not addresses or not all(ipaddress.ip_address(address).is_loopback for address in addresses):
        raise AddressRefused(
            f"The local broker has no access control and so listens on this machine alone; {host!r} is "
            f"{', '.join(addresses) or 'nothing'}. Give 127.0.0.1, or use Apache Kafka."
        )
    return addresses[0]
