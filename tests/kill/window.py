"""The window job: what each sensor tells within a minute, as of each event and once the minute is over."""

from datetime import datetime

import headrace as hr


class Tick(hr.Event, topic="ticks", key="sensor", time="at", out_of_orderness="5s", lateness="30s"):
    sensor: str
    amount: int
    level: float
    at: datetime


class SoFar(hr.Features, of=Tick, by="sensor"):
    ticks = hr.count(hr.tumbling("60s"))
    amount = hr.sum(hr.col.amount, hr.tumbling("60s"))
    level = hr.sum(hr.col.level, hr.tumbling("60s"))
    highest = hr.max(hr.col.level, hr.tumbling("60s"))


class PerMinute(hr.Features, of=Tick, by="sensor", window=hr.tumbling("60s")):
    ticks = hr.count()
    amount = hr.sum(hr.col.amount)
    level = hr.sum(hr.col.level)
    highest = hr.max(hr.col.level)


app = hr.App("window", features=[SoFar, PerMinute], partitions=8)
