"""Every version of every API that the broker advertises is read, and answered in that version's shape."""

import datetime
import struct
import uuid
from typing import Any

import pytest
from headrace.streams.broker.api import APIS
from kio.schema.errors import ErrorCode

from tests.streams.broker.clients import Clients, batch

_SECOND = datetime.timedelta(seconds=1)
_LONG = datetime.timedelta(seconds=10)
_PLACES = [{"name": "t", "topic": "t", "partitions": (0,), "partition_indexes": (0,)}]


def _partition(**fields: Any) -> list[dict[str, Any]]:
    common = {"partition_index": 0, "partition": 0, "index": 0}
    return [{"name": "t", "topic": "t", "partitions": [common | fields], "partition_data": [common | fields]}]


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
    18: {"client_software_name": "test", "client_software_version": "1"},
    19: {"topics": [{"name": "new", "num_partitions": 1, "replication_factor": 1}], "timeout": _SECOND},
    20: {"topic_names": ("u",), "topics": [{"name": "u"}], "timeout": _SECOND},
    21: {"topics": _partition(offset=0), "timeout": _SECOND},
    22: {"transactional_id": None, "transaction_timeout": _SECOND},
    23: {"replica_id": -1, "topics": _partition(leader_epoch=0)},
    24: {"v3_and_below_transactional_id": "x", "v3_and_below_topics": _PLACES},
    25: {"transactional_id": "x", "group_id": "g"},
    26: {"transactional_id": "x", "committed": True},
    28: {
        "transactional_id": "x",
        "group_id": "g",
        "topics": _partition(committed_offset=1, committed_metadata=""),
    },
    32: {"resources": [{"resource_type": 2, "resource_name": "t", "configuration_keys": None}]},
    33: {"resources": [{"resource_type": 2, "resource_name": "t"}]},
    37: {"topics": [{"name": "t", "count": 1, "assignments": None}], "timeout": _SECOND},
    42: {"groups_names": ("g",)},
    44: {"resources": [{"resource_type": 2, "resource_name": "t"}]},
    47: {"group_id": "g", "topics": _partition()},
    60: {"endpoint_type": 1},
    61: {"topics": _PLACES},
    65: {"transactional_ids": ("x",)},
    66: {},
}
VERSIONS = [(api.key, version) for api in APIS.values() for version in range(api.oldest, api.newest + 1)]


async def test_every_version_of_every_api_is_answered(clients: Clients) -> None:
    await clients.topic("t")
    wire = await clients.wire()
    for key, version in VERSIONS:
        fields = REQUESTS[key]
        if key == 11:
            fields = {**fields, "group_id": f"joined{version}"}
        answer = await wire.ask(key, version, **fields)
        assert answer.__version__ == version, (APIS[key].name, version)


async def test_what_is_advertised_is_what_is_spoken(clients: Clients) -> None:
    wire = await clients.wire()
    answer = await wire.ask(18, 4, client_software_name="test", client_software_version="1")
    told = {entry.api_key: (entry.min_version, entry.max_version) for entry in answer.api_keys}
    assert told == {api.key: (api.oldest, api.newest) for api in APIS.values()}


async def test_a_client_from_the_future_is_told_what_there_is(clients: Clients) -> None:
    wire = await clients.wire()
    wire.writer.write(struct.pack(">ihhih", 10, 18, 99, 5, -1))
    answer = await wire.receive(18, 0, 5)
    assert answer.error_code is ErrorCode.unsupported_version
    assert len(answer.api_keys) == len(APIS)


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
