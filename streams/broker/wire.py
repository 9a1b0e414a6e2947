"""The protocol of one connection: frames are handed on as soon as they are whole, answers go as they are taken.

A request is answered within the call that brought its last bytes, without a turn of the event loop or a switch of
tasks. Only what must wait (for records, for the disk, for room, for a client that does not read) is left to the task
of the connection.
"""

import asyncio
import struct
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias, cast

from .errors import BrokenOff, FrameMalformed
from .flight import Flight
from .limits import Limits
from .log import StoredBatch
from .writers import Piece

Handle: TypeAlias = Callable[[bytes], Awaitable[None] | None]
"""Answers a frame, for which room was taken and which gives it back; what it returns is awaited before the next."""

_LENGTH = struct.Struct(">i")
_API_KEY = struct.Struct(">h")
_PRODUCE = 0
# What a client sends before its last request is answered; the rest stays with the system. As asyncio's streams.
_AHEAD_BYTES = 512 * 1024
# A client that sends many requests ahead would else hold up all others until they are answered.
_FRAMES_OF_A_TURN = 16
_NEXT_BYTES = 16 * 1024


class Wire(asyncio.Protocol):
    """One task reads (`read`, then `serve`) and writes; it ends with `close`."""

    def __init__(self, limits: Limits, flight: Flight) -> None:
        self._limits = limits
        self._flight = flight
        self._parts: list[bytes] = []
        self._come = 0
        """The bytes of the parts, which were not taken yet."""
        self._length = 0
        """Of the frame that begins the parts, once it is known."""
        self._entered = False
        """Whether there is room for it."""
        self._need = _LENGTH.size
        """Fewer bytes are not looked at."""
        self._timer: asyncio.TimerHandle | None = None
        self._handle: Handle | None = None
        self._rest: Awaitable[None] | None = None
        self._failure: Exception | None = None
        self._busy = self._held_back = self._ended = self._lost = self._unsent = False
        self._waiter: asyncio.Future[None] | None = None

    # As asyncio calls it.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        # It tells when all is sent. Not 0, which TLS takes for always.
        self._transport.set_write_buffer_limits(high=1, low=0)
        self._socket: int = transport.get_extra_info("socket").fileno()
        self._secure = transport.get_extra_info("sslcontext") is not None

    def data_received(self, data: bytes) -> None:
        if self._transport.is_closing():
            return
        self._parts.append(data)
        self._come += len(data)
        if self._handle is not None and not self._busy:
            if self._come >= self._need:
                self._hand_on()
        else:
            if self._come > _AHEAD_BYTES and not self._held_back:
                self._held_back = True
                self._transport.pause_reading()
            self._wake()

    def eof_received(self) -> bool:
        self._ended = True
        self._wake()
        return not self._secure  # what was asked for is still answered; TLS knows no half of a connection

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended = self._lost = True
        self._wake()

    def pause_writing(self) -> None:
        self._unsent = True

    def resume_writing(self) -> None:
        self._unsent = False
        self._wake()

    # Frames.

    async def read(self, size: int) -> bytes:
        """So many bytes, before the connection is served. :raises asyncio.IncompleteReadError:"""
        while self._come < size:
            if self._ended:
                raise asyncio.IncompleteReadError(b"", size)
            self._go_on()
            await self._woken()
        data = b"".join(self._parts)
        self._leave(data[size:])
        return data[:size]

    async def serve(self, handle: Handle) -> None:
        """
        Give each frame to `handle`, until the connection ends.

        :raises asyncio.IncompleteReadError: when it does.
        :raises FrameMalformed: from a frame too large, or not whole in time; and whatever `handle` raises.
        """
        self._handle = handle
        self._hand_on()
        if not self._busy:
            self._go_on()
        while True:
            while not self._busy:
                if self._ended:
                    raise asyncio.IncompleteReadError(b"", self._need)
                try:
                    await self._woken()
                except asyncio.CancelledError:
                    task = asyncio.current_task()
                    if not self._busy or task is None:
                        raise
                    task.cancel()  # what has begun is cancelled where it waits
            if self._failure is not None:
                raise self._failure
            rest, self._rest = self._rest, None
            if rest is not None:
                await rest
            self._busy = False
            self._hand_on()
            if not self._busy:
                self._go_on()

    def _hand_on(self) -> None:
        """Have handled what has come whole, until something is to be awaited."""
        data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        at = 0
        try:
            for _ in range(_FRAMES_OF_A_TURN):
                at, frame = self._next(data, at)
                if frame is not None:
                    assert self._handle is not None
                    self._rest = self._handle(frame)
                    del frame
                    self._busy = self._rest is not None
                elif not self._busy:
                    break
                if self._busy:
                    break
            else:
                self._busy, self._rest = True, asyncio.sleep(0)
        except Exception as error:
            self._fail(error)
        self._leave(data[at:])
        if self._busy:
            self._wake()

    def _next(self, data: bytes, at: int) -> tuple[int, bytes | None]:
        """The frame that begins at `at`, and where the next one does; or none, as long as it is not whole."""
        here = len(data) - at
        if not self._length:
            if here < _LENGTH.size:
                self._need = _LENGTH.size
                return at, None
            (length,) = _LENGTH.unpack_from(data, at)
            if not 0 < length <= self._limits.frame_bytes:
                raise FrameMalformed(f"A frame of {length} bytes; 1 to {self._limits.frame_bytes} are taken.")
            at, here, self._length = at + _LENGTH.size, here - _LENGTH.size, length
            self._entered = self._flight.enter_at_once(length)
            if not self._entered:
                self._busy, self._rest = True, self._wait_for_room(length)
                return at, None
        if self._length > self._limits.request_bytes and here >= _API_KEY.size:
            self._check_large(*_API_KEY.unpack_from(data, at))
        if here < self._length:
            self._need = _API_KEY.size if here < _API_KEY.size else self._length
            if self._timer is None:
                loop = asyncio.get_running_loop()
                self._timer = loop.call_later(self._limits.frame_ms / 1000, self._late, self._length)
            return at, None
        end = at + self._length
        self._length, self._entered, self._need = 0, False, _LENGTH.size
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return end, data[at:end]

    def _check_large(self, api_key: int) -> None:
        """A large frame is taken only where it is records that are large."""
        if api_key != _PRODUCE:
            raise FrameMalformed(
                f"A request of {self._length} bytes; {self._limits.request_bytes} are taken, but of records."
            )

    async def _wait_for_room(self, length: int) -> None:
        await self._flight.enter(length)
        self._entered = True

    def _late(self, length: int) -> None:
        self._fail(FrameMalformed(f"A frame of {length} bytes was not whole after {self._limits.frame_ms} ms."))

    def _fail(self, error: Exception) -> None:
        self._failure, self._busy = error, True
        self._wake()

    def _leave(self, data: bytes) -> None:
        self._parts = [data] if data else []
        self._come = len(data)

    def _go_on(self) -> None:
        if self._held_back and not self._transport.is_closing():
            self._held_back = False
            self._transport.resume_reading()

    # Answers.

    def send(self, answer: Sequence[Piece]) -> Awaitable[None] | None:
        """
        Send an answer; what is to be awaited until it is sent, but for `unsent_bytes` of it.

        :raises BrokenOff: when the answer cannot be ended, or a piece is not taken in time.
        :raises ConnectionResetError: when the connection is closed.
        """
        for number, piece in enumerate(answer):
            if not isinstance(piece, bytes):
                return self._send(answer[number:])
            self._write(piece)
            if self._full:
                return self._send(answer[number + 1 :])
        return None

    async def _send(self, answer: Sequence[Piece]) -> None:
        for piece in answer:
            if self._full:
                await self._all_sent()
            if isinstance(piece, bytes):
                self._write(piece)
            elif self._secure:
                self._write(piece.read())
            else:
                await self._send_stored(piece)
        if self._full:
            await self._all_sent()

    async def _send_stored(self, batch: StoredBatch) -> None:
        """From its file to the socket without a copy of it, as far as that goes; the rest by a copy."""
        at = 0
        while at < len(batch):
            if self._unsent:
                await self._all_sent()
            at += 0 if self._transport.is_closing() else batch.send(at, self._socket)
            if at == len(batch):
                return
            # The socket is full. The loop tells when it no longer is, but only of what it was given itself.
            data = batch.part(at, _NEXT_BYTES) or batch.read(at)
            self._write(data)
            at += len(data)

    @property
    def _full(self) -> bool:
        """Whether a client has read too little for more to be written."""
        return self._unsent and self._transport.get_write_buffer_size() > self._limits.unsent_bytes

    def _write(self, data: bytes) -> None:
        if self._lost or self._transport.is_closing():
            raise ConnectionResetError("The connection is closed.")
        self._transport.write(data)

    async def _all_sent(self) -> None:
        """Return when all that was written is sent. Raises as `send`."""
        left = self._transport.get_write_buffer_size()
        try:
            async with asyncio.timeout(self._limits.answer_ms / 1000):
                while self._unsent and not self._lost:
                    await self._woken()
        except TimeoutError:
            self._transport.abort()  # to be closed in order, it would wait until all is taken
            raise BrokenOff(f"{left} bytes of an answer were not read in {self._limits.answer_ms} ms.") from None
        if self._lost:
            raise ConnectionResetError("The connection is closed.")

    def close(self) -> None:
        """What was written is sent first; what still comes is dropped."""
        if self._timer is not None:
            self._timer.cancel()
        if self._entered:
            self._entered = False
            self._flight.leave(self._length)
        self._handle = self._failure = None
        self._leave(b"")
        self._go_on()  # asyncio's TLS would never close what it holds back
        self._transport.close()

    async def _woken(self) -> None:
        assert self._waiter is None, "one task reads and writes"
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
