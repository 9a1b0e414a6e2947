"""Outcomes in the order of their maturity.

An outcome is published as soon as it is known; learnt at once, positives would come early and negatives only at
the horizon, and the model would believe in a world that is not. So outcomes wait until they mature: prediction
time plus horizon, ties in the order of their publication.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
import numpy as np
from headrace.streams.batch import Batch, Change, Outputs, Rows
from headrace.streams.durations import micros
from headrace.streams.outcomes import Settled

_decode = msgspec.json.Decoder(Settled).decode


class Mature:
    """Holds outcomes of `outcomes.<model>` back until they mature; adds them to the batch as `mature.<model>`.

    Over several partitions each outcome lets mature what its own partition has left behind: the order is still one,
    that of the topic, but where one partition lags another its outcomes come after later ones.

    The stream's field `outcome` holds a `Settled` each, `seen` the offset after the record that let it mature.
    """

    def __init__(self, model: str) -> None:
        self.name = f"mature.{model}"
        self._topic = f"outcomes.{model}"
        self.clear()

    def clear(self) -> None:
        self._waiting: list[tuple[int, int, bytes]] = []
        self._touched: dict[int, bytes | None] = {}

    def load(self, rows: Iterable[tuple[bytes, bytes]]) -> None:
        for key, value in rows:
            heapq.heappush(self._waiting, (micros(_decode(value).matures), int.from_bytes(key, "big"), value))

    def changes(self) -> list[Change]:
        changes: list[Change] = [(offset.to_bytes(8, "big"), value) for offset, value in self._touched.items()]
        self._touched.clear()
        return changes

    def told(self, at: int) -> Iterator[dict[str, Any]]:
        """Each outcome that is not mature yet, the first to mature first."""
        for _, offset, value in sorted(self._waiting):
            yield {"offset": offset, "outcome": msgspec.Raw(value)}

    def process(self, batch: Batch, out: Outputs) -> None:
        rows = batch.streams.get(self._topic)
        if rows is None:
            return
        mature: list[Settled] = []
        seen: list[int] = []
        at: list[int] = []
        for i, offset, value in zip(rows.at.tolist(), rows.offset.tolist(), rows.fields["value"].tolist(), strict=True):
            for settled in self._take(offset, value):
                mature.append(settled)
                seen.append(offset + 1)
                at.append(i)
        column: Any = np.empty(len(mature), np.object_)
        column[:] = mature
        fields = {"outcome": column, "seen": np.array(seen, np.int64)}
        batch.streams[self.name] = Rows(at=np.array(at, np.int64), fields=fields, topic=self._topic)

    def _take(self, offset: int, value: bytes) -> list[Settled]:
        """The outcomes that this one lets mature, itself perhaps among them."""
        settled = _decode(value)
        heapq.heappush(self._waiting, (micros(settled.matures), offset, value))
        self._touched[offset] = value
        until = micros(settled.watermark)
        ready = []
        while self._waiting and self._waiting[0][0] <= until:
            _, old, waited = heapq.heappop(self._waiting)
            ready.append(_decode(waited))
            if old == offset:
                del self._touched[old]
            else:
                self._touched[old] = None
        return ready
