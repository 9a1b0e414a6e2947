"""The time rules of a task's inputs: watermark, lateness, idleness, and times that are refused."""

from __future__ import annotations

import json
from datetime import datetime

import pytest
from headrace.streams.event import Event
from headrace.streams.inputs import WAKE

from .stage import DAY, Seen, Stage, moment

MS = 0.001


class Ping(Event, topic="pings", key="who", time="at", out_of_orderness="2s", lateness="3s"):
    who: str
    at: datetime


class Pong(Event, topic="pongs", key="who", time="at"):
    who: str
    at: datetime


class Tick(Event, topic="ticks", key="who", time="at"):
    who: str
    at: int


def ping(second: float) -> dict[str, str]:
    return {"who": "a", "at": moment(second)}


def times(stage: Stage, topic: str) -> list[str]:
    return [json.loads(record.value or b"")["at"] for record in stage.made(topic)]


ONE_INPUT = [
    ("the watermark is the greatest time seen less the out-of-orderness", [10, 20], [(10, 8), (20, 18)], []),
    ("it does not go back within a batch", [10, 9, 8, 11], [(10, 8), (9, 8), (8, 8), (11, 9)], []),
    ("events of one time are all in time", [10, 10, 10], [(10, 8), (10, 8), (10, 8)], []),
    ("an event on the watermark is in time", [10, 8], [(10, 8), (8, 8)], []),
    ("an event behind it, exactly at lateness, is taken", [10, 5], [(10, 8), (5, 8)], []),
    ("a microsecond later it is late", [10, 4.999999], [(10, 8)], [4.999999]),
    ("a late event does not move the watermark", [10, 1, 5, 12], [(10, 8), (5, 8), (12, 10)], [1]),
    ("late is judged by what came before", [10, 1, 30, 26, 24], [(10, 8), (30, 28), (26, 28)], [1, 24]),
    ("the first event is never late", [0], [(0, -2)], []),
]


@pytest.mark.parametrize(("seconds", "taken", "late"), [c[1:] for c in ONE_INPUT], ids=[c[0] for c in ONE_INPUT])
@pytest.mark.parametrize("limits", [(1000,), (1,), (2, 1)], ids=["one batch", "batches of one", "cut"])
@pytest.mark.parametrize("restart", [False, True], ids=["", "restarted"])
def test_the_time_rule_of_an_input(
    seconds: list[float], taken: list[tuple[float, float]], late: list[float], limits: tuple[int, ...], restart: bool
) -> None:
    seen = Seen()
    stage = Stage([Ping], lambda: [seen])
    for second in seconds:
        stage.publish(Ping, ping(second))
    stage.drain(limits, restart)
    assert seen.rows == taken
    assert times(stage, "pings.late") == [moment(second) for second in late]


def test_a_late_event_carries_its_reason_its_place_and_its_bytes() -> None:
    stage = Stage([Ping], list)
    odd = b'{"at":  "%s" ,"who":"a"}' % moment(1).encode()
    stage.publish(Ping, ping(10))
    stage.publish(Ping, odd)
    [record] = stage.drain()
    assert (record.topic, record.value) == ("pings.late", odd)
    assert dict(record.headers) == {
        "reason": b"later than the watermark and the allowed lateness",
        "topic": b"pings", "partition": b"0", "offset": b"1",
    }  # fmt: skip


# Several inputs: "i" is a ping, "o" a pong.

TWO_INPUTS = [
    ("rows are taken in the order of their times", "i1 i4 o2 o3", "i1 o2 o3 i4"),
    ("at one time the first input goes first", "o1 i1 o2 i2", "i1 o1 i2 o2"),
    ("a row out of order goes with the greatest time before it", "i5 i3 o4 o6", "o4 i5 i3 o6"),
    ("an input without rows holds nothing back once it is idle", "i1 i2", "i1 i2"),
]


@pytest.mark.parametrize(("told", "wanted"), [c[1:] for c in TWO_INPUTS], ids=[c[0] for c in TWO_INPUTS])
@pytest.mark.parametrize("limits", [(1000,), (1,)], ids=["one batch", "batches of one"])
def test_several_inputs_are_merged_by_time(told: str, wanted: str, limits: tuple[int, ...]) -> None:
    seen = Seen()
    stage = Stage([Ping, Pong], lambda: [seen])
    for one in told.split():
        stage.publish(Ping if one[0] == "i" else Pong, ping(int(one[1:])))
    stage.drain(limits)
    assert [time for time, _ in seen.rows] == [int(one[1:]) for one in wanted.split()]


def test_an_empty_input_holds_later_rows_back_until_it_is_idle() -> None:
    seen = Seen()
    stage = Stage([Ping, Pong], lambda: [seen])
    stage.publish(Ping, ping(1))
    stage.publish(Pong, ping(2))
    stage.publish(Pong, ping(9))
    stage.feed()
    stage.step()
    assert [time for time, _ in seen.rows] == [1]
    stage.step(idle=[0])
    assert [time for time, _ in seen.rows] == [1, 2, 9]


def test_an_input_that_was_idle_is_late_by_the_watermark_of_the_task() -> None:
    seen = Seen()
    stage = Stage([Ping, Pong], lambda: [seen])
    stage.publish(Ping, ping(1))
    stage.publish(Pong, ping(20))
    stage.drain()
    for second in (14.999, 15, 18):
        stage.publish(Ping, ping(second))
    stage.drain()
    assert seen.rows == [(1, -1), (20, 18), (15, 18), (18, 18)]
    assert times(stage, "pings.late") == [moment(14.999)]


def test_an_input_whose_events_are_in_no_closed_window_may_wake_behind_the_watermark() -> None:
    seen = Seen()
    stage = Stage([Ping, Pong], lambda: [seen], WAKE)
    stage.publish(Pong, ping(2 * DAY))
    stage.drain()
    edge = DAY - 2 - 3  # pings may be 2 s out of order, which holds the watermark back, and 3 s late
    for second in (edge - MS, edge, DAY - 1):
        stage.publish(Ping, ping(second))
    stage.drain()
    assert seen.rows == [(at, 2 * DAY - 2) for at in (2 * DAY, edge, DAY - 1)]
    assert times(stage, "pings.late") == [moment(edge - MS)]


def test_an_input_that_is_slower_but_not_idle_is_not_late() -> None:
    seen = Seen()
    stage = Stage([Ping, Pong], lambda: [seen])
    for second in (1, 2, 30):
        stage.publish(Ping, ping(second))
    for second in (28, 29, 31):
        stage.publish(Pong, ping(second))
    stage.drain((1,))
    assert [time for time, _ in seen.rows] == [1, 2, 28, 29, 30, 31]
    assert stage.records == []


# Times that are refused. (the time, when it was published in seconds after START, the reason or None)

REFUSED = [
    ("1900-01-01T00:00:00Z", 0, "the event time 1900-01-01T00:00:00+00:00 is before 1970"),
    ("1969-12-31T23:59:59.999999Z", 0, "the event time 1969-12-31T23:59:59.999999+00:00 is before 1970"),
    ("1970-01-01T00:00:00Z", 0, None),
    ("1970-01-01T00:59:59+01:00", 0, "the event time 1969-12-31T23:59:59+00:00 is before 1970"),
    (moment(DAY), 0, None),
    (moment(DAY + MS), 0, "lies too far ahead of when it was published"),
    ("2100-01-01T00:00:00Z", 77 * 365.25 * DAY, None),
    ("2100-01-01T00:00:00.000001Z", 77 * 365.25 * DAY, "lies too far ahead"),
    ("2200-01-01T00:00:00Z", 200 * 365 * DAY, "lies too far ahead"),
    ("2023-11-14T22:13:20", 0, "has no zone; write 2023-11-14T22:13:20Z"),
    ("2023-11-14", 0, "Invalid RFC3339"),
    ("2023-02-29T00:00:00Z", 0, "Invalid RFC3339"),
    ("", 0, "Invalid RFC3339"),
]


@pytest.mark.parametrize(("time", "published", "reason"), REFUSED, ids=[c[0] or "empty" for c in REFUSED])
def test_a_time_is_taken_or_refused_with_its_reason(time: str, published: float, reason: str | None) -> None:
    stage = Stage([Pong], list)
    value = json.dumps({"who": "a", "at": time}).encode()
    stage.publish(Pong, value, published)
    records = stage.drain()
    if reason is None:
        assert records == []
        return
    [record] = records
    headers = dict(record.headers)
    assert (record.topic, record.value, headers["field"]) == ("pongs.rejected", value, b"at")
    assert reason in headers["reason"].decode()


@pytest.mark.parametrize("millis", [-1, 2**53, -(2**53), 10**18, 4_102_444_800_001])
def test_a_time_in_milliseconds_has_the_same_bounds(millis: int) -> None:
    stage = Stage([Tick], list)
    stage.publish(Tick, {"who": "a", "at": millis}, 77 * 365.25 * DAY)
    stage.publish(Tick, {"who": "a", "at": 0}, 0)
    [record] = stage.drain()
    assert record.topic == "ticks.rejected"


def test_one_event_from_far_ahead_does_not_make_those_after_it_late() -> None:
    seen = Seen()
    stage = Stage([Ping], lambda: [seen])
    stage.publish(Ping, ping(0), 0)
    stage.publish(Ping, ping(400 * DAY), 0)
    stage.publish(Ping, ping(1), 1)
    [record] = stage.drain()
    assert record.topic == "pings.rejected"
    assert seen.rows == [(0, -2), (1, -1)]
