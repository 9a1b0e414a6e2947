"""Transactions: producers' ids and epochs, what a transaction holds, and its end."""

import datetime
from collections.abc import Callable, Iterable
from typing import Any

from kio.schema.errors import ErrorCode

from .answers_groups import accept_offsets
from .call import Call
from .coordinator import check_group_id
from .errors import Refusal
from .messages import Message, milliseconds, moment
from .transactions import State, Transaction
from .writers import Fields

# Transactions of version 2 (KIP-890): from this version of TxnOffsetCommit on, committing for a group makes it part
# of the transaction, from this one of EndTxn on, the end raises the producer's epoch,
_IMPLIED_BY_COMMIT, _BUMPED_BY_END = 5, 5
# and from this version of TxnOffsetCommit on a client knows that it must abort.
_KNOWS_ABORTABLE = 4
# Kafka's -1, as kio writes it.
_NEVER = datetime.datetime.fromtimestamp(-0.001, datetime.UTC)


def init_producer_id(call: Call) -> Fields:
    request, node = call.request, call.node
    producer_id, epoch = getattr(request, "producer_id", -1), getattr(request, "producer_epoch", -1)
    try:
        if (producer_id < 0) is not (epoch < 0):
            raise Refusal(ErrorCode.invalid_request, "A producer says its id and its epoch, or neither.")
        if request.transactional_id is None:
            return {"producer_id": node.transactions.new_producer(), "producer_epoch": 0}
        producer = node.transactions.begin_producer(
            request.transactional_id,
            milliseconds(request.transaction_timeout),
            producer_id,
            epoch,
            node.clock.wall_ms(),
        )
    except Refusal as refusal:
        return {
            "error_code": _known(refusal.code, call.version >= 4),
            "producer_id": -1,
            "producer_epoch": -1,
        }
    return {"producer_id": producer.producer_id, "producer_epoch": producer.epoch}


def _known(code: ErrorCode, knows_fenced: bool) -> ErrorCode:
    """Older versions know a fenced producer by its epoch."""
    if code is ErrorCode.producer_fenced and not knows_fenced:
        return ErrorCode.invalid_producer_epoch
    return code


def _code(act: Callable[[], None], knows_fenced: bool) -> ErrorCode:
    try:
        act()
    except Refusal as refusal:
        return _known(refusal.code, knows_fenced)
    return ErrorCode.none


def add_partitions_to_txn(call: Call) -> Fields:
    """One transaction; from version 4 on many, as brokers ask each other."""
    request = call.request
    if call.version >= 4:
        results = [
            {
                "transactional_id": entry.transactional_id,
                "topic_results": _add_partitions(
                    call,
                    (entry.transactional_id, entry.producer_id, entry.producer_epoch),
                    entry.topics,
                    verify_only=entry.verify_only,
                ),
            }
            for entry in request.transactions
        ]
        return {"results_by_transaction": results}
    owner = (
        request.v3_and_below_transactional_id,
        request.v3_and_below_producer_id,
        request.v3_and_below_producer_epoch,
    )
    return {"results_by_topic_v3_and_below": _add_partitions(call, owner, request.v3_and_below_topics)}


def _add_partitions(
    call: Call, owner: tuple[str, int, int], topics: Iterable[Message], *, verify_only: bool = False
) -> list[dict[str, Any]]:
    """All or nothing: one unknown partition keeps the others out."""
    node = call.node
    places = [(topic.name, index) for topic in topics for index in topic.partitions]
    unknown = {place for place in places if not _exists(call, *place)}
    error = ErrorCode.none
    if not unknown:
        act = node.transactions.check_partitions if verify_only else node.transactions.add_partitions
        error = _code(lambda: act(*owner, places, node.clock.wall_ms()), call.version >= 2)

    def code_of(place: tuple[str, int]) -> ErrorCode:
        if place in unknown:
            return ErrorCode.unknown_topic_or_partition
        return ErrorCode.operation_not_attempted if unknown else error

    return [
        {
            "name": topic.name,
            "results_by_partition": [
                {"partition_index": index, "partition_error_code": code_of((topic.name, index))}
                for index in topic.partitions
            ],
        }
        for topic in topics
    ]


def _exists(call: Call, topic: str, index: int) -> bool:
    try:
        call.node.topics.partition(topic, index)
    except Refusal:
        return False
    return True


def add_offsets_to_txn(call: Call) -> Fields:
    request, node = call.request, call.node
    error = _code(
        lambda: node.transactions.add_group(
            request.transactional_id,
            request.producer_id,
            request.producer_epoch,
            request.group_id,
            node.clock.wall_ms(),
        ),
        call.version >= 2,
    )
    return {"error_code": error}


def txn_offset_commit(call: Call) -> Fields:
    request, node = call.request, call.node
    try:
        check_group_id(request.group_id)
        if call.version >= _IMPLIED_BY_COMMIT:
            node.transactions.add_group(
                request.transactional_id,
                request.producer_id,
                request.producer_epoch,
                request.group_id,
                node.clock.wall_ms(),
            )
        node.groups.check_commit(
            request.group_id,
            getattr(request, "member_id", ""),
            getattr(request, "group_instance_id", None),
            getattr(request, "generation_id", -1),
            node.clock.monotonic_ms(),
            transactional=True,
        )
    except Refusal as refusal:
        return {"topics": accept_offsets(call, _known(refusal.code, False))[1]}
    accepted, topics = accept_offsets(call, ErrorCode.none)
    if not accepted:
        return {"topics": topics}
    error = _code(
        lambda: node.transactions.add_offsets(
            request.transactional_id,
            request.producer_id,
            request.producer_epoch,
            request.group_id,
            accepted,
            node.clock.wall_ms(),
            knows_abortable=call.version >= _KNOWS_ABORTABLE,
        ),
        False,
    )
    return {"topics": topics if error is ErrorCode.none else accept_offsets(call, error)[1]}


def end_txn(call: Call) -> Fields:
    request, node = call.request, call.node
    try:
        ended = node.transactions.end(
            request.transactional_id,
            request.producer_id,
            request.producer_epoch,
            request.committed,
            node.clock.wall_ms(),
            bumps=call.version >= _BUMPED_BY_END,
        )
    except Refusal as refusal:
        return {"error_code": _known(refusal.code, call.version >= 2)}
    return {"producer_id": ended.producer_id, "producer_epoch": ended.epoch}


# Administration.


def list_transactions(call: Call) -> Fields:
    request, now_ms = call.request, call.node.clock.wall_ms()
    known = {state.value for state in State}
    producers = set(request.producer_id_filters)
    longer_than = getattr(request, "duration_filter", -1)
    found = []
    for transaction in call.node.transactions.all():
        if request.state_filters and transaction.state.value not in request.state_filters:
            continue
        if producers and transaction.producer_id not in producers:
            continue
        # As Kafka: what has never begun counts as begun in 1970.
        if longer_than >= 0 and now_ms - transaction.started_ms < longer_than:
            continue
        found.append(
            {
                "transactional_id": transaction.id,
                "producer_id": transaction.producer_id,
                "transaction_state": transaction.state.value,
            }
        )
    return {
        "transaction_states": found,
        "unknown_state_filters": tuple(state for state in request.state_filters if state not in known),
    }


def describe_transactions(call: Call) -> Fields:
    return {"transaction_states": [_describe(call, name) for name in call.request.transactional_ids]}


def _describe(call: Call, name: str) -> dict[str, Any]:
    transaction: Transaction | None = call.node.transactions.get(name)
    if transaction is None:
        return {
            "transactional_id": name,
            "error_code": ErrorCode.transactional_id_not_found,
            "transaction_start_time": moment(0),
        }
    topics: dict[str, list[int]] = {}
    for topic, index in sorted(transaction.partitions):
        topics.setdefault(topic, []).append(index)
    return {
        "transactional_id": name,
        "transaction_state": transaction.state.value,
        "transaction_timeout": datetime.timedelta(milliseconds=transaction.timeout_ms),
        "transaction_start_time": moment(transaction.started_ms) or _NEVER,
        "producer_id": transaction.producer_id,
        "producer_epoch": transaction.epoch,
        "topics": [{"topic": topic, "partitions": tuple(indexes)} for topic, indexes in topics.items()],
    }


def describe_producers(call: Call) -> Fields:
    topics = []
    for topic in call.request.topics:
        partitions = [_active(call, topic.name, index) for index in topic.partition_indexes]
        topics.append({"name": topic.name, "partitions": partitions})
    return {"topics": topics}


def _active(call: Call, topic: str, index: int) -> dict[str, Any]:
    try:
        log = call.node.topics.partition(topic, index)
    except Refusal as refusal:
        return {"partition_index": index, "error_code": refusal.code, "error_message": refusal.message}
    producers = [
        {
            "producer_id": producer_id,
            "producer_epoch": state.epoch,
            "last_sequence": state.last_sequence,
            "last_timestamp": state.seen_ms,
            "coordinator_epoch": 0 if state.ended else -1,
            "current_txn_start_offset": state.first_offset,
        }
        for producer_id, state in log.producers.items()
    ]
    return {"partition_index": index, "active_producers": producers}
