"""Topics are created, changed and deleted as an administrator of Kafka expects."""

import datetime
from pathlib import Path
from typing import Any

import pytest
from aiokafka.admin import NewPartitions, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from headrace.streams.broker import Broker
from kio.schema.errors import ErrorCode

from tests.streams.broker.clients import QUICK, Clients, eventually

SECONDS = datetime.timedelta(seconds=5)
METADATA, CREATE, DELETE, CREATE_PARTITIONS, INCREMENTAL, CLUSTER = 3, 19, 20, 37, 44, 60


async def created(clients: Clients, *topics: NewTopic, validate_only: bool = False) -> list[ErrorCode]:
    admin = await clients.admin()
    answer = await admin.create_topics(list(topics), validate_only=validate_only)
    return [ErrorCode(code) for _, code, _ in answer.topic_errors]


@pytest.mark.parametrize(
    ("topic", "code"),
    [
        (NewTopic("", 1, 1), ErrorCode.invalid_topic_exception),
        (NewTopic("..", 1, 1), ErrorCode.invalid_topic_exception),
        (NewTopic("with space", 1, 1), ErrorCode.invalid_topic_exception),
        (NewTopic("x" * 250, 1, 1), ErrorCode.invalid_topic_exception),
        (NewTopic("t", 0, 1), ErrorCode.invalid_partitions),
        (NewTopic("t", 1, 2), ErrorCode.invalid_replication_factor),
        (NewTopic("t", 1, 1, topic_configs={"no.such": "1"}), ErrorCode.invalid_config),
        (NewTopic("t", 1, 1, topic_configs={"retention.ms": "soon"}), ErrorCode.invalid_config),
        (NewTopic("t", 1, 1, topic_configs={"cleanup.policy": "burn"}), ErrorCode.invalid_config),
        (NewTopic("a.b", 1, 1), ErrorCode.invalid_topic_exception),
        (NewTopic("a_b", 1, 1), ErrorCode.topic_already_exists),
    ],
)
async def test_a_topic_that_cannot_be_is_refused(clients: Clients, topic: NewTopic, code: ErrorCode) -> None:
    await clients.topic("a_b")
    assert await created(clients, topic) == [code]


async def test_a_topic_is_only_checked_when_one_asks_for_that(clients: Clients) -> None:
    assert await created(clients, NewTopic("t", 1, 1), validate_only=True) == [ErrorCode.none]
    admin = await clients.admin()
    assert "t" not in await admin.list_topics()


async def test_a_deleted_topic_is_empty_when_it_is_made_again(clients: Clients) -> None:
    await clients.topic("t")
    producer = await clients.producer()
    await producer.send_and_wait("t", b"old")
    admin = await clients.admin()
    await admin.delete_topics(["t"])
    assert "t" not in await admin.list_topics()
    await clients.topic("t")
    sent = await producer.send_and_wait("t", b"new")
    assert sent.offset == 0
    consumer = await clients.consumer("t")
    assert (await consumer.getone()).value == b"new"


async def test_partitions_are_added_and_never_taken_away(clients: Clients) -> None:
    await clients.topic("t", 2)
    admin = await clients.admin()
    await admin.create_partitions({"t": NewPartitions(3)})
    assert len((await admin.describe_topics(["t"]))[0]["partitions"]) == 3
    wire = await clients.wire()
    topics = [{"name": "t", "count": 3, "assignments": None}, {"name": "u", "count": 3, "assignments": None}]
    answer = await wire.ask(CREATE_PARTITIONS, 3, topics=topics, timeout=SECONDS)
    codes = [result.error_code for result in answer.results]
    assert codes == [ErrorCode.invalid_partitions, ErrorCode.unknown_topic_or_partition]


async def configs(admin: Any, topic: str) -> dict[str, str]:
    answer = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
    return {entry[0]: entry[1] for entry in answer[0].resources[0][4]}


async def test_configuration_is_described_replaced_and_kept(clients: Clients) -> None:
    await clients.topic("t", retention_ms="1000", cleanup_policy="compact")
    admin = await clients.admin()
    held = await configs(admin, "t")
    assert (held["retention.ms"], held["cleanup.policy"]) == ("1000", "compact")
    assert held["max.message.bytes"] == "1048588"
    await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, "t", {"retention.ms": "5"})])

    async def replaced() -> bool:
        held = await configs(admin, "t")
        return (held["retention.ms"], held["cleanup.policy"]) == ("5", "delete")

    await eventually(replaced)


async def test_single_entries_are_set_deleted_and_extended(clients: Clients) -> None:
    await clients.topic("t", min_compaction_lag_ms="1000")
    wire = await clients.wire()

    async def alter(name: str, operation: int, value: str | None) -> ErrorCode:
        entry = {"name": name, "config_operation": operation, "value": value}
        resource = {"resource_type": 2, "resource_name": "t", "configs": [entry]}
        answer = await wire.ask(INCREMENTAL, 1, resources=[resource])
        code = answer.responses[0].error_code
        assert isinstance(code, ErrorCode)
        return code

    assert await alter("cleanup.policy", 2, "compact") is ErrorCode.none
    assert await alter("min.compaction.lag.ms", 1, None) is ErrorCode.none
    assert await alter("max.message.bytes", 0, "77") is ErrorCode.none
    assert await alter("no.such", 0, "1") is ErrorCode.invalid_config
    assert await alter("retention.ms", 2, "1") is ErrorCode.invalid_config
    admin = await clients.admin()

    async def altered() -> bool:
        held = await configs(admin, "t")
        names = ("cleanup.policy", "min.compaction.lag.ms", "max.message.bytes")
        return [held[name] for name in names] == ["delete,compact", "0", "77"]

    await eventually(altered)


async def test_topics_have_ids_by_which_they_are_found_and_deleted(clients: Clients) -> None:
    await clients.topic("t")
    wire = await clients.wire()
    named = await wire.ask(METADATA, 12, topics=[{"name": "t"}])
    topic_id = named.topics[0].topic_id
    for name in (None, ""):  # Kafka's own clients give an empty one
        found = await wire.ask(METADATA, 12, topics=[{"name": name, "topic_id": topic_id}])
        assert found.topics[0].name == "t"
    deleted = await wire.ask(DELETE, 6, topics=[{"name": None, "topic_id": topic_id}], timeout=SECONDS)
    assert deleted.responses[0].name == "t"
    again = await wire.ask(METADATA, 12, topics=[{"name": None, "topic_id": topic_id}])
    assert again.topics[0].error_code is ErrorCode.unknown_topic_id


async def test_topics_are_not_made_by_asking_for_them_unless_the_broker_allows_it(tmp_path: Path) -> None:
    for allowed, name in ((False, "strict"), (True, "lenient")):
        async with (
            Broker(tmp_path / name, limits=QUICK, auto_create=allowed) as broker,
            Clients(broker.address) as clients,
        ):
            wire = await clients.wire()
            wanted = [{"name": "t"}]
            asked = await wire.ask(METADATA, 5, topics=wanted, allow_auto_topic_creation=False)
            assert asked.topics[0].error_code is ErrorCode.unknown_topic_or_partition
            asked = await wire.ask(METADATA, 5, topics=wanted, allow_auto_topic_creation=True)
            made = asked.topics[0].error_code is ErrorCode.none
            assert made is allowed


async def test_a_partition_may_be_assigned_to_the_only_broker_alone(clients: Clients) -> None:
    wire = await clients.wire()

    async def create(name: str, *brokers: int) -> ErrorCode:
        assignments = [{"partition_index": 0, "broker_ids": brokers}]
        topic = {"name": name, "num_partitions": -1, "replication_factor": -1, "assignments": assignments}
        code = (await wire.ask(CREATE, 7, topics=[topic])).topics[0].error_code
        assert isinstance(code, ErrorCode)
        return code

    assert await create("t", 1) is ErrorCode.none
    assert await create("u", 1, 2) is ErrorCode.invalid_replica_assignment


async def test_the_cluster_is_one_broker_with_an_id_that_lasts(tmp_path: Path) -> None:
    seen = []
    for _ in range(2):
        async with Broker(tmp_path, limits=QUICK) as broker, Clients(broker.address) as clients:
            answer = await (await clients.wire()).ask(CLUSTER, 1, endpoint_type=1)
            seen.append(answer.cluster_id)
            assert [b.broker_id for b in answer.brokers] == [answer.controller_id]
    assert seen[0] == seen[1]
