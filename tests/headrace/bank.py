"""Running totals by key: an event that is lost, doubled or taken out of order shows in every output after it."""

from __future__ import annotations

import os
from datetime import datetime

import headrace as hr


class Payment(hr.Event, topic="payments", key="who", time="at", lateness="365d"):
    who: str
    amount: int
    at: datetime


class Account(hr.Features, of=Payment, by="who"):
    payments = hr.count("3650d")
    paid = hr.sum(hr.col.amount, "3650d")


app = hr.App(
    "bank",
    features=[Account],
    partitions=int(os.environ.get("BANK_PARTITIONS", "8")),
    standby=int(os.environ.get("BANK_STANDBY", "0")),
)
