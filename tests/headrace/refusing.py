"""A program over a JSON and a MessagePack topic, to be fed with what breaks their contracts."""

from __future__ import annotations

from datetime import datetime

import headrace as hr


class Line(hr.Event, topic="lines", key="who", time="at"):
    who: str
    n: int
    x: float
    at: datetime


class Tick(hr.Event, topic="ticks", key="who", time="at", codec="msgpack"):
    who: str
    n: int
    x: float
    at: datetime


class Lines(hr.Features, of=Line, by="who"):
    total = hr.sum(hr.col.n)


class Ticks(hr.Features, of=Tick, by="who"):
    total = hr.sum(hr.col.n)


app = hr.App("refusing", features=[Lines, Ticks])
