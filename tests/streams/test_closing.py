"""Closing clients while the broker is away."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from headrace.streams import closing
from headrace.streams.address import Address
from headrace.streams.admin import ensure_topics
from headrace.streams.closing import stop

from tests import shop
from tests.scene import broker_process


async def _sending(address: Address) -> AIOKafkaProducer:
    producer = AIOKafkaProducer(bootstrap_servers=address.bootstrap, enable_idempotence=True, retry_backoff_ms=20)
    await producer.start()
    await producer.send_and_wait("orders", b"1")
    return producer


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


def test_a_producer_that_cannot_send_its_last_batch_is_closed_with_its_connections_and_its_sender(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(closing, "CLOSE_WITHIN", 0.5)

    async def closed(producer: AIOKafkaProducer) -> float:
        sent = await producer.send("orders", b"2")
        sent.add_done_callback(lambda done: done.cancelled() or done.exception())
        began = time.monotonic()
        await stop(producer)
        return time.monotonic() - began

    with asyncio.Runner() as runner:
        with broker_process(tmp_path / "log") as address:
            runner.run(ensure_topics(address, [shop.ORDERS]))
            producer = runner.run(_sending(address))
        assert runner.run(closed(producer)) < 3
        assert producer._sender.sender_task.done()
        assert not any(connection.connected() for connection in producer.client._conns.values())


def test_a_client_whose_closing_is_cancelled_is_closed_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(closing, "CLOSE_WITHIN", 0.5)

    async def cancelled(producer: AIOKafkaProducer) -> None:
        sent = await producer.send("orders", b"2")
        sent.add_done_callback(lambda done: done.cancelled() or done.exception())
        caller = asyncio.create_task(stop(producer))
        await asyncio.sleep(0.1)
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        await asyncio.wait([producer._sender.sender_task], timeout=3)

    with asyncio.Runner() as runner:
        with broker_process(tmp_path / "log") as address:
            runner.run(ensure_topics(address, [shop.ORDERS]))
            producer = runner.run(_sending(address))
        runner.run(cancelled(producer))
        assert producer._sender.sender_task.done()
        assert producer._closed
