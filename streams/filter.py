"""What has certainly not been noted: a filter of a few bits a name, for what would be looked for on disk in vain."""

from __future__ import annotations

import numpy as np
from headrace.streams import bytekernels
from headrace.streams.index import Ints
from headrace.streams.spans import Spans
from numpy.typing import NDArray

FIRST_LAYER = 2_048
"""Names of the first layer; each further one takes twice as many as the one before, and all of them are asked."""

BYTES_A_NAME = 2
"""With six bits set of sixteen, a layer takes some two in a thousand for noted ones that were not."""


class Filter:
    """A Bloom filter whose bits of one name lie in one line of the processor's cache (Putze, Sanders, Singler: WEA
    2007), in layers, so that it grows with what is noted."""

    def __init__(self) -> None:
        self._layers: list[NDArray[np.uint8]] = []
        self._room = 0

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(layer.nbytes for layer in self._layers)

    def note(self, names: Spans) -> None:
        hashes = _hashes(names)
        while len(hashes):
            if not self._room:
                self._room = FIRST_LAYER << len(self._layers)
                blocks = self._room * BYTES_A_NAME // bytekernels.BLOCK
                self._layers.append(np.zeros(blocks * bytekernels.BLOCK, np.uint8))
            some, hashes = hashes[: self._room], hashes[self._room :]
            bytekernels.note(some, self._layers[-1])
            self._room -= len(some)

    def may_hold(self, names: Spans) -> NDArray[np.bool_]:
        """Of each name, whether it may have been noted."""
        hashes, found = _hashes(names), np.zeros(len(names), np.uint8)
        for layer in self._layers:
            bytekernels.noted(hashes, layer, found)
        return found.astype(np.bool_)


def _hashes(names: Spans) -> Ints:
    found = np.empty(len(names), np.int64)
    bytekernels.hashes(names.data, names.start, names.length, found)
    return found
