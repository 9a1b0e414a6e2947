"""Transactions of version 2 (KIP-890) for aiokafka, which speaks version 1.

The first records for a partition and the first offsets of a group take them into the transaction, by themselves: two
requests less for each transaction. Its end gives the producer another epoch, so that what comes late of an ended
transaction is refused. Brokers speak it from Apache Kafka 4.0 on, where the cluster's feature transaction.version is
2; the local broker always does.

https://cwiki.apache.org/confluence/display/KAFKA/KIP-890%3A+Transactions+Server-Side+Defense

The parts of aiokafka that are stood in for are pinned in tests/streams/test_kip890.py.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from io import BytesIO
from types import SimpleNamespace
from typing import Any, Self

import aiokafka
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import (
    ConcurrentTransactions,
    CoordinatorLoadInProgressError,
    IncompatibleBrokerVersion,
    InvalidProducerEpoch,
    KafkaError,
)
from aiokafka.producer.sender import EndTxnHandler, Sender, SendProduceReqHandler, TxnOffsetCommitHandler
from aiokafka.producer.transaction_manager import PidAndEpoch, TransactionManager
from aiokafka.protocol.api import RequestStruct, Response, ResponseHeader_v0
from aiokafka.protocol.types import (
    Array,
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Int64,
    Schema,
    TaggedFields,
    UnsignedVarInt32,
)
from headrace.streams.rawio import over

FEATURE = "transaction.version"
LEVEL = 2

_FINALIZED_FEATURES = 2
_PRODUCER_FENCED = 90
_OLDER = {
    _PRODUCER_FENCED: InvalidProducerEpoch.errno,
    # What a group's offsets did not meet when it was added by a request of its own: to be tried again, as this is.
    ConcurrentTransactions.errno: CoordinatorLoadInProgressError.errno,
}
"""Codes as the versions that aiokafka speaks tell them."""

_TEXT = CompactString("utf-8")
_TAGS = ("tags", TaggedFields)
_ERROR = ("error_code", Int16)
_THROTTLE = ("throttle_time_ms", Int32)
_NO_TAGS = b"\0"


async def spoken(producer: AIOKafkaProducer) -> bool:
    """Whether the cluster of a started producer takes transactions of version 2. Raises KafkaError."""
    client = producer.client
    try:
        answer = await client.send(client.get_random_node(), ApiVersionsV3("aiokafka", aiokafka.__version__, {}))
    except IncompatibleBrokerVersion:
        return False
    if answer.error_code or _FINALIZED_FEATURES not in answer.tags:
        return False
    levels = _FEATURES.decode(BytesIO(answer.tags[_FINALIZED_FEATURES]))
    return any(name == FEATURE and level >= LEVEL for name, level, _, _ in levels)


def speak(producer: AIOKafkaProducer) -> None:
    """From here on a started transactional producer's transactions are of version 2."""
    transaction, sender = producer._txn_manager, producer._sender
    assert (type(transaction), type(sender)) == (TransactionManager, Sender), "started, and as aiokafka made it"
    transaction.__class__ = _Transaction
    sender.__class__ = _Sender


class _Transaction(TransactionManager):  # type: ignore[misc]  # aiokafka is untyped
    """aiokafka's own, to which nothing need be added before it is used.

    touched: whether a request may have reached it since it began, so that it needs an end
    """

    touched = False

    def begin_transaction(self) -> None:
        self.touched = False
        super().begin_transaction()

    def maybe_add_partition_to_txn(self, tp: TopicPartition) -> None:
        assert self.is_in_transaction()
        self.touched = True

    def add_offsets_to_txn(self, offsets: Any, group_id: str) -> Any:
        self.touched = True
        self._txn_consumer_group = group_id
        return super().add_offsets_to_txn(offsets, group_id)

    def is_empty_transaction(self) -> bool:
        return not self.touched

    def renew(self, producer: int, epoch: int) -> None:
        """Go on as this producer: each transaction has an epoch of its own."""
        self._pid_and_epoch = PidAndEpoch(producer, epoch)
        self._sequence_numbers.clear()


class _Of:
    """A request of one version, where aiokafka has one of many."""

    API_KEY: int
    API_VERSION: int

    def prepare(self, versions: Mapping[int, tuple[int, int]]) -> Self:
        lowest, highest = versions.get(self.API_KEY, (0, -1))
        if not lowest <= self.API_VERSION <= highest:
            raise IncompatibleBrokerVersion(f"{type(self).__name__} needs version {self.API_VERSION}, not {highest}")
        return self


class _Told(Response):  # type: ignore[misc]  # aiokafka is untyped
    API_KEY = 18
    API_VERSION = 3
    SCHEMA = Schema(
        _ERROR,
        ("versions", CompactArray(("key", Int16), ("lowest", Int16), ("highest", Int16), _TAGS)),
        _THROTTLE,
        _TAGS,
    )


class ApiVersionsV3(_Of, RequestStruct):  # type: ignore[misc]  # aiokafka is untyped
    """ApiVersions, from which version on features are told."""

    API_KEY = 18
    API_VERSION = 3
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = _Told
    SCHEMA = Schema(("software", _TEXT), ("version", _TEXT), _TAGS)

    def parse_response_header(self, read_buffer: Any) -> ResponseHeader_v0:
        return ResponseHeader_v0.decode(read_buffer)  # whoever asks does not know yet what the broker speaks


_FEATURES = CompactArray(("name", _TEXT), ("highest", Int16), ("lowest", Int16), _TAGS)


class _Produced(Response):  # type: ignore[misc]  # aiokafka is untyped
    API_KEY = 0
    API_VERSION = 12
    SCHEMA = Schema(
        (
            "topics",
            CompactArray(
                ("topic", _TEXT),
                (
                    "partitions",
                    CompactArray(
                        ("partition", Int32),
                        _ERROR,
                        ("offset", Int64),
                        ("timestamp", Int64),
                        ("log_start_offset", Int64),
                        ("record_errors", CompactArray(("batch_index", Int32), ("message", _TEXT), _TAGS)),
                        ("error_message", _TEXT),
                        _TAGS,
                    ),
                ),
                _TAGS,
            ),
        ),
        _THROTTLE,
        _TAGS,
    )


class ProduceV12(_Of, RequestStruct):  # type: ignore[misc]  # aiokafka is untyped
    API_KEY = 0
    API_VERSION = 12
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = _Produced
    SCHEMA = Schema(("transactional_id", _TEXT), ("required_acks", Int16), ("timeout", Int32), ("topics", Array(_TEXT)))

    def encode(self) -> bytes:
        """As the schemas would, with one copy of the records in place of one for each level."""
        size = UnsignedVarInt32.encode
        parts = [_TEXT.encode(self.transactional_id), Int16.encode(self.required_acks), Int32.encode(self.timeout)]
        parts.append(size(len(self.topics) + 1))
        for topic, partitions in self.topics:
            parts += [_TEXT.encode(topic), size(len(partitions) + 1)]
            for partition, records in partitions:
                parts += [Int32.encode(partition), size(len(records) + 1), records, _NO_TAGS]
            parts.append(_NO_TAGS)
        return b"".join([*parts, _NO_TAGS])


class _Committed(Response):  # type: ignore[misc]  # aiokafka is untyped
    API_KEY = 28
    API_VERSION = 5
    SCHEMA = Schema(
        _THROTTLE,
        (
            "topics",
            CompactArray(("topic", _TEXT), ("partitions", CompactArray(("partition", Int32), _ERROR, _TAGS)), _TAGS),
        ),
        _TAGS,
    )


class TxnOffsetCommitV5(_Of, RequestStruct):  # type: ignore[misc]  # aiokafka is untyped
    API_KEY = 28
    API_VERSION = 5
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = _Committed
    SCHEMA = Schema(
        ("transactional_id", _TEXT),
        ("group_id", _TEXT),
        ("producer_id", Int64),
        ("producer_epoch", Int16),
        ("generation_id", Int32),
        ("member_id", _TEXT),
        ("group_instance_id", _TEXT),
        (
            "topics",
            CompactArray(
                ("topic", _TEXT),
                (
                    "partitions",
                    CompactArray(
                        ("partition", Int32), ("offset", Int64), ("leader_epoch", Int32), ("metadata", _TEXT), _TAGS
                    ),
                ),
                _TAGS,
            ),
        ),
        _TAGS,
    )


class _Ended(Response):  # type: ignore[misc]  # aiokafka is untyped
    API_KEY = 26
    API_VERSION = 5
    SCHEMA = Schema(_THROTTLE, _ERROR, ("producer_id", Int64), ("producer_epoch", Int16), _TAGS)


class EndTxnV5(_Of, RequestStruct):  # type: ignore[misc]  # aiokafka is untyped
    API_KEY = 26
    API_VERSION = 5
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = _Ended
    SCHEMA = Schema(
        ("transactional_id", _TEXT), ("producer_id", Int64), ("producer_epoch", Int16), ("committed", Boolean), _TAGS
    )


class _Produce(SendProduceReqHandler):  # type: ignore[misc]  # aiokafka is untyped
    def create_request(self) -> ProduceV12:
        topics = defaultdict(list)
        for tp, batch in self._batches.items():
            topics[tp.topic].append((tp.partition, batch.get_data_buffer()))
        sender = self._sender
        return ProduceV12(
            sender._txn_manager.transactional_id, sender._acks, sender._request_timeout_ms, list(topics.items())
        )

    def handle_response(self, response: _Produced) -> None:
        topics = [(topic, [tuple(told[:7]) for told in partitions]) for topic, partitions, _ in response.topics]
        super().handle_response(SimpleNamespace(API_VERSION=8, topics=topics))

    def _can_retry(self, error: KafkaError, batch: Any) -> bool:
        # The markers of this id's last transaction are not written yet, so that the next cannot begin.
        return isinstance(error, ConcurrentTransactions) or super()._can_retry(error, batch)


class _Commit(TxnOffsetCommitHandler):  # type: ignore[misc]  # aiokafka is untyped
    def create_request(self) -> TxnOffsetCommitV5:
        transaction = self._sender._txn_manager
        topics: dict[str, list[Any]] = defaultdict(list)
        for tp, offset in sorted(self._offsets.items()):
            topics[tp.topic].append((tp.partition, offset.offset, -1, offset.metadata, {}))
        return TxnOffsetCommitV5(
            transaction.transactional_id,
            self._group_id,
            transaction.producer_id,
            transaction.producer_epoch,
            -1,  # no generation: who owns the group's partitions is told by the transactional ids
            "",
            None,
            [(topic, partitions, {}) for topic, partitions in topics.items()],
            {},
        )

    def handle_response(self, response: _Committed) -> float | None:
        errors = [
            (topic, [(partition, _OLDER.get(code, code)) for partition, code, _ in partitions])
            for topic, partitions, _ in response.topics
        ]
        backoff: float | None = super().handle_response(SimpleNamespace(errors=errors))
        return backoff


class _End(EndTxnHandler):  # type: ignore[misc]  # aiokafka is untyped
    def create_request(self) -> EndTxnV5:
        ours, committed = self._sender._txn_manager, bool(self._commit_result)
        return EndTxnV5(ours.transactional_id, ours.producer_id, ours.producer_epoch, committed, {})

    def handle_response(self, response: _Ended) -> float | None:
        if not response.error_code:
            self._sender._txn_manager.renew(response.producer_id, response.producer_epoch)
        code = _OLDER.get(response.error_code, response.error_code)
        backoff: float | None = super().handle_response(SimpleNamespace(error_code=code))
        return backoff


class _Sender(Sender):  # type: ignore[misc]  # aiokafka is untyped
    """aiokafka's own, with the requests of version 2."""

    _send_produce_req = over(Sender._send_produce_req, SendProduceReqHandler=_Produce)
    _do_txn_offset_commit = over(Sender._do_txn_offset_commit, TxnOffsetCommitHandler=_Commit)
    _do_txn_commit = over(Sender._do_txn_commit, EndTxnHandler=_End)
