"""The group of the workers, on the local broker: who joins, leaves, dies and is taken for dead."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiokafka.cluster import ClusterMetadata
from headrace.streams.address import Address
from headrace.streams.broker import Broker, users
from headrace.streams.errors import BadSecurity, WrongCredentials
from headrace.streams.log import Partition
from headrace.streams.membership import SESSION, Assignment, Membership
from headrace.streams.sharing import Claim

from tests import secured
from tests.scene import eventually, free_port, fresh
from tests.shop import ORDERS

_numbers = itertools.count(1)


@contextlib.asynccontextmanager
async def member(
    broker: Address, group: str, topic: str, *, earlier: str = "", claim: Claim | None = None
) -> AsyncIterator[Membership]:
    made = Membership(broker, group, [topic], earlier=earlier)
    made.claim = claim or made.claim
    await made.start()
    try:
        yield made
    finally:
        await made.stop()


@pytest.fixture
def topic(broker: Address) -> str:
    return fresh(broker, ORDERS, 4).name


@pytest.fixture
def group() -> str:
    return f"group-{next(_numbers)}.workers"


async def holds(one: Membership, count: int, after: int = -1) -> Assignment:
    """Its assignment, once it has so many tasks, in a generation after another."""
    now = await one.next()
    async with asyncio.timeout(30):
        while now.generation <= after or len(now.running) != count:
            now = await one.next(now)
    return now


async def test_a_lone_worker_has_every_task_at_once_and_leads(broker: Address, group: str, topic: str) -> None:
    async with member(broker, group, topic) as one:
        began = time.monotonic()
        assignment = await one.next()
        assert {p.number for p in assignment.running} == {0, 1, 2, 3}
        assert assignment.leader
        assert time.monotonic() - began < SESSION / 2, "it does not wait for others"


async def test_one_that_leaves_is_followed_at_once(broker: Address, group: str, topic: str) -> None:
    async with member(broker, group, topic) as one:
        first = await holds(one, 4)
        async with member(broker, group, topic) as other:
            theirs, mine = await holds(other, 2), await holds(one, 2)
            assert theirs.running | mine.running == first.running
            left = time.monotonic()
        assert (await holds(one, 4)).running == first.running
        assert time.monotonic() - left < SESSION / 2


async def test_one_whose_thread_falls_silent_is_taken_for_dead_and_comes_back(
    broker: Address, group: str, topic: str
) -> None:
    async with member(broker, group, topic) as one, member(broker, group, topic) as zombie:
        await holds(one, 2)
        await holds(zombie, 2)
        assert zombie._there is not None
        zombie._there.call_soon_threadsafe(time.sleep, SESSION + 2)  # as a stopped process
        alone = await holds(one, 4)
        # What it believes is out of date; once the group has answered, it knows.
        assert zombie.assignment is not None
        assert zombie.assignment.generation < alone.generation
        async with asyncio.timeout(20):
            now = await zombie.confirm()
        assert now.generation > alone.generation
        assert now.running.isdisjoint((await holds(one, 2, alone.generation)).running)


async def test_the_next_process_of_a_dead_worker_buries_it(broker: Address, group: str, topic: str) -> None:
    async with member(broker, group, topic) as dead:
        name = (await dead.next()).member
        assert dead._there is not None
        dead._there.call_soon_threadsafe(time.sleep, SESSION / 2)
        began = time.monotonic()
        async with member(broker, group, topic, earlier=name) as heir:
            assert len((await heir.next()).running) == 4
            assert time.monotonic() - began < SESSION / 2, "it does not wait for the end of the session"


async def test_a_worker_outlives_its_broker(tmp_path_factory: pytest.TempPathFactory, group: str) -> None:
    folder = tmp_path_factory.mktemp("log") / "broker"
    async with Broker(folder) as first:
        address = Address("127.0.0.1", int(first.address.rpartition(":")[2]))
        topic = (await asyncio.to_thread(fresh, address, ORDERS, 4)).name
        one = Membership(address, group, [topic])
        await one.start()
        assert len((await one.next()).running) == 4
    asking = asyncio.create_task(one.confirm())
    await asyncio.sleep(1.0)
    assert not asking.done(), "while the log is away nobody says whose the tasks are"
    async with Broker(folder, port=address.port):
        async with asyncio.timeout(20):
            assert len((await asking).running) == 4
        await one.stop()


async def test_one_that_stops_while_the_log_is_away_does_not_wait_for_it(group: str) -> None:
    one = Membership(Address("127.0.0.1", 1), group, ["orders"])
    await one.start()
    await asyncio.sleep(0.5)
    began = time.monotonic()
    await one.stop()
    assert time.monotonic() - began < 3.0


async def test_one_that_is_let_in_no_more_is_told_also_without_a_task(
    tmp_path: Path, group: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, known = Address("127.0.0.1", free_port()), tmp_path / "users.json"
    monkeypatch.setenv("HEADRACE_USER", "ann")
    monkeypatch.setenv("HEADRACE_PASSWORD", "old")
    users.set_password(known, "ann", "old")
    with contextlib.ExitStack() as life:
        serving = life.enter_context(contextlib.ExitStack())
        serving.enter_context(secured.process(tmp_path / "broker", address, ["--users", str(known)]))
        topic = (await asyncio.to_thread(fresh, address, ORDERS, 1)).name
        async with member(address, group, topic) as one, member(address, group, topic) as other:
            theirs, mine = await other.next(), await one.next()
            while mine.generation != theirs.generation:
                if mine.generation < theirs.generation:
                    mine = await one.next(mine)
                else:
                    theirs = await other.next(theirs)
            assert len(mine.running) + len(theirs.running) == 1
            serving.close()
            users.set_password(known, "ann", "new")
            life.enter_context(secured.process(tmp_path / "broker", address, ["--users", str(known)]))
            for each in (one, other):
                with pytest.raises(WrongCredentials, match=r"refuses user 'ann'.*: check HEADRACE_USER"):
                    await holds(each, 99)


async def test_settings_that_became_unusable_are_told_when_the_group_is_sought_anew(
    broker: Address, group: str, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADRACE_USER", "ann")
    async with member(broker, group, topic) as one, asyncio.timeout(10):
        with pytest.raises(BadSecurity, match="HEADRACE_USER is set and HEADRACE_PASSWORD is not"):
            await one.next()


async def test_a_portion_of_a_group_that_counts_anew_is_news(group: str) -> None:
    one = Membership(Address("127.0.0.1", 1), group, ["orders"])
    await one.start()
    half = Assignment(1, "before", frozenset({Partition("orders", 0)}), frozenset(), False)
    every = Assignment(1, "after", frozenset(Partition("orders", n) for n in range(2)), frozenset(), True)
    one._deliver(half)
    assert await one.next() == half
    waiting = asyncio.create_task(one.next(half))
    one._deliver(every)
    async with asyncio.timeout(5):
        assert await waiting == every
    await one.stop()


async def test_a_topic_that_one_node_does_not_know_yet_leaves_no_task_without_a_worker(
    broker: Address, group: str, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, asked = ClusterMetadata.partitions_for_topic, 0

    def at_first_unknown(self: ClusterMetadata, name: str) -> set[int] | None:
        nonlocal asked
        asked += name == topic
        return None if name == topic and asked < 3 else known(self, name)

    monkeypatch.setattr(ClusterMetadata, "partitions_for_topic", at_first_unknown)
    async with asyncio.timeout(20), member(broker, group, topic) as one:
        await holds(one, 4)
    assert asked >= 3


async def test_a_group_whose_log_does_not_know_its_topics_says_so(
    broker: Address, group: str, caplog: pytest.LogCaptureFixture
) -> None:
    says = "a node of the log does not know no.such.changelog"
    async with member(broker, group, "no.such.changelog"):
        await asyncio.to_thread(eventually, lambda: says in caplog.text)
