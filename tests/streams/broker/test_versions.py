"""Every version of every API that the broker advertises is read, and answered in that version's shape."""

import datetime
import struct
import uuid
from typing import Any

import pytest
from headrace.streams.broker.api import APIS
from kio.schema.errors import ErrorCode

from tests.stack.kafka import Cluster
from tests.streams.broker.clients import Clients, batch

_SECOND = datetime.timedelta(seconds=1)
_LONG = datetime.timedelta(seconds=10)
_TOPIC = uuid.UUID(int=7)  # stands for the id that the topic gets
_PLACES = [{"topic_id": _TOPIC, "name": "t", "topic": "t", "partitions": (0,), "partition_indexes": (0,)}]


def _partition(**fields: Any) -> list[dict[str, Any]]:
    common = {"partition_index": 0, "partition": 0, "index": 0}
    entries = [common | fields]
    return [{"topic_id": _TOPIC, "name": "t", "topic": "t", "partitions": entries, "partition_data": entries}]


def _with_id(fields: Any, topic_id: uuid.UUID) -> Any:
    """The request for the topic as it is."""
    if isinstance(fields, dict):
        return {name: _with_id(value, topic_id) for name, value in fields.items()}
    if isinstance(fields, list):
        return [_with_id(value, topic_id) for value in fields]
    return topic_id if fields == _TOPIC else fields


# A transactional id that no test makes: of one that is there and idle Kafka tells the time -1, which kio cannot read.
_NOBODYS = "nobody's"

# One request for each API, with the fields of all its versions.
REQUESTS: dict[int, dict[str, Any]] = {
    0: {"acks": 1, "timeout": _SECOND, "topic_data": _partition(records=batch(b"v"))},
    1: {"replica_id": -1, "min_bytes": 0, "topics": _partition(fetch_offset=0, partition_max_bytes=1000)},
    2: {"replica_id": -1, "topics": _partition(timestamp=-1)},
    3: {"topics": [{"name": "t"}]},
    8: {"group_id": "g", "member_id": "", "topics": _partition(committed_offset=1, committed_metadata="")},
    9: {"group_id": "g", "topics": _PLACES, "groups": [{"group_id": "g", "topics": _PLACES}]},
    10: {"key": "g", "coordinator_keys": ("g",)},
    11: {
        "group_id": "joined",
        "session_timeout": _LONG,
        "rebalance_timeout": _LONG,
        "protocol_type": "consumer",
        "protocols": [{"name": "range", "metadata": b"m"}],
    },
    12: {"group_id": "g", "member_id": "m"},
    13: {"group_id": "g", "member_id": "m", "members": [{"member_id": "m"}]},
    14: {"group_id": "g", "member_id": "m"},
    15: {"groups": ("g",)},
    16: {},
    17: {"mechanism": "PLAIN"},
    18: {"client_software_name": "test", "client_software_version": "1"},
    19: {"topics": [{"name": "new", "num_partitions": 1, "replication_factor": 1}], "timeout": _SECOND},
    20: {"topic_names": ("u",), "topics": [{"name": "u"}], "timeout": _SECOND},
    21: {"topics": _partition(offset=0), "timeout": _SECOND},
    22: {"transactional_id": None, "transaction_timeout": _SECOND},
    23: {"replica_id": -1, "topics": _partition(leader_epoch=0)},
    24: {
        "v3_and_below_transactional_id": _NOBODYS,
        "v3_and_below_topics": _PLACES,
        "transactions": [{"transactional_id": _NOBODYS, "topics": _PLACES}],
    },
    25: {"transactional_id": _NOBODYS, "group_id": "g"},
    26: {"transactional_id": _NOBODYS, "committed": True},
    28: {
        "transactional_id": _NOBODYS,
        "group_id": "g",
        "topics": _partition(committed_offset=1, committed_metadata=""),
    },
    32: {"resources": [{"resource_type": 2, "resource_name": "t", "configuration_keys": None}]},
    33: {"resources": [{"resource_type": 2, "resource_name": "t"}]},
    35: {"topics": None},
    36: {"auth_bytes": b""},
    37: {"topics": [{"name": "t", "count": 1, "assignments": None}], "timeout": _SECOND},
    42: {"groups_names": ("g",)},
    44: {"resources": [{"resource_type": 2, "resource_name": "t"}]},
    46: {},
    47: {"group_id": "g", "topics": _partition()},
    60: {"endpoint_type": 1},
    61: {"topics": _PLACES},
    65: {"transactional_ids": (_NOBODYS,)},
    66: {},
    75: {"topics": [{"name": "t"}]},
}
VERSIONS = [(api.key, version) for api in APIS.values() for version in range(api.oldest, api.newest + 1)]


async def test_every_version_of_every_api_is_answered(clients: Clients) -> None:
    await clients.topic("t")
    wire = await clients.wire()
    topic_id = (await wire.ask(3, 12, topics=[{"name": "t"}])).topics[0].topic_id
    for key, version in VERSIONS:
        fields = _with_id(REQUESTS[key], topic_id)
        if key == 11:
            fields = {**fields, "group_id": f"joined{version}"}
        answer = await wire.ask(key, version, **fields)
        assert answer.__version__ == version, (APIS[key].name, version)


# What Kafka 4.1 advertises and the local broker does not, and why.
ANSWERED_BY_OTHERS = {
    "between brokers and controllers": {27, 43, 45, 49, 55, 57, 64, 80, 81, 83, 84, 85, 86, 87, 90, 91, 92},
    "authorisation and delegation tokens: there is one user": {29, 30, 31, 38, 39, 40, 41},
    "quotas and users: they are given where the broker starts": {48, 50, 51},
    "folders: there is one": {34},
    "groups of the new protocols, for which clients ask by a setting": {68, 69, 76, 77, 78, 79},
    "resources of metrics that clients push": {74},
    "security, where it is switched on": {17, 36},
}
RANGES = {
    0: "Kafka names 0 to 2 for old librdkafkas and refuses them",
    66: "version 2 filters by RE2 expressions, which Python's own cannot evaluate in bounded time",
}


async def told_by(clients: Clients, version: int = 4) -> Any:
    return await (await clients.wire()).ask(18, version, client_software_name="test", client_software_version="1")


async def test_what_is_advertised_is_what_is_spoken(local: Clients) -> None:
    told = {entry.api_key: (entry.min_version, entry.max_version) for entry in (await told_by(local)).api_keys}
    assert told == {api.key: (api.oldest, api.newest) for api in APIS.values()}


@pytest.mark.stack
async def test_what_is_advertised_is_what_kafka_does(local: Clients, alone: Cluster) -> None:
    async with Clients(alone.bootstrap) as kafka:
        ours, theirs = await told_by(local), await told_by(kafka)
        ranges = [
            {entry.api_key: (entry.min_version, entry.max_version) for entry in told.api_keys}
            for told in (ours, theirs)
        ]
        differing = {key for key in ranges[0] if ranges[0][key] != ranges[1].get(key)}
        assert differing <= RANGES.keys(), differing
        unexplained = ranges[1].keys() - ranges[0].keys() - set().union(*ANSWERED_BY_OTHERS.values())
        assert not unexplained
        for version in (3, 4):
            seen = [
                {
                    (feature.name, feature.min_version, feature.max_version)
                    for feature in (await told_by(each, version)).supported_features
                    if feature.name == "transaction.version"
                }
                for each in (local, kafka)
            ]
            assert seen[0] == seen[1]
            assert seen[0] or version == 3
        levels = [
            {feature.max_version_level for feature in told.finalized_features if feature.name == "transaction.version"}
            for told in (ours, theirs)
        ]
        assert levels == [{2}, {2}]


async def test_a_client_from_the_future_is_told_what_there_is(clients: Clients) -> None:
    wire = await clients.wire()
    wire.writer.write(struct.pack(">ihhihB", 11, 18, 99, 5, -1, 0))
    answer = await wire.receive(18, 0, 5)
    assert answer.error_code is ErrorCode.unsupported_version
    assert 18 in {entry.api_key for entry in answer.api_keys}


@pytest.mark.parametrize("head", [(999, 0), (0, 2), (0, 99), (1, 3), (7, 3)])
async def test_what_is_not_spoken_closes_the_connection(clients: Clients, head: tuple[int, int]) -> None:
    wire = await clients.wire()
    wire.writer.write(struct.pack(">ihhih", 10, *head, 5, -1))
    assert await wire.closed()


@pytest.mark.parametrize("version", range(5))
async def test_both_kinds_of_coordinators_are_this_broker(clients: Clients, version: int) -> None:
    wire = await clients.wire()
    answer = await wire.ask(10, version, key="k", key_type=1, coordinator_keys=("k", "l"))
    found = answer.coordinators if version >= 4 else [answer]
    assert {f"{place.host}:{place.port}" for place in found} == {clients.address}


async def test_a_topic_without_an_id_is_none_of_ours(clients: Clients) -> None:
    wire = await clients.wire()
    answer = await wire.ask(3, 12, topics=[{"name": None, "topic_id": uuid.uuid4()}])
    assert answer.topics[0].error_code is ErrorCode.unknown_topic_id
