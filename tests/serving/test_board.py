"""What the page shows, whatever anyone has published."""

from __future__ import annotations

import asyncio
import json

import pytest
from headrace.serving import board as boards
from headrace.serving.board import Board
from headrace.serving.page import alarms_list, predictions_table, refusals_list, series_of
from headrace.streams.address import Address
from headrace.streams.admin import ensure_topics
from headrace.streams.errors import LogUnavailable
from headrace.streams.topics import Processor, Topic
from headrace.streams.traffic import Flow, Traffic
from headrace.streams.workers import TOPIC, WORKERS

from tests import shop
from tests.crew import task, tell, worker
from tests.scene import DEEP, FAR, eventually, fresh, write_odd

HUGE = b"9" * 400
NESTED = b'{"score": 1, "log_loss": 1, "at": %b, "model": %b, "value": %b}' % ((b"[" * 700 + b"]" * 700,) * 3)
ODD = (DEEP, NESTED, b"[1]", b"\xff", b'{"score": %b, "log_loss": %b, "value": %b, "at": %b}' % ((HUGE,) * 4), None)
"""What is no record of a model, or none that a page could show."""


@pytest.fixture
def topics(broker: Address) -> dict[str, Topic]:
    asyncio.run(ensure_topics(broker, [TOPIC]))
    kinds = (shop.PREDICTIONS, shop.METRICS, shop.DRIFT, shop.LATE)
    return {like.kind: fresh(broker, like) for like in kinds}


async def test_odd_records_cost_the_board_and_the_page_only_themselves(
    broker: Address, topics: dict[str, Topic], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boards, "EVERY", 0.2)
    board = Board("crew", broker, tuple(topics.values()), (Processor("orders", "crew.orders", ("orders",), (), 1),))
    board.start()
    sight = board.sight

    def publish() -> None:
        eventually(lambda: not sight.trouble)
        good = json.dumps({"score": 0.5, "log_loss": 0.5, "at": FAR, "value": 1.5}).encode()
        for value in (*ODD, good):
            for topic in topics.values():
                write_odd(broker, topic.name, value, headers=[("reason", b"why"), ("field", None)])
        write_odd(broker, WORKERS, DEEP)
        tell(broker, worker(1, task(0)))
        eventually(lambda: [p.state for p in board.crew().places] == ["running"])
        eventually(lambda: bool(sight.predictions) and sight.predictions[-1].get("score") == 0.5)
        eventually(lambda: sorted(sight.counts.values()) == [len(ODD) + 1] * 3)

    try:
        await asyncio.to_thread(publish)
    finally:
        await board.stop()
    assert "<b>0.5000</b>" in predictions_table(sight.predictions)
    for at in (FAR, 10**30, 1e300):
        assert "9999-12-31 23:59:59" in predictions_table([{"at": at}])
    assert "= 1.5" in alarms_list(sight.alarms)
    assert "7 times" in refusals_list(sight.refusals)
    [records] = sight.quality.values()
    assert json.dumps(series_of(records, "log_loss")[""]) == f"[[null, 1], [{FAR}, 0.5]]"


async def test_what_is_written_while_the_log_is_away_is_counted_when_it_is_back(
    broker: Address, topics: dict[str, Topic], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boards, "EVERY", 0.1)
    monkeypatch.setattr(boards, "AGAIN", 0.1)
    name, flow, calls, written = topics["late"].name, Traffic.flow, 0, 0.0

    async def failing(self: Traffic) -> Flow:
        nonlocal calls
        calls += 1
        if calls == 3:
            for _ in range(10):
                await asyncio.to_thread(write_odd, broker, name, b"{}")
            raise LogUnavailable("the log is away")
        return await flow(self)

    def show(now: Flow) -> None:
        nonlocal written
        written += now.seconds * sum(t.rate for t in now.topics if t.name == name)

    monkeypatch.setattr(Traffic, "flow", failing)
    board = Board("crew", broker, tuple(topics.values()), ())
    board.start(show)
    try:
        await asyncio.to_thread(eventually, lambda: calls > 5)
    finally:
        await board.stop()
    assert round(written) == 10
