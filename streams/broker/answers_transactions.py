"""Transactions: producers' ids and epochs, what a transaction holds, and its end."""

import datetime
from collections.abc import Callable
from typing import Any

from kio.schema.errors import ErrorCode

from .answers_groups import accept_offsets
from .call import Call
from .errors import Refusal
from .messages import Fields, milliseconds, moment
from .transactions import State, Transaction


def init_producer_id(call: Call) -> Fields:
    request, node = call.request, call.node
    try:
        if request.transactional_id is None:
            return {"producer_id": node.transactions.new_producer(), "producer_epoch": 0}
        producer = node.transactions.begin_producer(
            request.transactional_id,
            milliseconds(request.transaction_timeout),
            getattr(request, "producer_id", -1),
            getattr(request, "producer_epoch", -1),
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
    """All or nothing: one unknown partition keeps the others out."""
    request, node = call.request, call.node
    places = [(topic.name, index) for topic in request.v3_and_below_topics for index in topic.partitions]
    unknown = {place for place in places if not _exists(call, *place)}
    error = ErrorCode.none
    if not unknown:
        error = _code(
            lambda: node.transactions.add_partitions(
                request.v3_and_below_transactional_id,
                request.v3_and_below_producer_id,
                request.v3_and_below_producer_epoch,
                places,
                node.clock.wall_ms(),
            ),
            call.version >= 2,
        )

    def code_of(place: tuple[str, int]) -> ErrorCode:
        if place in unknown:
            return ErrorCode.unknown_topic_or_partition
        return ErrorCode.operation_not_attempted if unknown else error

    results = [
        {
            "name": topic.name,
            "results_by_partition": [
                {"partition_index": index, "partition_error_code": code_of((topic.name, index))}
                for index in topic.partitions
            ],
        }
        for topic in request.v3_and_below_topics
    ]
    return {"results_by_topic_v3_and_below": results}


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
    error = ErrorCode.none
    generation = getattr(request, "generation_id", -1)
    if generation >= 0 or getattr(request, "member_id", ""):
        # Version 3 and later: a member that has lost its place in the group must not commit for it.
        error = _code(
            lambda: node.groups.check_commit(
                request.group_id,
                request.member_id,
                request.group_instance_id,
                generation,
                node.clock.monotonic_ms(),
            ),
            True,
        )
    accepted, topics = accept_offsets(call, error)
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
        ),
        False,
    )
    return {"topics": topics if error is ErrorCode.none else accept_offsets(call, error)[1]}


def end_txn(call: Call) -> Fields:
    request, node = call.request, call.node
    error = _code(
        lambda: node.transactions.end(
            request.transactional_id,
            request.producer_id,
            request.producer_epoch,
            request.committed,
            node.clock.wall_ms(),
        ),
        call.version >= 2,
    )
    return {"error_code": error}


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
        if longer_than >= 0 and (
            transaction.state is not State.ONGOING or now_ms - transaction.started_ms <= longer_than
        ):
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
        "transaction_start_time": moment(max(transaction.started_ms, 0)),
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
            "coordinator_epoch": 0,
            "current_txn_start_offset": state.first_offset,
        }
        for producer_id, state in log.producers.items()
    ]
    return {"partition_index": index, "active_producers": producers}
