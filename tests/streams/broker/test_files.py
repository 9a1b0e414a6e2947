"""Large batches, which are in files beside RocksDB: kept, found again, freed, and never served damaged."""

import asyncio
import contextlib
import errno
import os
import shutil
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from headrace.streams.broker import Broker, FolderUnreadable
from headrace.streams.broker.batches import read_batch, records_of
from headrace.streams.broker.errors import BrokenOff, Refusal, StoreDamaged
from headrace.streams.broker.files import BatchFiles, Place
from headrace.streams.broker.log import StoredBatch
from headrace.streams.broker.messages import whole
from headrace.streams.broker.store import Change, Store, batch_key
from kio.schema.errors import ErrorCode

from tests.streams.broker.clients import (
    DELETE_RECORDS,
    FETCH,
    LIST_OFFSETS,
    PRODUCE,
    QUICK,
    Clients,
    ManualClock,
    Wire,
    batch,
    fetch_fields,
    only,
    produce_fields,
)

SIZE = 100_000
"""Bytes of a batch; two of them fill a file of these tests."""
LIMITS = replace(QUICK, cleaning_interval_ms=3_600_000, batch_file_bytes=2 * SIZE + 1_000, tail_cache_bytes=1)


def large(number: int, **more: Any) -> bytes:
    return batch(b"%d " % number + bytes(SIZE), **more)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.batches"))


async def produce(wire: Wire, data: bytes, topic: str = "t") -> Any:
    answer = await wire.ask(PRODUCE, 9, **produce_fields(topic, data))
    return answer.responses[0].partition_responses[0]


async def fetch(wire: Wire, offset: int, partition_max: int = 10 * SIZE) -> Any:
    return only(await wire.ask(FETCH, 11, **fetch_fields("t", offset, partition_max=partition_max)))


def served(records: bytes) -> list[int]:
    """The numbers of the batches."""
    found = []
    while records:
        size = 12 + int.from_bytes(records[8:12])
        [record] = records_of(read_batch(records[:size]))
        found.append(int((record.value or b"").split()[0].rstrip(b"\0")))
        records = records[size:]
    return found


@contextlib.asynccontextmanager
async def broker_of(folder: Path, **settings: Any) -> AsyncIterator[tuple[Broker, Clients]]:
    async with Broker(folder, **{"limits": LIMITS, **settings}) as broker, Clients(broker.address) as clients:
        yield broker, clients


async def filled(folder: Path, count: int = 5, **settings: Any) -> None:
    async with broker_of(folder, **settings) as (_, clients):
        await clients.topic("t", retention_ms="-1")
        wire = await clients.wire()
        for number in range(count):
            assert (await produce(wire, large(number))).error_code is ErrorCode.none


def damage(folder: Path, number: int) -> None:
    """One bit of one of the batches."""
    with (folder / files(folder)[number // 2]).open("rb+") as file:
        file.seek(number % 2 * len(large(0)) + SIZE // 2)
        [byte] = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes((byte ^ 1,)))


async def test_large_batches_fill_one_file_after_the_other_and_are_served_together_and_one_by_one(
    tmp_path: Path,
) -> None:
    await filled(tmp_path)
    assert files(tmp_path) == ["00000001.batches", "00000002.batches", "00000003.batches"]
    async with broker_of(tmp_path) as (_, clients):
        wire = await clients.wire()
        assert served((await fetch(wire, 0)).records) == [0, 1, 2, 3, 4]
        assert served((await fetch(wire, 1, partition_max=2 * SIZE + 500)).records) == [1, 2]
        assert served((await fetch(wire, 4)).records) == [4]
        assert (await produce(wire, large(5))).base_offset == 5
        assert (await produce(wire, batch(b"small"))).base_offset == 6
        assert len((await fetch(wire, 4)).records) == 2 * len(large(5)) + len(batch(b"small"))
    assert files(tmp_path)[3:] == ["00000004.batches"], "a file that was closed is not written to again"


async def test_with_fsync_there_is_the_write_ahead_log_alone_and_either_reads_what_the_other_wrote(
    tmp_path: Path,
) -> None:
    await filled(tmp_path, fsync=True)
    assert files(tmp_path) == []
    for fsync, number in ((False, 5), (True, 6)):
        async with broker_of(tmp_path, fsync=fsync) as (_, clients):
            wire = await clients.wire()
            await produce(wire, large(number))
            assert served((await fetch(wire, 0)).records) == list(range(number + 1))
    assert len(files(tmp_path)) == 1


@pytest.mark.parametrize("damaged", [0, 3])
async def test_what_lies_before_a_damaged_batch_is_served_and_at_it_the_reader_is_told(
    tmp_path: Path, damaged: int
) -> None:
    await filled(tmp_path)
    damage(tmp_path, damaged)
    async with broker_of(tmp_path) as (_, clients):
        if damaged:
            # The answer had begun; whoever comes again is answered as far as it goes.
            with pytest.raises(asyncio.IncompleteReadError):
                await fetch(await clients.wire(), 0)
            assert served((await fetch(await clients.wire(), 0)).records) == list(range(damaged))
        wire = await clients.wire()
        told = await fetch(wire, damaged)
        assert (told.error_code, told.records) == (ErrorCode.corrupt_message, b"")
        assert served((await fetch(wire, damaged + 1)).records) == list(range(damaged + 1, 5))


async def test_a_file_that_is_cut_off_under_the_broker_is_told_and_no_answer_is_broken_off(tmp_path: Path) -> None:
    await filled(tmp_path)
    async with broker_of(tmp_path) as (_, clients):
        wire = await clients.wire()
        os.truncate(tmp_path / files(tmp_path)[1], len(large(2)) + SIZE // 2)
        assert served((await fetch(wire, 0)).records) == [0, 1, 2]
        told = await fetch(wire, 3)
        assert (told.error_code, told.records) == (ErrorCode.corrupt_message, b"")
        assert served((await fetch(wire, 4)).records) == [4]


async def test_a_file_that_is_cut_off_after_it_was_checked_breaks_off_one_answer_and_is_then_told(
    tmp_path: Path,
) -> None:
    async with broker_of(tmp_path) as (_, clients):
        await clients.topic("t", retention_ms="-1")
        wire = await clients.wire()
        for number in range(5):
            await produce(wire, large(number))
        assert served((await fetch(wire, 0)).records) == [0, 1, 2, 3, 4]
        os.truncate(tmp_path / files(tmp_path)[1], len(large(2)) + SIZE // 2)
        with pytest.raises(asyncio.IncompleteReadError):
            await fetch(wire, 0)
        wire = await clients.wire()
        assert served((await fetch(wire, 0)).records) == [0, 1, 2]
        told = await fetch(wire, 3)
        assert (told.error_code, told.records) == (ErrorCode.corrupt_message, b"")
        assert served((await fetch(wire, 4)).records) == [4]


async def test_batches_are_checked_once_since_the_start_and_again_when_any_is_found_damaged(tmp_path: Path) -> None:
    async with broker_of(tmp_path) as (broker, clients):
        await clients.topic("t", retention_ms="-1")
        wire = await clients.wire()
        for number in range(2):
            await produce(wire, large(number))
        store, log = broker._running.store, broker._running.topics.partition("t", 0)
        first, second = (store.get(batch_key(log.number, number)) or b"" for number in range(2))
        assert store.knows(first)
    async with broker_of(tmp_path) as (broker, clients):
        wire = await clients.wire()
        store, log = broker._running.store, broker._running.topics.partition("t", 0)
        assert not store.knows(first)
        assert served((await fetch(wire, 0)).records) == [0, 1]
        assert store.knows(first)
        assert store.knows(second)
        damage(tmp_path, 0)
        assert served((await fetch(wire, 1)).records) == [1]
        with pytest.raises(StoreDamaged):
            log.batch(0)  # as a look-up by time does
        assert not store.knows(second)
        assert (await fetch(wire, 0)).error_code is ErrorCode.corrupt_message
        assert served((await fetch(wire, 1)).records) == [1]


async def test_a_file_that_cannot_be_opened_is_told_and_no_answer_is_broken_off(tmp_path: Path) -> None:
    await filled(tmp_path)
    async with broker_of(tmp_path) as (_, clients):
        wire = await clients.wire()
        file = tmp_path / files(tmp_path)[1]
        file.unlink()
        file.mkdir()
        assert served((await fetch(wire, 0)).records) == [0, 1]
        told = await fetch(wire, 2)
        assert (told.error_code, told.records) == (ErrorCode.kafka_storage_error, b"")
        assert served((await fetch(wire, 4)).records) == [4]


async def test_a_file_that_cannot_be_read_breaks_off_one_answer_and_is_then_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = BatchFiles.read

    def fail(self: BatchFiles, place: Place) -> bytes:
        if place.file == 2:
            raise OSError(errno.EIO, "Input/output error")
        return read(self, place)

    await filled(tmp_path)
    async with broker_of(tmp_path) as (_, clients):
        monkeypatch.setattr(BatchFiles, "read", fail)
        with pytest.raises(asyncio.IncompleteReadError):
            await fetch(await clients.wire(), 0)
        wire = await clients.wire()
        assert served((await fetch(wire, 0)).records) == [0, 1]
        told = await fetch(wire, 2)
        assert (told.error_code, told.records) == (ErrorCode.kafka_storage_error, b"")
        assert served((await fetch(wire, 4)).records) == [4]


async def test_a_time_that_leads_to_a_damaged_batch_is_answered_with_its_first_offset(tmp_path: Path) -> None:
    async with broker_of(tmp_path) as (_, clients):
        await clients.topic("t", retention_ms="-1")
        wire = await clients.wire()
        for number in range(3):
            await produce(wire, batch(b"small", bytes(SIZE), timestamp=1_000 * number))
        damage(tmp_path, 1)
        for time, found in ((500, (2, 1_001)), (1_001, (2, 1_001)), (1_002, (4, 2_000)), (-3, (5, 2_001))):
            asked = [{"name": "t", "partitions": [{"partition_index": 0, "timestamp": time}]}]
            [told] = (await wire.ask(LIST_OFFSETS, 7, replica_id=-1, topics=asked)).topics[0].partitions
            assert (told.error_code, told.offset, told.timestamp) == (ErrorCode.none, *found)
        assert (await fetch(wire, 2)).error_code is ErrorCode.corrupt_message


@pytest.mark.parametrize("left", [None, SIZE // 2])
async def test_a_file_that_is_missing_or_cut_off_is_told_at_the_start_and_loss_is_only_by_consent(
    tmp_path: Path, left: int | None
) -> None:
    await filled(tmp_path)
    file = tmp_path / files(tmp_path)[1]
    file.unlink() if left is None else file.write_bytes(file.read_bytes()[:left])
    with pytest.raises(FolderUnreadable, match=rf"{file} is missing or cut off.* --accept-loss"):
        await Broker(tmp_path).start()
    for consent in (True, False):  # once is enough
        async with broker_of(tmp_path, accept_loss=consent) as (_, clients):
            wire = await clients.wire()
            assert (await fetch(wire, 2)).error_code is ErrorCode.corrupt_message
            assert served((await fetch(wire, 0, partition_max=2 * SIZE + 500)).records) == [0, 1]
            assert served((await fetch(wire, 4)).records) == [4]


async def test_files_that_cannot_be_looked_at_are_told_at_the_start_and_leave_the_folder_to_the_next(
    tmp_path: Path,
) -> None:
    await filled(tmp_path)
    file = tmp_path / files(tmp_path)[1]
    file.unlink()
    file.symlink_to(file)
    with pytest.raises(FolderUnreadable, match=rf"The files of {tmp_path} cannot be looked at .*{file}") as told:
        await Broker(tmp_path, accept_loss=True).start()
    file.unlink()
    async with broker_of(tmp_path, accept_loss=True) as (_, clients):
        assert served((await fetch(await clients.wire(), 4)).records) == [4]
    assert isinstance(told.value.__cause__, OSError)


async def test_files_go_when_no_partition_needs_them(tmp_path: Path) -> None:
    async with broker_of(tmp_path) as (broker, clients):
        wire = await clients.wire()
        for topic in ("t", "other"):
            await clients.topic(topic, retention_ms="-1")
        for number in range(4):
            await produce(wire, large(number))
        await produce(wire, large(4), "other")
        await broker.clean()
        assert len(files(tmp_path)) == 3
        log = broker._running.topics.partition("t", 0)
        change = Change()
        bounds = log.stage_cut(3, change)
        broker._running.store.commit(change)
        log.apply_cut(bounds)
        await broker.clean()
        assert files(tmp_path) == ["00000002.batches", "00000003.batches"]
        assert served((await fetch(wire, 3)).records) == [3]
        await (await clients.admin()).delete_topics(["t"])
        await broker.clean()
        assert files(tmp_path) == ["00000003.batches"]
        await (await clients.admin()).delete_topics(["other"])
        await broker.clean()
        assert files(tmp_path) == []


async def test_compaction_takes_what_it_keeps_out_of_the_files(tmp_path: Path) -> None:
    async with broker_of(tmp_path) as (broker, clients):
        await clients.topic("t", cleanup_policy="compact", min_cleanable_dirty_ratio="0")
        wire = await clients.wire()
        for number in range(4):
            await produce(wire, large(number, key=b"%d" % (number % 2) + b"k"))
        await broker.clean()
        assert files(tmp_path) == []
        assert served((await fetch(wire, 0)).records) == [2, 3]
    async with broker_of(tmp_path) as (_, clients):
        assert served((await fetch(await clients.wire(), 0)).records) == [2, 3]


async def test_a_damaged_batch_stops_the_compaction_of_its_partition_alone_and_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with broker_of(tmp_path) as (broker, clients):
        wire = await clients.wire()
        for topic in ("t", "other"):
            await clients.topic(topic, cleanup_policy="compact", min_cleanable_dirty_ratio="0")
            for number in range(2):
                await produce(wire, large(number), topic)
        damage(tmp_path, 1)
        for _ in range(2):
            await broker.clean()
        assert files(tmp_path) == ["00000001.batches"]
        assert served((await fetch(wire, 0, partition_max=SIZE + 500)).records) == [0]
        [other] = broker._running.topics.partition("other", 0).spans(0)
        assert other.base_offset == 1
    told = [text for text in caplog.messages if "t partition 0 is not compacted" in text]
    assert len(told) == 1
    assert "the batch of t partition 0 that ends at 1" in told[0]


async def test_a_batch_that_is_deleted_while_its_answer_is_sent_breaks_the_answer_off_and_is_not_waited_for(
    tmp_path: Path, clock: ManualClock
) -> None:
    await filled(tmp_path)
    async with broker_of(tmp_path) as (broker, clients):
        log = broker._running.topics.partition("t", 0)
        found = log.read(0, log.end, 10 * SIZE, at_least_one=True)
        assert [type(piece) for piece in found] == [bytes] + 4 * [StoredBatch]
        change = Change()
        bounds = log.stage_cut(4, change)
        broker._running.store.commit(change)
        log.apply_cut(bounds)
        await broker.clean()
        assert whole(found[4])
        with pytest.raises(BrokenOff, match="ends at 2 is gone"):
            whole(found[2])
        with pytest.raises(Refusal, match="not within 4 to 5"):
            log.read(2, log.end, 10 * SIZE, at_least_one=True)
        await produce(await clients.wire(), large(5))
        assert [type(piece) for piece in log.read(4, log.end, 10 * SIZE, at_least_one=True)] == 2 * [bytes]


# Files of which little is needed.

WIDE = replace(LIMITS, batch_file_bytes=10 * SIZE + 2_000, tail_cache_bytes=1 << 20)


async def fill_together(wire: Wire, timestamp: int = 1_000, kept: int = 1) -> None:
    """Two full files of ten batches, of which topic t has the first one or more and the other topic the rest."""
    for number in range(21):
        topic = "t" if number % 10 < kept else "other"
        assert (await produce(wire, large(number, timestamp=timestamp), topic)).error_code is ErrorCode.none


async def test_what_is_kept_is_taken_out_of_files_in_which_everything_else_has_expired(
    tmp_path: Path, clock: ManualClock
) -> None:
    async with broker_of(tmp_path, limits=WIDE, clock=clock) as (broker, clients):
        await clients.topic("t")
        await clients.topic("other", retention_ms="1000")
        wire = await clients.wire()
        await fill_together(wire, clock.now_ms)
        clock.advance(1_001)
        await broker.clean()
        assert files(tmp_path) == ["00000003.batches"]
        assert served((await fetch(wire, 0)).records) == [0, 10, 20]
        for offset, number in enumerate((0, 10, 20)):
            assert served((await fetch(wire, offset, partition_max=1)).records) == [number]
    async with broker_of(tmp_path, limits=WIDE) as (_, clients):
        assert served((await fetch(await clients.wire(), 0)).records) == [0, 10, 20]


async def test_what_compaction_has_not_come_to_is_taken_out_of_files_in_which_everything_else_is_deleted(
    tmp_path: Path, clock: ManualClock
) -> None:
    async with broker_of(tmp_path, limits=WIDE, clock=clock) as (broker, clients):
        await clients.topic("t", cleanup_policy="compact", min_compaction_lag_ms="1000")
        await clients.topic("other")
        wire = await clients.wire()
        await fill_together(wire, clock.now_ms, kept=2)
        await (await clients.admin()).delete_topics(["other"])
        await broker.clean()
        assert files(tmp_path) == ["00000003.batches"]
        assert served((await fetch(wire, 0)).records) == [0, 1, 10, 11, 20]
        clock.advance(1_001)
        await broker.clean()
        assert files(tmp_path) == []
        assert served((await fetch(wire, 0)).records) == [20]


async def test_a_file_of_which_more_is_needed_stays_until_its_partition_is_cut(tmp_path: Path) -> None:
    async with broker_of(tmp_path, limits=WIDE) as (broker, clients):
        for topic in ("t", "other"):
            await clients.topic(topic)
        wire = await clients.wire()
        await fill_together(wire, kept=5)
        await (await clients.admin()).delete_topics(["other"])
        await broker.clean()
        assert len(files(tmp_path)) == 3
        await wire.ask(DELETE_RECORDS, 2, **cut("t", 3), timeout=timedelta(seconds=1))
        await broker.clean()
        assert files(tmp_path) == ["00000002.batches", "00000003.batches"]
        assert served((await fetch(wire, 3)).records) == [3, 4, 10, 11, 12, 13, 14, 20]


def cut(topic: str, offset: int) -> dict[str, Any]:
    return {"topics": [{"name": topic, "partitions": [{"partition_index": 0, "offset": offset}]}]}


async def test_a_reader_whose_file_goes_while_its_answer_is_sent_gets_the_same_batch_from_where_it_now_is(
    tmp_path: Path,
) -> None:
    async with broker_of(tmp_path, limits=WIDE) as (broker, clients):
        for topic in ("t", "other"):
            await clients.topic(topic)
        await fill_together(await clients.wire())
        log = broker._running.topics.partition("t", 0)
        found = log.read(0, log.end, 10 * SIZE, at_least_one=True)
        assert [type(piece) for piece in found] == [StoredBatch, StoredBatch, StoredBatch]
        await (await clients.admin()).delete_topics(["other"])
        await broker.clean()
        assert files(tmp_path) == ["00000003.batches"]
        assert served(b"".join(map(whole, found))) == [0, 10, 20]


async def test_a_broker_that_is_killed_while_it_frees_files_has_every_batch_where_it_was_or_where_it_now_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies: list[Path] = []

    def copy() -> None:
        copies.append(tmp_path / f"{len(copies)}")
        shutil.copytree(tmp_path / "data", copies[-1], ignore=shutil.ignore_patterns("LOCK"))

    def copied(step: Callable[..., None]) -> Callable[..., None]:
        def around(*arguments: Any) -> None:
            copy()
            step(*arguments)
            copy()

        return around

    async with broker_of(tmp_path / "data", limits=WIDE) as (broker, clients):
        for topic in ("t", "other"):
            await clients.topic(topic)
        await fill_together(await clients.wire())
        await (await clients.admin()).delete_topics(["other"])
        with monkeypatch.context() as patched:
            patched.setattr(Store, "commit", copied(Store.commit))
            patched.setattr(BatchFiles, "remove", copied(BatchFiles.remove))
            await broker.clean()
    assert {len(files(left)) for left in copies} == {1, 2, 3}
    for left in copies:
        async with broker_of(left, limits=WIDE) as (broker, clients):
            wire = await clients.wire()
            assert served((await fetch(wire, 0)).records) == [0, 10, 20]
            await broker.clean()
            assert files(left) == ["00000003.batches"]
            assert served((await fetch(wire, 0)).records) == [0, 10, 20]


async def test_a_file_with_a_damaged_batch_is_kept_and_told_once_and_others_go(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with broker_of(tmp_path, limits=WIDE) as (broker, clients):
        for topic in ("t", "other"):
            await clients.topic(topic)
        wire = await clients.wire()
        await fill_together(wire)
        damage(tmp_path, 0)
        await (await clients.admin()).delete_topics(["other"])
        for _ in range(2):
            await broker.clean()
        assert files(tmp_path) == ["00000001.batches", "00000003.batches"]
        assert (await fetch(wire, 0)).error_code is ErrorCode.corrupt_message
        assert served((await fetch(wire, 1)).records) == [10, 20]
    assert len([text for text in caplog.messages if "File 1 of large batches is kept" in text]) == 1


async def test_a_folder_of_the_format_before_keeps_its_files_until_nothing_of_them_is_needed(tmp_path: Path) -> None:
    await filled(tmp_path)
    store = Store(tmp_path)
    change = Change()
    change.put(b"mformat", b"headrace broker 2")
    for key, value in store.scan(b"f"):
        change.put(key, value[:16])
    store.commit(change)
    store.close()
    async with broker_of(tmp_path) as (broker, clients):
        wire = await clients.wire()
        await broker.clean()
        assert len(files(tmp_path)) == 3
        await wire.ask(DELETE_RECORDS, 2, **cut("t", 2), timeout=timedelta(seconds=1))
        await broker.clean()
        assert files(tmp_path) == ["00000002.batches", "00000003.batches"]
        assert served((await fetch(wire, 2)).records) == [2, 3, 4]


async def test_what_was_never_committed_is_gone_at_the_next_start_and_a_folder_without_files_is_taken(
    tmp_path: Path,
) -> None:
    await filled(tmp_path, fsync=True)
    store = Store(tmp_path)
    change = Change()
    change.put(b"mformat", b"headrace broker 1")
    store.commit(change)
    store.close()
    (tmp_path / "00000001.batches").write_bytes(large(0))
    async with broker_of(tmp_path) as (_, clients):
        assert files(tmp_path) == []
        assert served((await fetch(await clients.wire(), 0)).records) == [0, 1, 2, 3, 4]
