"""The smallest operator with state: a running total per key, one output per event."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

import msgspec
from headrace.streams.batch import Batch, Change, Outputs, Record
from headrace.streams.event import Event
from headrace.streams.inputs import Input, Source
from headrace.streams.jsoncodec import codec
from headrace.streams.log import Partition
from headrace.streams.store import Store
from headrace.streams.task import Task


class Payment(Event, topic="payments", key="who", time="at", out_of_orderness="2s", lateness="3s"):
    who: str
    amount: int
    at: datetime


class Refund(Event, topic="refunds", key="who", time="at"):
    who: str
    amount: int
    at: datetime


class Totals:
    """Payments add, refunds subtract; every row says the total after it. A total of 0 is not kept."""

    name = "totals"

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.totals: dict[str, int] = {}
        self._touched: set[str] = set()

    def load(self, rows: Iterable[tuple[bytes, bytes]]) -> None:
        self.totals = {key.decode(): int(value) for key, value in rows}

    def changes(self) -> list[Change]:
        changed: list[Change] = []
        for who in sorted(self._touched):
            changed.append((who.encode(), b"%d" % self.totals[who] if who in self.totals else None))
        self._touched.clear()
        return changed

    def process(self, batch: Batch, out: Outputs) -> None:
        rows = []
        for topic, sign in (("payments", 1), ("refunds", -1)):
            part = batch.streams.get(topic)
            if part is not None:
                for i, at in enumerate(part.at.tolist()):
                    rows.append((at, part.fields["who"][i], sign * int(part.fields["amount"][i]), part.event_id(i)))
        for _, who, amount, event in sorted(rows):
            total = self.totals.pop(who, 0) + amount
            if total:
                self.totals[who] = total
            self._touched.add(who)
            out.append(Record("totals", who.encode(), msgspec.json.encode([event, total])))


def task(store: Store, number: int = 0) -> Task:
    inputs = [
        Input(
            Source(
                e.contract.topic,
                codec(e),
                e.contract.out_of_orderness,
                e.contract.lateness,
                f"{e.contract.topic}.rejected",
                f"{e.contract.topic}.late",
            ),
            Partition(e.contract.topic, number),
        )
        for e in (Payment, Refund)
    ]
    return Task("totals", number, inputs, [Totals()], store, Partition("totals.changelog", number))
