"""One connection: what comes is put where it is wanted, and what goes is held back while nobody reads it.

asyncio's streams put large frames together from pieces, and copy each of them three times; that took longer than all
else that is done with a large batch.
"""

import asyncio
from typing import TypeAlias, cast

Frame: TypeAlias = bytes | memoryview
"""Read-only."""

# Small frames are taken from here, and of a large one no more than this is copied.
_SMALL_BYTES = 16 * 1024


class Wire(asyncio.BufferedProtocol):
    """The protocol of a connection, which one task reads from and writes to."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._small = bytearray(_SMALL_BYTES)
        self._taken = self._come = 0
        """What lies between them in the small buffer has come, and was not asked for yet."""
        self._large: memoryview | None = None
        self._filled = 0
        self._full = False
        self._ended = False
        self._lost: Exception | None = None
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
        if self._large is not None:
            self._filled += nbytes
            if self._filled < len(self._large):
                return
            self._large = None
        else:
            self._come += nbytes
        self._hold_if_full()
        self._wake()

    def eof_received(self) -> bool:
        self._ended = True
        self._wake()
        # What was asked for is still answered; TLS knows no half of a connection.
        return self.transport.get_extra_info("sslcontext") is None

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended = True
        self._lost = exc or ConnectionResetError("the connection is closed")
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
                self._taken = self._come = 0
            return found
        frame = bytearray(size)
        self._filled = self._come - self._taken
        frame[: self._filled] = self._small[self._taken : self._come]
        self._taken = self._come = 0
        self._large = memoryview(frame)
        while self._large is not None:
            await self._more(size)
        return memoryview(frame).toreadonly()

    def write(self, data: bytes | memoryview) -> None:
        self.transport.write(memoryview(data))  # of which what is not taken at once is no copy

    async def drain(self) -> None:
        """Return once little of what was written is unsent. :raises OSError:"""
        while self._unsent and self._lost is None:
            await self._woken()
        if self._lost is not None:
            raise self._lost

    def close(self) -> None:
        """What was written is sent first."""
        self.transport.close()

    def abort(self) -> None:
        self.transport.abort()

    async def _more(self, size: int) -> None:
        if self._ended:
            raise asyncio.IncompleteReadError(b"", size)
        if self._full:
            self._full = False
            self.transport.resume_reading()
        await self._woken()

    def _hold_if_full(self) -> None:
        """What a client sends before its last request is answered stays with the system, beyond the small buffer."""
        if self._large is None and self._come == len(self._small) and not self._full:
            self._full = True
            self.transport.pause_reading()

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
