"""The memory of hot state: a bound in bytes that the operators of one process share.

What is hot is a cache above the store, so what is left to the store costs time and never a result.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol

from headrace.streams.errors import BadSetting

DEFAULT = "1GB"
"""A worker's bound where none is set: its tasks beside a few others on a machine of 4 GB."""

SHARE_KEPT = 0.75
"""Of the bound, what is kept once it is passed: looking for who leaves costs in proportion to all who are there, so
many leave at once."""

_UNITS = {"": 1, "B": 1, "KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30, "TB": 1 << 40}


def parse_size(text: str) -> int:
    """Bytes, as a setting writes them.

    >>> parse_size("512MB")
    536870912

    Raises BadSetting where the text is not a number with B, KB, MB, GB or TB (each 1,024 times the one before).
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?) *([KMGT]?B)?", text.strip().upper())
    if found is None or not float(found[1]):
        raise BadSetting(f'{text!r} is not a size of memory: write "512MB" or "2GB"')
    return int(float(found[1]) * _UNITS[found[2] or ""])


@dataclass(slots=True)
class Residence:
    """What is hot of a task's state, and how often it was there when it was needed.

    size:      bytes, about
    entities:  entities whose rows are hot
    hits:      rows whose entity was hot
    misses:    entities looked for in the store
    evictions: entities left to the store
    """

    size: int = 0
    entities: int = 0
    hits: int = 0
    misses: int = 0
    evictions: int = 0

    def __add__(self, other: Residence) -> Residence:
        return Residence(
            self.size + other.size,
            self.entities + other.entities,
            self.hits + other.hits,
            self.misses + other.misses,
            self.evictions + other.evictions,
        )


class Holder(Protocol):
    """An operator with hot state. clean: whether the store has all of it, so that some may leave."""

    @property
    def clean(self) -> bool: ...

    @property
    def size(self) -> int: ...

    def shrink(self, size: int) -> None:
        """Leave the least recently used to the store, until so many bytes are left, or nothing that can leave."""


class Memory:
    """The bound that holders share. limit: bytes; None: none.

    What a batch touches is held beside it until it is committed; what cannot leave (open windows, texts that entities
    share) counts, and stays.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self._held: dict[Holder, int] = {}

    @property
    def size(self) -> int:
        """Bytes that are held, as of each holder's last commit."""
        return sum(self._held.values())

    def settle(self, holder: Holder) -> None:
        """Note what a holder has now that all of it is stored; past the bound the largest holders shrink."""
        self._held[holder] = holder.size
        if self.limit is None or self.size <= self.limit:
            return
        target = int(self.limit * SHARE_KEPT)
        for one in sorted(self._held, key=self._held.__getitem__, reverse=True):
            over = self.size - target
            if over <= 0:
                return
            if one.clean:
                one.shrink(max(0, self._held[one] - over))
                self._held[one] = one.size

    def leave(self, holder: Holder) -> None:
        """Forget a holder that has thrown its state away."""
        self._held.pop(holder, None)
