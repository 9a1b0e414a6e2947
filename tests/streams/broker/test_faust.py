"""A Faust app, the control plane's host, lives on the local broker: agent, table, changelog, commits."""

import asyncio
import warnings
from pathlib import Path
from typing import Any

import pytest
from aiokafka import TopicPartition

from tests.streams.broker.clients import Clients, eventually, read, read_quiet

with warnings.catch_warnings():
    # faust-streaming and mode-streaming use what newer Pythons and their own dependencies have deprecated.
    warnings.simplefilter("ignore")
    import faust

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


def app_on(address: str, folder: Path) -> tuple[Any, Any]:
    app = faust.App(
        "shop",
        broker=f"aiokafka://{address}",
        store="memory://",
        datadir=str(folder),
        web_enabled=False,
        topic_partitions=2,
        topic_replication_factor=1,
        stream_wait_empty=False,
        broker_commit_interval=0.2,
        processing_guarantee="at_least_once",
    )
    orders = app.topic("orders", key_serializer="raw", value_serializer="raw", partitions=2)
    totals = app.topic("totals", key_serializer="raw", value_serializer="raw", partitions=2)
    counts = app.Table("counts", default=int, partitions=2)

    async def count(stream: Any) -> None:
        async for key, value in stream.items():
            counts[key.decode()] += len(value)
            await totals.send(key=key, value=str(counts[key.decode()]).encode())

    app.agent(orders, concurrency=1)(count)
    return app, counts


async def test_an_agent_consumes_counts_in_a_table_and_produces(clients: Clients, tmp_path: Path) -> None:
    await clients.topic("orders", 2)
    await clients.topic("totals", 2)
    app, counts = app_on(clients.address, tmp_path)
    producer = await clients.producer()
    consumer = await clients.consumer("totals")
    async with asyncio.timeout(30), app:
        for number in range(6):
            await producer.send_and_wait("orders", b"xx", key=b"k%d" % (number % 2))
        records = await read(consumer, 6, 20)
        assert sorted((r.key, r.value) for r in records) == [
            (b"k%d" % key, b"%d" % total) for key in (0, 1) for total in (2, 4, 6)
        ]
        assert dict(counts.items()) == {"k0": 6, "k1": 6}
    # Cleaning is quick here and may have taken what was written over: where it ends tells how often it was written.
    changelog = await clients.consumer("shop-counts-changelog")
    both = [TopicPartition("shop-counts-changelog", number) for number in range(2)]

    async def written_six_times() -> bool:
        return bool(sum((await changelog.end_offsets(both)).values()) == 6)

    await eventually(written_six_times)
    kept = {r.key: r.value for r in await read_quiet(changelog, 1)}
    assert kept == {b'"k0"': b"6", b'"k1"': b"6"}
    held = await (await clients.admin()).list_consumer_group_offsets("shop")
    assert sum(place.offset for tp, place in held.items() if tp.topic == "orders" and place.offset > 0) == 6
