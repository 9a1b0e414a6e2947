"""Closing consumers while the broker is away."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from aiokafka import AIOKafkaConsumer, TopicPartition
from headrace.streams.address import Address
from headrace.streams.admin import ensure_topics
from headrace.streams.closing import stop

from tests import shop
from tests.scene import broker_process


def test_a_consumer_that_waits_for_a_lost_broker_is_closed_without_ending_its_caller(tmp_path: Path) -> None:
    async def reading(address: Address) -> AIOKafkaConsumer:
        consumer = AIOKafkaConsumer(bootstrap_servers=address.bootstrap, retry_backoff_ms=20_000)
        await consumer.start()
        consumer.assign([TopicPartition("orders", 0)])
        await consumer.getmany(timeout_ms=200)
        return consumer

    async def closed(consumer: AIOKafkaConsumer) -> float:
        await consumer.getmany(timeout_ms=500)  # the fetch has failed by then, and waits to be tried again
        began = time.monotonic()
        await stop(consumer)
        return time.monotonic() - began

    with asyncio.Runner() as runner:
        with broker_process(tmp_path / "log") as address:
            runner.run(ensure_topics(address, [shop.ORDERS]))
            consumer = runner.run(reading(address))
        assert runner.run(closed(consumer)) < 3
        assert not any(connection.connected() for connection in consumer._client._conns.values())
