"""What a disk does to a broker: it is cut off, torn, damaged, full. Never is anything lost without a word."""

import asyncio
import contextlib
import os
import random
import re
import resource
import shutil
import sys
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from headrace.streams.broker import Broker, FolderUnreadable, node
from kio.schema.errors import ErrorCode

from tests.streams.broker.clients import (
    DELETE_RECORDS,
    FETCH,
    LIST_OFFSETS,
    PRODUCE,
    QUICK,
    Clients,
    Wire,
    batch,
    eventually,
    fetch_fields,
    only,
    produce_fields,
    read_quiet,
)

WRITERS = 8


class Disk:
    """RocksDB as the broker holds it, and how much of its write-ahead log a power cut would leave."""

    def __init__(self, db: Any, folder: Path) -> None:
        self._db, self._folder = db, folder
        self.kept: dict[str, int] = {}
        self.syncs = 0
        self.gate: Callable[[], None] = lambda: None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._db, name)

    def flush_wal(self, sync: bool) -> None:
        self.gate()
        written = {file.name: file.stat().st_size for file in self._folder.glob("*.log")}
        self._db.flush_wal(sync)
        self.kept = written
        self.syncs += 1

    def cut_power(self, after: Path) -> None:
        """The folder as it is found after a power cut now."""
        kept = dict(self.kept)
        shutil.copytree(self._folder, after, ignore=shutil.ignore_patterns("LOCK"))
        for log in after.glob("*.log"):
            os.truncate(log, kept.get(log.name, 0))


@contextlib.asynccontextmanager
async def on_disk(folder: Path) -> AsyncIterator[tuple[Disk, Clients]]:
    async with Broker(folder, limits=QUICK, fsync=True) as broker, Clients(broker.address) as clients:
        store = broker._running.store
        store._db = disk = Disk(store._db, folder)  # type: ignore[assignment]
        yield disk, clients


async def produce(wire: Wire, value: bytes, topic: str = "t") -> Any:
    answer = await wire.ask(PRODUCE, 9, **produce_fields(topic, batch(value)))
    return answer.responses[0].partition_responses[0]


async def values(clients: Clients) -> list[bytes]:
    return [record.value for record in await read_quiet(await clients.consumer("t"))]


@pytest.mark.parametrize("seed", range(3))
async def test_what_was_acknowledged_is_there_after_a_power_cut(tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    acknowledged: list[bytes] = []

    async def write(wire: Wire, name: int) -> None:
        for number in range(1_000_000):
            value = b"%d-%d" % (name, number)
            assert (await produce(wire, value)).error_code is ErrorCode.none
            acknowledged.append(value)

    async with on_disk(tmp_path / "before") as (disk, clients):
        await clients.topic("t")
        writing = [asyncio.create_task(write(await clients.wire(), name)) for name in range(WRITERS)]
        await eventually(lambda: _true(len(acknowledged) > 10 * WRITERS))
        await asyncio.sleep(dice.uniform(0, 0.1))
        told = set(acknowledged)
        disk.cut_power(tmp_path / "after")
        for task in writing:
            task.cancel()
        await asyncio.gather(*writing, return_exceptions=True)
    async with Broker(tmp_path / "after", limits=QUICK) as broker, Clients(broker.address) as clients:
        assert told <= set(await values(clients))


async def _true(it: bool) -> bool:
    return it


async def test_nothing_is_acknowledged_or_read_before_it_is_synced_and_many_share_one_sync(tmp_path: Path) -> None:

    async with on_disk(tmp_path) as (disk, clients):
        await clients.topic("t")
        wires = [await clients.wire() for _ in range(WRITERS)]
        reader = await clients.wire()
        await asyncio.gather(*(wire.ask(3, 5, topics=()) for wire in (*wires, reader)))
        opened = threading.Event()
        disk.gate = lambda: assert_opened(opened)
        before = disk.syncs
        writing = [asyncio.create_task(produce(wire, b"%d" % n)) for n, wire in enumerate(wires)]
        reading = asyncio.create_task(reader.ask(FETCH, 11, **fetch_fields("t", wait_ms=5_000)))
        done, _ = await asyncio.wait([*writing, reading], timeout=0.3)
        assert not done
        opened.set()
        assert {(await task).error_code for task in writing} == {ErrorCode.none}
        assert only(await reading).records
        assert 1 <= disk.syncs - before <= 3, "each writer had a sync of its own"


def assert_opened(opened: Any) -> None:
    assert opened.wait(20)


async def test_a_failed_sync_acknowledges_nothing_and_the_broker_goes_on_anew(tmp_path: Path) -> None:
    async with on_disk(tmp_path) as (disk, clients):
        await clients.topic("t")

        def fail() -> None:
            raise OSError("IO error: No space left on device")

        disk.gate = fail
        wire = await clients.wire()
        with pytest.raises((asyncio.IncompleteReadError, OSError)):
            await produce(wire, b"lost or not")

        async def again() -> bool:
            with contextlib.suppress(asyncio.IncompleteReadError, OSError):
                return (await produce(await clients.wire(), b"after")).error_code is ErrorCode.none
            return False

        await eventually(again)
        assert (await values(clients))[-1] == b"after"


# Damage.


async def filled(folder: Path, count: int = 60, *, settled: bool = False) -> list[bytes]:
    """A broker's folder with records; `settled`, when they have left the write-ahead log."""
    written = [b"%d" % n + bytes(2_000) for n in range(count)]
    async with Broker(folder, limits=QUICK) as broker, Clients(broker.address) as clients:
        await clients.topic("t")
        wire = await clients.wire()
        for value in written:
            assert (await produce(wire, value)).error_code is ErrorCode.none
        if not settled:
            shutil.copytree(folder, folder.with_name("live"), ignore=shutil.ignore_patterns("LOCK"))
    if not settled:
        shutil.rmtree(folder)
        folder.with_name("live").rename(folder)
    return written


def flip(file: Path, at: float) -> None:
    """One bit of a file, at a fraction of it."""
    data = bytearray(file.read_bytes())
    data[int(len(data) * at)] ^= 0x10
    file.write_bytes(data)


@pytest.mark.parametrize("at", [0.2, 0.5, 0.8])
async def test_a_damaged_write_ahead_log_is_told_and_loss_is_only_by_consent(tmp_path: Path, at: float) -> None:
    folder = tmp_path / "data"
    written = await filled(folder)
    [log] = folder.glob("*.log")
    flip(log, at)
    with pytest.raises(FolderUnreadable, match=r"write-ahead log of .* is damaged .*--accept-loss"):
        await Broker(folder).start()
    async with Broker(folder, limits=QUICK, accept_loss=True) as broker, Clients(broker.address) as clients:
        left = await values(clients)
    assert 0 < len(left) < len(written)
    assert left == written[: len(left)]


async def test_a_torn_last_write_is_no_damage(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    written = await filled(folder)
    [log] = folder.glob("*.log")
    os.truncate(log, log.stat().st_size - 1_000)
    async with Broker(folder, limits=QUICK) as broker, Clients(broker.address) as clients:
        assert await values(clients) == written[:-1]


@pytest.mark.parametrize("kind", ["MANIFEST-*", "CURRENT", "*.sst", "*.blob"])
async def test_a_damaged_file_is_told_at_the_start_or_at_the_record_and_nothing_is_passed_over(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "data"
    written = await filled(folder, settled=True)
    async with Broker(folder, limits=QUICK):
        pass  # opened once more, so that the log's records are in files
    file = max(folder.glob(kind), key=lambda found: found.stat().st_size)
    flip(file, 0.4)
    try:
        broker = Broker(folder, limits=QUICK)
        await broker.start()
    except FolderUnreadable as error:
        assert re.search(rf"{folder} .*put it back from a copy", str(error)), error  # noqa: PT017 - one of two ways
        return
    async with Clients(broker.address) as clients:
        left, code = await _read_to_the_damage(await clients.wire())
    await broker.stop()
    # A batch is checked by its own sum, what leads to it by RocksDB's.
    wanted = ErrorCode.corrupt_message if kind == "*.blob" else ErrorCode.kafka_storage_error
    if kind == "*.blob" and left == written:
        return  # what was hit leads to no batch
    assert code is wanted, (kind, len(left))
    assert left == written[: len(left)]
    assert kind == "*.blob" or "is damaged" in caplog.text


async def test_a_folder_whose_damage_shows_while_it_is_loaded_is_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Broker(tmp_path, limits=QUICK):
        pass
    with monkeypatch.context() as patched:
        patched.setattr(node, "Topics", Damaged.iter)
        with pytest.raises(Exception, match="block checksum mismatch") as told:
            await Broker(tmp_path, limits=QUICK).start()
    async with Broker(tmp_path, limits=QUICK):
        pass
    assert told.tb, "whoever holds the error holds no folder"


class Damaged:
    """RocksDB where whoever goes through keys comes to damage."""

    def __init__(self, db: Any) -> None:
        self._db = db

    def __getattr__(self, name: str) -> Any:
        return getattr(self._db, name)

    def iter(self, *_: Any) -> Any:
        raise Exception("Corruption: block checksum mismatch")  # as RocksDB's bindings do


async def test_look_ups_and_deletions_that_come_to_damage_are_refused_and_the_connection_lives(tmp_path: Path) -> None:
    async with Broker(tmp_path, limits=QUICK) as broker, Clients(broker.address) as clients:
        await clients.topic("t")
        wire = await clients.wire()
        for _ in range(3):
            assert (await produce(wire, b"v")).error_code is ErrorCode.none
        store = broker._running.store
        store._db = Damaged(store._db)  # type: ignore[assignment]  # in its place
        timed = [{"name": "t", "partitions": [{"partition_index": 0, "timestamp": 1}]}]
        [found] = (await wire.ask(LIST_OFFSETS, 7, replica_id=-1, topics=timed)).topics[0].partitions
        assert (found.error_code, found.offset) == (ErrorCode.kafka_storage_error, -1)
        cut = [{"name": "t", "partitions": [{"partition_index": 0, "offset": 2}]}]
        [told] = (await wire.ask(DELETE_RECORDS, 2, topics=cut)).topics[0].partitions
        assert (told.error_code, told.low_watermark) == (ErrorCode.kafka_storage_error, -1)


async def _read_to_the_damage(wire: Wire) -> tuple[list[bytes], ErrorCode]:
    from aiokafka.record import MemoryRecords

    found: list[bytes] = []
    while len(found) < 60:
        part = only(await wire.ask(FETCH, 11, **fetch_fields("t", len(found), partition_max=3_000)))
        if part.error_code is not ErrorCode.none or not part.records:
            return found, part.error_code
        records = MemoryRecords(part.records)
        while (one := records.next_batch()) is not None:
            found += [record.value for record in one]
    return found, ErrorCode.none


# A full disk.


@contextlib.asynccontextmanager
async def process(folder: Path, *more: str) -> AsyncIterator[tuple[int, Clients, Path]]:
    command = [sys.executable, "-m", "headrace.streams.broker", "--data", str(folder), "--port", "0", *more]
    said = folder.with_name("said")
    with said.open("wb") as stderr:
        running = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, stderr=stderr)
    try:
        assert running.stdout is not None
        line = (await running.stdout.readline()).decode()
        async with Clients(line.rsplit(" at ", 1)[1].strip()) as clients:
            yield running.pid, clients, said
    finally:
        with contextlib.suppress(ProcessLookupError):
            running.kill()
        await running.wait()


def limit_files(pid: int, size: int) -> None:
    """The kernel refuses writes beyond this, as it does on a full disk (with another word)."""
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


@pytest.mark.parametrize("options", [[], ["--fsync"]])
async def test_on_a_full_disk_nothing_is_acknowledged_and_with_room_it_goes_on(
    tmp_path: Path, options: list[str]
) -> None:
    async with process(tmp_path / "data", *options) as (pid, clients, said):
        await clients.topic("t")
        wire = await clients.wire()
        producer = await clients.producer(enable_idempotence=True, retry_backoff_ms=100)
        limit_files(pid, 1 << 20)
        told: list[bytes] = []
        refusal = None
        while refusal is None and len(told) < 100:
            value = b"%d " % len(told) + bytes(100_000)
            partition = await produce(wire, value)
            if partition.error_code is ErrorCode.none:
                told.append(value)
            else:
                refusal = partition
        assert refusal is not None
        assert refusal.error_code is ErrorCode.kafka_storage_error
        assert "Nothing is acknowledged any more" in (refusal.error_message or "")
        assert await values(clients) == told, "what was acknowledged is served all the while"
        waiting = asyncio.create_task(producer.send_and_wait("t", b"waits"))
        await asyncio.sleep(1.5)
        assert not waiting.done()
        limit_files(pid, resource.RLIM_INFINITY)
        async with asyncio.timeout(20):
            await waiting
        found = await values(clients)
        # What was refused may be there: its client was told to try again, and was not told that it is lost.
        refused = [b"%d " % len(told) + bytes(100_000)]
        assert found in ([*told, b"waits"], told + refused + [b"waits"])
        assert "cannot be written" in said.read_text()
        assert "the broker goes on" in said.read_text()
        assert "Traceback" not in said.read_text()


async def test_a_disk_that_is_really_full_is_told_as_such(tmp_path: Path) -> None:
    """A file system of 24 MB in a name space of its own, where the kernel lets one be made."""
    probe = (
        await asyncio.create_subprocess_exec(
            "unshare",
            "-rm",
            "sh",
            "-c",
            f"mount -t tmpfs -o size=24m tmpfs {tmp_path}",
            stderr=asyncio.subprocess.DEVNULL,
        )
        if shutil.which("unshare")
        else None
    )
    if probe is None or await probe.wait():
        pytest.skip("no file system can be mounted here")
    folder, said = tmp_path / "small", tmp_path / "said"
    folder.mkdir()
    start = f"mount -t tmpfs -o size=24m tmpfs {folder} && exec {sys.executable} -m headrace.streams.broker"
    with said.open("wb") as stderr:
        running = await asyncio.create_subprocess_exec(
            *("unshare", "-rm", "sh", "-c", f"{start} --data {folder}/data --port 0"),
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
        )
    inside = Path(f"/proc/{running.pid}/root{folder}")
    try:
        assert running.stdout is not None
        line = (await running.stdout.readline()).decode()
        async with Clients(line.rsplit(" at ", 1)[1].strip()) as clients:
            await clients.topic("t")
            wire = await clients.wire()
            assert (await produce(wire, b"before")).error_code is ErrorCode.none
            ballast = inside / "ballast"
            with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
                while file.write(bytes(64 * 1024)) == 64 * 1024:
                    pass
            refused = await produce(wire, bytes(500_000))
            assert refused.error_code is ErrorCode.kafka_storage_error
            assert f"the disk of {folder}/data is full: free some of it" in (refused.error_message or "")
            ballast.unlink()
            producer = await clients.producer(enable_idempotence=True, retry_backoff_ms=100)
            async with asyncio.timeout(20):
                await producer.send_and_wait("t", b"after")
            found = await values(clients)
            assert (found[0], found[-1]) == (b"before", b"after")
    finally:
        running.kill()
        await running.wait()
