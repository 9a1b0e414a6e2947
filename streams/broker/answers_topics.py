"""Topics and the cluster: metadata, creation, deletion, configuration."""

import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from kio.schema.errors import ErrorCode

from .batches import LEADER_EPOCH
from .call import Call
from .errors import Refusal
from .messages import Message
from .node import NODE_ID
from .topics import LIST, SETTINGS, Topic, check_configs, check_name
from .writers import Fields

_TOPIC, _BROKER = 2, 4
_FROM_TOPIC, _BY_DEFAULT = 1, 5
_SET, _DELETE, _APPEND, _SUBTRACT = 0, 1, 2, 3
# As Kafka's max.request.partition.size.limit.
_DESCRIBED_PARTITIONS = 2_000
# The first version of Metadata in which a topic may be asked for by its id alone.
_NAMELESS = 12


# The cluster.


def _brokers(call: Call, id_field: str) -> list[dict[str, Any]]:
    return [{id_field: NODE_ID, "host": call.node.host, "port": call.node.port}]


def metadata(call: Call) -> Fields:
    node, request = call.node, call.request
    everything = request.topics is None or (call.version == 0 and not request.topics)
    if everything:
        described = [_describe(topic) for topic in node.topics]
    else:
        described = [_describe_wanted(call, wanted) for wanted in request.topics]
    return {
        "brokers": _brokers(call, "node_id"),
        "cluster_id": node.cluster_id,
        "controller_id": NODE_ID,
        "topics": described,
    }


def _describe_wanted(call: Call, wanted: Message) -> dict[str, Any]:
    topic_id = getattr(wanted, "topic_id", None)
    if wanted.name is None and call.version < _NAMELESS:
        return {"error_code": ErrorCode.invalid_request, "name": ""}
    if topic_id is not None or wanted.name is None:  # Kafka's clients give an empty name beside the id
        found = call.node.topics.by_id(topic_id) if topic_id is not None else None
        if found is None:
            return {"error_code": ErrorCode.unknown_topic_id, "name": None, "topic_id": topic_id}
        return _describe(found)
    topic = call.node.topics.get(wanted.name)
    try:
        if topic is None:
            topic = _create_when_asked(call, wanted.name)
    except Refusal as refusal:
        return {"error_code": refusal.code, "name": wanted.name}
    return _describe(topic)


def _create_when_asked(call: Call, name: str) -> Topic:
    check_name(name)
    if call.node.auto_create and getattr(call.request, "allow_auto_topic_creation", True):
        return call.node.topics.create(name, call.node.default_partitions, {})
    raise Refusal(ErrorCode.unknown_topic_or_partition, f"There is no topic {name!r}.")


def _describe(topic: Topic) -> dict[str, Any]:
    return {
        "name": topic.name,
        "topic_id": topic.id,
        "is_internal": False,
        "partitions": [
            {
                "partition_index": log.index,
                "leader_id": NODE_ID,
                "leader_epoch": LEADER_EPOCH,
                "replica_nodes": (NODE_ID,),
                "isr_nodes": (NODE_ID,),
                # Kafka's clients fail on an answer without them.
                "eligible_leader_replicas": (),
                "last_known_elr": (),
            }
            for log in topic.partitions
        ],
    }


def describe_topic_partitions(call: Call) -> Fields:
    """Topics in the order of their names, at most so many partitions at once; the cursor tells where to go on."""
    request = call.request
    asked = {topic.name for topic in request.topics} or {topic.name for topic in call.node.topics}
    cursor = request.cursor
    left = max(1, min(request.response_partition_limit, _DESCRIBED_PARTITIONS))
    described: list[dict[str, Any]] = []
    for name in sorted(asked):
        if cursor is not None and name < cursor.topic_name:
            continue
        if left == 0:
            return {"topics": described, "next_cursor": {"topic_name": name, "partition_index": 0}}
        try:
            check_name(name)
            fields = _describe(call.node.topics.known(name))
        except Refusal as refusal:
            described.append({"error_code": refusal.code, "name": name})
            continue
        first = cursor.partition_index if cursor is not None and cursor.topic_name == name else 0
        held = fields["partitions"]
        fields["partitions"] = held[first : first + left]
        described.append(fields)
        if first + left < len(held):
            return {"topics": described, "next_cursor": {"topic_name": name, "partition_index": first + left}}
        left -= len(fields["partitions"])
    return {"topics": described, "next_cursor": None}


def list_partition_reassignments(call: Call) -> Fields:
    """One broker has nowhere to move a partition to."""
    return {}


def describe_log_dirs(call: Call) -> Fields:
    """The broker's one folder; a size is that of the record batches before RocksDB packs them."""
    asked = call.request.topics
    wanted = None if asked is None else {(topic.topic, index) for topic in asked for index in topic.partitions}
    topics = []
    for topic in call.node.topics:
        partitions = [
            {"partition_index": log.index, "partition_size": log.bounds.size, "offset_lag": 0}
            for log in topic.partitions
            if wanted is None or (topic.name, log.index) in wanted
        ]
        if partitions:
            topics.append({"name": topic.name, "partitions": partitions})
    disk = shutil.disk_usage(call.node.store.folder)
    folder = {
        "log_dir": str(call.node.store.folder.absolute()),
        "topics": topics,
        "total_bytes": disk.total,
        "usable_bytes": disk.free,
    }
    return {"results": [folder]}


def describe_cluster(call: Call) -> Fields:
    endpoint = getattr(call.request, "endpoint_type", 1)
    if endpoint != 1:
        return {
            "error_code": ErrorCode.unsupported_endpoint_type,
            "error_message": "There are no controllers apart from the broker.",
        }
    return {
        "endpoint_type": 1,
        "cluster_id": call.node.cluster_id,
        "controller_id": NODE_ID,
        "brokers": _brokers(call, "broker_id"),
    }


# Creation and deletion.


def create_topics(call: Call) -> Fields:
    named = Counter(topic.name for topic in call.request.topics)
    answers = []
    for topic in call.request.topics:
        if named[topic.name] > 1:
            answers.append(_refused(topic.name, ErrorCode.invalid_request, "The request names the topic twice."))
            continue
        try:
            answers.append(_create(call, topic))
        except Refusal as refusal:
            answers.append(_refused(topic.name, refusal.code, refusal.message))
    return {"topics": answers}


def _refused(name: str | None, code: ErrorCode, message: str | None) -> dict[str, Any]:
    return {
        "name": name,
        "error_code": code,
        "error_message": message,
        "num_partitions": -1,
        "replication_factor": -1,
        "configs": None,
    }


def _create(call: Call, wanted: Message) -> dict[str, Any]:
    configs = {entry.name: entry.value for entry in wanted.configs}
    count = _partition_count(call, wanted)
    check_configs(configs)
    topic_id = None
    if call.request.validate_only:
        call.node.topics.check_new(wanted.name, count, configs)
    else:
        topic_id = call.node.topics.create(wanted.name, count, configs).id
    entries = [
        {
            "name": name,
            "value": configs.get(name, setting.default),
            "config_source": _FROM_TOPIC if name in configs else _BY_DEFAULT,
        }
        for name, setting in SETTINGS.items()
    ]
    return {
        "name": wanted.name,
        "topic_id": topic_id or uuid.UUID(int=0),
        "num_partitions": count,
        "replication_factor": 1,
        "configs": entries,
    }


def _partition_count(call: Call, wanted: Message) -> int:
    if wanted.assignments:
        if wanted.num_partitions != -1 or wanted.replication_factor != -1:
            raise Refusal(ErrorCode.invalid_request, "Give assignments, or counts, but not both.")
        indexes = sorted(assignment.partition_index for assignment in wanted.assignments)
        if indexes != list(range(len(indexes))):
            raise Refusal(ErrorCode.invalid_replica_assignment, "Partitions are numbered from 0 without gaps.")
        _check_replicas(wanted.assignments)
        return len(indexes)
    if wanted.replication_factor not in (-1, 1):
        raise Refusal(
            ErrorCode.invalid_replication_factor,
            f"There is one broker, so a topic has one replica and not {wanted.replication_factor}.",
        )
    return call.node.default_partitions if wanted.num_partitions == -1 else int(wanted.num_partitions)


def _check_replicas(assignments: Iterable[Message]) -> None:
    if any(tuple(assignment.broker_ids) != (NODE_ID,) for assignment in assignments):
        raise Refusal(ErrorCode.invalid_replica_assignment, f"The only broker has the id {NODE_ID}.")


def delete_topics(call: Call) -> Fields:
    request = call.request
    if call.version >= 6:
        wanted = [(entry.name, entry.topic_id) for entry in request.topics]
    else:
        wanted = [(name, None) for name in request.topic_names]
    responses = []
    for name, topic_id in wanted:
        by_id = name is None
        topic = call.node.topics.by_id(topic_id) if by_id and topic_id else call.node.topics.get(name or "")
        if topic is None:
            code = ErrorCode.unknown_topic_id if by_id else ErrorCode.unknown_topic_or_partition
            responses.append({"name": name, "topic_id": topic_id, "error_code": code})
            continue
        call.node.topics.delete(topic, call.node.groups.names())
        call.node.groups.forget_topic(topic.name)
        responses.append({"name": topic.name, "topic_id": topic.id})
    return {"responses": responses}


def create_partitions(call: Call) -> Fields:
    named = Counter(topic.name for topic in call.request.topics)
    results = []
    for wanted in call.request.topics:
        result: dict[str, Any] = {"name": wanted.name}
        try:
            if named[wanted.name] > 1:
                raise Refusal(ErrorCode.invalid_request, "The request names the topic twice.")
            topic = call.node.topics.known(wanted.name)
            if wanted.assignments is not None:
                if len(wanted.assignments) != wanted.count - len(topic.partitions):
                    raise Refusal(ErrorCode.invalid_replica_assignment, "Assign the new partitions, and only them.")
                _check_replicas(wanted.assignments)
            call.node.topics.grow(topic, wanted.count, validate_only=call.request.validate_only)
        except Refusal as refusal:
            result |= {"error_code": refusal.code, "error_message": refusal.message}
        results.append(result)
    return {"results": results}


# Configuration.


def describe_configs(call: Call) -> Fields:
    results = []
    synonyms = getattr(call.request, "include_synonyms", False)
    for resource in call.request.resources:
        result: dict[str, Any] = {
            "resource_type": resource.resource_type,
            "resource_name": resource.resource_name,
        }
        try:
            result["configs"] = _entries(call, resource, synonyms)
        except Refusal as refusal:
            result |= {"error_code": refusal.code, "error_message": refusal.message}
        results.append(result)
    return {"results": results}


def _entries(call: Call, resource: Message, synonyms: bool) -> list[dict[str, Any]]:
    if resource.resource_type == _BROKER and resource.resource_name in ("", str(NODE_ID)):
        return []  # a local broker is configured where it is started
    topic = _configured_topic(call, resource)
    wanted = resource.configuration_keys
    return [_entry(topic, name, synonyms) for name in SETTINGS if wanted is None or not wanted or name in wanted]


def _entry(topic: Topic, name: str, synonyms: bool) -> dict[str, Any]:
    setting = SETTINGS[name]
    own = topic.configs.get(name)
    known = [{"name": name, "value": own, "source": _FROM_TOPIC}] if own is not None else []
    known.append({"name": name, "value": setting.default, "source": _BY_DEFAULT})
    return {
        "name": name,
        "value": setting.default if own is None else own,
        "config_source": _BY_DEFAULT if own is None else _FROM_TOPIC,
        "config_type": setting.type,
        "synonyms": known if synonyms else [],
        "is_default": own is None,
    }


def _configured_topic(call: Call, resource: Message) -> Topic:
    if resource.resource_type != _TOPIC:
        raise Refusal(ErrorCode.invalid_request, "Only topics are configured through the local broker.")
    check_name(resource.resource_name)
    return call.node.topics.known(resource.resource_name)


def alter_configs(call: Call) -> Fields:
    """The new configuration replaces the old."""
    return _alter(call, lambda topic, entries: {entry.name: entry.value for entry in entries})


def incremental_alter_configs(call: Call) -> Fields:
    return _alter(call, _altered)


def _alter(call: Call, altered: Callable[[Topic, Iterable[Message]], Mapping[str, str]]) -> Fields:
    responses = []
    for resource in call.request.resources:
        response: dict[str, Any] = {
            "resource_type": resource.resource_type,
            "resource_name": resource.resource_name,
        }
        try:
            topic = _configured_topic(call, resource)
            configs = altered(topic, resource.configs)
            check_configs(configs)
            if not call.request.validate_only:
                call.node.topics.configure(topic, configs)
        except Refusal as refusal:
            response |= {"error_code": refusal.code, "error_message": refusal.message}
        responses.append(response)
    return {"responses": responses}


def _altered(topic: Topic, entries: Iterable[Message]) -> Mapping[str, str]:
    configs = dict(topic.configs)
    for entry in entries:
        if entry.config_operation == _SET:
            configs[entry.name] = entry.value
        elif entry.config_operation == _DELETE:
            configs.pop(entry.name, None)
            check_configs({entry.name: SETTINGS[entry.name].default} if entry.name in SETTINGS else {entry.name: ""})
        elif entry.config_operation in (_APPEND, _SUBTRACT):
            configs[entry.name] = _list_altered(configs, entry)
        else:
            raise Refusal(ErrorCode.invalid_request, f"There is no operation {entry.config_operation}.")
    return configs


def _list_altered(configs: Mapping[str, str], entry: Message) -> str:
    setting = SETTINGS.get(entry.name)
    if setting is None or setting.type != LIST:
        raise Refusal(ErrorCode.invalid_config, f"Config {entry.name} is not a list to add to or take from.")
    held = [part for part in configs.get(entry.name, setting.default).split(",") if part]
    given = [part for part in (entry.value or "").split(",") if part]
    if entry.config_operation == _APPEND:
        return ",".join(held + [part for part in given if part not in held])
    return ",".join(part for part in held if part not in given)
