"""Transactions: all or nothing, for records and for offsets, and nobody from the past takes part."""

import asyncio
import datetime
import uuid
from pathlib import Path
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError, ProducerFenced
from headrace.streams.broker import Broker
from kio.schema.errors import ErrorCode

from tests.streams.broker.clients import QUICK, Clients, ManualClock, eventually, read_quiet

INIT_PRODUCER, ADD_PARTITIONS, END_TXN, OFFSET_FETCH = 22, 24, 26, 9
LIST_TRANSACTIONS, DESCRIBE_TRANSACTIONS, DESCRIBE_PRODUCERS, FETCH = 66, 65, 61, 1


async def values(clients: Clients, isolation: str) -> list[bytes]:
    consumer = await clients.consumer("t", isolation_level=isolation)
    return [record.value for record in await read_quiet(consumer)]


async def test_what_is_committed_is_read_and_what_is_aborted_is_not(clients: Clients) -> None:
    await clients.topic("t")
    producer = await clients.producer(transactional_id="x")
    async with producer.transaction():
        await producer.send_and_wait("t", b"one")
    await producer.begin_transaction()
    await producer.send_and_wait("t", b"two")
    await producer.abort_transaction()
    async with producer.transaction():
        await producer.send_and_wait("t", b"three")
    assert await values(clients, "read_committed") == [b"one", b"three"]
    assert await values(clients, "read_uncommitted") == [b"one", b"two", b"three"]


async def test_an_open_transaction_holds_back_readers_of_the_committed(clients: Clients) -> None:
    await clients.topic("t")
    producer = await clients.producer(transactional_id="x")
    plain = await clients.producer()
    await plain.send_and_wait("t", b"before")
    await producer.begin_transaction()
    await producer.send_and_wait("t", b"within")
    await plain.send_and_wait("t", b"after")
    consumer = await clients.consumer("t", isolation_level="read_committed", fetch_max_wait_ms=5_000)
    assert [r.value for r in await read_quiet(consumer)] == [b"before"]
    waiting = asyncio.create_task(consumer.getmany(timeout_ms=3_000))
    await asyncio.sleep(0.1)
    await producer.commit_transaction()  # and this wakes the reader
    found = [r.value for records in (await waiting).values() for r in records]
    assert found == [b"within", b"after"]


async def test_interleaved_transactions_are_told_apart(clients: Clients) -> None:
    await clients.topic("t")
    one, two = await clients.producer(transactional_id="1"), await clients.producer(transactional_id="2")
    await one.begin_transaction()
    await two.begin_transaction()
    for number in range(3):
        await one.send_and_wait("t", b"a%d" % number)
        await two.send_and_wait("t", b"b%d" % number)
    await two.abort_transaction()
    await one.commit_transaction()
    assert await values(clients, "read_committed") == [b"a0", b"a1", b"a2"]


async def test_offsets_are_committed_with_the_transaction_or_not_at_all(clients: Clients) -> None:
    await clients.topic("t")
    producer = await clients.producer(transactional_id="x")
    admin = await clients.admin()
    place = TopicPartition("t", 0)
    async with producer.transaction():
        await producer.send_offsets_to_transaction({place: 5}, "g")

    async def committed() -> bool:
        held = await admin.list_consumer_group_offsets("g")
        return place in held and held[place].offset == 5

    await eventually(committed)
    await producer.begin_transaction()
    await producer.send_offsets_to_transaction({place: 9}, "g")
    await producer.abort_transaction()
    assert (await admin.list_consumer_group_offsets("g"))[place].offset == 5


async def test_a_stable_look_at_offsets_waits_for_the_transaction(clients: Clients) -> None:
    await clients.topic("t")
    producer = await clients.producer(transactional_id="x")
    wire = await clients.wire()
    group = {"group_id": "g", "member_id": None, "topics": [{"name": "t", "partition_indexes": (0,)}]}

    async def look(stable: bool) -> Any:
        answer = await wire.ask(OFFSET_FETCH, 9, groups=[group], require_stable=stable)
        return answer.groups[0].topics[0].partitions[0]

    await producer.begin_transaction()
    await producer.send_offsets_to_transaction({TopicPartition("t", 0): 3}, "g")
    assert (await look(True)).error_code is ErrorCode.unstable_offset_commit
    assert (await look(False)).committed_offset == -1
    await producer.commit_transaction()

    async def committed() -> bool:
        return bool((await look(True)).committed_offset == 3)

    await eventually(committed)


async def test_a_newer_producer_fences_the_older_and_aborts_what_it_left(clients: Clients) -> None:
    await clients.topic("t")
    zombie = await clients.producer(transactional_id="x")
    await zombie.begin_transaction()
    await zombie.send_and_wait("t", b"zombie")
    heir = await clients.producer(transactional_id="x")
    async with heir.transaction():
        await heir.send_and_wait("t", b"heir")
    with pytest.raises(ProducerFenced):
        await zombie.commit_transaction()
    assert await values(clients, "read_committed") == [b"heir"]


async def test_a_zombie_cannot_write_a_record(clients: Clients) -> None:
    await clients.topic("t")
    zombie = await clients.producer(transactional_id="x")
    await zombie.begin_transaction()
    await zombie.send_and_wait("t", b"one")
    await clients.producer(transactional_id="x")
    with pytest.raises(KafkaError):
        await zombie.send_and_wait("t", b"two")
    assert await values(clients, "read_uncommitted") == [b"one"]


async def test_a_transaction_left_open_is_aborted_in_time_and_its_producer_fenced(
    timed_clients: Clients, timed_broker: Broker, clock: ManualClock
) -> None:
    await timed_clients.topic("t")
    producer = await timed_clients.producer(transactional_id="x", transaction_timeout_ms=10_000)
    await producer.begin_transaction()
    await producer.send_and_wait("t", b"late")
    await (await timed_clients.producer()).send_and_wait("t", b"plain")
    clock.advance(9_999)
    timed_broker.tick()
    assert await values(timed_clients, "read_committed") == []
    clock.advance(1)
    timed_broker.tick()
    assert await values(timed_clients, "read_committed") == [b"plain"]
    with pytest.raises(ProducerFenced):
        await producer.commit_transaction()


async def test_a_transaction_left_open_by_a_dead_broker_is_aborted_after_its_restart(tmp_path: Path) -> None:
    async with Broker(tmp_path, limits=QUICK) as broker, Clients(broker.address) as clients:
        await clients.topic("t")
        wire = await clients.wire()
        producer = await clients.producer(transactional_id="x", transaction_timeout_ms=1_000)
        await producer.begin_transaction()
        await producer.send_and_wait("t", b"open")
        await (await clients.producer()).send_and_wait("t", b"plain")
        state = (await wire.ask(LIST_TRANSACTIONS, 1)).transaction_states[0].transaction_state
        assert state == "Ongoing"
        await producer._sender.close()  # it dies with the broker, and so cannot abort
        producer._txn_manager.error_transaction(KafkaError())
    async with Broker(tmp_path, limits=QUICK) as broker, Clients(broker.address) as clients:
        consumer = await clients.consumer("t", isolation_level="read_committed")
        assert (await consumer.getone()).value == b"plain"


async def test_a_producer_says_which_epoch_it_had_and_an_old_one_is_refused(clients: Clients) -> None:
    wire, name = await clients.wire(), str(uuid.uuid4())
    timeout = datetime.timedelta(seconds=10)

    async def begin(producer: int = -1, epoch: int = -1) -> Any:
        fields = {"transactional_id": name, "transaction_timeout": timeout}
        return await wire.ask(INIT_PRODUCER, 4, **fields, producer_id=producer, producer_epoch=epoch)

    first = await begin()
    second = await begin(first.producer_id, first.producer_epoch)
    assert (second.producer_id, second.producer_epoch) == (first.producer_id, 1)
    repeated = await begin(first.producer_id, first.producer_epoch)
    assert repeated.producer_epoch == 1  # the answer was lost, and nobody is fenced by asking again
    await begin()
    assert (await begin(first.producer_id, 0)).error_code is ErrorCode.producer_fenced


async def test_an_end_is_answered_again_but_not_changed(clients: Clients) -> None:
    await clients.topic("t")
    wire, name = await clients.wire(), str(uuid.uuid4())
    begun = await wire.ask(INIT_PRODUCER, 4, transactional_id=name, transaction_timeout=datetime.timedelta(seconds=9))
    owner = {"producer_id": begun.producer_id, "producer_epoch": 0}
    nothing = await wire.ask(END_TXN, 3, transactional_id=name, committed=True, **owner)
    assert nothing.error_code is ErrorCode.invalid_txn_state
    added = await wire.ask(
        ADD_PARTITIONS,
        3,
        v3_and_below_transactional_id=name,
        v3_and_below_producer_id=begun.producer_id,
        v3_and_below_producer_epoch=0,
        v3_and_below_topics=[{"name": "t", "partitions": (0,)}],
    )
    code = added.results_by_topic_v3_and_below[0].results_by_partition[0].partition_error_code
    assert code is ErrorCode.none
    for committed, expected in ((True, "none"), (True, "none"), (False, "invalid_txn_state")):

        async def ended(committed: bool = committed, expected: str = expected) -> bool:
            answer = await wire.ask(END_TXN, 3, transactional_id=name, committed=committed, **owner)
            assert answer.error_code.name in (expected, "concurrent_transactions")
            return bool(answer.error_code.name == expected)

        await eventually(ended)
    stranger = await wire.ask(END_TXN, 3, transactional_id=name, committed=True, producer_id=999)
    assert stranger.error_code is ErrorCode.invalid_producer_id_mapping


async def test_one_unknown_partition_keeps_the_others_out(clients: Clients) -> None:
    await clients.topic("t")
    wire = await clients.wire()
    answer = await wire.ask(
        ADD_PARTITIONS,
        3,
        v3_and_below_transactional_id="x",
        v3_and_below_topics=[{"name": "t", "partitions": (0, 9)}],
    )
    codes = [p.partition_error_code for p in answer.results_by_topic_v3_and_below[0].results_by_partition]
    assert codes == [ErrorCode.operation_not_attempted, ErrorCode.unknown_topic_or_partition]


async def test_open_transactions_and_their_producers_can_be_seen(clients: Clients) -> None:
    await clients.topic("t")
    producer = await clients.producer(transactional_id="x")
    await producer.begin_transaction()
    await producer.send_and_wait("t", b"v")
    wire = await clients.wire()
    described = await wire.ask(DESCRIBE_TRANSACTIONS, 0, transactional_ids=("x", "unknown"))
    known, unknown = described.transaction_states
    assert (known.transaction_state, known.topics[0].topic) == ("Ongoing", "t")
    assert unknown.error_code is ErrorCode.transactional_id_not_found
    seen = await wire.ask(DESCRIBE_PRODUCERS, 0, topics=[{"name": "t", "partition_indexes": (0,)}])
    assert seen.topics[0].partitions[0].active_producers[0].current_txn_start_offset == 0
    await producer.commit_transaction()
