"""Reading the log from one offset to another, for those who look at an application from outside."""

from __future__ import annotations

import asyncio

import pytest
from headrace.streams.address import Address
from headrace.streams.errors import LogUnavailable
from headrace.streams.kafka import KafkaLog
from headrace.streams.log import Partition
from headrace.streams.publisher import encode

from headrace import state
from headrace.state import records
from tests.scene import fresh, order_line, write
from tests.shop import ORDERS


async def test_who_reads_a_partition_that_gives_nothing_any_more_is_told(
    broker: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "WAITS", 0.5)
    topic = (await asyncio.to_thread(fresh, broker, ORDERS, 1)).name
    await asyncio.to_thread(write, broker, topic, [encode(order_line()) for _ in range(20)])
    log = KafkaLog(broker)

    async def read() -> None:
        [fetched async for fetched in records(log, Partition(topic, 0), 99)]

    with pytest.raises(LogUnavailable, match=f"{topic}, partition 0, gives nothing from offset 20 on, and ended at 99"):
        await asyncio.wait_for(read(), 20)
    await log.close()
