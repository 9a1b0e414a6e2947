"""The contract of the log: what the engine relies on, of every implementation alike."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import os
import signal
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.structs import RecordMetadata
from headrace.streams import kafka
from headrace.streams.address import Address
from headrace.streams.admin import ensure_topics
from headrace.streams.batch import Block, Record
from headrace.streams.errors import Fenced, LogUnavailable, TransactionUnknown
from headrace.streams.kafka import TRANSPORT, TRANSPORTS, KafkaLog
from headrace.streams.log import Fetched, Log, Partition, Reader, Writer
from headrace.streams.runner import Clock
from headrace.streams.spans import Spans
from headrace.streams.topics import Topic

from headrace.worker import SystemClock
from tests.scene import free_port, stoppable_broker
from tests.simulation.log import Faults, SimulatedLog
from tests.simulation.world import World
from tests.stack.kafka import Cluster

LARGE = 3 << 20
"""Bytes of a record larger than a produced batch and than a fetch."""

TRIES = 200
"""Fetches of a test before it says that nothing comes."""

_numbers = itertools.count(1)


@dataclass
class Client:
    """A log with what a test has opened on it."""

    log: Log
    clock: Clock
    opened: list[Reader | Writer] = field(default_factory=list)

    async def reader(self, *partitions: Partition, offset: int = 0) -> Reader:
        reader = await self.log.reader(dict.fromkeys(partitions, offset))
        self.opened.append(reader)
        return reader

    async def writer(self, owner: str) -> Writer:
        writer = await self.log.writer(owner)
        self.opened.append(writer)
        return writer

    async def close(self) -> None:
        for part in self.opened:
            await part.close()
        await self.log.close()


Scenario = Callable[[Client], Coroutine[Any, Any, None]]


class Ground(Protocol):
    """Where a log runs: it makes topics, and lets scenarios run side by side."""

    def topic(self, partitions: int = 1) -> str: ...

    def run(self, *scenarios: Scenario) -> None: ...

    def run_away(self, scenario: Scenario) -> None:
        """With a log that is not there."""

    def silent(self) -> contextlib.AbstractContextManager[None]:
        """Meanwhile commits get no answer; whether they arrive is open."""

    def headers(self, partition: Partition) -> list[tuple[tuple[str, bytes], ...]]: ...


class SimulatedGround:
    def __init__(self) -> None:
        self.world = World(1)
        self.log = SimulatedLog(self.world)

    def topic(self, partitions: int = 1) -> str:
        return f"contract-{next(_numbers)}"

    def run(self, *scenarios: Scenario) -> None:
        for scenario in scenarios:
            self.world.spawn(f"scenario {next(_numbers)}", self._play(scenario))
        self.world.run()

    async def _play(self, scenario: Scenario) -> None:
        client = Client(self.log, self.world)
        await scenario(client)
        await client.close()

    def run_away(self, scenario: Scenario) -> None:
        self.log.faults = Faults(away=1.0)
        self.run(scenario)

    @contextlib.contextmanager
    def silent(self) -> Iterator[None]:
        self.log.faults = Faults(unknown=1.0)
        yield
        self.log.faults = Faults()

    def headers(self, partition: Partition) -> list[tuple[tuple[str, bytes], ...]]:
        return [record.headers for record in self.log.committed_records(*partition)]


@dataclass
class KafkaGround:
    """A server of the Kafka protocol.

    transport: whether batches go whole, as HEADRACE_TRANSPORT
    process:   where it can be stopped for a while, its id
    """

    address: Address
    transport: str = TRANSPORTS[0]
    process: int = 0

    def topic(self, partitions: int = 1) -> str:
        topic = Topic(f"contract-{next(_numbers)}", "event", partitions, None, {"max.message.bytes": str(2 * LARGE)})
        asyncio.run(ensure_topics(self.address, [topic]))
        return topic.name

    def run(self, *scenarios: Scenario) -> None:
        self._run(self.address, *scenarios)

    def run_away(self, scenario: Scenario) -> None:
        self._run(Address("127.0.0.1", free_port()), scenario)

    def _run(self, address: Address, *scenarios: Scenario) -> None:
        async def play(scenario: Scenario) -> None:
            with pytest.MonkeyPatch.context() as patched:
                patched.setenv(TRANSPORT, self.transport)
                client = Client(KafkaLog(address), SystemClock())
            try:
                await scenario(client)
            finally:
                await client.close()

        async def main() -> None:
            await asyncio.gather(*(play(s) for s in scenarios))

        asyncio.run(main())

    @contextlib.contextmanager
    def silent(self) -> Iterator[None]:
        # Little patience, and only while nobody answers: at other times the machine may be slow.
        os.kill(self.process, signal.SIGSTOP)
        while not self._stands():  # on a busy machine some threads answer for a moment more
            time.sleep(0.01)
        try:
            with pytest.MonkeyPatch.context() as patched:
                patched.setattr(kafka, "ANSWER_WITHIN", 1.0)
                yield
        finally:
            os.kill(self.process, signal.SIGCONT)

    def _stands(self) -> bool:
        threads = Path(f"/proc/{self.process}/task")
        if not threads.exists():
            return True  # a system that does not tell
        stats = [(thread / "stat").read_text() for thread in threads.iterdir()]
        return all(stat.rpartition(") ")[2][0] in "TtZX" for stat in stats)

    def headers(self, partition: Partition) -> list[tuple[tuple[str, bytes], ...]]:
        async def main() -> list[tuple[tuple[str, bytes], ...]]:
            consumer = AIOKafkaConsumer(bootstrap_servers=self.address.bootstrap, isolation_level="read_committed")
            await consumer.start()
            try:
                tp = TopicPartition(*partition)
                consumer.assign([tp])
                await consumer.seek_to_beginning(tp)
                got = await consumer.getmany(tp, timeout_ms=5_000)
                return [tuple(record.headers) for record in got[tp]]
            finally:
                await consumer.stop()

        return asyncio.run(main())


SERVERS = [
    pytest.param((server, transport), marks=marks, id=f"{server}-{transport}")
    for server, marks in (("broker", ()), ("apache", pytest.mark.stack))
    for transport in TRANSPORTS
]
EVERY_LOG = [pytest.param(("simulated", ""), id="simulated"), *SERVERS]


@pytest.fixture(params=EVERY_LOG)
def ground(request: pytest.FixtureRequest) -> Ground:
    server, transport = request.param
    if server == "simulated":
        return SimulatedGround()
    return KafkaGround(request.getfixturevalue(server), transport)


@pytest.fixture(params=SERVERS)
def served(request: pytest.FixtureRequest) -> KafkaGround:
    server, transport = request.param
    return KafkaGround(request.getfixturevalue(server), transport)


@pytest.fixture(params=EVERY_LOG)
def stoppable(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ground]:
    """A log that can fall silent: a broker of the test's own, or Kafka while no other test asks it."""
    server, transport = request.param
    if server == "simulated":
        yield SimulatedGround()
        return
    if server == "apache":
        cluster: Cluster = request.getfixturevalue("cluster")
        yield KafkaGround(cluster.address, transport, cluster.pid())
        return
    with stoppable_broker(tmp_path / "log") as (address, process):
        yield KafkaGround(address, transport, process.pid)


def record(topic: str, text: str, partition: int | None = 0, key: str = "k") -> Record:
    return Record(topic, key.encode(), text.encode(), partition)


async def commit(
    writer: Writer, records: Sequence[Record | Block], offsets: Mapping[Partition, int] | None = None, home: int = 0
) -> dict[Partition, int]:
    await writer.begin("contract", offsets or {})
    ends = await writer.send(records, home)
    await writer.commit()
    return ends


async def read(reader: Reader, *partitions: Partition) -> dict[Partition, list[bytes | None]]:
    """The values from where the reader stands to the end of what is committed."""
    found: dict[Partition, list[bytes | None]] = {p: [] for p in partitions}
    behind = set(partitions)
    for _ in range(TRIES):
        for fetched in await reader.fetch(partitions, 1_000, 0.1):
            found[fetched.partition] += fetched.values
            if fetched.caught_up:
                behind.discard(fetched.partition)
            else:
                behind.add(fetched.partition)
        if not behind:
            return found
    raise AssertionError(f"{behind} are not read to their end; so far {found}")


async def values(client: Client, *partitions: Partition) -> dict[Partition, list[bytes | None]]:
    """The values from the beginning to the end of what is committed."""
    return await read(await client.reader(*partitions), *partitions)


def test_records_come_back_in_order_as_they_were(ground: Ground) -> None:
    topic = ground.topic()
    here = Partition(topic, 0)
    sent = [
        Record(topic, b"a", b"1", 0, 1_600_000_000_123), Record(topic, None, b"no key", 0, 5),
        Record(topic, b"a", None, 0, 7), Record(topic, b"", b"", 0, 8), Record(topic, b"\xff\x00", b"\x00\xff", 0, 9),
    ]  # fmt: skip

    async def scenario(client: Client) -> None:
        await commit(await client.writer(f"owner-{topic}"), sent)
        reader = await client.reader(here)
        parts: list[Fetched] = []
        while sum(len(p) for p in parts) < len(sent):
            parts += await reader.fetch([here], 100, 0.1)
        assert [key for p in parts for key in p.keys] == [r.key for r in sent]
        assert [value for p in parts for value in p.values] == [r.value for r in sent]
        assert [t for p in parts for t in p.timestamp.tolist()] == [r.timestamp for r in sent]
        assert [o for p in parts for o in p.offset.tolist()] == [0, 1, 2, 3, 4]

    ground.run(scenario)


def test_blocks_go_in_order_among_records(ground: Ground) -> None:
    topic = ground.topic(2)
    here, there = Partition(topic, 0), Partition(topic, 1)
    keys, texts = Spans.of([b"a", None, b"", b"k"]), Spans.of([b"2", b"3", b"", None])
    sent: list[Record | Block] = [
        record(topic, "1", None), Block(topic, keys, texts, None, 7), record(topic, "4", 0),
        Block(topic, keys[:0], texts[:0], 0), Block(topic, keys[:1], texts[:1], 0), record(topic, "5", 0),
        Block(topic, keys[:2], texts[:2], 1), record(topic, "6", 0),
    ]  # fmt: skip

    async def scenario(client: Client) -> None:
        ends = await commit(await client.writer(f"owner-{topic}"), sent, home=0)
        assert ends == {here: 9, there: 2}
        found = await values(client, here, there)
        assert found == {here: [b"1", b"2", b"3", b"", None, b"4", b"2", b"5", b"6"], there: [b"2", b"3"]}
        sender = await client.log.sender()
        ends = await sender.send([Block(topic, keys, texts)], 1)
        assert ends[there] in (6, 7)  # Kafka may write the marker of what was committed later
        reader = await client.reader(there)
        parts: list[Fetched] = []
        while sum(len(p) for p in parts) < 6:
            parts += await reader.fetch([there], 3, 0.1)
        assert [key for p in parts for key in p.keys] == [*keys[:2], *keys]
        await sender.close()

    ground.run(scenario)


def test_headers_are_kept(ground: Ground) -> None:
    topic = ground.topic()
    headers = (("reason", b"wrong"), ("field", b""), ("reason", b"again"))

    async def scenario(client: Client) -> None:
        writer = await client.writer(f"owner-{topic}")
        await commit(writer, [Record(topic, None, b"1", 0, None, headers), record(topic, "2")])

    ground.run(scenario)
    assert ground.headers(Partition(topic, 0)) == [headers, ()]


def test_a_record_without_a_timestamp_has_the_time_at_which_it_was_sent(ground: Ground) -> None:
    topic = ground.topic()
    here = Partition(topic, 0)

    async def scenario(client: Client) -> None:
        writer = await client.writer(f"owner-{topic}")
        await commit(writer, [record(topic, "1")])
        await client.clock.sleep(0.2)
        await commit(writer, [record(topic, "2")])
        reader = await client.reader(here)
        times: list[int] = []
        while len(times) < 2:
            times += [t for f in await reader.fetch([here], 100, 0.1) for t in f.timestamp.tolist()]
        assert 200 <= times[1] - times[0] < 60_000
        assert times[0] > 1_500_000_000_000

    ground.run(scenario)


def test_a_record_that_names_no_partition_goes_to_the_tasks_own(ground: Ground) -> None:
    topic = ground.topic(3)

    async def scenario(client: Client) -> None:
        writer = await client.writer(f"owner-{topic}")
        sent = [record(topic, "a", None), record(topic, "b", 0), record(topic, "c", None)]
        ends = await commit(writer, sent, home=2)
        assert ends == {Partition(topic, 2): 2, Partition(topic, 0): 1}
        ends = await commit(writer, sent[:1], home=2)
        assert ends == {Partition(topic, 2): 4}  # a marker lies between
        found = await values(client, *(Partition(topic, n) for n in range(3)))
        assert found == {Partition(topic, 2): [b"a", b"c", b"a"], Partition(topic, 0): [b"b"], Partition(topic, 1): []}

    ground.run(scenario)


def test_a_transaction_is_seen_whole_across_topics_and_not_before_its_commit(ground: Ground) -> None:
    one, two = Partition(ground.topic(), 0), Partition(ground.topic(), 0)

    async def scenario(client: Client) -> None:
        writer = await client.writer(f"owner-{one.topic}")
        reader = await client.reader(one, two)
        await writer.begin()
        await writer.send([record(one.topic, "1"), record(two.topic, "2")], 0)
        assert await read(reader, one, two) == {one: [], two: []}
        assert await client.log.ends([one, two]) == {one: 0, two: 0}
        await writer.commit()
        assert await read(reader, one, two) == {one: [b"1"], two: [b"2"]}
        assert await client.log.ends([one, two]) == {one: 2, two: 2}

    ground.run(scenario)


def test_what_was_aborted_is_never_read_and_passed_over(ground: Ground) -> None:
    topic = ground.topic()
    here = Partition(topic, 0)

    async def scenario(client: Client) -> None:
        writer = await client.writer(f"owner-{topic}")
        for text, good in (("1", False), ("2", True), ("3", False), ("4", False)):
            await writer.begin()
            await writer.send([record(topic, text)], 0)
            await (writer.commit() if good else writer.abort())
        reader = await client.reader(here)
        assert await read(reader, here) == {here: [b"2"]}
        assert await client.log.ends([here]) == {here: 8}
        await commit(writer, [record(topic, "5")])
        assert await read(reader, here) == {here: [b"5"]}

    ground.run(scenario)


def test_an_open_transaction_holds_readers_back_from_what_came_after_it(ground: Ground) -> None:
    topic = ground.topic()
    here = Partition(topic, 0)

    async def scenario(client: Client) -> None:
        slow, quick = await client.writer(f"slow-{topic}"), await client.writer(f"quick-{topic}")
        await slow.begin()
        await slow.send([record(topic, "slow")], 0)
        await commit(quick, [record(topic, "quick")])
        reader = await client.reader(here)
        assert await read(reader, here) == {here: []}
        await slow.commit()
        assert await read(reader, here) == {here: [b"slow", b"quick"]}

    ground.run(scenario)


def test_a_newer_writer_fences_the_older_and_aborts_what_it_left_open(ground: Ground) -> None:
    topic = ground.topic()
    here, source = Partition(topic, 0), Partition(ground.topic(), 0)

    async def scenario(client: Client) -> None:
        old = await client.writer(f"owner-{topic}")
        await commit(old, [record(topic, "1")], {source: 1})
        await old.begin("contract", {source: 2})
        await old.send([record(topic, "2")], 0)
        new = await client.writer(f"owner-{topic}")
        assert await values(client, here) == {here: [b"1"]}  # no open transaction is left when it is opened
        with pytest.raises(Fenced):
            await old.commit()
        await commit(new, [record(topic, "3")], {source: 3})
        for _ in range(2):
            with pytest.raises(Fenced):
                await commit(old, [record(topic, "4")], {source: 4})
        assert await values(client, here) == {here: [b"1", b"3"]}
        assert await client.log.committed("contract", [source]) == {source: 3}

    ground.run(scenario)


class HeldUp(KafkaLog):
    """A log whose writers are held up between their two transactional ids."""

    def __init__(self, address: Address) -> None:
        super().__init__(address)
        self.half_open, self.go_on = asyncio.Event(), asyncio.Event()

    async def _producers(self, *transactional: str | None) -> list[Any]:  # aiokafka is untyped
        first = await super()._producers(*transactional[:1])
        self.half_open.set()
        await self.go_on.wait()
        return first + await super()._producers(*transactional[1:])


def test_a_writer_that_was_held_up_while_a_newer_one_opened_writes_nothing(served: KafkaGround) -> None:
    topic = served.topic()
    here = Partition(topic, 0)

    async def scenario(client: Client) -> None:
        slow = HeldUp(served.address)
        opening = asyncio.create_task(slow.writer(f"owner-{topic}"))
        await slow.half_open.wait()
        newer = await client.writer(f"owner-{topic}")
        await commit(newer, [record(topic, "newer")])
        slow.go_on.set()
        held_up = await opening
        client.opened.append(held_up)
        for _ in range(2):
            with pytest.raises(Fenced):
                await commit(held_up, [record(topic, "held up")])
        assert await values(client, here) == {here: [b"newer"]}

    served.run(scenario)


def test_a_writer_that_was_found_fenced_says_at_each_batch_that_it_cannot_write(
    ground: Ground, caplog: pytest.LogCaptureFixture
) -> None:
    topic = ground.topic()

    async def scenario(client: Client) -> None:
        old = await client.writer(f"owner-{topic}")
        await old.begin()
        await client.writer(f"owner-{topic}")
        for _ in range(2):
            with pytest.raises((Fenced, LogUnavailable)):
                await old.send([record(topic, "1")], 0)

    ground.run(scenario)
    gc.collect()
    assert "never retrieved" not in caplog.text


def test_writers_of_different_owners_leave_each_other_alone(ground: Ground) -> None:
    topic = ground.topic()
    here = Partition(topic, 0)

    async def scenario(client: Client) -> None:
        one, two = await client.writer(f"one-{topic}"), await client.writer(f"two-{topic}")
        await commit(one, [record(topic, "1")])
        await commit(two, [record(topic, "2")])
        await commit(one, [record(topic, "3")])
        assert await values(client, here) == {here: [b"1", b"2", b"3"]}

    ground.run(scenario)


def test_what_a_sender_sends_is_there_at_once_beside_transactions_that_come_to_nothing(ground: Ground) -> None:
    topic = ground.topic(2)
    here, there = Partition(topic, 0), Partition(topic, 1)

    async def scenario(client: Client) -> None:
        sender = await client.log.sender()
        writer = await client.writer(f"owner-{topic}")
        assert await sender.send([record(topic, "1", None), record(topic, "2", 0)], 1) == {there: 1, here: 1}
        await writer.begin()
        await writer.send([record(topic, "3")], 0)
        await writer.abort()
        ends = await sender.send([record(topic, "4"), record(topic, "5")], 0)
        assert ends[here] in (4, 5)  # Kafka may write the marker of what was aborted later
        assert await values(client, here, there) == {here: [b"2", b"4", b"5"], there: [b"1"]}
        await sender.close()

    ground.run(scenario)


def test_offsets_are_committed_in_the_transaction_or_not_at_all(ground: Ground) -> None:
    topic = ground.topic()
    source, other = Partition(ground.topic(2), 0), Partition(topic, 0)

    async def scenario(client: Client) -> None:
        writer = await client.writer(f"owner-{topic}")
        assert await client.log.committed(f"group-{topic}", [source, other]) == {}
        for offset, good in ((3, True), (9, False)):
            await writer.begin(f"group-{topic}", {source: offset})
            await writer.send([record(topic, "1")], 0)
            if good:
                await writer.commit()
            else:
                await writer.abort()
        assert await client.log.committed(f"group-{topic}", [source, other]) == {source: 3}
        assert await client.log.committed(f"another-{topic}", [source]) == {}

    ground.run(scenario)


def test_a_fetch_brings_at_most_its_limit_of_each_partition_and_only_of_those_named(ground: Ground) -> None:
    topic = ground.topic(3)
    parts = [Partition(topic, n) for n in range(3)]

    async def scenario(client: Client) -> None:
        writer = await client.writer(f"owner-{topic}")
        await commit(writer, [record(topic, str(i), n) for n in range(3) for i in range(50)])
        reader = await client.reader(*parts)
        found: dict[Partition, list[bytes | None]] = {p: [] for p in parts}
        for _ in range(TRIES):
            for fetched in await reader.fetch(parts[:2], 7, 0.1):
                assert fetched.partition in parts[:2]
                assert len(fetched) <= 7
                assert fetched.caught_up == (fetched.next_offset == 51)
                found[fetched.partition] += fetched.values
            if all(len(found[p]) == 50 for p in parts[:2]):
                break
        found |= await read(reader, parts[2])
        assert found == {p: [str(i).encode() for i in range(50)] for p in parts}

    ground.run(scenario)


def test_a_partition_read_to_its_end_is_told_without_records_and_an_empty_one_too(ground: Ground) -> None:
    topic = ground.topic(2)
    full, empty = Partition(topic, 0), Partition(topic, 1)

    async def scenario(client: Client) -> None:
        await commit(await client.writer(f"owner-{topic}"), [record(topic, "1")])
        reader = await client.reader(full, empty)
        await read(reader, full, empty)
        told = {f.partition: (len(f), f.next_offset, f.end) for f in await reader.fetch([full, empty], 10, 0.1)}
        assert told == {full: (0, 2, 2), empty: (0, 0, 0)}
        assert await reader.fetch([], 10, 0.0) == []

    ground.run(scenario)


def test_a_fetch_waits_for_a_first_record_and_no_longer_than_told(ground: Ground) -> None:
    topic = ground.topic()
    here = Partition(topic, 0)
    told: list[float] = []

    async def reading(client: Client) -> None:
        reader = await client.reader(here)
        await read(reader, here)
        began = client.clock.now()
        assert [len(f) for f in await reader.fetch([here], 10, 0.3)] in ([0], [])
        told.append(client.clock.now() - began)
        for _ in range(TRIES):
            if any(len(f) for f in await reader.fetch([here], 10, 0.3)):
                return
        raise AssertionError("a record that was published is not read")

    async def writing(client: Client) -> None:
        writer = await client.writer(f"owner-{topic}")
        while not told:
            await client.clock.sleep(0.05)
        await commit(writer, [record(topic, "1")])

    ground.run(reading, writing)
    assert 0.2 <= told[0] < 10


def test_a_reader_goes_on_from_its_offset(ground: Ground) -> None:
    topic = ground.topic()
    here = Partition(topic, 0)

    async def scenario(client: Client) -> None:
        writer = await client.writer(f"owner-{topic}")
        await commit(writer, [record(topic, str(i)) for i in range(5)])
        assert await read(await client.reader(here, offset=3), here) == {here: [b"3", b"4"]}
        at_marker = await client.reader(here, offset=5)
        assert await read(at_marker, here) == {here: []}
        await commit(writer, [record(topic, "5")])
        assert await read(at_marker, here) == {here: [b"5"]}
        assert await read(await client.reader(here, offset=8), here) == {here: []}

    ground.run(scenario)


def test_what_retention_took_of_one_partition_costs_the_others_nothing(served: KafkaGround) -> None:
    topic = served.topic(4)
    parts = [Partition(topic, n) for n in range(4)]

    async def scenario(client: Client) -> None:
        writer = await client.writer(f"owner-{topic}")
        for text in ("0", "1", "2"):
            await commit(writer, [record(topic, text, n) for n in range(4)])
        admin = AIOKafkaAdminClient(bootstrap_servers=served.address.bootstrap)
        await admin.start()
        try:
            await admin.delete_records({TopicPartition(topic, 3): RecordsToDelete(before_offset=2)})
        finally:
            await admin.close()
        # Partitions come in any order, and what came before the one that begins later could be dropped with it.
        for _ in range(8):
            found = await values(client, *parts)
            assert found == {p: [b"1", b"2"] if p.number == 3 else [b"0", b"1", b"2"] for p in parts}

    served.run(scenario)


def test_a_transaction_larger_than_a_batch_and_a_record_larger_than_a_fetch_are_read(ground: Ground) -> None:
    topic = ground.topic()
    here = Partition(topic, 0)
    sent = [f"{i:>900}" for i in range(3_000)] + ["x" * LARGE, "last"]

    async def scenario(client: Client) -> None:
        writer = await client.writer(f"owner-{topic}")
        assert await commit(writer, [record(topic, text) for text in sent]) == {here: len(sent)}
        found = (await values(client, here))[here]
        assert len(found) == len(sent)
        assert found == [text.encode() for text in sent]

    ground.run(scenario)


def test_a_log_that_is_not_there_is_unavailable(ground: Ground) -> None:
    async def scenario(client: Client) -> None:
        here = Partition("anything", 0)
        for ask in (
            lambda: client.log.ends([here]),
            lambda: client.log.committed("group", [here]),
            lambda: client.reader(here),
            lambda: client.writer("owner"),
        ):
            with pytest.raises(LogUnavailable):
                await ask()

    ground.run_away(scenario)


def test_a_commit_without_an_answer_is_unknown_and_settled_once_the_writer_is_opened_again(stoppable: Ground) -> None:
    one, two, source = (Partition(stoppable.topic(), 0) for _ in range(3))

    async def scenario(client: Client) -> None:
        for turn in range(2):
            writer = await client.writer("owner")
            await writer.begin("contract", {source: turn + 1})
            await writer.send([record(one.topic, str(turn)), record(two.topic, str(turn))], 0)
            with stoppable.silent(), pytest.raises(TransactionUnknown):
                await writer.commit()
            writer = await client.writer("owner")
            found = await values(client, one, two)
            assert found[one] == found[two]
            known = (await client.log.committed("contract", [source])).get(source, 0)
            assert known == (int(found[one][-1] or b"") + 1 if found[one] else 0)
            await client.clock.sleep(1.0)
            assert await values(client, one, two) == found  # what was under way does not arrive any more

    stoppable.run(scenario)


def test_a_batch_that_the_broker_had_already_gives_no_position() -> None:
    class Producer:
        """A producer that was told DUPLICATE_SEQUENCE_NUMBER: aiokafka takes it for written, with no offset known."""

        def create_batch(self) -> BatchBuilder:
            return BatchBuilder(1000, 0, is_transactional=False)

        async def send_batch(self, *_: object, **__: object) -> asyncio.Future[object]:
            sent: asyncio.Future[object] = asyncio.get_running_loop().create_future()
            sent.set_result(RecordMetadata("t", 0, TopicPartition("t", 0), -1, None, 0, None))
            return sent

    sender = kafka._Sender(Producer(), whole=True)
    with pytest.raises(LogUnavailable, match="tells no offset"):
        asyncio.run(sender.send([Record("t", None, b"1")], 0))
