"""A connection's bytes arrive in any pieces, in clear and by TLS, on both event loops, and frames come out whole."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import ssl
import struct
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest
import uvloop
from headrace.streams.broker.wire import _LAZY_BYTES, _SMALL_BYTES, Wire

from tests.scene import eventually
from tests.secured import certificates

LENGTH = struct.Struct(">i")
EDGES = (_SMALL_BYTES - 5, _SMALL_BYTES - 4, _SMALL_BYTES, _SMALL_BYTES + 1)
SIZES = [1, 2, 3, 4, 5, 100, *EDGES, 3 * _SMALL_BYTES, 600_000, _LAZY_BYTES + 300_000]
LOOPS = {"asyncio": asyncio.run, "uvloop": uvloop.run}

Client = Callable[[socket.socket], None]
Server = Callable[[Wire], Awaitable[None]]


def met(loop: str, server: Server, client: Client, tls: tuple[ssl.SSLContext, ssl.SSLContext] | None = None) -> None:
    """A server's task and a client's thread, over a connection of their own. Raises what either of them fails with."""
    failed: list[BaseException] = []

    def visit(address: tuple[str, int]) -> None:
        try:
            with socket.create_connection(address, 20) as plain:
                plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if tls is None:
                    client(plain)
                    return
                with tls[1].wrap_socket(plain, server_hostname="localhost") as secured:
                    client(secured)
        except BaseException as error:
            failed.append(error)

    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setblocking(False)
            visitor = threading.Thread(target=visit, args=(listener.getsockname(),))
            visitor.start()
            running = asyncio.get_running_loop()
            connection, _ = await running.sock_accept(listener)
            connection.setblocking(False)
            wire = Wire()
            await running.connect_accepted_socket(lambda: wire, connection, ssl=tls[0] if tls else None)
            try:
                async with asyncio.timeout(30):
                    await server(wire)
            finally:
                wire.close()
                await asyncio.to_thread(visitor.join)
                await asyncio.to_thread(eventually, lambda: wire._lost)

    runner: Callable[[Coroutine[Any, Any, None]], None] = LOOPS[loop]
    runner(main())
    if failed:
        raise failed[0]


def received(sock: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        part = sock.recv(size - len(found))
        assert part, "the connection ended"
        found += part
    return found


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    made = certificates(tmp_path_factory.mktemp("tls"))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(made.cert, made.key)
    client = ssl.create_default_context(cafile=str(made.ca))
    # From 1.3 on the server sends tickets; who ends with them unread resets the connection.
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    return server, client


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_frames_come_out_as_they_went_in_whatever_the_pieces(
    loop: str, secure: bool, seed: int, contexts: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    chance = random.Random(seed)
    frames = [chance.randbytes(chance.choice(SIZES)) for _ in range(60)]
    slow = chance.random() < 0.5

    def client(sock: socket.socket) -> None:
        data = b"".join(LENGTH.pack(len(frame)) + frame for frame in frames)
        at = 0
        while at < len(data):
            size = chance.choice([1, 3, 700, _SMALL_BYTES, 200_000])
            sock.sendall(data[at : at + size])
            at += size
        assert received(sock, 4) == b"done"

    async def server(wire: Wire) -> None:
        for frame in frames:
            (length,) = LENGTH.unpack(await wire.read(LENGTH.size))
            if slow:
                await asyncio.sleep(0.002)  # more comes than is asked for
            if length >= 2:
                assert await wire.peek(2) == frame[:2]
            found = await wire.read(length)
            assert found == frame
            assert memoryview(found).readonly
        wire.write(b"done")
        await wire.drain()

    met(loop, server, client, contexts if secure else None)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("size", [100, 300_000])
def test_a_connection_that_ends_within_a_frame_is_told_and_what_came_before_is_there(loop: str, size: int) -> None:
    def client(sock: socket.socket) -> None:
        sock.sendall(b"four" + bytes(size - 1))

    async def server(wire: Wire) -> None:
        await asyncio.sleep(0.1)
        assert await wire.read(4) == b"four"
        for _ in range(2):
            with pytest.raises(asyncio.IncompleteReadError):
                await wire.read(size)

    met(loop, server, client)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("secure", [False, True])
def test_what_came_before_a_connection_ended_in_order_is_all_there(
    loop: str, secure: bool, contexts: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    def client(sock: socket.socket) -> None:
        sock.sendall(bytes(200_000))
        if isinstance(sock, ssl.SSLSocket):
            sock.setblocking(False)
            with contextlib.suppress(ssl.SSLWantReadError):
                sock.unwrap()  # says goodbye, and goes without an answer

    async def server(wire: Wire) -> None:
        time.sleep(0.3)  # noqa: ASYNC251  # held up, and then all of it and the end come at once
        for _ in range(20):
            assert await wire.read(10_000) == bytes(10_000)
        with pytest.raises(asyncio.IncompleteReadError):
            await wire.read(1)

    met(loop, server, client, contexts if secure else None)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("secure", [False, True])
def test_a_connection_of_which_not_all_was_read_is_closed(
    loop: str, secure: bool, contexts: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    def client(sock: socket.socket) -> None:
        sock.settimeout(5)
        with contextlib.suppress(ConnectionError):  # a reset tells as well as an end
            sock.sendall(bytes(2_000_000))

    async def server(wire: Wire) -> None:
        assert await wire.read(10) == bytes(10)
        await asyncio.sleep(0.2)

    met(loop, server, client, contexts if secure else None)  # which waits until it is closed


@pytest.mark.parametrize("loop", LOOPS)
def test_who_says_that_nothing_more_will_come_still_gets_the_answer(loop: str) -> None:
    def client(sock: socket.socket) -> None:
        sock.sendall(b"ask")
        sock.shutdown(socket.SHUT_WR)
        assert len(received(sock, 400_000)) == 400_000

    async def server(wire: Wire) -> None:
        assert await wire.read(3) == b"ask"
        await asyncio.sleep(0.1)
        wire.write(bytes(400_000))
        await wire.drain()

    met(loop, server, client)


@pytest.mark.parametrize("loop", LOOPS)
def test_what_nobody_reads_is_held_back_and_an_end_is_told_to_who_waits(loop: str) -> None:
    going = threading.Event()

    def client(sock: socket.socket) -> None:
        sock.sendall(b"ask")
        assert going.wait(20)

    async def server(wire: Wire) -> None:
        assert await wire.read(3) == b"ask"
        wire.transport.set_write_buffer_limits(high=100_000)

        async def write() -> None:
            while True:
                wire.write(bytes(1_000_000))
                await wire.drain()

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(write(), 0.5)
        assert wire.transport.get_write_buffer_size() < 2_000_000
        going.set()
        for _ in range(2):
            with pytest.raises(ConnectionResetError):
                await wire.drain()
            wire.write(b"more")  # of which the next drain tells

    met(loop, server, client)
