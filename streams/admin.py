"""The topics of a program on the log, created where they are missing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaConnectionError, KafkaError, TopicAlreadyExistsError, for_code
from headrace.streams.address import Address
from headrace.streams.errors import LogUnavailable, StreamsError, TopicMismatch
from headrace.streams.publisher import unreachable
from headrace.streams.topics import Topic

VISIBLE = 10.0
"""Seconds until a created topic is known everywhere; a cluster takes a moment to elect its leaders."""


async def answers(address: Address) -> bool:
    """Whether a broker answers at the address, now."""
    admin = AIOKafkaAdminClient(bootstrap_servers=address.bootstrap, request_timeout_ms=2000)
    try:
        await admin.start()
        await admin.list_topics()
    except (KafkaError, OSError):
        return False
    finally:
        await admin.close()
    return True


async def ensure_topics(
    address: Address, topics: Iterable[Topic], *, replication: int = 1, exact: bool = True
) -> list[str]:
    """Create the topics that are missing, and return their names; calling it again changes nothing.

    exact: whether those that are there must have as many partitions as declared

    Raises TopicMismatch where a topic has another number of partitions than declared: keys would change places.
    """
    wanted = {t.name: t for t in topics}
    admin = AIOKafkaAdminClient(bootstrap_servers=address.bootstrap)
    try:
        await admin.start()
        there = {t["topic"]: len(t["partitions"]) for t in await admin.describe_topics()}
        for name, topic in wanted.items():
            if exact and there.get(name, topic.partitions) != topic.partitions:
                raise TopicMismatch(
                    f"topic {name} has {there[name]} partitions in the log and {topic.partitions} in the program: "
                    f"set partitions={there[name]} in the program, or start with an empty log"
                )
        missing = [t for n, t in wanted.items() if n not in there]
        if missing:
            await _create(admin, missing, replication)
            await _wait(admin, {t.name for t in missing})
        return [t.name for t in missing]
    except KafkaConnectionError as error:
        raise unreachable(address) from error
    except KafkaError as error:
        raise LogUnavailable(f"the log at {address} refused to create topics ({error})") from error
    finally:
        await admin.close()


async def _create(admin: AIOKafkaAdminClient, missing: list[Topic], replication: int) -> None:
    answer = await admin.create_topics(
        [NewTopic(t.name, t.partitions, replication, topic_configs=dict(t.configs)) for t in missing]
    )
    for name, code, *reason in answer.topic_errors:
        if code not in (0, TopicAlreadyExistsError.errno):
            why = (reason[0] if reason else None) or for_code(code).__name__
            raise StreamsError(f"topic {name} could not be created: {why}")


async def _wait(admin: AIOKafkaAdminClient, names: set[str]) -> None:
    end = time.monotonic() + VISIBLE
    while time.monotonic() < end:
        described = {t["topic"]: t for t in await admin.describe_topics()}
        if all(n in described and all(p["leader"] >= 0 for p in described[n]["partitions"]) for n in names):
            return
        await asyncio.sleep(0.05)
    raise LogUnavailable(f"topics {', '.join(sorted(names))} were created but are not served after {VISIBLE:.0f} s")
