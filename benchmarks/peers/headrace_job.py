"""The window job by Headrace: a program for `headrace worker`, as a user writes it.

PARTITIONS of the environment is the app's.
"""

import os

import headrace as hr


class Payment(hr.Event, topic="payments", key="user", time="ts"):
    user: str
    ts: int
    amount: float
    item: str


class PerMinute(hr.Features, of=Payment, by="user"):
    count = hr.count(hr.tumbling("60s"))
    sum = hr.sum(hr.col.amount, hr.tumbling("60s"))


app = hr.App("window", features=[PerMinute], partitions=int(os.environ.get("PARTITIONS", "4")))
