"""Groups: joining, staying, leaving, and the offsets they commit."""

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

from kio.schema.errors import ErrorCode

from .call import Call
from .coordinator import Committed, Place
from .errors import Refusal
from .groups import Group, Joined, JoinRequest, Synced
from .messages import Message, milliseconds
from .node import NODE_ID
from .writers import Fields

_GROUP_KEY, _TRANSACTION_KEY = 0, 1


def find_coordinator(call: Call) -> Fields:
    """It is always this broker; version 4 and later ask for many at once."""
    request = call.request
    keys = request.coordinator_keys if call.version >= 4 else (request.key,)
    kind = getattr(request, "key_type", _GROUP_KEY)
    place = {"node_id": NODE_ID, "host": call.node.host, "port": call.node.port}
    if kind not in (_GROUP_KEY, _TRANSACTION_KEY):
        message = f"There are coordinators for groups and transactions, but not for keys of type {kind}."
        place = {
            "node_id": -1,
            "host": "",
            "port": -1,
            "error_code": ErrorCode.invalid_request,
            "error_message": message,
        }
    return {**place, "coordinators": [{"key": key, **place} for key in keys]}


# Membership.


async def join_group(call: Call) -> Fields:
    request = call.request
    answer: asyncio.Future[Joined] = asyncio.get_running_loop().create_future()
    session_ms = milliseconds(request.session_timeout)
    rebalance_ms = session_ms if call.version == 0 else milliseconds(request.rebalance_timeout)
    join = JoinRequest(
        request.member_id,
        getattr(request, "group_instance_id", None),
        call.client_id,
        call.client_host,
        session_ms,
        rebalance_ms,
        request.protocol_type,
        tuple((protocol.name, protocol.metadata) for protocol in request.protocols),
        needs_known_id=call.version >= 4,
        can_skip_assignment=call.version >= 9,
    )
    try:
        call.node.groups.join(request.group_id, join, _settle(answer), call.node.clock.monotonic_ms())
        joined = await answer
    except Refusal as refusal:
        joined = Joined(refusal.code, request.member_id)
    return {
        "error_code": joined.error,
        "generation_id": joined.generation,
        "protocol_type": joined.protocol_type,
        # Before version 7 the name may not be null.
        "protocol_name": joined.protocol if call.version >= 7 else joined.protocol or "",
        "leader": joined.leader,
        "skip_assignment": joined.skip_assignment,
        "member_id": joined.member_id,
        "members": [
            {"member_id": member, "group_instance_id": instance, "metadata": metadata}
            for member, instance, metadata in joined.members
        ],
    }


def _settle(answer: "asyncio.Future[Any]") -> Callable[[Any], None]:
    def settle(result: Any) -> None:
        if not answer.done():  # the client may have gone
            answer.set_result(result)

    return settle


async def sync_group(call: Call) -> Fields:
    request = call.request
    answer: asyncio.Future[Synced] = asyncio.get_running_loop().create_future()
    try:
        call.node.groups.member_of(request.group_id).sync(
            request.member_id,
            getattr(request, "group_instance_id", None),
            request.generation_id,
            (getattr(request, "protocol_type", None), getattr(request, "protocol_name", None)),
            {entry.member_id: entry.assignment for entry in request.assignments},
            _settle(answer),
            call.node.clock.monotonic_ms(),
        )
        synced = await answer
    except Refusal as refusal:
        synced = Synced(refusal.code)
    return {
        "error_code": synced.error,
        "protocol_type": synced.protocol_type,
        "protocol_name": synced.protocol,
        "assignment": synced.assignment,
    }


def heartbeat(call: Call) -> Fields:
    request = call.request
    try:
        call.node.groups.member_of(request.group_id).heartbeat(
            request.member_id,
            getattr(request, "group_instance_id", None),
            request.generation_id,
            call.node.clock.monotonic_ms(),
        )
    except Refusal as refusal:
        return {"error_code": refusal.code}
    return {}


def leave_group(call: Call) -> Fields:
    request = call.request
    now_ms = call.node.clock.monotonic_ms()
    if call.version < 3:
        return {"error_code": _leave(call, request.group_id, request.member_id, None, now_ms)}
    members = [
        {
            "member_id": member.member_id,
            "group_instance_id": member.group_instance_id,
            "error_code": _leave(call, request.group_id, member.member_id, member.group_instance_id, now_ms),
        }
        for member in request.members
    ]
    return {"members": members}


def _leave(call: Call, group_id: str, member_id: str, instance_id: str | None, now_ms: int) -> ErrorCode:
    try:
        call.node.groups.member_of(group_id).leave(member_id, instance_id, now_ms)
    except Refusal as refusal:
        return refusal.code
    return ErrorCode.none


# Offsets.


def offset_commit(call: Call) -> Fields:
    request, node = call.request, call.node
    error = ErrorCode.none
    try:
        node.groups.check_commit(
            request.group_id,
            request.member_id,
            getattr(request, "group_instance_id", None),
            request.generation_id_or_member_epoch,
            node.clock.monotonic_ms(),
        )
    except Refusal as refusal:
        error = refusal.code
    accepted, topics = accept_offsets(call, error)
    if accepted:
        node.groups.commit(request.group_id, accepted)
    return {"topics": topics}


def accept_offsets(call: Call, error: ErrorCode) -> tuple[dict[Place, Committed], list[dict[str, Any]]]:
    """The offsets of a commit that can be taken, and the answer for each; none when `error` is one."""
    accepted: dict[Place, Committed] = {}
    topics = []
    for topic in call.request.topics:
        partitions = []
        for entry in topic.partitions:
            code = error
            try:
                if code is ErrorCode.none:
                    accepted[topic.name, entry.partition_index] = _accept(call, topic.name, entry)
            except Refusal as refusal:
                code = refusal.code
            partitions.append({"partition_index": entry.partition_index, "error_code": code})
        topics.append({"name": topic.name, "partitions": partitions})
    return accepted, topics


def _accept(call: Call, topic: str, entry: Message) -> Committed:
    call.node.topics.partition(topic, entry.partition_index)
    metadata = entry.committed_metadata or ""
    call.node.groups.check_metadata(metadata)
    epoch = getattr(entry, "committed_leader_epoch", -1)
    return Committed(entry.committed_offset, epoch, metadata, call.node.clock.wall_ms())


def offset_fetch(call: Call) -> Fields:
    request = call.request
    stable = getattr(request, "require_stable", False)
    if call.version >= 8:
        groups = [
            {"group_id": group.group_id, **_fetch_offsets(call, group.group_id, group.topics, stable)}
            for group in request.groups
        ]
        return {"groups": groups}
    return _fetch_offsets(call, request.group_id, request.topics, stable)


def _fetch_offsets(call: Call, group_id: str, wanted: Iterable[Message] | None, stable: bool) -> dict[str, Any]:
    committed = call.node.groups.committed(group_id)
    unstable = call.node.transactions.unstable(group_id) if stable else set()
    if wanted is None:
        places = sorted(committed.keys() | unstable)
    else:
        places = [(topic.name, index) for topic in wanted for index in topic.partition_indexes]
    topics: dict[str, list[dict[str, Any]]] = {}
    for place in places:
        fields = _offset_fields(place[1], committed.get(place), place in unstable)
        topics.setdefault(place[0], []).append(fields)
    return {"topics": [{"name": name, "partitions": partitions} for name, partitions in topics.items()]}


def _offset_fields(partition: int, held: Committed | None, unstable: bool) -> dict[str, Any]:
    fields: dict[str, Any] = {"partition_index": partition, "committed_offset": -1, "metadata": ""}
    if unstable:
        fields["error_code"] = ErrorCode.unstable_offset_commit
    elif held is not None:
        fields |= {
            "committed_offset": held.offset,
            "committed_leader_epoch": held.leader_epoch,
            "metadata": held.metadata,
        }
    return fields


def offset_delete(call: Call) -> Fields:
    request = call.request
    group = call.node.groups.get(request.group_id)
    if group is None:
        return {"error_code": ErrorCode.group_id_not_found}
    topics, forgotten = [], []
    for topic in request.topics:
        partitions = []
        for entry in topic.partitions:
            code = ErrorCode.none
            if group.subscribes(topic.name):
                code = ErrorCode.group_subscribed_to_topic
            else:
                forgotten.append((topic.name, entry.partition_index))
            partitions.append({"partition_index": entry.partition_index, "error_code": code})
        topics.append({"name": topic.name, "partitions": partitions})
    call.node.groups.forget_offsets(request.group_id, forgotten)
    return {"topics": topics}


# Administration.


def list_groups(call: Call) -> Fields:
    states = {state.lower() for state in getattr(call.request, "states_filter", ())}
    types = {kind.lower() for kind in getattr(call.request, "types_filter", ())}
    groups = []
    for name in call.node.groups.names():
        group = call.node.groups.get(name)
        if group is None or (states and group.state.value.lower() not in states):
            continue
        if types and "classic" not in types:
            continue
        groups.append(
            {
                "group_id": name,
                "protocol_type": group.protocol_type or "",
                "group_state": group.state.value,
                "group_type": "classic",
            }
        )
    return {"groups": groups}


def describe_groups(call: Call) -> Fields:
    return {"groups": [_describe(call, group_id) for group_id in call.request.groups]}


def _describe(call: Call, group_id: str) -> dict[str, Any]:
    group = call.node.groups.get(group_id)
    if group is None:
        error = ErrorCode.group_id_not_found if call.version >= 6 else ErrorCode.none
        told = f"Group {group_id} not found."
        return {"group_id": group_id, "group_state": "Dead", "error_code": error, "error_message": told}
    return {
        "group_id": group_id,
        "group_state": group.state.value,
        "protocol_type": group.protocol_type or "",
        "protocol_data": group.protocol or "",
        "members": _members(group),
    }


def _members(group: Group) -> list[dict[str, Any]]:
    return [
        {
            "member_id": member.id,
            "group_instance_id": member.instance_id,
            "client_id": member.client_id,
            "client_host": member.client_host,
            "member_metadata": member.metadata(group.protocol),
            "member_assignment": member.assignment,
        }
        for member in group.members.values()
    ]


def delete_groups(call: Call) -> Fields:
    results = []
    for group_id in call.request.groups_names:
        code = ErrorCode.none
        try:
            call.node.groups.delete(group_id)
        except Refusal as refusal:
            code = refusal.code
        results.append({"group_id": group_id, "error_code": code})
    return {"results": results}
