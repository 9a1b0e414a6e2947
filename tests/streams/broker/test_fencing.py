"""Who may write in a transaction: epochs, before and since they rise at each end (KIP-890)."""

import asyncio
import datetime
import struct
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from headrace.streams.broker import Broker
from kio.schema.errors import ErrorCode

from tests.streams.broker.clients import (
    FETCH,
    PRODUCE,
    Clients,
    Wire,
    batch,
    eventually,
    fetch_fields,
    only,
    produce_fields,
)

INIT_PRODUCER, ADD_PARTITIONS, ADD_OFFSETS, END_TXN, TXN_COMMIT = 22, 24, 25, 26, 28
DESCRIBE_PRODUCERS, DESCRIBE_TRANSACTIONS, LIST_TRANSACTIONS, OFFSET_FETCH = 61, 65, 66, 9
# Of Produce, TxnOffsetCommit and EndTxn: what clients of transactions of version 1 and 2 speak.
OLD, NEW = {PRODUCE: 11, TXN_COMMIT: 4, END_TXN: 4}, {PRODUCE: 12, TXN_COMMIT: 5, END_TXN: 5}
# Kafka says these while it still writes the markers of the last end, and clients try again.
BUSY = {
    ErrorCode.concurrent_transactions,
    ErrorCode.coordinator_load_in_progress,
    ErrorCode.coordinator_not_available,
    ErrorCode.not_coordinator,
}


class Owner:
    """One transactional id by hand."""

    def __init__(self, wire: Wire, name: str | None = None) -> None:
        self.wire = wire
        self.name = str(uuid.uuid4()) if name is None else name
        self.producer, self.epoch = -1, -1

    async def ask(self, api: int, version: int, code: Any, **fields: Any) -> Any:
        async with asyncio.timeout(20):
            while code(answer := await self.wire.ask(api, version, **fields)) in BUSY:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            return answer

    async def init(self, producer: int = -1, epoch: int = -1, seconds: float = 30, version: int = 5) -> ErrorCode:
        answer = await self.ask(
            INIT_PRODUCER,
            version,
            lambda seen: seen.error_code,
            transactional_id=self.name,
            transaction_timeout=datetime.timedelta(seconds=seconds),
            producer_id=producer,
            producer_epoch=epoch,
        )
        if answer.error_code is ErrorCode.none:
            self.producer, self.epoch = answer.producer_id, answer.producer_epoch
        assert isinstance(answer.error_code, ErrorCode)
        return answer.error_code

    async def produce(
        self, sequence: int = 0, *, version: int = 12, epoch: int | None = None, **more: Any
    ) -> ErrorCode:
        ids = (more.get("producer", self.producer), self.epoch if epoch is None else epoch, sequence)
        records = batch(b"v", producer=ids, transactional=True)
        fields = produce_fields("t", records, transactional_id=more.get("name", self.name))
        answer = await self.ask(
            PRODUCE, version, lambda seen: seen.responses[0].partition_responses[0].error_code, **fields
        )
        code = answer.responses[0].partition_responses[0].error_code
        assert isinstance(code, ErrorCode)
        return code

    async def add(self, *, version: int = 3, epoch: int | None = None) -> ErrorCode:
        def code(answer: Any) -> Any:
            return answer.results_by_topic_v3_and_below[0].results_by_partition[0].partition_error_code

        ids = {
            "v3_and_below_transactional_id": self.name,
            "v3_and_below_producer_id": self.producer,
            "v3_and_below_producer_epoch": self.epoch if epoch is None else epoch,
        }
        topics = [{"name": "t", "partitions": (0,)}]
        found = code(await self.ask(ADD_PARTITIONS, version, code, v3_and_below_topics=topics, **ids))
        assert isinstance(found, ErrorCode)
        return found

    async def end(
        self, commit: bool, *, version: int = 5, epoch: int | None = None, producer: int | None = None
    ) -> Any:
        """The error, or the epoch that follows."""
        answer = await self.ask(
            END_TXN,
            version,
            lambda seen: seen.error_code,
            transactional_id=self.name,
            producer_id=self.producer if producer is None else producer,
            producer_epoch=self.epoch if epoch is None else epoch,
            committed=commit,
        )
        if answer.error_code is not ErrorCode.none or version < 5:
            return answer.error_code
        assert answer.producer_id == self.producer
        return answer.producer_epoch

    async def offsets(self, *, version: int = 5, epoch: int | None = None, **more: Any) -> ErrorCode:
        def code(answer: Any) -> Any:
            return answer.topics[0].partitions[0].error_code

        entry = {"partition_index": 0, "committed_offset": 7, "committed_metadata": ""}
        fields = {
            "transactional_id": self.name,
            "group_id": "g",
            "producer_id": more.get("producer", self.producer),
            "producer_epoch": self.epoch if epoch is None else epoch,
            "generation_id": more.get("generation", -1),
            "member_id": more.get("member", ""),
            "topics": [{"name": more.get("topic", "t"), "partitions": [entry]}],
        }
        found = code(await self.ask(TXN_COMMIT, version, code, **fields))
        assert isinstance(found, ErrorCode)
        return found

    async def state(self) -> tuple[str, int]:
        """Its transaction's, once no marker is on its way."""
        async with asyncio.timeout(20):
            while True:
                answer = await self.wire.ask(DESCRIBE_TRANSACTIONS, 0, transactional_ids=(self.name,))
                (found,) = answer.transaction_states
                if not found.transaction_state.startswith("Prepare"):
                    return found.transaction_state, found.producer_epoch
                await asyncio.sleep(0.05)

    async def seen(self) -> tuple[int, int, int, int]:
        """What the partition knows of it: epoch, last sequence, coordinator's epoch, where its transaction begins."""
        answer = await self.wire.ask(DESCRIBE_PRODUCERS, 0, topics=[{"name": "t", "partition_indexes": (0,)}])
        for one in answer.topics[0].partitions[0].active_producers:
            if one.producer_id == self.producer:
                return one.producer_epoch, one.last_sequence, one.coordinator_epoch, one.current_txn_start_offset
        raise AssertionError("the partition does not know the producer")


@pytest.fixture
async def owner(clients: Clients) -> Owner:
    await clients.topic("t")
    found = Owner(await clients.wire())
    assert await found.init() is ErrorCode.none
    assert found.epoch == 0
    return found


async def test_since_version_2_to_write_is_to_take_part_and_each_end_raises_the_epoch(owner: Owner) -> None:
    for epoch, commit in ((0, True), (1, False), (2, True)):
        owner.epoch = epoch
        assert await owner.produce(0) is ErrorCode.none
        assert await owner.produce(1) is ErrorCode.none
        assert (await owner.state(), (await owner.seen())[:2]) == (("Ongoing", epoch), (epoch, 1))
        assert await owner.end(commit) == epoch + 1
        assert await owner.state() == ("CompleteCommit" if commit else "CompleteAbort", epoch + 1)
        assert await owner.seen() == (epoch + 1, -1, 0, -1)
    assert await aborted_by(owner) == [(owner.producer, 3)]


async def aborted_by(owner: Owner) -> list[tuple[int, int]]:
    """The aborted transactions that a reader of the committed is told of on its way to the end."""
    found: set[tuple[int, int]] = set()
    position, end = 0, 1
    async with asyncio.timeout(20):
        while position < end:
            fields = fetch_fields("t", position, isolation_level=1, wait_ms=100)
            answer = only(await owner.wire.ask(FETCH, 12, **fields))
            end = answer.high_watermark
            found |= {(entry.producer_id, entry.first_offset) for entry in answer.aborted_transactions}
            for last_offset in last_offsets(answer.records or b""):
                position = last_offset + 1
    return sorted(found)


def last_offsets(records: bytes) -> Iterator[int]:
    """Of each batch."""
    at = 0
    while at < len(records):
        base, length = struct.unpack_from(">qi", records, at)
        yield base + struct.unpack_from(">i", records, at + 23)[0]
        at += 12 + length


async def test_before_version_2_the_epoch_stays_and_sequences_go_on(owner: Owner) -> None:
    for sequence in range(3):
        assert await owner.add() is ErrorCode.none
        assert await owner.produce(sequence, version=11) is ErrorCode.none
        assert await owner.end(True, version=4) is ErrorCode.none
        assert (await owner.state(), await owner.seen()) == (("CompleteCommit", 0), (0, sequence, 0, -1))


async def test_a_lost_end_is_answered_again_and_another_end_is_refused(owner: Owner) -> None:
    await owner.produce()
    assert await owner.end(True) == 1
    assert await owner.end(True) == 1
    assert await owner.end(False) is ErrorCode.invalid_txn_state
    assert await owner.end(True, version=4) is ErrorCode.producer_fenced
    assert await owner.end(True, version=1) is ErrorCode.invalid_producer_epoch
    assert await owner.end(True, epoch=7) is ErrorCode.producer_fenced
    assert await owner.end(True, producer=owner.producer + 999) is ErrorCode.invalid_producer_id_mapping


async def test_an_empty_transaction_is_aborted_but_not_committed(owner: Owner) -> None:
    assert await owner.end(True) is ErrorCode.invalid_txn_state
    assert await owner.end(False) == 1
    assert await owner.state() == ("CompleteAbort", 1)
    assert await owner.end(True, epoch=1) is ErrorCode.invalid_txn_state
    assert await owner.end(False, epoch=1) == 2
    assert await Owner(owner.wire, "").end(True) is ErrorCode.invalid_request


@pytest.mark.parametrize(
    ("version", "not_added"), [(9, ErrorCode.invalid_txn_state), (11, ErrorCode.transaction_abortable)]
)
async def test_what_was_not_added_is_not_written_by_older_clients(
    owner: Owner, version: int, not_added: ErrorCode
) -> None:
    assert await owner.produce(version=version) is not_added
    assert await owner.produce(version=version, producer=owner.producer + 999) is ErrorCode.invalid_producer_id_mapping


@pytest.mark.parametrize("version", [11, 12])
async def test_only_the_newest_epoch_writes(owner: Owner, version: int) -> None:
    assert await owner.init() is ErrorCode.none
    for epoch in (0, 9):
        assert await owner.produce(version=version, epoch=epoch) is ErrorCode.invalid_producer_epoch


async def test_a_batch_of_a_transaction_names_its_transactional_id(owner: Owner) -> None:
    assert await owner.produce(name=None) is ErrorCode.transactional_id_authorization_failed


async def test_a_gap_is_refused_and_the_partition_takes_part_all_the_same(owner: Owner) -> None:
    await owner.produce(0)
    await owner.end(True)
    owner.epoch = 1
    assert await owner.produce(5) is ErrorCode.out_of_order_sequence_number
    assert await owner.state() == ("Ongoing", 1)
    assert await owner.end(True) == 2


async def test_a_producer_goes_on_by_its_last_epoch_only_until_another_begins(owner: Owner) -> None:
    first = owner.producer
    assert (await owner.init(first, 0), owner.epoch) == (ErrorCode.none, 1)
    assert (await owner.init(first, 0), owner.epoch) == (ErrorCode.none, 1)  # the answer was lost
    assert (await owner.init(), owner.epoch) == (ErrorCode.none, 2)  # another begins
    for epoch in (1, 0, 77):
        assert await owner.init(first, epoch) is ErrorCode.producer_fenced
    assert await owner.init(first + 999, 2) is ErrorCode.producer_fenced
    assert await owner.init(first, 1, version=3) is ErrorCode.invalid_producer_epoch
    assert (await owner.init(first, 2), owner.epoch) == (ErrorCode.none, 3)


@pytest.mark.parametrize("new", [True, False])
async def test_beginning_again_aborts_what_is_open_and_fences_twice(owner: Owner, new: bool) -> None:
    if not new:
        await owner.add()
    assert await owner.produce(version=12 if new else 11) is ErrorCode.none
    assert (await owner.init(), owner.epoch) == (ErrorCode.none, 2)
    assert await owner.seen() == (1, -1, 0, -1)
    assert await owner.produce(1, epoch=0) is ErrorCode.invalid_producer_epoch
    assert await aborted_by(owner) == [(owner.producer, 0)]


async def test_who_aborts_its_own_by_beginning_again_is_not_fenced(owner: Owner) -> None:
    await owner.produce()
    assert (await owner.init(owner.producer, 0), owner.epoch) == (ErrorCode.none, 1)
    assert await owner.produce() is ErrorCode.none


async def test_what_takes_too_long_is_aborted_and_its_producer_told(owner: Owner) -> None:
    assert await owner.init(seconds=0.3) is ErrorCode.none
    await owner.produce()

    async def aborted() -> bool:
        return await owner.state() == ("CompleteAbort", 2)

    await eventually(aborted)
    assert await owner.end(True) is ErrorCode.invalid_txn_state
    assert await owner.end(True, version=4) is ErrorCode.producer_fenced
    assert await owner.end(False) == 2
    assert await owner.add() is ErrorCode.producer_fenced
    assert await owner.produce(1) is ErrorCode.invalid_producer_epoch
    assert await owner.offsets() is ErrorCode.invalid_producer_epoch
    assert (await owner.init(owner.producer, 1), owner.epoch) == (ErrorCode.none, 2)


async def test_offsets_take_part_by_being_committed_since_version_2(owner: Owner) -> None:
    assert await owner.offsets(version=3) is ErrorCode.invalid_txn_state
    assert await owner.offsets(version=4) is ErrorCode.transaction_abortable
    assert await owner.offsets(version=5, producer=owner.producer + 999) is ErrorCode.invalid_producer_id_mapping
    assert await owner.offsets(version=5, epoch=5) is ErrorCode.invalid_producer_epoch
    assert await owner.offsets() is ErrorCode.none
    assert await owner.offsets(topic="nowhere") is ErrorCode.unknown_topic_or_partition
    assert await owner.end(True) == 1
    group = {"group_id": "g", "member_id": None, "topics": [{"name": "t", "partition_indexes": (0,)}]}

    async def committed() -> bool:
        answer = await owner.wire.ask(OFFSET_FETCH, 9, groups=[group], require_stable=True)
        return bool(answer.groups[0].topics[0].partitions[0].committed_offset == 7)

    await eventually(committed)


async def test_a_stranger_to_the_group_does_not_commit_for_it(owner: Owner) -> None:
    assert await owner.offsets() is ErrorCode.none
    assert await owner.end(True) == 1
    assert await owner.offsets(epoch=1, generation=3, member="m") is ErrorCode.unknown_member_id
    assert await owner.offsets(epoch=1, member="m") is ErrorCode.none


@pytest.mark.parametrize(
    ("producer", "epoch", "seconds", "code"),
    [
        (-1, -1, 0, ErrorCode.invalid_transaction_timeout),
        (-1, -1, 3600, ErrorCode.invalid_transaction_timeout),
        (5, -1, 30, ErrorCode.invalid_request),
        (-1, 5, 30, ErrorCode.invalid_request),
    ],
)
async def test_a_beginning_that_makes_no_sense_is_refused(
    clients: Clients, producer: int, epoch: int, seconds: float, code: ErrorCode
) -> None:
    assert await Owner(await clients.wire()).init(producer, epoch, seconds) is code
    assert await Owner(await clients.wire(), "").init() is ErrorCode.invalid_request


async def test_brokers_ask_for_many_transactions_at_once(owner: Owner) -> None:
    ids = {"transactional_id": owner.name, "producer_id": owner.producer, "producer_epoch": 0}

    async def ask(verify_only: bool, *topics: str) -> list[ErrorCode]:
        entries = [{"name": topic, "partitions": (0,)} for topic in topics]
        transaction = {**ids, "verify_only": verify_only, "topics": entries}
        answer = await owner.wire.ask(ADD_PARTITIONS, 4, transactions=[transaction])
        found = {one.name: one.results_by_partition[0] for one in answer.results_by_transaction[0].topic_results}
        return [found[topic].partition_error_code for topic in topics]

    assert await ask(True, "t") == [ErrorCode.transaction_abortable]
    assert await ask(False, "t", "nowhere") == [ErrorCode.operation_not_attempted, ErrorCode.unknown_topic_or_partition]
    assert await ask(False, "t") == [ErrorCode.none]
    assert await ask(True, "t") == [ErrorCode.none]


async def test_epochs_that_are_used_up_give_way_to_a_new_producer(local: Clients, broker: Broker) -> None:
    """Of the local broker alone, whose epoch can be set: 32,767 ends take minutes."""
    await local.topic("t")
    owner = Owner(await local.wire())
    await owner.init()
    transaction = broker._running.transactions.get(owner.name)
    assert transaction is not None
    transaction.epoch = 2**15 - 2
    first = owner.producer
    await owner.produce(epoch=2**15 - 2)
    answer = await owner.wire.ask(
        END_TXN, 5, transactional_id=owner.name, producer_id=first, producer_epoch=2**15 - 2, committed=True
    )
    assert (answer.error_code, answer.producer_epoch) == (ErrorCode.none, 0)
    assert answer.producer_id != first
    again = await owner.wire.ask(
        END_TXN, 5, transactional_id=owner.name, producer_id=first, producer_epoch=2**15 - 2, committed=True
    )
    assert (again.producer_id, again.producer_epoch) == (answer.producer_id, 0)
    owner.producer, owner.epoch = answer.producer_id, 0
    assert await owner.produce() is ErrorCode.none
    assert await owner.seen() == (0, 0, -1, 2)
    assert (await owner.init(), owner.epoch) == (ErrorCode.none, 2)
