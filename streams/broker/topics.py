"""Topics: their names, their configuration, their partitions."""

import re
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import msgspec
from kio.schema.errors import ErrorCode

from .errors import Refusal
from .limits import Limits
from .log import PartitionLog, TailCache, stage_delete
from .store import Change, Store, offset_key, topic_key

_NAME = re.compile(r"[a-zA-Z0-9._-]+")
_LONGEST_NAME = 249
_NEXT_PARTITION_KEY = b"mnext-partition"
_LONG_MAX = 2**63 - 1

# Kafka's DescribeConfigs types.
BOOLEAN, STRING, INT, LONG, LIST, DOUBLE = 1, 2, 3, 5, 7, 6
_NUMBERS = {INT: "INT", LONG: "LONG", DOUBLE: "DOUBLE"}


@dataclass(frozen=True, slots=True)
class Setting:
    """One entry of a topic's configuration and what it may be."""

    default: str
    type: int
    least: int = -1
    choices: tuple[str, ...] = ()
    effective: bool = True


# What has no effect here is still taken, so that programs written for Kafka create their topics unchanged.
SETTINGS: Mapping[str, Setting] = {
    "cleanup.policy": Setting("delete", LIST, choices=("delete", "compact")),
    "retention.ms": Setting("604800000", LONG),
    "retention.bytes": Setting("-1", LONG),
    "max.message.bytes": Setting("1048588", INT, least=0),
    "message.timestamp.type": Setting("CreateTime", STRING, choices=("CreateTime", "LogAppendTime")),
    "delete.retention.ms": Setting("86400000", LONG, least=0),
    "min.compaction.lag.ms": Setting("0", LONG, least=0),
    "min.cleanable.dirty.ratio": Setting("0.5", DOUBLE),
    "compression.type": Setting(
        "producer",
        STRING,
        choices=("producer", "uncompressed", "gzip", "snappy", "lz4", "zstd"),
        effective=False,
    ),
    "segment.bytes": Setting("1073741824", INT, least=14, effective=False),
    "segment.ms": Setting("604800000", LONG, least=1, effective=False),
    "segment.index.bytes": Setting("10485760", INT, least=4, effective=False),
    "segment.jitter.ms": Setting("0", LONG, least=0, effective=False),
    "index.interval.bytes": Setting("4096", INT, least=0, effective=False),
    "file.delete.delay.ms": Setting("60000", LONG, least=0, effective=False),
    "flush.messages": Setting(str(_LONG_MAX), LONG, least=1, effective=False),
    "flush.ms": Setting(str(_LONG_MAX), LONG, least=0, effective=False),
    "max.compaction.lag.ms": Setting(str(_LONG_MAX), LONG, least=1, effective=False),
    "message.timestamp.before.max.ms": Setting(str(_LONG_MAX), LONG, least=0, effective=False),
    "message.timestamp.after.max.ms": Setting("3600000", LONG, least=0, effective=False),
    "min.insync.replicas": Setting("1", INT, least=1, effective=False),
    "preallocate": Setting("false", BOOLEAN, choices=("true", "false"), effective=False),
    "compression.gzip.level": Setting("-1", INT, effective=False),
    "compression.lz4.level": Setting("9", INT, least=1, effective=False),
    "compression.zstd.level": Setting("3", INT, least=-131_072, effective=False),
    "follower.replication.throttled.replicas": Setting("", LIST, effective=False),
    "leader.replication.throttled.replicas": Setting("", LIST, effective=False),
    "local.retention.bytes": Setting("-2", LONG, least=-2, effective=False),
    "local.retention.ms": Setting("-2", LONG, least=-2, effective=False),
    "remote.storage.enable": Setting("false", BOOLEAN, choices=("false",), effective=False),
    "remote.log.copy.disable": Setting("false", BOOLEAN, choices=("true", "false"), effective=False),
    "remote.log.delete.on.disable": Setting("false", BOOLEAN, choices=("true", "false"), effective=False),
    "unclean.leader.election.enable": Setting("false", BOOLEAN, choices=("true", "false"), effective=False),
}


@dataclass(frozen=True, slots=True)
class Settings:
    """A topic's configuration, read once and not at each request."""

    delete: bool
    compact: bool
    retention_ms: int
    retention_bytes: int
    max_message_bytes: int
    append_time: bool
    delete_retention_ms: int
    min_compaction_lag_ms: int
    min_dirty_ratio: float


@dataclass(slots=True)
class Topic:
    name: str
    id: uuid.UUID
    configs: dict[str, str]
    partitions: list[PartitionLog] = field(default_factory=list)
    settings: Settings = field(init=False)

    def __post_init__(self) -> None:
        self.settings = _settings(self.configs)


class _Record(msgspec.Struct):
    id: str
    configs: dict[str, str]
    partitions: list[int]


class Topics:
    """All topics of the broker."""

    def __init__(self, store: Store, limits: Limits) -> None:
        self._store = store
        self._limits = limits
        self._cache = TailCache(limits.tail_cache_bytes)
        self._topics: dict[str, Topic] = {}
        self._by_id: dict[uuid.UUID, Topic] = {}
        self._next_partition = int.from_bytes(store.get(_NEXT_PARTITION_KEY) or b"\0")
        for key, value in store.scan(b"t"):
            record = msgspec.json.decode(value, type=_Record)
            self._add(key[1:].decode(), uuid.UUID(record.id), record.configs, record.partitions)

    def _add(self, name: str, topic_id: uuid.UUID, configs: dict[str, str], numbers: Iterable[int]) -> Topic:
        topic = Topic(name, topic_id, configs)
        for index, number in enumerate(numbers):
            topic.partitions.append(PartitionLog(self._store, self._cache, name, index, number))
        self._topics[name] = self._by_id[topic_id] = topic
        return topic

    def __iter__(self) -> Iterator[Topic]:
        return iter(tuple(self._topics.values()))

    def __len__(self) -> int:
        return len(self._topics)

    def get(self, name: str) -> Topic | None:
        return self._topics.get(name)

    def by_id(self, topic_id: uuid.UUID) -> Topic | None:
        return self._by_id.get(topic_id)

    def partition(self, topic: str, index: int) -> PartitionLog:
        """:raises Refusal: UNKNOWN_TOPIC_OR_PARTITION."""
        found = self._topics.get(topic)
        if found is None or not 0 <= index < len(found.partitions):
            raise Refusal(ErrorCode.unknown_topic_or_partition, f"There is no partition {index} of a topic {topic!r}.")
        return found.partitions[index]

    def known(self, name: str) -> Topic:
        """:raises Refusal: UNKNOWN_TOPIC_OR_PARTITION."""
        found = self._topics.get(name)
        if found is None:
            raise Refusal(ErrorCode.unknown_topic_or_partition, f"There is no topic {name!r}.")
        return found

    def check_new(self, name: str, partitions: int, configs: Mapping[str, str]) -> None:
        """:raises Refusal: what is wrong with the topic one wants to create."""
        check_name(name)
        if name in self._topics:
            raise Refusal(ErrorCode.topic_already_exists, f"Topic {name!r} already exists.")
        # In metrics' names Kafka writes both as an underscore, and so refuses names that differ only in that.
        like = next((other for other in self._topics if _flat(other) == _flat(name)), None)
        if like is not None:
            raise Refusal(ErrorCode.invalid_topic_exception, f"Topic {name!r} differs from {like!r} only in dots.")
        self._check_count(partitions)
        if len(self._topics) >= self._limits.topics:
            raise Refusal(ErrorCode.policy_violation, f"The broker holds {self._limits.topics} topics, its bound.")
        check_configs(configs)

    def _check_count(self, partitions: int) -> None:
        if partitions < 1 or partitions > self._limits.partitions_per_topic:
            raise Refusal(
                ErrorCode.invalid_partitions,
                f"A topic has 1 to {self._limits.partitions_per_topic} partitions, not {partitions}.",
            )

    def create(self, name: str, partitions: int, configs: Mapping[str, str]) -> Topic:
        """:raises Refusal: as `check_new`."""
        self.check_new(name, partitions, configs)
        numbers = list(range(self._next_partition, self._next_partition + partitions))
        topic_id = uuid.uuid4()
        change = Change()
        self._stage(change, name, topic_id, dict(configs), numbers)
        self._store.commit(change)
        self._next_partition += partitions
        return self._add(name, topic_id, dict(configs), numbers)

    def grow(self, topic: Topic, count: int, *, validate_only: bool) -> None:
        """:raises Refusal: INVALID_PARTITIONS unless `count` is more than there are."""
        self._check_count(count)
        held = len(topic.partitions)
        if count <= held:
            raise Refusal(
                ErrorCode.invalid_partitions,
                f"The topic {topic.name} currently has {held} partition(s); {count} would not be an increase.",
            )
        if validate_only:
            return
        added = list(range(self._next_partition, self._next_partition + count - held))
        numbers = [log.number for log in topic.partitions] + added
        change = Change()
        self._stage(change, topic.name, topic.id, topic.configs, numbers)
        self._store.commit(change)
        self._next_partition += len(added)
        for index, number in enumerate(added, held):
            topic.partitions.append(PartitionLog(self._store, self._cache, topic.name, index, number))

    def configure(self, topic: Topic, configs: Mapping[str, str]) -> None:
        """Replace the configuration; checked before with `check_configs`."""
        change = Change()
        self._stage(change, topic.name, topic.id, dict(configs), [log.number for log in topic.partitions])
        self._store.commit(change)
        topic.configs = dict(configs)
        topic.settings = _settings(topic.configs)

    def delete(self, topic: Topic, groups: Iterable[str]) -> None:
        """The topic, its records, and what `groups` have committed for it."""
        change = Change()
        change.delete(topic_key(topic.name))
        for log in topic.partitions:
            stage_delete(log.number, change)
            for group in groups:
                change.delete(offset_key(group, topic.name, log.index))
        self._store.commit(change)
        del self._topics[topic.name], self._by_id[topic.id]
        for log in topic.partitions:
            log.tell_watchers()

    def _stage(
        self, change: Change, name: str, topic_id: uuid.UUID, configs: dict[str, str], numbers: list[int]
    ) -> None:
        change.put(topic_key(name), msgspec.json.encode(_Record(topic_id.hex, configs, numbers)))
        highest = max(*numbers, self._next_partition - 1) if numbers else self._next_partition - 1
        change.put(_NEXT_PARTITION_KEY, (highest + 1).to_bytes(4))


def check_name(name: str) -> None:
    """:raises Refusal: INVALID_TOPIC_EXCEPTION, in Kafka's words."""
    if not name:
        wrong = "the empty string is not allowed"
    elif name in (".", ".."):
        wrong = f"'{name}' is not allowed"
    elif len(name) > _LONGEST_NAME:
        wrong = f"the length of '{name}' is longer than the max allowed length {_LONGEST_NAME}"
    elif not _NAME.fullmatch(name):
        wrong = f"'{name}' contains one or more characters other than ASCII alphanumerics, '.', '_' and '-'"
    else:
        return
    raise Refusal(ErrorCode.invalid_topic_exception, f"Topic name is invalid: {wrong}")


def check_configs(configs: Mapping[str, str | None]) -> None:
    """:raises Refusal: INVALID_CONFIG, naming the entry."""
    for name, value in configs.items():
        setting = SETTINGS.get(name)
        if setting is None:
            raise Refusal(ErrorCode.invalid_config, f"Unknown topic config name: {name}")
        if value is None:
            raise Refusal(ErrorCode.invalid_config, f"Null value not supported for topic config: {name}.")
        if wrong := _wrong(setting, value):
            raise Refusal(ErrorCode.invalid_config, f"Invalid value {value} for configuration {name}: {wrong}")


def _wrong(setting: Setting, value: str) -> str:
    """What is wrong with a value, in Kafka's words; nothing where it is allowed."""
    if setting.choices or setting.type == LIST:
        parts = [part.strip() for part in value.split(",")] if setting.type == LIST else [value]
        known = not setting.choices or all(part in setting.choices for part in parts)
        return "" if known else f"String must be one of: {', '.join(sorted(setting.choices))}"
    try:
        number = float(value) if setting.type == DOUBLE else int(value)
    except ValueError:
        return f"Not a number of type {_NUMBERS[setting.type]}"
    least = 0 if setting.type == DOUBLE else setting.least
    greatest = {INT: 2**31 - 1, LONG: _LONG_MAX, DOUBLE: 1}[setting.type]
    if number < least:
        return f"Value must be at least {least}"
    return "" if number <= greatest else f"Value must be no more than {greatest}"


def _settings(configs: Mapping[str, str]) -> Settings:
    def value(name: str) -> str:
        return configs.get(name, SETTINGS[name].default)

    policies = {part.strip() for part in value("cleanup.policy").split(",")}
    return Settings(
        delete="delete" in policies,
        compact="compact" in policies,
        retention_ms=int(value("retention.ms")),
        retention_bytes=int(value("retention.bytes")),
        max_message_bytes=int(value("max.message.bytes")),
        append_time=value("message.timestamp.type") == "LogAppendTime",
        delete_retention_ms=int(value("delete.retention.ms")),
        min_compaction_lag_ms=int(value("min.compaction.lag.ms")),
        min_dirty_ratio=float(value("min.cleanable.dirty.ratio")),
    )


def _flat(name: str) -> str:
    return name.replace(".", "_")
