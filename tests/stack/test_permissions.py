"""What Apache Kafka does not allow a user is told in a sentence that says what to allow."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest
from headrace.streams.admin import ensure_topics
from headrace.streams.errors import GroupRefused
from headrace.streams.membership import Membership
from headrace.streams.topics import Topic

from headrace.plan import COMPACTED
from tests.stack.kafka import Cluster, kafka

pytestmark = pytest.mark.stack
ANYONE = "User:ANONYMOUS"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A Kafka that knows who may do what; what nobody has spoken of is allowed."""
    settings = {
        "authorizer_class_name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "allow_everyone_if_no_acl_found": "true",
    }
    with kafka(tmp_path_factory.mktemp("kafka"), 1, **settings) as cluster:
        yield cluster


def rule(cluster: Cluster, *words: str) -> None:
    command = ["org.apache.kafka.tools.AclCommand", "--bootstrap-server", cluster.bootstrap, "--add", *words]
    subprocess.run(cluster.java(*command), check=True, capture_output=True, timeout=60)


async def test_a_configuration_that_may_not_be_seen_is_taken_on_trust_and_told(
    guarded: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    topic = Topic("trusted.changelog", "changelog", 1, None, COMPACTED)
    await ensure_topics(guarded.address, [topic])
    assert "taken on trust" not in caplog.text
    rule(guarded, "--deny-principal", ANYONE, "--operation", "DescribeConfigs", "--topic", topic.name)
    rule(guarded, "--allow-principal", ANYONE, "--operation", "Describe", "--topic", topic.name)
    assert await ensure_topics(guarded.address, [topic]) == []
    assert "this user may not see the configuration of topic trusted.changelog" in caplog.text


async def test_a_group_that_may_not_be_joined_is_told(guarded: Cluster) -> None:
    topic = Topic("shut.changelog", "changelog", 1, None, COMPACTED)
    await ensure_topics(guarded.address, [topic])
    rule(guarded, "--deny-principal", ANYONE, "--operation", "Read", "--group", "shut.workers")
    member = Membership(guarded.address, "shut.workers", [topic.name])
    await member.start()
    try:
        with pytest.raises(GroupRefused, match=r"does not let this user join the group shut\.workers .*allow READ"):
            await member.next()
    finally:
        await member.stop()
