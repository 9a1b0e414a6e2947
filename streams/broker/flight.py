"""The bytes of requests and answers that all connections together have in memory."""

import asyncio
from collections import deque

_SMALL_BYTES = 64 * 1024
"""Requests up to this size never wait: heartbeats must come through whatever others send."""


class Flight:
    """Requests wait for room; answers take it, since they are made already, and later requests wait for them."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit = limit_bytes
        self.held = 0
        self.waited = 0
        """How often a request had to wait."""
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def room(self) -> int:
        return max(0, self.limit - self.held)

    def enter_at_once(self, size: int) -> bool:
        """Take room for a request before it is read, if there is any; whoever has entered leaves."""
        if size <= _SMALL_BYTES or (not self._waiting and self.held + size <= self.limit):
            self.held += size
            return True
        return False

    async def enter(self, size: int) -> None:
        """As `enter_at_once`, when there is room."""
        if self.enter_at_once(size):
            return
        self.waited += 1
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave(size)  # its turn had come
            else:
                self._waiting.remove((size, turn))
            raise

    def take(self, size: int) -> None:
        """Take room for an answer."""
        self.held += size

    def leave(self, size: int) -> None:
        self.held -= size
        # The largest frame is smaller than the bound, so the first in line always gets in when all have left.
        while self._waiting and self.held + self._waiting[0][0] <= self.limit:
            waiting, turn = self._waiting.popleft()
            if not turn.cancelled():
                self.held += waiting
                turn.set_result(None)
