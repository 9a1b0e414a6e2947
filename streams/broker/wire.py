"""One connection: what comes is put where it is wanted, and what goes is held back while nobody reads it.

asyncio's streams put large frames together from pieces, and copy each of them three times; that was a fifth of the time
of a large write, its client's part included.
"""

import asyncio
import mmap
from typing import TypeAlias, cast

Frame: TypeAlias = bytes | memoryview
"""Read-only."""

# Small frames are taken from here, and of a large one no more than this is copied.
_SMALL_BYTES = 16 * 1024
# What was decrypted cannot be left with the system: from here on the rest is held back, and lost where the connection
# ends then. As asyncio's streams.
_DECRYPTED_BYTES = 512 * 1024
# Zeros that are written would take long, and memory, for what may never come.
_LAZY_BYTES = 1024 * 1024


class Wire(asyncio.BufferedProtocol):
    """The protocol of a connection, which one task reads from and writes to."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._small = bytearray(_SMALL_BYTES)
        self._taken = self._come = 0
        """What lies between them in the small buffer has come, and was not asked for yet."""
        self._large: memoryview | None = None
        self._filled = 0
        self._full = self._dropping = False
        self._ended = self._lost = False
        self._unsent = False
        self._waiter: asyncio.Future[None] | None = None

    # As asyncio calls it.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._large is not None:
            return self._large[self._filled :]
        return memoryview(self._small)[self._come :]

    def buffer_updated(self, nbytes: int) -> None:
        if self._dropping:
            return
        if self._large is not None:
            self._filled += nbytes
            if self._filled < len(self._large):
                return
            self._large = None
        else:
            self._come += nbytes
            if self._come == len(self._small):
                self._make_room()
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

    # For the task.

    @property
    def transport(self) -> asyncio.Transport:
        assert self._transport is not None
        return self._transport

    @property
    def _secure(self) -> bool:
        return self.transport.get_extra_info("sslcontext") is not None

    async def peek(self, size: int) -> bytes:
        """The next bytes, which stay there; few of them. Raises as `read`."""
        if self._taken + size > len(self._small):
            left = self._small[self._taken : self._come]
            self._small[: len(left)] = left
            self._taken, self._come = 0, len(left)
        while self._come - self._taken < size:
            await self._more(size)
        return bytes(self._small[self._taken : self._taken + size])

    async def read(self, size: int) -> Frame:
        """So many bytes, read-only; a view of them where they are many.

        :raises asyncio.IncompleteReadError: where the connection ends before them.
        """
        if size <= len(self._small):
            found = await self.peek(size)
            self._taken += size
            if self._taken == self._come:
                self._forget()
            return found
        frame = bytearray(size) if size <= _LAZY_BYTES else mmap.mmap(-1, size)
        self._filled = self._come - self._taken
        frame[: self._filled] = self._small[self._taken : self._come]
        self._forget()
        self._large = memoryview(frame)
        while self._large is not None:
            await self._more(size)
        return memoryview(frame).toreadonly()

    def write(self, data: bytes | memoryview) -> None:
        if not self._lost:
            self.transport.write(memoryview(data))  # of which what is not taken at once is no copy

    async def drain(self) -> None:
        """Return once little of what was written is unsent. :raises OSError:"""
        while self._unsent and not self._lost:
            await self._woken()
        if self._lost:
            raise ConnectionResetError("the connection is closed")

    def close(self) -> None:
        """What was written is sent first; what still comes is dropped."""
        self._large, self._dropping = None, True
        self._forget()
        self._go_on()  # asyncio's TLS would never close what it holds back
        self.transport.close()

    def abort(self) -> None:
        self.transport.abort()

    async def _more(self, size: int) -> None:
        if self._ended:
            raise asyncio.IncompleteReadError(b"", size)
        self._go_on()
        await self._woken()

    def _make_room(self) -> None:
        """What a client sends before its last request is answered stays with the system, where it can."""
        if self._secure and len(self._small) < _DECRYPTED_BYTES:
            self._small = self._small + bytes(len(self._small))
        else:
            self._full = True
            self.transport.pause_reading()

    def _go_on(self) -> None:
        if self._full:
            self._full = False
            self.transport.resume_reading()

    def _forget(self) -> None:
        """Nothing that has come is left in the small buffer, which is small again."""
        self._taken = self._come = 0
        if len(self._small) > _SMALL_BYTES:
            self._small = bytearray(_SMALL_BYTES)

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
