"""Records: produce, fetch, look-ups and deletion."""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Awaitable
from typing import Any

from kio.schema.errors import ErrorCode

from .batches import LEADER_EPOCH, receive_batch, transaction_of, with_append_time
from .call import Call, names
from .coordinator import Place
from .errors import Refusal, StoreFailed, Unanswerable
from .log import Append, PartitionLog
from .messages import Message, milliseconds, moment
from .store import Change
from .writers import Fields, Records

_READ_COMMITTED = 1
# Instead of a time, and the first version of ListOffsets that knows it. What lies in tiers is nothing here.
_EARLIEST, _LATEST, _GREATEST_TIME, _EARLIEST_LOCAL, _LATEST_TIERED = -2, -1, -3, -4, -5
_SPECIAL_TIMES = {_EARLIEST: 0, _LATEST: 0, _GREATEST_TIME: 7, _EARLIEST_LOCAL: 8, _LATEST_TIERED: 9}
# From this version of Produce on, a partition belongs to the transaction because one writes to it (KIP-890),
_IMPLIED_BY_PRODUCE = 12
# and from this one a client knows that it must abort.
_KNOWS_ABORTABLE = 11
_TO_THE_END = -1


# Produce.


def produce(call: Call) -> Fields | None:
    """All partitions of a request are written in one change; it is durable when the answer is sent."""
    request = call.request
    change = Change()
    staged: dict[Place, tuple[PartitionLog, Append]] = {}
    responses: list[dict[str, Any]] = []
    unheld = _enter_transactions(call) if call.version >= _IMPLIED_BY_PRODUCE else {}
    for topic in request.topic_data:
        answers = []
        for partition in topic.partition_data:
            try:
                if request.acks not in (-1, 0, 1):
                    raise Refusal(ErrorCode.invalid_required_acks, f"acks is -1, 0 or 1, not {request.acks}.")
                answers.append(_produce_one(call, call.topic(topic), partition, change, staged, unheld))
            except Refusal as refusal:
                answers.append(
                    {
                        "index": partition.index,
                        "error_code": refusal.code,
                        "error_message": refusal.message,
                        "base_offset": -1,
                        "log_start_offset": -1,
                    }
                )
        responses.append({**names(topic), "partition_responses": answers})
    if staged:
        try:
            call.node.store.commit(change)
        except StoreFailed as failed:
            responses = _not_stored(request, str(failed))
        else:
            for log, append in staged.values():
                log.apply(append)
    if request.acks != 0:
        return {"responses": responses}
    for topic in responses:
        for answer in topic["partition_responses"]:
            if "error_code" in answer:
                raise Unanswerable(f"A batch without acknowledgement was refused: {answer['error_message']}")
    return None


def _enter_transactions(call: Call) -> dict[Place, Refusal]:
    """Make the partitions of the request part of their producers' transactions; which could not be, and why."""
    if call.request.transactional_id is None:
        return {}
    wanted: dict[tuple[int, int], list[Place]] = defaultdict(list)
    for topic in call.request.topic_data:
        for partition in topic.partition_data:
            owner = transaction_of(partition.records)
            if owner is None:
                continue
            with contextlib.suppress(Refusal):  # what is not there is refused with its batch
                name = call.topic(topic)
                call.node.topics.partition(name, partition.index)
                wanted[owner].append((name, partition.index))
    unheld: dict[Place, Refusal] = {}
    for (producer_id, epoch), places in wanted.items():
        try:
            call.node.transactions.enter(producer_id, epoch, places, call.node.clock.wall_ms())
        except Refusal as refusal:
            unheld |= dict.fromkeys(places, refusal)
    return unheld


def _not_stored(request: Message, why: str) -> list[dict[str, Any]]:
    """Clients try again after this code."""
    told = {
        "error_code": ErrorCode.kafka_storage_error,
        "error_message": why,
        "base_offset": -1,
        "log_start_offset": -1,
    }
    return [
        {**names(topic), "partition_responses": [{"index": data.index, **told} for data in topic.partition_data]}
        for topic in request.topic_data
    ]


def _produce_one(
    call: Call,
    topic_name: str,
    data: Message,
    change: Change,
    staged: dict[Place, tuple[PartitionLog, Append]],
    unheld: dict[Place, Refusal],
) -> dict[str, Any]:
    node = call.node
    place = (topic_name, data.index)
    log = node.topics.partition(topic_name, data.index)
    if place in staged:
        raise Refusal(ErrorCode.invalid_request, "A produce request names each partition once.")
    settings = node.topics.known(topic_name).settings
    batch = receive_batch(data.records, settings.max_message_bytes)
    now_ms = node.clock.wall_ms()
    if batch.transactional:
        if call.request.transactional_id is None:
            raise Refusal(
                ErrorCode.transactional_id_authorization_failed,
                "A batch of a transaction comes in a request that names its transactional id.",
            )
        if place in unheld:
            raise unheld[place]
        node.transactions.check_append(batch, place, knows_abortable=call.version >= _KNOWS_ABORTABLE)
    repeated = log.repeated(batch)
    if repeated is not None:
        base_offset = repeated.base_offset
    else:
        if settings.append_time:
            batch = with_append_time(batch, now_ms)
        staged[place] = log, log.stage(batch, change, now_ms)
        base_offset = log.end
    return {
        "index": data.index,
        "base_offset": base_offset,
        "log_append_time": moment(now_ms) if settings.append_time else None,
        "log_start_offset": log.start,
    }


# Fetch.


def fetch(call: Call) -> Fields | Awaitable[Fields]:
    """Answers when there are `min_bytes`, when something is wrong, or when the time is over."""
    request = call.request
    if getattr(request, "session_id", 0) != 0:
        # No sessions: every answer says session 0, and clients then send whole requests.
        return {"error_code": ErrorCode.fetch_session_id_not_found}
    wait_ms = min(milliseconds(request.max_wait), call.node.limits.fetch_wait_ms)
    fields = _fetch_now(call, anyway=wait_ms <= 0)
    return fields if fields is not None else _fetch_later(call, wait_ms)


async def _fetch_later(call: Call, wait_ms: int) -> Fields:
    logs = _logs_of(call)
    woken = asyncio.Event()
    for log in logs:
        log.watchers.add(woken.set)
    try:
        async with asyncio.timeout(wait_ms / 1000):
            # At once too: something may have been written before this began to watch.
            while (fields := _fetch_now(call)) is None:
                await woken.wait()
                woken.clear()
            return fields
    except TimeoutError:
        fields = _fetch_now(call, anyway=True)
        assert fields is not None
        return fields
    finally:
        for log in logs:
            log.watchers.discard(woken.set)


def _logs_of(call: Call) -> list[PartitionLog]:
    return [
        call.node.topics.partition(call.topic(topic, "topic"), partition.partition)
        for topic in call.request.topics
        for partition in topic.partitions
    ]


def _fetch_now(call: Call, *, anyway: bool = False) -> Fields | None:
    """What is there, or nothing where it is not worth answering: whoever waits holds none of it."""
    request = call.request
    left = min(request.max_bytes, call.node.limits.fetch_bytes, call.node.flight.room)
    size, refused, responses = 0, False, []
    for topic in request.topics:
        partitions = []
        for wanted in topic.partitions:
            try:
                name = call.topic(topic, "topic")
                answer, taken = _fetch_one(call, name, wanted, left, first=size == 0)
                size += taken
                left -= taken
            except Refusal as refusal:
                refused = True
                answer = _refused_fetch(wanted.partition, refusal)
            partitions.append(answer)
        responses.append({**names(topic), "partitions": partitions})
    enough = refused or size >= request.min_bytes or not responses
    return {"responses": responses} if enough or anyway else None


def _fetch_one(call: Call, topic: str, wanted: Message, left: int, *, first: bool) -> tuple[dict[str, Any], int]:
    log = call.node.topics.partition(topic, wanted.partition)
    _check_epoch(getattr(wanted, "current_leader_epoch", -1))
    committed_only = call.request.isolation_level == _READ_COMMITTED
    upper = log.stable_end if committed_only else log.end
    limit = min(left, wanted.partition_max_bytes)
    batches = log.read(wanted.fetch_offset, upper, limit, at_least_one=first)
    aborted = None
    if committed_only:
        aborted = [
            {"producer_id": entry.producer_id, "first_offset": entry.first_offset}
            for entry in (log.aborted_between(wanted.fetch_offset, upper) if batches else ())
        ]
    records = Records(batches)
    return {
        "partition_index": wanted.partition,
        "high_watermark": log.end,
        "last_stable_offset": log.stable_end,
        "log_start_offset": log.start,
        "aborted_transactions": aborted,
        "records": records,
    }, len(records)


def _refused_fetch(partition: int, refusal: Refusal) -> dict[str, Any]:
    return {
        "partition_index": partition,
        "error_code": refusal.code,
        "high_watermark": -1,
        "last_stable_offset": -1,
        "log_start_offset": -1,
        "aborted_transactions": None,
        "records": b"",
    }


def _check_epoch(epoch: int) -> None:
    """There is one leader for ever, and so one epoch."""
    if epoch > LEADER_EPOCH:
        raise Refusal(ErrorCode.unknown_leader_epoch, f"The leader's epoch is {LEADER_EPOCH}, not {epoch}.")


# Look-ups and deletion.


def list_offsets(call: Call) -> Fields:
    committed_only = getattr(call.request, "isolation_level", 0) == _READ_COMMITTED
    topics = []
    for topic in call.request.topics:
        partitions = []
        for wanted in topic.partitions:
            fields: dict[str, Any] = {
                "partition_index": wanted.partition_index,
                "offset": -1,
                "timestamp": -1,
            }
            try:
                _check_epoch(getattr(wanted, "current_leader_epoch", -1))
                log = call.node.topics.partition(topic.name, wanted.partition_index)
                upper = log.stable_end if committed_only else log.end
                if wanted.timestamp < 0 and call.version < _SPECIAL_TIMES.get(wanted.timestamp, call.version + 1):
                    raise Refusal(ErrorCode.unsupported_version, f"There is no time {wanted.timestamp} to look for.")
                found = _offset_for(log, wanted.timestamp, upper)
                if found is not None:
                    fields |= {"offset": found[0], "timestamp": found[1], "leader_epoch": LEADER_EPOCH}
            except Refusal as refusal:
                fields["error_code"] = refusal.code
            except StoreFailed:  # the store has said so
                fields["error_code"] = ErrorCode.kafka_storage_error
            partitions.append(fields)
        topics.append({"name": topic.name, "partitions": partitions})
    return {"topics": topics}


def _offset_for(log: PartitionLog, timestamp: int, upper: int) -> tuple[int, int] | None:
    if timestamp == _LATEST:
        return upper, -1
    if timestamp == _LATEST_TIERED:
        return None
    if timestamp in (_EARLIEST, _EARLIEST_LOCAL):
        return log.start, -1
    found = log.find_latest_time() if timestamp == _GREATEST_TIME else log.find_time(timestamp)
    return found if found is not None and found[0] < upper else None


def delete_records(call: Call) -> Fields:
    topics: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for topic in call.request.topics:
        for wanted in topic.partitions:
            fields: dict[str, Any] = {"partition_index": wanted.partition_index, "low_watermark": -1}
            try:
                fields["low_watermark"] = _delete_before(call, topic.name, wanted)
            except Refusal as refusal:
                fields["error_code"] = refusal.code
            except StoreFailed:
                fields["error_code"] = ErrorCode.kafka_storage_error
            topics[topic.name].append(fields)
    return {"topics": [{"name": name, "partitions": partitions} for name, partitions in topics.items()]}


def _delete_before(call: Call, topic: str, wanted: Message) -> int:
    node = call.node
    log = node.topics.partition(topic, wanted.partition_index)
    if not node.topics.known(topic).settings.delete:
        raise Refusal(ErrorCode.policy_violation, f"Topic {topic!r} is compacted and never deleted from.")
    offset = log.end if wanted.offset == _TO_THE_END else wanted.offset
    if not 0 <= offset <= log.end:
        raise Refusal(ErrorCode.offset_out_of_range, f"Offset {offset} is not within 0 to {log.end}.")
    if offset > log.start:
        change = Change()
        bounds = log.stage_cut(offset, change)
        node.store.commit(change)
        log.apply_cut(bounds)
    return log.start


def offset_for_leader_epoch(call: Call) -> Fields:
    topics = []
    for topic in call.request.topics:
        partitions = []
        for wanted in topic.partitions:
            fields: dict[str, Any] = {"partition": wanted.partition}
            try:
                _check_epoch(wanted.current_leader_epoch)
                log = call.node.topics.partition(topic.topic, wanted.partition)
                if wanted.leader_epoch == LEADER_EPOCH:
                    fields |= {"leader_epoch": LEADER_EPOCH, "end_offset": log.end}
            except Refusal as refusal:
                fields["error_code"] = refusal.code
            partitions.append(fields)
        topics.append({"topic": topic.topic, "partitions": partitions})
    return {"topics": topics}
