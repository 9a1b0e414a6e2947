"""Outcomes in the order of their maturity.

An outcome is published as soon as it is known; learnt at once, positives would come early and negatives only at
the horizon, and the model would believe in a world that is not. So outcomes wait until they mature: prediction
time plus horizon, ties in the order of their publication.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from headrace.streams.batch import Batch, Change, Outputs, Rows
from headrace.streams.outcomecolumns import OutcomeColumns, Outcomes
from headrace.streams.spans import Spans
from numpy.typing import NDArray


@dataclass(slots=True, kw_only=True)
class MatureRows(Rows):
    """Outcomes that matured, in order. seen: int64[k], the offset after the record that let each one mature."""

    outcomes: Outcomes
    seen: NDArray[np.int64]


class Mature:
    """Holds outcomes of `outcomes.<model>` back until they mature; adds them to the batch as `mature.<model>`.

    Over several partitions each outcome lets mature what its own partition has left behind: the order is still one,
    that of the topic, but where one partition lags another its outcomes come after later ones.
    """

    def __init__(self, model: str, columns: OutcomeColumns | None = None) -> None:
        self.name = f"mature.{model}"
        self._topic = f"outcomes.{model}"
        self._columns = columns or OutcomeColumns()
        self.clear()

    def clear(self) -> None:
        self._waiting: list[tuple[int, int]] = []
        self._values: dict[int, bytes] = {}
        self._touched: dict[int, bytes | None] = {}

    def load(self, rows: Iterable[tuple[bytes, bytes]]) -> None:
        self._values = {int.from_bytes(key, "big"): value for key, value in rows}
        matures = self._columns.read(Spans.of(list(self._values.values()))).matures.tolist()
        self._waiting = sorted(zip(matures, self._values, strict=True))

    def changes(self) -> list[Change]:
        changes: list[Change] = [(offset.to_bytes(8, "big"), value) for offset, value in self._touched.items()]
        self._touched.clear()
        return changes

    def told(self, at: int) -> Iterator[dict[str, Any]]:
        """Each outcome that is not mature yet, the first to mature first."""
        for _, offset in sorted(self._waiting):
            yield {"offset": offset, "outcome": msgspec.Raw(self._values[offset])}

    def process(self, batch: Batch, out: Outputs) -> None:
        rows = batch.streams.get(self._topic)
        if rows is None:
            return
        new = self._columns.of(rows)
        order, by, waited = self._ripe(rows.offset.tolist(), new)
        outcomes = new
        if waited:
            outcomes = Outcomes.joined([new, self._columns.read(Spans.of(waited))])
        if waited or len(order) < len(new):
            outcomes = outcomes.take(np.array(order, np.int64))
        batch.streams[self.name] = MatureRows(
            at=rows.at[by], fields={}, topic=self._topic, outcomes=outcomes, seen=rows.offset[by] + 1
        )

    def _ripe(self, offsets: list[int], new: Outcomes) -> tuple[list[int], list[int], list[bytes]]:
        """What matures, in order: rows of the batch, then places among `waited`; the rows that let each; and what had
        waited for them.
        """
        order: list[int] = []
        by: list[int] = []
        waited: list[bytes] = []
        waiting, count = self._waiting, len(new)
        for row, (matures, until) in enumerate(zip(new.matures.tolist(), new.watermark.tolist(), strict=True)):
            if matures <= until and not (waiting and waiting[0][0] <= until):
                # Most mature at once, and with nothing else.
                order.append(row)
                by.append(row)
                continue
            offset = offsets[row]
            heapq.heappush(waiting, (matures, offset))
            self._values[offset] = new.values[row] or b""
            self._touched[offset] = self._values[offset]
            while waiting and waiting[0][0] <= until:
                _, old = heapq.heappop(waiting)
                value = self._values.pop(old)
                by.append(row)
                if old == offset:
                    order.append(row)
                    del self._touched[old]
                else:
                    order.append(count + len(waited))
                    waited.append(value)
                    self._touched[old] = None
        return order, by, waited
