"""Time as the broker sees it, so that tests can hold it still."""

import time
from typing import Protocol


class Clock(Protocol):
    def wall_ms(self) -> int:
        """Milliseconds since 1970: record timestamps, retention and what must survive a restart."""

    def monotonic_ms(self) -> int:
        """Milliseconds that never go back: sessions and rebalances."""


class SystemClock:
    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic_ms(self) -> int:
        return time.monotonic_ns() // 1_000_000
