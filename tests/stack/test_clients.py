"""Clients that other people wrote, at their default settings, see the same of both brokers.

Java: Kafka's own clients, by the program in `java/`, whose printed lines are compared. librdkafka: by confluent-kafka
and kcat. aiokafka and Faust are what tests/streams/broker uses throughout.
"""

from __future__ import annotations

import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, NewPartitions, NewTopic
from headrace.streams.address import Address

from tests.scene import eventually
from tests.stack.kafka import Cluster

pytestmark = pytest.mark.stack
JAVA = Path(__file__).parent / "java"
# One run takes half a minute on two idle cores.
JAVA_WITHIN = 240.0


@pytest.fixture(params=["local", "apache"])
def address(request: pytest.FixtureRequest) -> Address:
    """Of each broker in turn."""
    found: Address = request.getfixturevalue("broker" if request.param == "local" else "apache")
    return found


# Java.


@pytest.fixture(scope="session")
def classes(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled program."""
    folder = tmp_path_factory.mktemp("classes")
    subprocess.run(
        ["javac", "-nowarn", "-d", str(folder), "-cp", cluster.jars, str(JAVA / "Conformance.java")],
        check=True,
        timeout=JAVA_WITHIN,
        capture_output=True,
    )
    return folder


def lines(cluster: Cluster, classes: Path, address: Address) -> list[str]:
    """What the program prints."""
    quiet = classes / "log4j2.yaml"
    quiet.write_text("Configuration:\n  Loggers:\n    Root:\n      level: OFF\n")
    command = ["java", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", f"-Dlog4j2.configurationFile={quiet}"]
    command += ["-cp", f"{classes}:{cluster.jars}", "Conformance", f"{address.host}:{address.port}"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=JAVA_WITHIN, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return ran.stdout.splitlines()


@pytest.mark.timeout(3 * JAVA_WITHIN)
def test_java_clients_see_no_difference(cluster: Cluster, classes: Path, apache: Address, broker: Address) -> None:
    wanted, seen = (lines(cluster, classes, address) for address in (apache, broker))
    assert wanted[-1] == "cluster end: done"
    assert len(wanted) > 150
    assert not [line for line in wanted if "FAILED" in line]
    assert seen == wanted


# librdkafka, by confluent-kafka.


def settings(address: Address, **more: object) -> dict[str, Any]:
    """A client's; underscores stand for dots."""
    given = {name.replace("_", "."): value for name, value in more.items()}
    return {"bootstrap.servers": f"{address.host}:{address.port}", **given}


@pytest.fixture
def admin(address: Address) -> AdminClient:
    return AdminClient(settings(address))


@pytest.fixture
def topic(admin: AdminClient) -> str:
    """One of two partitions, that keeps old records too."""
    name = f"rd-{uuid4().hex[:8]}"
    admin.create_topics([NewTopic(name, 2, 1, config={"retention.ms": "-1"})])[name].result(20)
    eventually(lambda: len(admin.list_topics(name, 5).topics[name].partitions) == 2)
    return name


@pytest.fixture
def group() -> str:
    return f"rd-{uuid4().hex[:8]}"


def consumer(address: Address, group: str, **more: object) -> Consumer:
    return Consumer(settings(address, group_id=group, auto_offset_reset="earliest", **more))


def taken(reader: Consumer, count: int) -> list[bytes]:
    """The next values."""
    found: list[bytes] = []

    def enough() -> bool:
        for message in reader.consume(count - len(found), 0.2):
            assert message.error() is None
            found.append(message.value() or b"")
        return len(found) == count

    eventually(enough)
    return found


@pytest.mark.parametrize("codec", ["none", "gzip", "snappy", "lz4", "zstd"])
def test_librdkafka_writes_and_reads_every_codec(address: Address, topic: str, group: str, codec: str) -> None:
    producer = Producer(settings(address, compression_type=codec, linger_ms=20, enable_idempotence=True))
    values = [b"%s %d " % (codec.encode(), number) + b"x" * 100 for number in range(50)]
    for value in values:
        producer.produce(topic, value, partition=0, headers={"h": b"1"}, timestamp=5)
    assert producer.flush(20) == 0
    with closing(consumer(address, group)) as reader:
        reader.subscribe([topic])
        assert taken(reader, 50) == values


def test_librdkafka_members_share_partitions_and_go_on_where_they_committed(
    address: Address, topic: str, group: str
) -> None:
    producer = Producer(settings(address))
    for number in range(6):
        producer.produce(topic, b"%d" % number, partition=number % 2)
    producer.flush(20)
    for strategy in ("range,roundrobin", "cooperative-sticky"):
        name = f"{group}-{strategy[:4]}"
        with (
            closing(consumer(address, name, partition_assignment_strategy=strategy, enable_auto_commit=False)) as one,
            closing(consumer(address, name, partition_assignment_strategy=strategy, enable_auto_commit=False)) as two,
        ):
            one.subscribe([topic])
            assert sorted(taken(one, 6)) == [b"%d" % number for number in range(6)]
            one.commit(asynchronous=False)
            two.subscribe([topic])

            def shared(one: Consumer = one, two: Consumer = two) -> bool:
                for member in (one, two):
                    member.poll(0.05)
                return [len(member.assignment()) for member in (one, two)] == [1, 1]

            eventually(shared)
        with closing(consumer(address, name, enable_auto_commit=False)) as third:
            held = third.committed([TopicPartition(topic, 0), TopicPartition(topic, 1)], 20)
            assert [place.offset for place in held] == [3, 3]


def test_librdkafka_transactions_commit_abort_and_fence(address: Address, topic: str, group: str) -> None:
    transactional_id = f"rd-{uuid4().hex[:8]}"
    producer = Producer(settings(address, transactional_id=transactional_id))
    producer.init_transactions(30)
    with closing(consumer(address, group, isolation_level="read_committed", enable_auto_commit=False)) as reader:
        reader.subscribe([topic])
        for value in (b"one", b"aborted", b"two"):
            producer.begin_transaction()
            producer.produce(topic, value, partition=0)
            place = TopicPartition(topic, 1, 7 if value == b"two" else 99)
            producer.send_offsets_to_transaction([place], reader.consumer_group_metadata(), 30)
            if value == b"aborted":
                producer.abort_transaction(30)
            else:
                producer.commit_transaction(30)
        assert taken(reader, 2) == [b"one", b"two"]
        assert reader.committed([TopicPartition(topic, 1)], 20)[0].offset == 7
    heir = Producer(settings(address, transactional_id=transactional_id))
    heir.init_transactions(30)
    producer.begin_transaction()
    producer.produce(topic, b"zombie", partition=0)
    with pytest.raises(KafkaException) as fenced:
        producer.commit_transaction(30)
    # Kafka's coordinator says the one, a partition's leader the other, and either may be asked first.
    assert fenced.value.args[0].code() in (KafkaError._FENCED, KafkaError.INVALID_PRODUCER_EPOCH)
    heir.begin_transaction()
    heir.produce(topic, b"heir", partition=0)
    heir.commit_transaction(30)


def test_librdkafka_administers(address: Address, admin: AdminClient, topic: str, group: str) -> None:
    admin.create_partitions([NewPartitions(topic, 3)])[topic].result(20)
    eventually(lambda: len(admin.list_topics(topic, 5).topics[topic].partitions) == 3)
    entry = ConfigEntry("retention.ms", "-1", incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ConfigResource.Type.TOPIC, topic, incremental_configs=[entry])
    admin.incremental_alter_configs([resource])[resource].result(20)
    wanted = ConfigResource(ConfigResource.Type.TOPIC, topic)
    eventually(lambda: admin.describe_configs([wanted])[wanted].result(20)["retention.ms"].value == "-1")
    with closing(consumer(address, group, enable_auto_commit=False)) as reader:
        reader.commit(offsets=[TopicPartition(topic, 0, 0)], asynchronous=False)
    described = admin.describe_consumer_groups([group])[group].result(20)
    assert described.state.name == "EMPTY"
    assert [found.group_id for found in admin.list_consumer_groups().result(20).valid if found.group_id == group]
    admin.delete_consumer_groups([group])[group].result(20)
    admin.delete_topics([topic])[topic].result(20)
    eventually(lambda: topic not in admin.list_topics(timeout=5).topics)


# librdkafka, by kcat.


def kcat(address: Address, *arguments: str, given: str = "") -> str:
    command = ["kcat", "-b", f"{address.host}:{address.port}", "-q", *arguments]
    return subprocess.run(command, input=given, capture_output=True, text=True, timeout=60, check=True).stdout


def test_kcat_writes_reads_queries_and_lists(address: Address, topic: str, group: str) -> None:
    kcat(address, "-P", "-t", topic, "-p", "0", "-K:", "-H", "h=1", "-z", "gzip", given="a:1\nb:2\n")
    read = kcat(address, "-C", "-t", topic, "-p", "0", "-o", "beginning", "-e", "-f", "%o %k=%s %h;")
    assert read == "0 a=1 h=1;1 b=2 h=1;"
    assert kcat(address, "-Q", "-t", f"{topic}:0:-1").strip().endswith("offset 2")
    assert f'topic "{topic}" with 2 partitions' in kcat(address, "-L", "-t", topic)
    assert kcat(address, "-G", group, "-X", "auto.offset.reset=earliest", "-c", "2", topic) == "1\n2\n"
