"""Consumers of one group, by real clients."""

import asyncio
from typing import Any

from aiokafka import TopicPartition
from aiokafka.structs import OffsetAndMetadata
from kio.schema.errors import ErrorCode

from tests.streams.broker.clients import Clients, read

OFFSET_COMMIT, OFFSET_FETCH, DELETE_GROUPS, OFFSET_DELETE = 8, 9, 42, 47
QUICK_SESSION: dict[str, Any] = {
    "group_id": "g",
    "session_timeout_ms": 500,
    "heartbeat_interval_ms": 50,
    "metadata_max_age_ms": 500,
}


async def assigned(consumers: list[Any], counts: list[int], seconds: float = 8) -> None:
    async with asyncio.timeout(seconds):
        while sorted(len(consumer.assignment()) for consumer in consumers) != sorted(counts):
            await asyncio.gather(*[consumer.getmany(timeout_ms=20) for consumer in consumers])


async def kill(consumer: Any) -> None:
    """It is gone without a word: its heartbeats stop and its connections break."""
    coordinator = consumer._coordinator
    for task in (
        coordinator._coordination_task,
        coordinator._heartbeat_task,
        coordinator._commit_refresh_task,
    ):
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
    coordinator._closing.set_result(None)
    coordinator.generation = -1
    coordinator.member_id = ""
    await consumer._client.close()


async def test_two_consumers_share_partitions_and_the_one_left_takes_all(clients: Clients) -> None:
    await clients.topic("t", 4)
    first = await clients.consumer("t", **QUICK_SESSION)
    await assigned([first], [4])
    second = await clients.consumer("t", **QUICK_SESSION)
    await assigned([first, second], [2, 2])
    await second.stop()
    await assigned([first], [4])


async def test_a_consumer_that_dies_silently_is_replaced_after_its_session(clients: Clients) -> None:
    await clients.topic("t", 2)
    first = await clients.consumer("t", **QUICK_SESSION)
    second = await clients.consumer("t", **QUICK_SESSION)
    await assigned([first, second], [1, 1])
    await kill(second)
    await assigned([first], [2])


async def test_a_group_goes_on_where_it_committed(clients: Clients) -> None:
    await clients.topic("t")
    producer = await clients.producer()
    for number in range(6):
        await producer.send_and_wait("t", b"%d" % number)
    first = await clients.consumer("t", group_id="g", enable_auto_commit=False)
    await read(first, 6)
    await first.commit({TopicPartition("t", 0): OffsetAndMetadata(4, "note")})
    await first.stop()
    second = await clients.consumer("t", group_id="g", enable_auto_commit=False)
    assert [r.value for r in await read(second, 2)] == [b"4", b"5"]
    assert await second.committed(TopicPartition("t", 0)) == 4


async def test_commits_for_what_does_not_exist_are_refused(clients: Clients) -> None:
    await clients.topic("t")
    wire = await clients.wire()

    async def commit(topic: str, metadata: str = "") -> ErrorCode:
        partition = {"partition_index": 0, "committed_offset": 1, "committed_metadata": metadata}
        topics = [{"name": topic, "partitions": [partition]}]
        answer = await wire.ask(OFFSET_COMMIT, 8, group_id="g", member_id="", topics=topics)
        code = answer.topics[0].partitions[0].error_code
        assert isinstance(code, ErrorCode)
        return code

    assert await commit("t") is ErrorCode.none
    assert await commit("unknown") is ErrorCode.unknown_topic_or_partition
    assert await commit("t", "x" * 5_000) is ErrorCode.offset_metadata_too_large


async def test_groups_are_listed_described_and_deleted_when_empty(clients: Clients) -> None:
    await clients.topic("t")
    consumer = await clients.consumer("t", **QUICK_SESSION)
    await assigned([consumer], [1])
    await consumer.commit({TopicPartition("t", 0): 0})
    admin = await clients.admin()
    assert await admin.list_consumer_groups() == [("g", "consumer")]
    described = (await admin.describe_consumer_groups(["g"]))[0].groups[0]
    assert (described[2], len(described[5])) == ("Stable", 1)
    wire = await clients.wire()
    busy = await wire.ask(DELETE_GROUPS, 2, groups_names=("g", "unknown"))
    codes = {result.group_id: result.error_code for result in busy.results}
    assert codes == {"g": ErrorCode.non_empty_group, "unknown": ErrorCode.group_id_not_found}
    await consumer.stop()
    assert (await wire.ask(DELETE_GROUPS, 2, groups_names=("g",))).results[0].error_code is ErrorCode.none
    assert await admin.list_consumer_groups() == []


async def test_offsets_of_a_topic_in_use_are_not_deleted(clients: Clients) -> None:
    await clients.topic("t")
    consumer = await clients.consumer("t", **QUICK_SESSION)
    await assigned([consumer], [1])
    await consumer.commit({TopicPartition("t", 0): 3})
    wire = await clients.wire()
    topics = [{"name": "t", "partitions": [{"partition_index": 0}]}]
    answer = await wire.ask(OFFSET_DELETE, 0, group_id="g", topics=topics)
    assert answer.topics[0].partitions[0].error_code is ErrorCode.group_subscribed_to_topic
    await consumer.stop()
    answer = await wire.ask(OFFSET_DELETE, 0, group_id="g", topics=topics)
    assert answer.topics[0].partitions[0].error_code is ErrorCode.none
    admin = await clients.admin()
    assert await admin.list_consumer_group_offsets("g") == {}


async def test_a_deleted_topic_takes_its_offsets_with_it(clients: Clients) -> None:
    await clients.topic("t")
    consumer = await clients.consumer(group_id="g", enable_auto_commit=False)
    consumer.assign([TopicPartition("t", 0)])
    await consumer.commit({TopicPartition("t", 0): 5})
    admin = await clients.admin()
    await admin.delete_topics(["t"])
    await clients.topic("t")
    assert await admin.list_consumer_group_offsets("g") == {}
