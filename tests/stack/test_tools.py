"""Kafka's own command line tools say the same of the local broker as of Apache Kafka.

All of them run in one process, by the program in `java/`: starting Java takes longer than what they do. What differs
between any two brokers (addresses, ids, folders) is written out of their words before these are compared.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from headrace.streams.address import Address

from tests.scene import eventually
from tests.stack.kafka import Cluster
from tests.stack.test_clients import JAVA, JAVA_WITHIN

pytestmark = pytest.mark.stack

TOPICS, GROUPS = "org.apache.kafka.tools.TopicCommand", "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand"
CONFIGS, OFFSETS = "kafka.admin.ConfigCommand", "org.apache.kafka.tools.GetOffsetShell"
RECORDS, DIRS = "org.apache.kafka.tools.DeleteRecordsCommand", "org.apache.kafka.tools.LogDirsCommand"
TRANSACTIONS, KINDS = "org.apache.kafka.tools.TransactionsCommand", "org.apache.kafka.tools.GroupsCommand"
READ, WRITE = "org.apache.kafka.tools.consumer.ConsoleConsumer", "org.apache.kafka.tools.ConsoleProducer"
ELECT = "org.apache.kafka.tools.LeaderElectionCommand"
REASSIGN = "org.apache.kafka.tools.reassign.ReassignPartitionsCommand"

COMMANDS = [
    (TOPICS, "--create --topic tools-one --partitions 3 --config retention.ms=1000000"),
    (TOPICS, "--create --topic tools-one --partitions 3"),
    (TOPICS, "--create --topic tools-one --partitions 3 --if-not-exists"),
    (TOPICS, "--create --topic tools!two --partitions 3"),
    (TOPICS, "--create --topic tools-two --partitions 1 --config nonsense=1"),
    (TOPICS, "--create --topic tools-two --partitions 1 --replication-factor 1 --config retention.ms=7000000"),
    (TOPICS, "--list --topic tools-.*"),
    (TOPICS, "--describe --topic tools-.*"),
    (TOPICS, "--describe --topic tools-nothing"),
    (TOPICS, "--describe --topic tools-.* --under-replicated-partitions"),
    (TOPICS, "--describe --topic tools-.* --unavailable-partitions"),
    (TOPICS, "--alter --topic tools-one --partitions 5"),
    (TOPICS, "--alter --topic tools-one --partitions 2"),
    (TOPICS, "--describe --topic tools-one"),
    (TOPICS, "--delete --topic tools-nothing"),
    (TOPICS, "--delete --topic tools-nothing --if-exists"),
    (TOPICS, "--delete --topic tools-two"),
    (TOPICS, "--list --topic tools-.*"),
    (CONFIGS, "--describe --entity-type topics --entity-name tools"),
    (CONFIGS, "--describe --entity-type topics --entity-name tools --all"),
    (CONFIGS, "--alter --entity-type topics --entity-name tools --add-config segment.ms=5000,retention.bytes=70000"),
    (CONFIGS, "--describe --entity-type topics --entity-name tools"),
    (CONFIGS, "--alter --entity-type topics --entity-name tools --delete-config segment.ms,retention.bytes"),
    (CONFIGS, "--alter --entity-type topics --entity-name tools --delete-config segment.ms"),
    (CONFIGS, "--alter --entity-type topics --entity-name tools --add-config nonsense=1"),
    (CONFIGS, "--alter --entity-type topics --entity-name tools --add-config retention.ms=soon"),
    (CONFIGS, "--alter --entity-type topics --entity-name tools --add-config max.message.bytes=-7"),
    (CONFIGS, "--alter --entity-type topics --entity-name tools --add-config min.cleanable.dirty.ratio=7.0"),
    (CONFIGS, "--alter --entity-type topics --entity-name tools --add-config message.timestamp.type=Never"),
    (CONFIGS, "--alter --entity-type topics --entity-name tools --add-config cleanup.policy=burn"),
    (CONFIGS, "--describe --entity-type topics --entity-name tools-nothing"),
    (CONFIGS, "--describe --entity-type brokers --entity-name 1"),
    (GROUPS, "--list"),
    (GROUPS, "--list --state"),
    (GROUPS, "--list --type"),
    (KINDS, "--list --group-type classic"),
    (GROUPS, "--describe --group tools-past"),
    (GROUPS, "--describe --group tools-past --offsets --verbose"),
    (GROUPS, "--describe --group tools-past --members"),
    (GROUPS, "--describe --group tools-past --state"),
    (GROUPS, "--describe --group tools-now"),
    (GROUPS, "--describe --group tools-now --members --verbose"),
    (GROUPS, "--describe --group tools-now --state"),
    (GROUPS, "--describe --group tools-nothing"),
    (GROUPS, "--group tools-now --topic tools --reset-offsets --to-earliest --execute"),
    (GROUPS, "--delete --group tools-now"),
    (GROUPS, "--delete-offsets --group tools-now --topic tools"),
    (GROUPS, "--group tools-past --topic tools --reset-offsets --to-earliest --dry-run"),
    (GROUPS, "--group tools-past --topic tools --reset-offsets --to-latest --execute"),
    (GROUPS, "--group tools-past --topic tools:1 --reset-offsets --shift-by -2 --execute"),
    (GROUPS, "--describe --group tools-past"),
    (GROUPS, "--group tools-past --topic tools --reset-offsets --to-datetime 2023-11-14T22:13:25.000 --execute"),
    (GROUPS, "--group tools-past --all-topics --reset-offsets --to-offset 1 --execute"),
    (GROUPS, "--group tools-past --topic tools --reset-offsets --to-offset 77 --execute"),
    (GROUPS, "--group tools-past --topic tools --reset-offsets --to-current --export --dry-run"),
    (GROUPS, "--group tools-past --topic tools-nothing --reset-offsets --to-earliest --dry-run"),
    (GROUPS, "--group tools-new --topic tools --reset-offsets --to-earliest --execute"),
    (GROUPS, "--delete-offsets --group tools-past --topic tools:0"),
    (GROUPS, "--describe --group tools-past"),
    (GROUPS, "--delete --group tools-past"),
    (GROUPS, "--delete --group tools-nothing"),
    (OFFSETS, "--topic tools"),
    (OFFSETS, "--topic tools --time earliest"),
    (OFFSETS, "--topic tools --time max-timestamp"),
    (OFFSETS, "--topic tools --time 1700000005000"),
    (OFFSETS, "--topic-partitions tools:1"),
    (OFFSETS, "--topic tools-nothing"),
    (DIRS, "--describe --topic-list tools"),
    (RECORDS, "--offset-json-file {folder}/delete.json"),
    (OFFSETS, "--topic tools --time earliest"),
    (READ, "--topic tools --from-beginning --max-messages 4 --timeout-ms 20000 --property print.timestamp=true"),
    (WRITE, "--topic tools"),
    (OFFSETS, "--topic tools"),
    (READ, "--topic tools --partition 0 --offset 3 --max-messages 1 --timeout-ms 20000"),
    (TRANSACTIONS, "list"),
    (TRANSACTIONS, "describe --transactional-id tools-open"),
    (TRANSACTIONS, "describe-producers --topic tools-open --partition 0"),
    (TRANSACTIONS, "find-hanging --broker-id 1"),
    (REASSIGN, "--list"),
    (TOPICS, "--delete --topic tools.*"),
]
"""Class and arguments. Everything that is looked at is called tools, tools-something."""


@pytest.fixture(scope="session")
def tools(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command line that runs them."""
    folder = tmp_path_factory.mktemp("classes")
    compile_ = ["javac", "-nowarn", "-d", str(folder), "-cp", cluster.jars, str(JAVA / "Tools.java")]
    subprocess.run(compile_, check=True, timeout=JAVA_WITHIN, capture_output=True)
    quiet = folder / "log4j2.yaml"
    quiet.write_text("Configuration:\n  Loggers:\n    Root:\n      level: OFF\n")
    options = ["-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", f"-Dlog4j2.configurationFile={quiet}"]
    return ["java", *options, "-cp", f"{folder}:{cluster.jars}", "Tools"]


def prepare(address: Address, held: list[Consumer]) -> None:
    """Records, a group that has read some of them, one that is reading (its member is `held`), an open transaction."""
    servers: dict[str, Any] = {"bootstrap.servers": address.bootstrap}
    admin = AdminClient(servers)
    for topic in ("tools", "tools-open"):
        admin.create_topics([NewTopic(topic, 2, 1, config={"retention.ms": "-1"})])[topic].result(20)
    producer = Producer(servers)
    for n in range(10):
        producer.produce("tools", b"%d" % n, partition=n % 2, timestamp=1_700_000_000_000 + 1000 * n)
        producer.flush(20)  # a batch each
    with closing(Consumer({**servers, "group.id": "tools-past", "enable.auto.commit": False})) as past:
        past.commit(offsets=[TopicPartition("tools", 0, 5), TopicPartition("tools", 1, 2)], asynchronous=False)
    now = {"group.id": "tools-now", "client.id": "tools-client", "auto.offset.reset": "earliest"}
    held.append(Consumer({**servers, **now, "enable.auto.commit": False}))
    held[0].subscribe(["tools"])
    eventually(lambda: held[0].poll(0.1) is not None)
    held[0].commit(offsets=[TopicPartition("tools", 0, 1)], asynchronous=False)
    writer = Producer({**servers, "transactional.id": "tools-open"})
    writer.init_transactions(30)
    writer.begin_transaction()
    writer.produce("tools-open", b"open", partition=0)
    writer.flush(30)


def said(
    tools: list[str], address: Address, folder: Path, commands: Sequence[tuple[str, str]] = COMMANDS
) -> Iterator[tuple[str, list[str]]]:
    """Each command, and what it said."""
    wanted = {"version": 1, "partitions": [{"topic": "tools", "partition": 0, "offset": 2}]}
    (folder / "delete.json").write_text(json.dumps(wanted))
    given = []
    for tool, words in commands:
        where = ["--bootstrap-server", address.bootstrap]
        given.append("\t".join([tool, *where, *words.format(folder=folder).split()]))
    ran = subprocess.run(
        tools, input="\n".join(given), capture_output=True, text=True, timeout=JAVA_WITHIN, check=True, cwd=folder
    )
    parts = re.split(r"(?m)^(status \d+)\n", ran.stdout)
    assert len(parts) == 2 * len(commands) + 1, ran.stdout[-2000:] + ran.stderr[-2000:]
    for (tool, words), text, status in zip(commands, parts[::2], parts[1::2], strict=False):
        lines = plain(text, address, str(folder))
        if "list" in words and "--topic" not in words:  # of everything that there is, also of other tests
            lines = [line for line in lines if "tools" in line or re.match("GROUP|TransactionalId|.*not support", line)]
        yield f"{tool} {words}", [*lines, status]


SAME_BY_NATURE = (
    (r"TopicId: \S+", "TopicId: ID"),
    (r"synonyms=\{.*?\}", ""),  # the local broker has no settings of its own behind a topic's
    (r"min\.insync\.replicas=1,?", ""),  # Kafka tells it of every topic
    (r"\S+-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "MEMBER"),
    (r'"logDir":"[^"]*"', '"logDir":""'),
    (r"/127\.0\.0\.1", "HOST"),
    (r"(tools-open\s+)\d+(\s+\d+\s+Ongoing\s+\d+\s+)\d+\s+\d+", r"\1PRODUCER\2SINCE FOR"),
    (r"(?m)^\d+(\s+\d+\s+-1\s+0\s+)\d{13}", r"PRODUCER\1SINCE"),
    (r"(?m)^(tools-open\s+\d+\s+)\d+(\s+Ongoing)", r"\1PRODUCER\2"),
)


def plain(text: str, address: Address, folder: str) -> list[str]:
    """The lines without what differs between any two brokers, those of other tests' topics, and traces of Java."""
    text = text.replace(address.bootstrap, "BROKER").replace(folder, "FOLDER")
    for pattern, instead in SAME_BY_NATURE:
        text = re.sub(pattern, instead, text)
    lines = [re.sub(r"\s+", " ", line).strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not re.match(r"at |\.\.\. \d+ more|Caused by", line)]
    return sorted(lines)


@pytest.mark.timeout(3 * JAVA_WITHIN)
def test_kafkas_own_tools_see_no_difference(tools: list[str], apache: Address, broker: Address, tmp_path: Path) -> None:
    found: list[dict[str, list[str]]] = []
    for address in (apache, broker):
        held: list[Consumer] = []
        try:
            prepare(address, held)
            found.append({f"{n} {command}": lines for n, (command, lines) in enumerate(said(tools, address, tmp_path))})
        finally:
            for one in held:
                one.close()
    wanted, seen = found
    assert seen == wanted


NOT_SPOKEN = {
    ("org.apache.kafka.tools.AclCommand", "--list"): "DESCRIBE_ACLS",
    ("org.apache.kafka.tools.MetadataQuorumCommand", "describe --status"): "DESCRIBE_QUORUM",
    (ELECT, "--election-type preferred --all-topic-partitions"): "ELECT_LEADERS",
    ("org.apache.kafka.tools.ClientMetricsCommand", "--list"): "LIST_CONFIG_RESOURCES",
    (CONFIGS, "--describe --entity-type users"): "DESCRIBE_CLIENT_QUOTAS",
    (CONFIGS, "--alter --entity-type users --entity-name ann --add-config SCRAM-SHA-256=[password=x]"): (
        "ALTER_USER_SCRAM_CREDENTIALS"
    ),
}


@pytest.mark.timeout(JAVA_WITHIN)
def test_what_the_local_broker_does_not_speak_is_said_by_the_tools(
    tools: list[str], broker: Address, tmp_path: Path
) -> None:
    told = said(tools, broker, tmp_path, list(NOT_SPOKEN))
    for name, (_, lines) in zip(NOT_SPOKEN.values(), told, strict=True):
        assert any(f"The node does not support {name}" in line for line in lines), lines
