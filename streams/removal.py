"""Taking things off the log: topics, and the positions of consumer groups."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError, for_code
from aiokafka.protocol.admin import DeleteGroupsRequest
from headrace.streams.address import Address, client_options
from headrace.streams.diagnosis import diagnose
from headrace.streams.errors import LogUnavailable, StreamsError

GONE_WITHIN = 30.0
"""Seconds for a topic to be gone after it was deleted, and for a coordinator to be found: a cluster takes a moment, and
one that is busy with a large topic takes more."""
AGAIN = 0.2
UNKNOWN_TOPIC, NO_SUCH_GROUP, GROUP_NOT_EMPTY = 3, 69, 68
"""Error codes of the protocol."""
PASSING = frozenset({14, 15, 16})
"""Codes of a coordinator that is loading, not there yet, or has moved: the next try goes to the right one."""
EMPTY = frozenset({"Empty", "Dead", ""})


@dataclass(frozen=True, slots=True)
class Listed:
    """What is on a log. topics: partitions and replicas of each; groups: whether each has members."""

    topics: dict[str, tuple[int, int]]
    groups: dict[str, bool]


async def look(address: Address, groups: Iterable[str]) -> Listed:
    """The topics of a log, and those of the groups named that are there. Raises LogUnavailable."""
    async with _admin(address) as admin:
        topics = {
            t["topic"]: (len(t["partitions"]), max((len(p["replicas"]) for p in t["partitions"]), default=1))
            for t in await admin.describe_topics()
        }
        there = {name for name, *_ in await admin.list_consumer_groups()} & set(groups)
        found = {}
        for name in sorted(there):
            [answer] = await admin.describe_consumer_groups([name])
            found[name] = answer.groups[0][2] not in EMPTY
        return Listed(topics, found)


async def delete_topics(address: Address, names: Iterable[str]) -> None:
    """Delete topics and wait until they are gone; those that are not there are passed over.

    Raises StreamsError where the log refuses, and LogUnavailable.
    """
    async with _admin(address) as admin:
        there = {t["topic"] for t in await admin.describe_topics()}
        wanted = sorted(set(names) & there)
        if not wanted:
            return
        answer = await admin.delete_topics(wanted)
        for name, code, *_ in answer.topic_error_codes:
            if code not in (0, UNKNOWN_TOPIC):
                raise StreamsError(f"topic {name} could not be deleted: {for_code(code).__name__}")
        until = time.monotonic() + GONE_WITHIN
        while left := {t["topic"] for t in await admin.describe_topics()} & set(wanted):
            if time.monotonic() > until:
                raise LogUnavailable(f"topics {', '.join(sorted(left))} are still there after {GONE_WITHIN:.0f} s")
            await asyncio.sleep(AGAIN)


async def delete_groups(address: Address, names: Iterable[str]) -> None:
    """Delete groups with their positions; those that are not there are passed over.

    Raises StreamsError where one has members, and LogUnavailable.
    """
    async with _admin(address) as admin:
        for name in names:
            until = time.monotonic() + GONE_WITHIN
            while True:
                coordinator = await admin.find_coordinator(name)
                answer = await admin._send_request(DeleteGroupsRequest([name]), coordinator)
                code = answer.results[0][1]
                if code in (0, NO_SUCH_GROUP):
                    break
                if code == GROUP_NOT_EMPTY:
                    raise StreamsError(f"group {name} has members: stop the workers that belong to it")
                if code not in PASSING or time.monotonic() > until:
                    raise StreamsError(f"group {name} could not be deleted: {for_code(code).__name__}")
                await asyncio.sleep(AGAIN)


@asynccontextmanager
async def _admin(address: Address) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(**client_options(address), client_id="headrace-removal")
    try:
        await admin.start()
        yield admin
    except (KafkaError, OSError) as error:
        raise await diagnose(address) from error
    finally:
        await admin.close()
