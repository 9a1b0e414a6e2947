"""What is told of the traffic on a log."""

from __future__ import annotations

import asyncio
from pathlib import Path

from headrace.streams.admin import ensure_topics
from headrace.streams.publisher import Row
from headrace.streams.topics import Topic
from headrace.streams.traffic import ANSWER, Flow, Traffic

from tests.scene import broker_process, write

MANY = round(ANSWER / 0.1) + 10
"""Topics; aiokafka waits 0.1 s for each one that a look-up does not know, and the answer is due before that."""


def test_a_log_of_many_topics_is_told_in_time(tmp_path: Path) -> None:
    topics = [Topic(f"one-of-many-{n}", "event", 1, None, {"retention.ms": "-1"}) for n in range(MANY)]

    async def told() -> Flow:
        traffic = Traffic(broker, topics, ())
        await traffic.start()
        try:
            return await traffic.flow()
        finally:
            await traffic.close()

    with broker_process(tmp_path / "log") as broker:
        asyncio.run(ensure_topics(broker, topics))
        write(broker, topics[-1].name, [Row(None, b"{}")] * 3)
        flow = asyncio.run(told())
    assert {t.name: t.records for t in flow.topics} == {t.name: 3 * (t is topics[-1]) for t in topics}
