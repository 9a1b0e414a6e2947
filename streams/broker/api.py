"""The APIs the broker speaks, with exactly the versions it speaks, and who answers them."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from kio.schema.errors import ErrorCode

from . import answers_groups, answers_records, answers_topics, answers_transactions, sasl
from .call import Call
from .writers import Fields

Answer: TypeAlias = Fields | Awaitable[Fields] | None
"""None where the client wants no answer (produce with acks=0)."""
API_VERSIONS = 18


@dataclass(frozen=True, slots=True)
class Api:
    key: int
    name: str
    oldest: int
    newest: int
    answer: Callable[[Call], Answer]


def _api_versions(call: Call) -> Fields:
    return versions_answer(ErrorCode.none, call.version)


# Kafka's own clients begin transactions of version 2 only where the cluster says so: their producers' epoch
# rises at each end, and what they write to belongs to the transaction without being announced (KIP-890).
_TRANSACTIONS = "transaction.version"
_FEATURES = {
    "supported_features": [{"name": _TRANSACTIONS, "min_version": 0, "max_version": 2}],
    "finalized_features_epoch": 0,
    "finalized_features": [{"name": _TRANSACTIONS, "max_version_level": 2, "min_version_level": 2}],
}
# Clients of version 3 fail on a feature that begins at 0 (KAFKA-17011); Kafka does not tell them of it.
_OLD_FEATURES = {**_FEATURES, "supported_features": []}


def versions_answer(error: ErrorCode, version: int = 0) -> Fields:
    keys = [{"api_key": api.key, "min_version": api.oldest, "max_version": api.newest} for api in APIS.values()]
    return {"error_code": error, "api_keys": keys, **(_FEATURES if version > 3 else _OLD_FEATURES)}


# The ranges are those of Kafka 4.1; a test compares them with a real one and names each that differs.
_ALL = (
    Api(0, "Produce", 3, 13, answers_records.produce),
    Api(1, "Fetch", 4, 18, answers_records.fetch),
    Api(2, "ListOffsets", 1, 10, answers_records.list_offsets),
    Api(3, "Metadata", 0, 13, answers_topics.metadata),
    Api(8, "OffsetCommit", 2, 9, answers_groups.offset_commit),
    Api(9, "OffsetFetch", 1, 9, answers_groups.offset_fetch),
    Api(10, "FindCoordinator", 0, 6, answers_groups.find_coordinator),
    Api(11, "JoinGroup", 0, 9, answers_groups.join_group),
    Api(12, "Heartbeat", 0, 4, answers_groups.heartbeat),
    Api(13, "LeaveGroup", 0, 5, answers_groups.leave_group),
    Api(14, "SyncGroup", 0, 5, answers_groups.sync_group),
    Api(15, "DescribeGroups", 0, 6, answers_groups.describe_groups),
    Api(16, "ListGroups", 0, 5, answers_groups.list_groups),
    Api(sasl.HANDSHAKE, "SaslHandshake", *sasl.VERSIONS[sasl.HANDSHAKE], sasl.too_late),
    Api(API_VERSIONS, "ApiVersions", 0, 4, _api_versions),
    Api(19, "CreateTopics", 2, 7, answers_topics.create_topics),
    Api(20, "DeleteTopics", 1, 6, answers_topics.delete_topics),
    Api(21, "DeleteRecords", 0, 2, answers_records.delete_records),
    Api(22, "InitProducerId", 0, 5, answers_transactions.init_producer_id),
    Api(23, "OffsetForLeaderEpoch", 2, 4, answers_records.offset_for_leader_epoch),
    Api(24, "AddPartitionsToTxn", 0, 5, answers_transactions.add_partitions_to_txn),
    Api(25, "AddOffsetsToTxn", 0, 4, answers_transactions.add_offsets_to_txn),
    Api(26, "EndTxn", 0, 5, answers_transactions.end_txn),
    Api(28, "TxnOffsetCommit", 0, 5, answers_transactions.txn_offset_commit),
    Api(32, "DescribeConfigs", 1, 4, answers_topics.describe_configs),
    Api(33, "AlterConfigs", 0, 2, answers_topics.alter_configs),
    Api(35, "DescribeLogDirs", 1, 4, answers_topics.describe_log_dirs),
    Api(sasl.AUTHENTICATE, "SaslAuthenticate", *sasl.VERSIONS[sasl.AUTHENTICATE], sasl.too_late),
    Api(37, "CreatePartitions", 0, 3, answers_topics.create_partitions),
    Api(42, "DeleteGroups", 0, 2, answers_groups.delete_groups),
    Api(44, "IncrementalAlterConfigs", 0, 1, answers_topics.incremental_alter_configs),
    Api(46, "ListPartitionReassignments", 0, 0, answers_topics.list_partition_reassignments),
    Api(47, "OffsetDelete", 0, 0, answers_groups.offset_delete),
    Api(60, "DescribeCluster", 0, 2, answers_topics.describe_cluster),
    Api(61, "DescribeProducers", 0, 0, answers_transactions.describe_producers),
    Api(65, "DescribeTransactions", 0, 0, answers_transactions.describe_transactions),
    Api(66, "ListTransactions", 0, 1, answers_transactions.list_transactions),
    Api(75, "DescribeTopicPartitions", 0, 0, answers_topics.describe_topic_partitions),
)
APIS: Mapping[int, Api] = {api.key: api for api in _ALL}
