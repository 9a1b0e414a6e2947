"""Clients that write, read and commit at once, and write down what they did and were told.

On the topic `a`: idempotent producers, one that is not idempotent, and writers of transactions over both partitions.
A processor for each partition of `a` makes a record of `b` from each of `a`, and commits its group's offset in the
same transaction. A group of readers reads `a`, its members come and go. Readers of everything and of the committed
follow both topics and sometimes go back. A watcher looks up the offsets of both groups.

Seeded: each client draws what it does from its own generator. When things happen is the machine's affair.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRebalanceListener, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError, MessageSizeTooLargeError
from kio.schema.errors import ErrorCode

from tests.history.history import (
    End,
    GroupOffset,
    History,
    Outcome,
    Place,
    Poll,
    Position,
    Send,
    Transaction,
)
from tests.streams.broker.clients import Clients

OFFSET_COMMIT, OFFSET_FETCH, FIND_COORDINATOR = 8, 9, 10
PARTITIONS = 2
A = [("a", partition) for partition in range(PARTITIONS)]
B = [("b", partition) for partition in range(PARTITIONS)]
READERS, PROCESSORS = "readers-Aa", "processors-Aa"
"""The two groups."""
SAME_HASH = ("Aa", "BB")
"""To Java these are of one hash code: Kafka keeps groups that differ in them alone in one partition, at one node."""
ZOMBIES = 6
"""One in so many transactions is committed by a producer that has been fenced, or tries to be."""
LARGEST = 4_000
"""Bytes that a batch of the topics may have, so that some are refused."""
MOST_SECONDS = 60.0
"""Of load beyond what was asked for, until the least number of records has been acknowledged."""
TROUBLE = (KafkaError, TimeoutError, OSError, asyncio.IncompleteReadError)
"""What clients raise when a broker is away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    bootstrap: str
    seed: int
    seconds: float
    """Of load; what settles afterwards comes on top."""
    least: int = 0
    """Records acknowledged, at least, before the load ends: a busy machine takes longer, within MOST_SECONDS."""
    pace: float = 0.02
    """Seconds between two deeds of a client, on average."""
    patience: float = 2.0
    """Seconds for a client to wait for an answer; then the outcome is unknown and it begins anew."""
    transaction_timeout: float = 30.0
    settling: float = 60.0
    """Seconds for the clients to end, and for the last reading; who takes longer is stuck, as the checker will say."""
    replication: int = 1


class Nemesis(Protocol):
    async def run(self, over: asyncio.Event, history: History) -> None:
        """Does harm until it is over, then heals everything."""

    def harmed_enough(self) -> bool:
        """Whether each kind of harm has been done."""

    async def heal(self) -> None:
        """What is to be read in the end is read from a broker that has begun anew."""


async def record(settings: Settings, nemesis: Nemesis | None = None) -> History:
    """The history of a run, settled and read to its end."""
    workload = Workload(settings)
    await workload.create_topics()
    load = [
        workload.write("idempotent-0", idempotent=True),
        workload.write("idempotent-1", idempotent=True),
        workload.write("careless", idempotent=False),
        workload.transact("transactor-0"),
        workload.transact("transactor-1"),
        *(workload.process(f"processor-{place[1]}", place) for place in A),
        workload.follow("committed", committed_only=True),
        workload.follow("everything", committed_only=False),
        workload.join("member-0"),
        workload.join("member-1"),
        workload.watch(),
    ]
    async with asyncio.TaskGroup() as group:
        for client in load:
            group.create_task(client)
        if nemesis is not None:
            group.create_task(nemesis.run(workload.over, workload.history))
        await workload.worked_enough(nemesis)
        workload.over.set()
    await workload.end_clients()
    if nemesis is not None:
        await nemesis.heal()
    await workload.read_to_the_end()
    return workload.history


class Workload:
    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.history = History()
        self.over = asyncio.Event()
        self._acknowledged = 0
        self._values = itertools.count()
        self._transactions = itertools.count()
        self._lives = itertools.count(1)
        self._closing: set[asyncio.Task[None]] = set()
        self._open: dict[str, Transaction] = {}
        """The last transaction of each transactional id, until something can have ended it."""
        self._haunted: set[str] = set()

    async def worked_enough(self, nemesis: Nemesis | None) -> None:
        until = time.monotonic() + MOST_SECONDS
        await asyncio.sleep(self.settings.seconds)
        while time.monotonic() < until:
            if self._acknowledged >= self.settings.least and (nemesis is None or nemesis.harmed_enough()):
                break
            await asyncio.sleep(0.1)

    # What all clients need.

    def dice(self, name: str) -> random.Random:
        return random.Random(f"{self.settings.seed} {name}")

    async def create_topics(self) -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=self.settings.bootstrap)
        await admin.start()
        try:
            configs = {"max.message.bytes": str(LARGEST), "retention.ms": "-1"}
            topics = [NewTopic(name, PARTITIONS, self.settings.replication, topic_configs=configs) for name in "ab"]
            answer = await admin.create_topics(topics)
            assert all(code == 0 for _, code, *_ in answer.topic_errors), answer
        finally:
            await admin.close()

    async def pause(self, dice: random.Random) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.over.wait(), dice.uniform(0, 2) * self.settings.pace)

    @contextlib.asynccontextmanager
    async def opened(self, client: Any) -> AsyncIterator[bool]:
        """Starts a client; whether it did. It is closed beside what comes next: a broker may be away for long."""
        try:
            async with asyncio.timeout(self.settings.patience):
                await client.start()
            started = True
        except TROUBLE:
            started = False
            await asyncio.sleep(0.05)
        try:
            yield started
        except TROUBLE:
            pass
        finally:
            closing = asyncio.create_task(_close(client))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    def producer(self, **settings: Any) -> Any:
        return AIOKafkaProducer(
            bootstrap_servers=self.settings.bootstrap,
            acks="all",
            retry_backoff_ms=30,
            # Shorter than the clients' patience: after a pause the same batch is under way twice.
            request_timeout_ms=int(self.settings.patience * 500),
            metadata_max_age_ms=2_000,
            **settings,
        )

    def consumer(self, *topics: str, committed_only: bool, **settings: Any) -> Any:
        isolation = "read_committed" if committed_only else "read_uncommitted"
        return AIOKafkaConsumer(
            *topics,
            bootstrap_servers=self.settings.bootstrap,
            isolation_level=isolation,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=100,
            retry_backoff_ms=30,
            metadata_max_age_ms=2_000,
            request_timeout_ms=max(1_000, int(self.settings.patience * 1_000)),
            **settings,
        )

    async def deliver(self, producer: Any, sends: list[Send], *, padding: int = 0) -> bool:
        """Send records in this order and wait for what is said of them; whether it is known of all."""
        futures: list[asyncio.Future[Any]] = []
        with contextlib.suppress(*TROUBLE):
            async with asyncio.timeout(self.settings.patience):
                for send in sends:
                    send.began = time.monotonic()
                    self.history.add(send)
                    value = send.value.ljust(padding).encode()
                    futures.append(await producer.send(send.topic, value, partition=send.partition))
        if futures:
            await asyncio.wait(futures, timeout=self.settings.patience)
        told = time.monotonic()
        for send, future in zip(sends, futures, strict=False):
            if not future.done() or future.cancelled():
                continue
            error = future.exception()
            if error is None:
                send.outcome, send.ended = Outcome.OK, told
                self._acknowledged += 1
                at = future.result().offset
                send.offset = at if at >= 0 else None
            elif isinstance(error, MessageSizeTooLargeError):
                send.outcome, send.ended = Outcome.FAIL, told
        return all(send.outcome is not Outcome.UNKNOWN for send in sends)

    def send(self, producer: str, place: Place, *, idempotent: bool = True, **of: Any) -> Send:
        return Send(
            producer=producer,
            topic=place[0],
            partition=place[1],
            value=f"v{next(self._values)}",
            began=time.monotonic(),
            idempotent=idempotent,
            **of,
        )

    # Producers without transactions.

    async def write(self, name: str, *, idempotent: bool) -> None:
        dice = self.dice(name)
        while not self.over.is_set():
            life = f"{name}.{next(self._lives)}"
            producer = self.producer(enable_idempotence=idempotent)
            async with self.opened(producer) as started:
                known = started
                while known and not self.over.is_set():
                    sends = [self.send(life, dice.choice(A), idempotent=idempotent) for _ in range(dice.randint(1, 4))]
                    known = await self.deliver(producer, sends)
                    if not idempotent and dice.random() < 0.1:
                        too_large = self.send(life, dice.choice(A), idempotent=False)
                        known &= await self.deliver(producer, [too_large], padding=2 * LARGEST)
                    await self.pause(dice)

    # Transactions.

    @contextlib.asynccontextmanager
    async def successor(self, name: str) -> AsyncIterator[tuple[Any, bool]]:
        """A new producer of a transactional id, which ends what the one before left open."""
        if name in self._open:
            self._closing_now(self._open.pop(name))
        timeout_ms = int(self.settings.transaction_timeout * 1000)
        producer = self.producer(transactional_id=name, transaction_timeout_ms=timeout_ms)
        async with self.opened(producer) as started:
            yield producer, started
        # The request of one that gave up may still be under way, and end what the next one begins.
        (self._haunted.discard if started else self._haunted.add)(name)

    @staticmethod
    def _closing_now(transaction: Transaction) -> None:
        if transaction.closing is None:
            transaction.closing = time.monotonic()

    async def begin(self, name: str, producer: Any, group: str | None = None) -> Transaction:
        transaction = Transaction(
            id=f"{name}.{next(self._transactions)}",
            began=time.monotonic(),
            timeout=0.0 if name in self._haunted else self.settings.transaction_timeout,
            group=group,
        )
        async with asyncio.timeout(self.settings.patience):
            await producer.begin_transaction()
        self._open[name] = transaction
        return self.history.add(transaction)

    async def end(self, producer: Any, transaction: Transaction, *, commit: bool) -> None:
        """:raises TROUBLE: when nobody knows how it ended."""
        self._closing_now(transaction)
        transaction.commit = commit
        async with asyncio.timeout(self.settings.patience):
            await (producer.commit_transaction() if commit else producer.abort_transaction())
        transaction.ended, transaction.outcome = time.monotonic(), Outcome.OK

    async def be_fenced(self, name: str, producer: Any, transaction: Transaction) -> None:
        """Another takes the transactional id while a transaction is open; only then its commit is asked for."""
        async with self.successor(name) as (_, started):
            transaction.fenced = started
            if started:
                await self.end(producer, transaction, commit=True)

    async def transact(self, name: str) -> None:
        dice = self.dice(name)
        numbers = itertools.count(1)
        while not self.over.is_set():
            async with self.successor(name) as (producer, started):
                while started and not self.over.is_set():
                    transaction = await self.begin(name, producer)
                    known = True
                    for _ in range(dice.randint(1, 3)):
                        places = [*A, *(dice.choice(A) for _ in range(dice.randint(0, 2)))]
                        sends = [self.send(transaction.id, place, transaction=transaction.id) for place in places]
                        known = known and await self.deliver(producer, sends)
                        await self.pause(dice)
                    if known and next(numbers) % ZOMBIES == 0:
                        await self.be_fenced(name, producer, transaction)
                    if not known or transaction.fenced or dice.random() < 0.1:
                        break  # left open; the successor aborts it
                    await self.end(producer, transaction, commit=dice.random() < 0.65)
                    await self.pause(dice)

    async def process(self, name: str, place: Place) -> None:
        """Makes a record of `b` from each of `a`, exactly once: outputs and offsets are of one transaction."""
        dice = self.dice(name)
        partition = TopicPartition(*place)
        sessions = itertools.count()
        while not self.over.is_set():
            async with self.successor(name) as (producer, started):
                if not started:
                    continue
                # What its predecessor left open has been ended, and so the offset stands.
                found = await self.look_up(PROCESSORS, place)
                consumer = self.consumer(committed_only=True)
                consumer.assign([partition])
                async with self.opened(consumer) as reading:
                    if not reading:
                        continue
                    at, session = max(found, 0), self._seek(consumer, name, sessions, place, max(found, 0))
                    while not self.over.is_set():
                        records = (await self.poll(consumer, name, session, committed_only=True, most=20)).records
                        if not records:
                            continue
                        transaction = await self.begin(name, producer, PROCESSORS)
                        sends = [
                            self.send(
                                transaction.id,
                                ("b", place[1]),
                                transaction=transaction.id,
                                source=(topic, index, offset),
                            )
                            for topic, index, offset, _ in records
                        ]
                        after = records[-1][2] + 1
                        transaction.offsets = [(*place, after)]
                        if not await self.deliver(producer, sends):
                            break
                        async with asyncio.timeout(self.settings.patience):
                            await producer.send_offsets_to_transaction({partition: after}, PROCESSORS)
                        await self.pause(dice)
                        draw = dice.random()
                        if draw < 0.1:
                            break
                        await self.end(producer, transaction, commit=draw < 0.7)
                        if transaction.committed:
                            at = after
                        else:
                            session = self._seek(consumer, name, sessions, place, at)

    def _seek(self, consumer: Any, name: str, sessions: Iterator[int], place: Place, offset: int) -> int:
        session = next(sessions)
        self.history.add(Position(consumer=name, session=session, topic=place[0], partition=place[1], offset=offset))
        consumer.seek(TopicPartition(*place), offset)
        return session

    # Consumers.

    async def poll(
        self,
        consumer: Any,
        name: str,
        session: int,
        *,
        committed_only: bool,
        most: int | None = None,
        group: str | None = None,
        final: bool = False,
    ) -> Poll:
        poll = Poll(
            consumer=name,
            session=session,
            committed_only=committed_only,
            began=time.monotonic(),
            ended=0.0,
            records=[],
            group=group,
            final=final,
        )
        batches = await consumer.getmany(timeout_ms=100, max_records=most)
        poll.ended = time.monotonic()
        poll.records = [
            (record.topic, record.partition, record.offset, record.value.decode().rstrip())
            for records in batches.values()
            for record in records
        ]
        if poll.records:
            self.history.add(poll)
        return poll

    async def follow(self, name: str, *, committed_only: bool) -> None:
        """Reads everything from the start, and now and then goes back to somewhere."""
        dice = self.dice(name)
        sessions = itertools.count()
        reached = dict.fromkeys((*A, *B), 0)
        while not self.over.is_set():
            consumer = self.consumer(committed_only=committed_only)
            consumer.assign([TopicPartition(*place) for place in reached])
            async with self.opened(consumer) as started:
                if not started:
                    continue
                session = next(sessions)
                for place, offset in reached.items():
                    self._seek(consumer, name, itertools.repeat(session), place, offset)
                while not self.over.is_set():
                    poll = await self.poll(consumer, name, session, committed_only=committed_only)
                    for topic, partition, offset, _ in poll.records:
                        reached[topic, partition] = offset + 1
                    if dice.random() < 0.02:
                        reached = {place: dice.randint(0, offset) for place, offset in reached.items()}
                        break

    async def join(self, name: str) -> None:
        """A member of the group of readers: reads, commits, leaves, and comes again."""
        dice = self.dice(name)
        member = _Member()
        while not self.over.is_set():
            consumer = self.consumer(
                committed_only=True, group_id=READERS, session_timeout_ms=6_000, heartbeat_interval_ms=300
            )
            consumer.subscribe(["a"], listener=member)
            until = time.monotonic() + dice.uniform(0.5, 1.5) * max(1.0, self.settings.seconds / 5)
            async with self.opened(consumer) as reading:
                while reading and not self.over.is_set() and time.monotonic() < until:
                    poll = await self.poll(consumer, name, member.session, committed_only=True, most=50, group=READERS)
                    if poll.session != member.session:
                        # Read before the new assignment or after it, nobody knows: a session of its own, not committed.
                        poll.session = -next(self._lives)
                        continue
                    for topic, partition, offset, _ in poll.records:
                        member.reached[topic, partition] = offset + 1
                    if member.reached and dice.random() < 0.3:
                        await self.commit(consumer, dict(member.reached))
            member.begin()

    async def commit(self, consumer: Any, reached: dict[Place, int]) -> None:
        commits = [
            self.history.add(
                GroupOffset(
                    group=READERS,
                    topic=topic,
                    partition=partition,
                    offset=offset,
                    began=time.monotonic(),
                    commit=True,
                )
            )
            for (topic, partition), offset in reached.items()
        ]
        try:
            async with asyncio.timeout(self.settings.patience):
                await consumer.commit({TopicPartition(*place): offset for place, offset in reached.items()})
        except TROUBLE:
            return  # perhaps another member has the partitions now
        for commit in commits:
            commit.ended, commit.outcome = time.monotonic(), Outcome.OK

    # Offsets of groups.

    async def watch(self) -> None:
        dice = self.dice("watcher")
        while not self.over.is_set():
            for group in (READERS, PROCESSORS):
                for place in A:
                    with contextlib.suppress(*TROUBLE):
                        await self.look_up(group, place)
            for _ in range(3):
                await self.pause(dice)

    async def look_up(self, group: str, place: Place, *, final: bool = False) -> int:
        """The committed offset, when no open transaction holds another; -1 where there is none.

        :raises TROUBLE: when no broker says it in time.
        """
        found = self.history.add(
            GroupOffset(
                group=group,
                topic=place[0],
                partition=place[1],
                offset=-1,
                began=time.monotonic(),
                commit=False,
                final=final,
            )
        )
        async with asyncio.timeout(self.settings.patience):
            found.offset = await _stable_offset(self.settings.bootstrap, group, place)
        found.ended, found.outcome = time.monotonic(), Outcome.OK
        return found.offset

    # The end.

    async def end_clients(self) -> None:
        """Nothing is under way any more: clients are closed, transactions ended."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.settings.settling):
                while self._closing:
                    await asyncio.wait(self._closing)
                for name in {transaction.id.rpartition(".")[0] for transaction in self.history.all(Transaction)}:
                    started = False
                    while not started:
                        async with self.successor(name) as (_, started):
                            pass
                while self._closing:
                    await asyncio.wait(self._closing)

    async def read_to_the_end(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.settings.settling):
                await self._write_ends()
                for group in (READERS, PROCESSORS):
                    for place in A:
                        await self._look_up_at_last(group, place)
                for committed_only in (False, True):
                    while not await self._read_everything(committed_only):
                        pass
                while self._closing:
                    await asyncio.wait(self._closing)

    async def _look_up_at_last(self, group: str, place: Place) -> None:
        while True:
            with contextlib.suppress(*TROUBLE):
                await self.look_up(group, place, final=True)
                return

    async def _write_ends(self) -> None:
        for place in (*A, *B):
            while True:
                producer = self.producer(enable_idempotence=True)
                end = self.send(f"end.{next(self._lives)}", place)
                async with self.opened(producer) as started:
                    if started and await self.deliver(producer, [end]) and end.offset is not None:
                        break
            self.history.add(End(topic=end.topic, partition=end.partition, offset=end.offset))

    async def _read_everything(self, committed_only: bool) -> bool:
        ends = {(end.topic, end.partition): end.offset for end in self.history.all(End)}
        consumer = self.consumer(committed_only=committed_only)
        consumer.assign([TopicPartition(*place) for place in ends])
        async with self.opened(consumer) as started:
            name = "last reader of the committed" if committed_only else "last reader of everything"
            for place in ends if started else ():
                consumer.seek(TopicPartition(*place), 0)
            while ends and started:
                poll = await self.poll(consumer, name, 0, committed_only=committed_only, final=True)
                for topic, partition, offset, _ in poll.records:
                    if offset >= ends.get((topic, partition), offset + 1):
                        del ends[topic, partition]
        return not ends


class _Member(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka has no types
    """A member begins a session with each assignment."""

    def __init__(self) -> None:
        self.session = 1
        self.reached: dict[Place, int] = {}

    def begin(self) -> None:
        self.session += 1
        self.reached = {}

    async def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        self.begin()

    async def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        self.begin()


async def _close(client: Any) -> None:
    with contextlib.suppress(*TROUBLE):
        await client.stop()


async def _stable_offset(bootstrap: str, group: str, place: Place) -> int:
    """As Kafka's own clients ask for it; aiokafka does not wait for open transactions.

    A node that was cut off and is back tells for a moment what it knew, without an error. So what it told counts once
    it has stored something: it committed an offset for a group that is always kept where this one is.
    """
    topic, partition = place
    wanted = [{"name": topic, "partition_indexes": (partition,)}]
    proof = [{"name": topic, "partitions": [{"partition_index": partition, "committed_offset": 0}]}]
    beside = group.replace(*SAME_HASH)
    while True:
        async with Clients(bootstrap.split(",")[0]) as clients:
            found = await (await clients.wire()).ask(FIND_COORDINATOR, 4, key_type=0, coordinator_keys=(group,))
        coordinator = found.coordinators[0]
        if coordinator.error_code is ErrorCode.none:
            async with Clients(f"{coordinator.host}:{coordinator.port}") as clients:
                wire = await clients.wire()
                answer = await wire.ask(OFFSET_FETCH, 7, group_id=group, topics=wanted, require_stable=True)
                stored = await wire.ask(OFFSET_COMMIT, 8, group_id=beside, member_id="", topics=proof)
            told = answer.topics[0].partitions[0] if answer.topics else None
            kept = stored.topics[0].partitions[0].error_code is ErrorCode.none
            if kept and told is not None and answer.error_code is told.error_code is ErrorCode.none:
                return int(told.committed_offset)
        await asyncio.sleep(0.02)
