"""A connection's bytes arrive in any pieces, in clear and by TLS, on both event loops, and frames come out whole."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import ssl
import struct
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from typing import Any, cast

import pytest
import uvloop
from headrace.streams.broker import Limits
from headrace.streams.broker.flight import Flight
from headrace.streams.broker.log import PartitionLog, StoredBatch
from headrace.streams.broker.wire import _AHEAD_BYTES, _FRAMES_OF_A_TURN, Wire

from tests.scene import eventually
from tests.secured import certificates

LENGTH = struct.Struct(">i")
SIZES = [1, 2, 3, 4, 5, 100, 65_536, 262_140, 262_144, 600_000, 1_300_000]
LOOPS = {"asyncio": asyncio.run, "uvloop": uvloop.run}
# Large frames that hold no records are refused.
LIMITS = replace(Limits(), request_bytes=1 << 30)

Client = Callable[[socket.socket], None]
Server = Callable[[Wire], Awaitable[None]]
Contexts = tuple[ssl.SSLContext, ssl.SSLContext]


def met(loop: str, server: Server, client: Client, tls: Contexts | None = None) -> Flight:
    """A server's task and a client's thread, over a connection of their own. Raises what either of them fails with."""
    failed: list[BaseException] = []
    flight = Flight(LIMITS.inflight_bytes)

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
            wire = Wire(LIMITS, flight)
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
    return flight


async def served(wire: Wire, handle: Callable[[bytes], Awaitable[None] | None]) -> None:
    """Until the client ends. Like the broker, `handle` gives back the room of each frame."""

    def handled(frame: bytes) -> Awaitable[None] | None:
        wire._flight.leave(len(frame))
        return handle(frame)

    with pytest.raises(asyncio.IncompleteReadError):
        await wire.serve(handled)


def received(sock: socket.socket, size: int) -> bytes:
    found = bytearray()
    while len(found) < size:
        part = sock.recv(size - len(found))
        assert part, "the connection ended"
        found += part
    return bytes(found)


def framed(*frames: bytes) -> bytes:
    return b"".join(LENGTH.pack(len(frame)) + frame for frame in frames)


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> Contexts:
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
    loop: str, secure: bool, seed: int, contexts: Contexts
) -> None:
    chance = random.Random(seed)
    first = chance.randbytes(100)
    frames = [chance.randbytes(chance.choice(SIZES)) for _ in range(60)]
    slow = chance.random() < 0.5
    found = []

    def client(sock: socket.socket) -> None:
        data = first + framed(*frames)
        at = 0
        while at < len(data):
            size = chance.choice([1, 3, 700, 16_384, 200_000])
            sock.sendall(data[at : at + size])
            at += size
        assert received(sock, 4) == b"done"

    async def server(wire: Wire) -> None:
        def handle(frame: bytes) -> Awaitable[None] | None:
            found.append(frame)
            if len(found) == len(frames):
                return wire.send([b"done"])
            return asyncio.sleep(0.002) if slow else None  # more comes than is asked for

        assert await wire.read(40) + await wire.read(60) == first
        await served(wire, handle)

    flight = met(loop, server, client, contexts if secure else None)
    assert found == frames
    assert flight.held == 0


@pytest.mark.parametrize("loop", LOOPS)
def test_what_is_sent_ahead_is_handled_one_at_a_time_in_order_and_beyond_a_bound_left_with_the_system(
    loop: str,
) -> None:
    frames = [struct.pack(">i", n) + bytes(10_000) for n in range(1_000)]
    found: list[int] = []
    ahead: list[int] = []
    turns: list[int] = []

    def client(sock: socket.socket) -> None:
        sock.sendall(framed(*frames))

    async def server(wire: Wire) -> None:
        async def wait() -> None:
            await asyncio.sleep(0.2)
            ahead.append(wire._come)

        def handle(frame: bytes) -> Awaitable[None] | None:
            found.append(int.from_bytes(frame[:4]))
            turns.append(0)
            return wait() if found[-1] % 500 == 0 else None

        async def watch() -> None:
            while True:
                await asyncio.sleep(0)
                if turns:
                    assert len(turns) <= 4 * _FRAMES_OF_A_TURN
                    turns.clear()

        watching = asyncio.create_task(watch())
        await served(wire, handle)
        assert not watching.done()
        watching.cancel()

    met(loop, server, client)
    assert found == list(range(1_000))
    assert max(ahead) <= _AHEAD_BYTES + 256 * 1024


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("size", [1, 100, 300_000])
def test_a_connection_that_ends_within_a_frame_is_told_and_its_room_given_back(loop: str, size: int) -> None:
    found = []

    def client(sock: socket.socket) -> None:
        sock.sendall(framed(b"four") + framed(bytes(size))[:-1])

    async def server(wire: Wire) -> None:
        await served(wire, lambda frame: found.append(frame))

    assert met(loop, server, client).held == 0
    assert found == [b"four"]


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("secure", [False, True])
def test_what_came_before_a_connection_ended_in_order_is_all_there(loop: str, secure: bool, contexts: Contexts) -> None:
    found = []

    def client(sock: socket.socket) -> None:
        sock.sendall(framed(*[bytes(10_000)] * 20))
        if isinstance(sock, ssl.SSLSocket):
            sock.setblocking(False)
            with contextlib.suppress(ssl.SSLWantReadError):
                sock.unwrap()  # says goodbye, and goes without an answer

    async def server(wire: Wire) -> None:
        time.sleep(0.3)  # noqa: ASYNC251  # held up, and then all of it and the end come at once
        await served(wire, lambda frame: found.append(frame))

    met(loop, server, client, contexts if secure else None)
    assert found == [bytes(10_000)] * 20


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("secure", [False, True])
def test_a_connection_of_which_not_all_was_read_is_closed(loop: str, secure: bool, contexts: Contexts) -> None:
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
        sock.sendall(framed(b"ask"))
        sock.shutdown(socket.SHUT_WR)
        assert len(received(sock, 400_000)) == 400_000

    async def server(wire: Wire) -> None:
        async def answer() -> None:
            await asyncio.sleep(0.1)
            rest = wire.send([bytes(400_000)])
            if rest is not None:
                await rest

        await served(wire, lambda _: answer())

    met(loop, server, client)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("secure", [False, True])
def test_what_nobody_reads_is_held_back_and_an_end_is_told_to_who_waits(
    loop: str, secure: bool, contexts: Contexts
) -> None:
    going = threading.Event()

    def client(sock: socket.socket) -> None:
        sock.sendall(b"ask")
        assert going.wait(20)

    async def server(wire: Wire) -> None:
        assert await wire.read(3) == b"ask"

        async def write() -> None:
            while True:
                rest = wire.send([bytes(1_000_000)])
                if rest is not None:
                    await rest

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(write(), 0.5)
        assert wire._transport.get_write_buffer_size() < 3_000_000
        going.set()
        with pytest.raises(ConnectionResetError):
            await write()
        with pytest.raises(ConnectionResetError):
            wire.send([b"more"])

    met(loop, server, client, contexts if secure else None)


@pytest.mark.parametrize("loop", LOOPS)
def test_what_has_begun_when_the_task_is_cancelled_is_cancelled_where_it_waits(loop: str) -> None:
    told = []

    def client(sock: socket.socket) -> None:
        sock.sendall(framed(b"ask"))
        assert sock.recv(1) == b""

    async def server(wire: Wire) -> None:
        async def begin() -> None:
            try:
                await asyncio.sleep(20)
            finally:
                told.append("ended")

        def handle(_: bytes) -> Awaitable[None]:
            task.cancel()  # when the frame has come, and the task does not know yet
            return begin()

        task = asyncio.create_task(wire.serve(handle))
        await asyncio.wait([task])
        assert task.cancelled()

    met(loop, server, client)
    assert told == ["ended"]


class OfFile:
    """What a partition's log does for its stored batches."""

    def __init__(self, file: int, knows: bool) -> None:
        self.file = file
        self.knows = knows
        self.sent: list[int] = []

    def send_stored(self, value: bytes, begun: int, to: int) -> int:
        at, size = struct.unpack(">ii", value)
        with contextlib.suppress(BlockingIOError):
            self.sent.append(os.sendfile(to, self.file, at + begun, size - begun))
            return self.sent[-1]
        return 0

    def part_of_stored(self, value: bytes, begun: int, most: int) -> bytes:
        at, size = struct.unpack(">ii", value)
        return os.pread(self.file, min(most, size - begun), at + begun) if self.knows else b""

    def read_stored(self, _: int, value: bytes, begun: int) -> bytes:
        at, size = struct.unpack(">ii", value)
        return os.pread(self.file, size, at)[begun:]


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize(("secure", "knows"), [(False, True), (False, False), (True, True)])
def test_batches_go_from_their_file_in_order_with_what_lies_between_however_slowly_they_are_read(
    loop: str, secure: bool, knows: bool, contexts: Contexts
) -> None:
    data = random.Random(1).randbytes(20_000_000)
    pieces: list[bytes | tuple[int, int]] = []
    at = 0
    for number in range(38):
        pieces += [b"between %d" % number, (at, 500_000 + number)]
        at += 500_000 + number
    wanted = b"".join(piece if isinstance(piece, bytes) else data[piece[0] : sum(piece)] for piece in pieces)

    def client(sock: socket.socket) -> None:
        sock.sendall(framed(b"ask"))
        found = b""
        while len(found) < len(wanted):
            found += received(sock, min(len(wanted) - len(found), 700_000))
            time.sleep(0.005)
        assert found == wanted

    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        log = OfFile(file.fileno(), knows)

        async def server(wire: Wire) -> None:
            def stored(at: int, size: int) -> StoredBatch:
                return StoredBatch(cast(PartitionLog, log), 0, struct.pack(">ii", at, size), size)

            answer = [piece if isinstance(piece, bytes) else stored(*piece) for piece in pieces]
            await served(wire, lambda _: wire.send(answer))

        met(loop, server, client, contexts if secure else None)
    assert bool(log.sent) is not secure
    if not secure:
        assert min(log.sent) < 500_000, "some were taken in part"
