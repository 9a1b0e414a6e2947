"""The topics of a program on the log, created where they are missing."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from collections.abc import Iterable

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import (
    InvalidReplicationFactorError,
    KafkaConnectionError,
    KafkaError,
    TopicAlreadyExistsError,
    TopicAuthorizationFailedError,
    for_code,
)
from headrace.streams.address import Address, client_options
from headrace.streams.diagnosis import diagnose
from headrace.streams.errors import LogUnavailable, StreamsError, TopicGone, TopicMismatch
from headrace.streams.topics import Topic

logger = logging.getLogger("headrace.streams")

REPLICATION = "HEADRACE_REPLICATION"
BROKERS_OWN = -1
"""The cluster's default (default.replication.factor); the local broker keeps one copy, whatever it is."""

VISIBLE = 10.0
"""Seconds until a created topic is known everywhere; a cluster takes a moment to elect its leaders."""

WATCH_EVERY = 3.0
"""Seconds between looks at the topics of a program that runs: a deleted one is noticed before its tasks give up."""


POLICY, MARKS_KEPT = "cleanup.policy", "delete.retention.ms"
"""What state on the log rests on, and anyone who may alter topics can take away."""


async def answers(address: Address) -> bool:
    """Whether a broker answers at the address, now."""
    admin = AIOKafkaAdminClient(**client_options(address), request_timeout_ms=2000)
    try:
        await admin.start()
        await admin.list_topics()
    except (KafkaError, OSError):
        return False
    finally:
        await admin.close()
    return True


def replication_of(text: str | None) -> int:
    """The copies that HEADRACE_REPLICATION asks for. Raises StreamsError where it is no number of copies."""
    if not text:
        return BROKERS_OWN
    if not re.fullmatch(r"[1-9]\d{0,3}", text):
        raise StreamsError(f"{REPLICATION}={text!r} is no number of copies: set it to 3, say, or leave it out")
    return int(text)


async def ensure_topics(
    address: Address, topics: Iterable[Topic], *, replication: int | None = None, exact: bool = True
) -> list[str]:
    """Create the topics that are missing, and return their names; calling it again changes nothing.

    replication: copies of each; left out, HEADRACE_REPLICATION's, else the broker's default; a local stack's own broker
                 is not the one that HEADRACE_REPLICATION is for
    exact: whether those that are there must have as many partitions as declared

    Raises TopicMismatch where a topic has another number of partitions than declared: keys would change places; and
    where the configuration of a compacted one lets go what state rests on.
    """
    wanted = {t.name: t for t in topics}
    told = None if address.own else os.environ.get(REPLICATION)
    copies = replication_of(told) if replication is None else replication
    admin = AIOKafkaAdminClient(**client_options(address))
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
            await _create(admin, address, missing, copies)
            await _wait(admin, {t.name for t in missing})
        for name in await _check_configs(admin, wanted.values()):
            logger.warning(
                "this user may not see the configuration of topic %s: that its %s is compact, and its %s no less than "
                "the program says, is taken on trust. Allow DESCRIBE_CONFIGS on it",
                *(name, POLICY, MARKS_KEPT),
            )
        return [t.name for t in missing]
    except KafkaConnectionError as error:
        raise await diagnose(address) from error
    except KafkaError as error:
        raise LogUnavailable(f"the log at {address} refused to create topics ({error})") from error
    finally:
        await admin.close()


async def watch_topics(address: Address, topics: Iterable[Topic], every: float = WATCH_EVERY) -> None:
    """Look after the topics of a program while it runs; returns only by raising.

    A consumer waits for ever at a topic that is gone, and never reads a partition that was added.

    Raises TopicGone, and TopicMismatch where partitions were added, or a configuration lets go what state rests on.
    """
    topics = list(topics)
    wanted = {t.name: t.partitions for t in topics}
    admin: AIOKafkaAdminClient | None = None
    missing: set[str] = set()
    try:
        while True:
            await asyncio.sleep(every)
            try:
                if admin is None:
                    admin = AIOKafkaAdminClient(**client_options(address))
                    await admin.start()
                there = {t["topic"]: len(t["partitions"]) for t in await admin.describe_topics()}
                await _check_configs(admin, topics)
            except (KafkaError, OSError):
                # Tasks wait for a log that is away; a new client finds it again.
                if admin is not None:
                    await admin.close()
                admin, missing = None, set()
                continue
            # Twice: a broker that has just started may not know its topics yet.
            again, missing = missing, wanted.keys() - there.keys()
            if gone := sorted(missing & again):
                raise TopicGone(
                    f"topic {', '.join(gone)} was deleted while the program ran: its records are lost. Bring the log's "
                    f"data back; or begin anew: give the app another name, or delete its topics and its data, and "
                    f"publish its events again"
                )
            for name in wanted.keys() & there.keys():
                if there[name] != wanted[name]:
                    raise TopicMismatch(
                        f"topic {name} has {there[name]} partitions in the log now and {wanted[name]} in the program: "
                        f"events of one key lie in two partitions, and those of the added ones are not read. Begin "
                        f"anew with partitions={there[name]}: give the app and its topics other names, and publish "
                        f"its events again"
                    )
    finally:
        if admin is not None:
            await admin.close()


async def _check_configs(admin: AIOKafkaAdminClient, topics: Iterable[Topic]) -> list[str]:
    """Look at the configuration of what is compacted, and return the names of topics whose nobody lets this user see.

    Raises TopicMismatch where rows would go by their age, or marks of deleted rows sooner than state on disk may lack
    them: a row that is gone would stay on that disk for ever.
    """
    wanted = {t.name: t for t in topics if MARKS_KEPT in t.configs}
    if not wanted:
        return []
    asked = dict.fromkeys((POLICY, MARKS_KEPT), "")
    answers = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, n, asked) for n in wanted])
    unseen = []
    for code, _, _, name, entries in (told for answer in answers for told in answer.resources):
        if code == TopicAuthorizationFailedError.errno:
            unseen.append(name)
        has = {entry[0]: entry[1] for entry in entries}
        declared = wanted[name].configs
        if has.get(POLICY, declared[POLICY]) != declared[POLICY]:
            wrong, why = POLICY, "rows of state would be deleted by their age"
        elif int(has.get(MARKS_KEPT, declared[MARKS_KEPT])) < int(declared[MARKS_KEPT]):
            wrong, why = MARKS_KEPT, "a disk that was away for longer would keep rows that are deleted"
        else:
            continue
        raise TopicMismatch(
            f"topic {name} has {wrong}={has[wrong]} in the log and {declared[wrong]} in the program: {why}. Set it to "
            f"{declared[wrong]}, delete the folders of workers that were down meanwhile (DIR/workers under their "
            f"--data), and start again"
        )
    return unseen


async def _create(admin: AIOKafkaAdminClient, address: Address, missing: list[Topic], replication: int) -> None:
    wanted = [NewTopic(t.name, t.partitions, 1, topic_configs=dict(t.configs)) for t in missing]
    for topic in wanted:
        topic.replication_factor = replication  # NewTopic itself takes no -1, the protocol does
    answer = await admin.create_topics(wanted)
    for name, code, *reason in answer.topic_errors:
        if code == InvalidReplicationFactorError.errno:
            brokers = len(admin._client.cluster.brokers())
            raise StreamsError(
                f"topic {name} cannot have {replication} copies: the cluster at {address} has {brokers} "
                f"of its brokers up; start more, or ask for fewer copies (--replication, {REPLICATION})"
            )
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
