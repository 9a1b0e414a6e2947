"""Transactions of version 2 in place of aiokafka's: what is relied on of it, and what they promise, on both brokers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import ConcurrentTransactions, OutOfOrderSequenceNumber, ProducerFenced
from aiokafka.producer.sender import (
    EndTxnHandler,
    InitPIDHandler,
    Sender,
    SendProduceReqHandler,
    TxnOffsetCommitHandler,
)
from aiokafka.producer.transaction_manager import TransactionManager
from aiokafka.protocol.types import CompactArray, CompactBytes, CompactString, Int16, Int32, Schema, TaggedFields
from aiokafka.structs import OffsetAndMetadata
from headrace.streams import kafka, kip890
from headrace.streams.address import Address, parse_address
from headrace.streams.broker import Broker, transactions
from headrace.streams.kafka import KafkaLog
from headrace.streams.log import Partition

from tests.streams.pinned import assert_read
from tests.streams.test_transport import theirs, topic

RELIED_ON = {
    "TransactionManager": (TransactionManager, "d0932794"),
    "Sender": (Sender, "46ef1441"),
    "SendProduceReqHandler": (SendProduceReqHandler, "708c9da8"),
    "TxnOffsetCommitHandler": (TxnOffsetCommitHandler, "7f296a14"),
    "EndTxnHandler": (EndTxnHandler, "47656efc"),
    "InitPIDHandler": (InitPIDHandler, "4f466dcf"),
}
"""What streams/kip890.py stands in for or is called by, and the sums of it as it was read."""


@pytest.mark.parametrize("name", RELIED_ON)
def test_aiokafka_is_the_one_that_was_read(name: str) -> None:
    part, known = RELIED_ON[name]
    assert_read(name, part, known, "streams/kip890.py", "tests/streams/test_log.py", "aiokafka's own transactions")


@pytest.fixture(params=["broker", pytest.param("apache", marks=pytest.mark.stack)])
def address(request: pytest.FixtureRequest) -> Address:
    found: Address = request.getfixturevalue(request.param)
    return found


async def producer(address: Address, id: str) -> AIOKafkaProducer:
    """One transactional id, by version 2."""
    made = AIOKafkaProducer(bootstrap_servers=address.bootstrap, transactional_id=id, retry_backoff_ms=10)
    await made.start()
    assert await kip890.spoken(made)
    kip890.speak(made)
    return made


async def put(producer: AIOKafkaProducer, partition: Partition, value: bytes) -> Any:
    return await (await producer.send(partition.topic, value, partition=partition.number))


def test_a_produce_request_is_written_as_the_schemas_would_write_it() -> None:
    partitions = CompactArray(("number", Int32), ("records", CompactBytes), ("tags", TaggedFields))
    text = CompactString("utf-8")
    topics = CompactArray(("topic", text), ("partitions", partitions), ("tags", TaggedFields))
    schema = Schema(("id", text), ("acks", Int16), ("timeout", Int32), ("topics", topics), ("tags", TaggedFields))
    given = [("a", [(0, b"x" * 300), (7, b"")]), ("ü" * 70, [(1, b"y")])]
    rows: list[Any] = [(t, [(n, data, {}) for n, data in some], {}) for t, some in given]
    assert kip890.ProduceV12("id", -1, 30_000, given).encode() == schema.encode(["id", -1, 30_000, rows, {}])


async def test_each_transaction_has_an_epoch_of_its_own_and_numbers_from_zero(address: Address) -> None:
    one, two = await topic(address), await topic(address)
    made = await producer(address, f"epochs-{one.topic}")
    epochs = []
    for n in range(4):
        await made.begin_transaction()
        for partition in (one, two) if n % 2 else (one,):
            await put(made, partition, b"%d" % n)
        epochs.append(made._txn_manager.producer_epoch)
        await (made.abort_transaction() if n == 2 else made.commit_transaction())
        assert not made._txn_manager._sequence_numbers
    await made.stop()
    assert epochs == [epochs[0] + n for n in range(4)]
    assert [row[3] for row in await theirs(address, one)] == [b"0", b"1", b"3"]
    assert [row[3] for row in await theirs(address, two)] == [b"1", b"3"]


async def test_one_that_begins_at_once_waits_for_the_markers_of_its_last(address: Address) -> None:
    here, source = await topic(address), await topic(address)
    made = await producer(address, f"again-{here.topic}")
    for n in range(60):
        await made.begin_transaction()
        offsets = {TopicPartition(*source): OffsetAndMetadata(n, "")}
        if n % 3:
            await put(made, here, b"%d" % n)
        if n % 3 != 1:
            await made.send_offsets_to_transaction(offsets, f"group-{here.topic}")
        await made.commit_transaction()
    await made.stop()
    assert [row[3] for row in await theirs(address, here)] == [b"%d" % n for n in range(60) if n % 3]
    log = KafkaLog(address)
    assert await log.committed(f"group-{here.topic}", [source]) == {source: 59}
    await log.close()


async def test_what_nothing_was_sent_in_ends_without_a_request_and_an_abort_needs_no_record_there(
    address: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = await topic(address)
    made = await producer(address, f"empty-{here.topic}")
    ends = []
    create = kip890._End.create_request

    def counted(self: Any) -> kip890.EndTxnV5:
        ends.append(1)
        return create(self)

    monkeypatch.setattr(kip890._End, "create_request", counted)
    for end in (made.commit_transaction, made.abort_transaction):
        await made.begin_transaction()
        await end()
    assert not ends
    await made.begin_transaction()
    made._txn_manager.maybe_add_partition_to_txn(TopicPartition(*here))  # as where its records never left
    await made.abort_transaction()
    assert ends
    await made.begin_transaction()
    await put(made, here, b"after")
    await made.commit_transaction()
    await made.stop()
    assert [row[3] for row in await theirs(address, here)] == [b"after"]


@pytest.mark.parametrize("what", ["records", "offsets", "end"])
async def test_a_newer_owner_fences_each_request(address: Address, what: str) -> None:
    here = await topic(address)
    name = f"fenced-{what}-{here.topic}"
    old = await producer(address, name)
    await old.begin_transaction()
    if what == "end":
        await put(old, here, b"old")
    new = await producer(address, name)
    offsets = {TopicPartition(*here): OffsetAndMetadata(1, "")}
    request: Callable[[], Awaitable[None]] = {
        "records": lambda: put(old, here, b"old"),
        "offsets": lambda: old.send_offsets_to_transaction(offsets, name),
        "end": lambda: old.commit_transaction(),
    }[what]
    with pytest.raises(ProducerFenced):
        await request()
    await new.begin_transaction()
    await put(new, here, b"new")
    await new.commit_transaction()
    await new.stop()
    await kafka._Writer(old, True).close()
    assert [row[3] for row in await theirs(address, here)] == [b"new"]


async def test_what_comes_late_of_an_ended_transaction_is_refused(address: Address) -> None:
    """Once the marker is written. Else it would be in the next one, or hold all readers back: what KIP-890 is for."""
    here = await topic(address)
    made = await producer(address, f"late-{here.topic}")
    await made.begin_transaction()
    await put(made, here, b"1")
    before = made._txn_manager._pid_and_epoch
    await made.commit_transaction()
    while not await theirs(address, here):
        pass
    made._txn_manager._pid_and_epoch = before
    made._txn_manager._sequence_numbers[TopicPartition(*here)] = 1
    await made.begin_transaction()
    with pytest.raises(ProducerFenced):
        await put(made, here, b"late")
    await kafka._Writer(made, True).close()
    assert [row[3] for row in await theirs(address, here)] == [b"1"]


async def test_an_end_whose_answer_was_lost_is_asked_for_again(
    address: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = await topic(address)
    made = await producer(address, f"lost-{here.topic}")
    handle = kip890._End.handle_response
    lost: list[Any] = []

    def once(self: Any, response: Any) -> Any:
        if lost:
            return handle(self, response)
        lost.append(response)
        return 0.01  # not heard: the same is asked again, with the epoch that it had

    monkeypatch.setattr(kip890._End, "handle_response", once)
    await made.begin_transaction()
    await put(made, here, b"1")
    await made.commit_transaction()
    assert lost
    assert made._txn_manager.producer_epoch == lost[0].producer_epoch
    await made.begin_transaction()
    await put(made, here, b"2")
    await made.commit_transaction()
    await made.stop()
    assert [row[3] for row in await theirs(address, here)] == [b"1", b"2"]


def test_what_means_try_again_is_tried_again_and_nothing_else() -> None:
    handler = kip890._Produce(SimpleNamespace(client=None, _retry_backoff=0.01, _txn_manager=1), {})
    assert handler._can_retry(ConcurrentTransactions(), None)
    assert not handler._can_retry(OutOfOrderSequenceNumber(), None)


async def test_a_broker_that_does_not_tell_features_is_spoken_to_as_before() -> None:
    async def older(node: int, request: Any) -> Any:
        return SimpleNamespace(error_code=0, tags={})

    async def oldest(node: int, request: Any) -> Any:
        return request.prepare({18: (0, 2)})

    for send in (older, oldest):
        client = SimpleNamespace(get_random_node=lambda: 0, send=send)
        assert not await kip890.spoken(SimpleNamespace(client=client))


async def test_epochs_that_are_used_up_go_on_as_another_producer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transactions, "_LAST_EPOCH", 3)  # of 2**15 - 2: some minutes of a busy task
    async with Broker(tmp_path) as broker:
        address = parse_address(broker.address)
        here, source = await topic(address), await topic(address)
        made = await producer(address, "worn")
        ids = []
        for n in range(20):
            await made.begin_transaction()
            await put(made, here, b"%d" % n)
            await made.send_offsets_to_transaction({TopicPartition(*source): OffsetAndMetadata(n, "")}, "worn")
            await (made.commit_transaction() if n % 5 else made.abort_transaction())
            ids.append(made._txn_manager.producer_id)
        await made.stop()
        assert len(set(ids)) >= 5
        assert [row[3] for row in await theirs(address, here)] == [b"%d" % n for n in range(20) if n % 5]
        log = KafkaLog(address)
        assert await log.committed("worn", [source]) == {source: 19}
        await log.close()
