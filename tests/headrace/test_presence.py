"""What workers tell of themselves: published all the while, removed at an end in order, cleaned by the leader."""

from __future__ import annotations

import asyncio
import time
from copy import deepcopy
from functools import partial

import msgspec
import pytest
from headrace.streams.address import Address
from headrace.streams.admin import ensure_topics
from headrace.streams.kafka import KafkaLog
from headrace.streams.log import Partition
from headrace.streams.workers import TOPIC, WORKERS, WorkerStatus

from headrace import presence
from headrace.presence import Cleaner, Presence
from headrace.state import records
from tests.scene import DEEP, write_odd


def status(worker: str, app: str = "bank") -> WorkerStatus:
    return WorkerStatus(
        worker=worker, app=app, host="here", pid=1, started=0, time=int(time.time() * 1000), state="running"
    )


async def told(log: KafkaLog) -> dict[str, bool]:
    """The last word of each worker: whether it is there."""
    found = {}
    async for fetched in records(log, Partition(WORKERS, 0)):
        for key, value in zip(fetched.keys, fetched.values, strict=True):
            found[(key or b"").decode()] = value is not None
    return found


async def test_the_leader_removes_those_of_its_application_that_fell_silent(
    broker: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence, "CLEAN_EVERY", 0.2)
    monkeypatch.setattr(presence, "FORGET_AFTER", 3.0)
    monkeypatch.setattr(presence, "TELL_EVERY", 0.5)
    await ensure_topics(broker, [TOPIC])
    log = KafkaLog(broker)
    alive = Presence(broker, lambda: status("alive"), "test")
    for other in (status("dead"), status("another's", "shop")):
        once = Presence(broker, partial(deepcopy, other), "test")
        await once.tell()
        await once.close()
    await asyncio.to_thread(write_odd, broker, WORKERS, DEEP, b"deep")  # anyone may write there
    await asyncio.to_thread(write_odd, broker, WORKERS, msgspec.json.encode(status("odd")).replace(b"bank", b"\xff"))
    leading = False
    cleaner = Cleaner(log, "bank", alive, lambda: leading)
    parts = [asyncio.create_task(alive.run()), asyncio.create_task(cleaner.run())]
    await asyncio.sleep(4.0)
    assert (await told(log))["dead"], "who does not lead removes nothing"
    leading = True
    async with asyncio.timeout(20):
        while (await told(log))["dead"]:
            continue
    found = await told(log)  # other tests' workers may stand there too
    assert {name: found[name] for name in ("dead", "alive", "another's")} == {
        "dead": False,
        "alive": True,
        "another's": True,
    }
    for part in parts:
        part.cancel()
    await alive.leave()
    assert not (await told(log))["alive"]
    await log.close()


async def test_a_log_that_is_away_costs_the_telling_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence, "TELL_WITHIN", 0.5)
    nowhere = Presence(Address("127.0.0.1", 1), lambda: status("alone"), "test")
    telling = asyncio.create_task(nowhere.run())
    await asyncio.sleep(2.0)
    assert not telling.done()
    telling.cancel()
    await nowhere.leave()
