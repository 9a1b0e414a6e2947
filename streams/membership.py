"""The group of an application's workers: who is in it, and which tasks are whose.

It is a consumer group by Kafka's own protocol, over the stages' changelogs: one partition of a changelog is one task.
It fetches nothing and commits nothing: the group only says who runs what, and what makes a task safe is the fencing of
its transactional ids. So a task goes on while the group gathers anew, and stops when the new portion says so.

The group's requests are made in a thread of their own. A task that loads a large state, or a learner that computes for
long, holds the worker's event loop; if it held the heartbeats too, the group would take the worker for dead, give its
tasks to others, and they would load the same state and be taken for dead in turn.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from aiokafka.client import AIOKafkaClient, ConnectionGroup, CoordinationType
from aiokafka.cluster import ClusterMetadata
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.consumer.subscription_state import SubscriptionState
from aiokafka.coordinator.assignors.abstract import AbstractPartitionAssignor
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment, ConsumerProtocolMemberMetadata
from aiokafka.errors import (
    GroupAuthorizationFailedError,
    KafkaError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
)
from aiokafka.protocol.group import LeaveGroupRequest
from headrace.streams.address import Address, client_options
from headrace.streams.diagnosis import diagnose
from headrace.streams.errors import BadSecurity, GroupRefused
from headrace.streams.log import Partition
from headrace.streams.sharing import Claim, Portion, share

logger = logging.getLogger("headrace.workers")

SESSION = 6.0
"""Seconds without a heartbeat after which a worker is taken for dead and its tasks go to others: nearly all the time
for which the tasks of a killed worker stand still. It is the least that Kafka allows (group.min.session.timeout.ms). A
living worker is not lost by it: heartbeats come from a thread of their own, which was held up for half a second at most
while the worker restored 1 GB on a machine that had five times as much to do as it could."""

HEARTBEAT = 0.3
"""Seconds between heartbeats. By them a worker learns that the group gathers anew, so the tasks of one that leaves or
died wait for the slowest; with a second, they stood still for twice to three times as long."""

STUCK_AFTER = 300.0
"""Seconds without a turn of the worker's event loop after which it leaves the group: its heartbeats come from another
thread and would keep its tasks for ever. Longer than loading a large state or the slowest learner."""

TICK = 1.0
"""Seconds between two signs of life of the event loop, and between two looks at the coordinator's errors."""

ANSWER_WITHIN = 40.0
"""Seconds for an answer of the group's coordinator: joining is answered when all have joined, a session at most."""

RETRY = 1.0
"""Seconds before the group is sought again after an error: a log that is away should not be asked without pause."""

LEAVE_WITHIN = 5.0
"""Seconds for leaving the group. A log that is away must not hold up a worker that stops."""

PROTOCOL = "headrace-1"
"""Names the way of sharing: workers that share otherwise cannot join the same group."""


@dataclass(slots=True, frozen=True)
class Assignment:
    """What the group has given to this worker. leader: whether it is the one that shared the tasks out."""

    generation: int
    member: str
    running: frozenset[Partition]
    standby: frozenset[Partition]
    leader: bool


class _Sharing(AbstractPartitionAssignor):  # type: ignore[misc]  # aiokafka is untyped
    """`share` as aiokafka asks for it. One per membership: it carries the claim of its worker."""

    name = PROTOCOL

    def __init__(
        self, claim: Callable[[], Claim], standbys: int, assigned: Callable[[Portion, bool], None]
    ) -> None:
        self._claim = claim
        self._standbys = standbys
        self._assigned = assigned
        self._leads = False

    def metadata(self, topics: Iterable[str]) -> ConsumerProtocolMemberMetadata:
        self._leads = False
        return ConsumerProtocolMemberMetadata(0, sorted(topics), msgspec.json.encode(self._claim()))

    def assign(
        self, cluster: ClusterMetadata, members: Mapping[str, ConsumerProtocolMemberMetadata]
    ) -> dict[str, ConsumerProtocolMemberAssignment]:
        self._leads = True
        claims = {name: msgspec.json.decode(m.user_data, type=Claim) for name, m in members.items()}
        topics = sorted({t for claim in claims.values() for t in claim.topics})
        partitions = {t: len(cluster.partitions_for_topic(t) or ()) for t in topics}
        if unknown := [t for t, count in partitions.items() if not count]:
            # A node that does not know a new topic yet: nobody would be given its tasks, until minutes later the topics
            # are looked at again. Another leader, or this one in a second, asks another node.
            raise UnknownTopicOrPartitionError(f"a node of the log does not know {', '.join(unknown)}")
        return {name: _encoded(p) for name, p in share(claims, partitions, self._standbys).items()}

    def on_assignment(self, assignment: ConsumerProtocolMemberAssignment) -> None:
        portion = msgspec.json.decode(assignment.user_data, type=Portion)
        self._assigned(portion, self._leads)


def _encoded(portion: Portion) -> ConsumerProtocolMemberAssignment:
    """As any consumer group tells it, so that Kafka's own tools show who runs what; the rest is in the user data."""
    topics: dict[str, list[int]] = {}
    for task in portion.running:
        topics.setdefault(task.topic, []).append(task.number)
    return ConsumerProtocolMemberAssignment(0, sorted(topics.items()), msgspec.json.encode(portion))


class Membership:
    """A worker's place in the group.

    topics:   the changelogs of the stages that it can run
    standbys: copies of each task; all workers should say the same
    earlier:  the id under which an earlier process of this worker, now surely dead, was a member: it leaves first, so
              that the group need not wait for the end of its session
    joined:   called with the new id at each joining, in the membership's thread

    Use `start`, then `next` again and again. `claim` is read at each joining.
    """

    def __init__(
        self,
        address: Address,
        group: str,
        topics: Iterable[str],
        *,
        standbys: int = 0,
        earlier: str = "",
        joined: Callable[[str], None] = lambda _: None,
        client_id: str = "headrace",
    ) -> None:
        self.group = group
        self.claim = Claim(tuple(sorted(topics)))
        self.assignment: Assignment | None = None
        self._address = address
        self._client_id = client_id
        self._standbys = standbys
        self._earlier = earlier
        self._joined = joined
        self._changed = asyncio.Event()
        self._refused: Exception | None = None
        self._thread: threading.Thread | None = None
        self._ticking: asyncio.Task[None] | None = None
        # Of the thread:
        self._there: asyncio.AbstractEventLoop | None = None
        self._ready = threading.Event()
        self._stopping: asyncio.Event
        self._coordinator: Any = None  # aiokafka is untyped
        self._subscription: Any = None
        self._told = False

    async def start(self) -> None:
        """Begin to seek the group. Returns at once."""
        self._here = asyncio.get_running_loop()
        self._turned = time.monotonic()
        self._ticking = asyncio.create_task(self._tick())
        self._thread = threading.Thread(target=lambda: asyncio.run(self._live()), name="membership", daemon=True)
        self._thread.start()
        await asyncio.to_thread(self._ready.wait)

    async def next(self, known: Assignment | None = None) -> Assignment:
        """The assignment, once it is another than the one known. Raises GroupRefused, and BadSecurity where the log
        lets this user in no more: a worker without tasks has nothing else that would find out.

        Its generation alone would not tell: a group that its log has lost counts from the beginning again.
        """
        while True:
            self._changed.clear()
            if self._refused is not None:
                raise self._refused
            if self.assignment is not None and self.assignment != known:
                return self.assignment
            await self._changed.wait()

    async def confirm(self) -> Assignment:
        """The assignment, once the group has just said that it stands. Waits for as long as that takes: through a
        gathering of the group, and while the log is away.

        A worker that was stopped for longer than its session believes that its tasks are still its own; after this it
        does not.
        """
        assert self._there is not None
        if self._refused is not None:
            raise self._refused
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._confirmed(), self._there))
        assert self.assignment is not None
        return self.assignment

    async def stop(self) -> None:
        """Leave the group, so that others take over at once."""
        if self._thread is None or self._there is None:
            return
        thread, self._thread = self._thread, None
        if self._ticking is not None:
            self._ticking.cancel()
        with contextlib.suppress(RuntimeError):  # its loop has ended
            self._there.call_soon_threadsafe(self._stopping.set)
        await asyncio.to_thread(thread.join, 2 * LEAVE_WITHIN)

    async def _tick(self) -> None:
        while True:
            self._turned = time.monotonic()
            if self._subscription is not None:
                # What aiokafka takes for the time of the last fetch: it leaves the group when that is long ago.
                self._subscription._last_fetch_ended = self._turned
            await asyncio.sleep(TICK)

    # In the thread.

    async def _live(self) -> None:
        self._there = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        self._ready.set()
        while not self._stopping.is_set():
            try:
                await self._belong_or_tell()
            except (GroupAuthorizationFailedError, TopicAuthorizationFailedError) as error:
                refused = GroupRefused(
                    f"the log does not let this user join the group {self.group} ({error}): allow READ on it, and "
                    f"READ, WRITE and DESCRIBE on the topics of the application"
                )
                self._deliver(refused)
                return
            except (KafkaError, OSError) as error:
                if not self._told:
                    logger.warning("the group %s cannot be reached, its tasks go on: %s", self.group, error)
                self._told = True
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), RETRY)
            except Exception as error:  # else the thread would end in silence, and the worker wait for ever
                self._deliver(error)
                return

    async def _belong_or_tell(self) -> None:
        """Raises BadSecurity where it would be in vain to try again."""
        try:
            await self._belong()
        except (KafkaError, OSError):
            await self._check_security()
            raise

    async def _check_security(self) -> None:
        """Raises BadSecurity where the log does not let this user in."""
        asking = asyncio.create_task(diagnose(self._address))
        stopping = asyncio.create_task(self._stopping.wait())
        await asyncio.wait([asking, stopping], return_when=asyncio.FIRST_COMPLETED)
        for waiting in (asking, stopping):
            waiting.cancel()
        if asking.done() and not asking.cancelled() and isinstance(why := asking.result(), BadSecurity):
            raise why

    async def _belong(self) -> None:
        """Be a member until `stop`. Raises KafkaError where the group has to be sought anew."""
        client = AIOKafkaClient(
            **client_options(self._address),
            client_id=self._client_id,
            request_timeout_ms=int(ANSWER_WITHIN * 1000),
        )
        coordinator = None
        try:
            await client.bootstrap()
            await self._bury(client)
            client.set_topics(self.claim.topics)
            await client._maybe_wait_metadata()
            subscription = SubscriptionState()
            subscription.subscribe(set(self.claim.topics))
            subscription.register_fetch_waiters(())  # aiokafka tells them of what it cannot go on from
            coordinator = GroupCoordinator(
                client,
                subscription,
                group_id=self.group,
                session_timeout_ms=int(SESSION * 1000),
                rebalance_timeout_ms=int(SESSION * 1000),
                heartbeat_interval_ms=int(HEARTBEAT * 1000),
                max_poll_interval_ms=int(STUCK_AFTER * 1000),
                enable_auto_commit=False,
                assignors=(_Sharing(lambda: self.claim, self._standbys, self._assigned),),
            )
            self._subscription, self._coordinator = subscription, coordinator
            while not self._stopping.is_set():
                coordinator.check_errors()
                if coordinator.coordinator_id is None:
                    await self._check_security()  # aiokafka seeks it for ever, also where nobody lets it in
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), TICK)
        finally:
            self._coordinator = self._subscription = None
            if coordinator is not None:
                await _at_most(coordinator.close())
                # Where the coordinator failed, its close goes no further than to say so.
                for left in ("_coordination_task", "_heartbeat_task", "_commit_refresh_task"):
                    if getattr(coordinator, left) is not None:
                        getattr(coordinator, left).cancel()
            await _at_most(client.close())

    async def _bury(self, client: AIOKafkaClient) -> None:
        """Take the earlier process of this worker out of the group."""
        if not self._earlier:
            return
        with contextlib.suppress(KafkaError):
            node = await client.coordinator_lookup(CoordinationType.GROUP, self.group)
            if await client.ready(node, group=ConnectionGroup.COORDINATION):
                leave = LeaveGroupRequest(self.group, self._earlier)
                await client.send(node, leave, group=ConnectionGroup.COORDINATION)
        self._earlier = ""

    def _assigned(self, portion: Portion, leads: bool) -> None:
        coordinator = self._coordinator
        self._joined(coordinator.member_id)
        self._told = False
        running, standby = frozenset(portion.running), frozenset(portion.standby)
        self._deliver(Assignment(coordinator.generation, coordinator.member_id, running, standby, leads))

    def _deliver(self, news: Assignment | Exception) -> None:
        def arrive() -> None:
            if isinstance(news, Assignment):
                self.assignment = news
            else:
                self._refused = news
            self._changed.set()

        with contextlib.suppress(RuntimeError):  # the worker's loop has ended
            self._here.call_soon_threadsafe(arrive)

    async def _confirmed(self) -> None:
        while True:
            with contextlib.suppress(KafkaError):
                if self._stands() and await self._coordinator._do_heartbeat() and self._stands():
                    return
            await asyncio.sleep(HEARTBEAT / 5)

    def _stands(self) -> bool:
        """Whether the worker is in the group and has its portion of the newest generation it knows of."""
        coordinator, subscription = self._coordinator, self._subscription
        return (
            coordinator is not None
            and coordinator.generation > 0
            and not coordinator._rejoin_needed_fut.done()
            and not subscription.reassignment_in_progress
        )


async def _at_most(closing: Any) -> None:
    """Do it, or leave it, whatever state the client is in."""
    doing = asyncio.ensure_future(closing)
    await asyncio.wait([doing], timeout=LEAVE_WITHIN)
    doing.cancel()
    await asyncio.wait([doing])
    if not doing.cancelled():
        doing.exception()
