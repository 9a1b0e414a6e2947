"""Every bound of a connection, and that others go on when one reaches it."""

import asyncio
import datetime
import gc
import os
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from headrace.streams.broker import AddressRefused, Broker, Limits, UsersUnreadable, users
from headrace.streams.broker.flight import Flight
from headrace.streams.broker.log import StoredBatch
from headrace.streams.broker.writers import Records
from kio.schema.errors import ErrorCode
from prometheus_client import generate_latest

from tests.secured import PASSWORD, USER, Certificates, certificates
from tests.streams.broker.clients import FETCH, PRODUCE, QUICK, Clients, Wire, batch, fetch_fields, only, produce_fields

METADATA, INIT_PRODUCER, ADD_PARTITIONS = 3, 22, 24
_SECONDS = datetime.timedelta(seconds=30)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return certificates(tmp_path_factory.mktemp("certificates"))


@asynccontextmanager
async def bounded(folder: Path, **limits: Any) -> AsyncIterator[tuple[Broker, Clients]]:
    async with Broker(folder, limits=replace(QUICK, **limits)) as broker, Clients(broker.address) as clients:
        yield broker, clients


def metric(broker: Broker, name: str) -> float:
    lines = generate_latest(broker.metrics.registry).decode().splitlines()
    return float(next(line for line in lines if line.startswith(f"headrace_broker_{name} ")).split()[1])


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def serves(clients: Clients) -> bool:
    return bool((await (await clients.wire()).ask(METADATA, 5, topics=())).brokers)


async def test_requests_without_records_have_a_smaller_bound(tmp_path: Path) -> None:
    async with bounded(tmp_path, request_bytes=10_000) as (broker, clients):
        await clients.topic("t")
        wire = await clients.wire()
        answer = await wire.ask(PRODUCE, 9, **produce_fields("t", batch(bytes(50_000))))
        assert answer.responses[0].partition_responses[0].error_code is ErrorCode.none
        wire.send(METADATA, 5, topics=[{"name": "x" * 100} for _ in range(200)])
        assert await wire.closed()
        assert metric(broker, "malformed_frames_total") == 1
        assert await serves(clients)


@pytest.mark.parametrize("version", [3, 8, 9, 11])
async def test_a_produce_request_of_countless_entries_is_closed_before_it_is_read(tmp_path: Path, version: int) -> None:
    async with bounded(tmp_path, request_bytes=1 << 19) as (_, clients):
        wire = await clients.wire()
        data = [{"index": n, "records": b""} for n in range(51_000)]
        wire.send(PRODUCE, version, acks=1, topic_data=[{"name": "t", "partition_data": data}])
        assert await wire.closed()
        few = [{"index": n, "records": batch(b"v")} for n in range(100)]
        answer = await (await clients.wire()).ask(
            PRODUCE, version, acks=1, topic_data=[{"name": "t", "partition_data": few}]
        )
        assert len(answer.responses[0].partition_responses) == 100
        assert await serves(clients)


async def test_a_frame_that_never_ends_is_closed(tmp_path: Path) -> None:
    async with bounded(tmp_path, frame_ms=200) as (broker, clients):
        wire = await clients.wire()
        wire.writer.write(struct.pack(">i", 1_000) + b"half")
        assert await wire.closed()
        assert metric(broker, "malformed_frames_total") == 1
        assert metric(broker, "inflight_bytes") == 0


async def test_a_client_that_reads_no_more_is_closed_and_its_answer_freed(tmp_path: Path) -> None:
    async with bounded(tmp_path, answer_ms=300, unsent_bytes=1_000) as (broker, clients):
        await clients.topic("t")
        wire, slow = await clients.wire(), await clients.wire()
        for _ in range(20):
            await wire.ask(PRODUCE, 9, **produce_fields("t", batch(bytes(900_000))))
        asked = fetch_fields("t", partition_max=1 << 25)
        for reader in (wire, slow):
            reader.writer.transport.pause_reading()  # type: ignore[attr-defined]
            reader.send(FETCH, 11, **asked)
        await asyncio.sleep(0.1)
        assert metric(broker, "inflight_bytes") > 30_000_000
        assert await serves(clients)
        sockets = descriptors()
        slow.writer.transport.resume_reading()  # type: ignore[attr-defined]
        (length,) = struct.unpack(">i", await slow.reader.readexactly(4))
        for _ in range(4):  # its answer takes longer than one piece may
            length -= len(await slow.reader.readexactly(length // 2))
            await asyncio.sleep(0.15)
        assert len(await slow.reader.readexactly(length)) == length
        await asyncio.sleep(0.1)
        assert metric(broker, "inflight_bytes") == 0
        assert descriptors() == sockets - 1
        wire.writer.transport.resume_reading()  # type: ignore[attr-defined]
        assert len(await wire.reader.read(-1)) < 15_000_000


async def test_requests_wait_for_room_and_small_ones_do_not(tmp_path: Path) -> None:
    async with bounded(tmp_path, inflight_bytes=1 << 20, frame_ms=1_000) as (broker, clients):
        await clients.topic("t")
        hog, other = await clients.wire(), await clients.wire()
        hog.writer.write(struct.pack(">ih", 900_000, PRODUCE))  # claimed, and never sent
        await asyncio.sleep(0.1)
        waiting = asyncio.create_task(other.ask(PRODUCE, 9, **produce_fields("t", batch(bytes(300_000)))))
        assert await serves(clients)
        await asyncio.sleep(0.1)
        assert not waiting.done()
        assert metric(broker, "inflight_bytes") >= 900_000
        assert await hog.closed()
        answer = (await waiting).responses[0].partition_responses[0]
        assert answer.error_code is ErrorCode.none
        assert metric(broker, "inflight_waits") == 1
        assert metric(broker, "inflight_bytes") == 0


async def test_answers_shrink_to_the_room_there_is(tmp_path: Path) -> None:
    async with bounded(tmp_path, inflight_bytes=400_000) as (_, clients):
        await clients.topic("t")
        wire = await clients.wire()
        for _ in range(8):
            await wire.ask(PRODUCE, 9, **produce_fields("t", batch(bytes(100_000))))
        records = only(await wire.ask(FETCH, 11, **fetch_fields("t", max_bytes=1 << 20))).records
        assert 100_000 < len(records) < 400_000


async def test_a_fetch_that_waits_holds_no_answer_neither_its_own_nor_the_one_before(tmp_path: Path) -> None:
    def held() -> list[type]:
        return [type(found) for found in gc.get_objects() if isinstance(found, Records | StoredBatch)]

    async with bounded(tmp_path) as (_, clients):
        await clients.topic("t")
        wire = await clients.wire()
        for _ in range(3):
            await wire.ask(PRODUCE, 9, **produce_fields("t", batch(bytes(100_000))))
        for min_bytes, wait_ms, count in ((1, 5_000, 3), (1_000_000, 300, 3), (400_000, 5_000, 4)):
            asked = fetch_fields("t", wait_ms=wait_ms, min_bytes=min_bytes)
            waiting = asyncio.create_task(wire.ask(FETCH, 11, **asked))
            await asyncio.sleep(0.1)
            assert held() == []
            if count == 4:
                await (await clients.wire()).ask(PRODUCE, 9, **produce_fields("t", batch(bytes(100_000))))
            assert len(only(await waiting).records) == count * len(batch(bytes(100_000)))


async def test_whoever_waits_for_room_and_leaves_gives_up_its_place() -> None:
    flight = Flight(1_000_000)
    await flight.enter(900_000)
    waiting = [asyncio.create_task(flight.enter(500_000)) for _ in range(2)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    await asyncio.sleep(0)
    flight.leave(900_000)
    await waiting[1]
    assert flight.held == 500_000
    flight.leave(500_000)
    assert flight.room == flight.limit


def test_the_largest_frame_has_room() -> None:
    assert Limits().inflight_bytes > Limits().frame_bytes


async def test_open_transactions_have_a_bound_and_one_that_ends_makes_room(tmp_path: Path) -> None:
    async with bounded(tmp_path, open_transactions=2) as (broker, clients):
        await clients.topic("t")
        producers = [await clients.producer(transactional_id=f"x{n}") for n in range(2)]
        for producer in producers:
            await producer.begin_transaction()
            await producer.send_and_wait("t", b"v")
        assert metric(broker, "open_transactions") == 2
        wire = await clients.wire()
        begun = await wire.ask(INIT_PRODUCER, 4, transactional_id="y", transaction_timeout=_SECONDS)
        fields = {
            "v3_and_below_transactional_id": "y",
            "v3_and_below_producer_id": begun.producer_id,
            "v3_and_below_producer_epoch": begun.producer_epoch,
            "v3_and_below_topics": [{"name": "t", "partitions": (0,)}],
        }
        assert await _added(wire, fields) is ErrorCode.concurrent_transactions
        await producers[0].commit_transaction()
        assert await _added(wire, fields) is ErrorCode.none
        await producers[1].abort_transaction()


async def _added(wire: Wire, fields: dict[str, Any]) -> ErrorCode:
    answer = await wire.ask(ADD_PARTITIONS, 3, **fields)
    code: ErrorCode = answer.results_by_topic_v3_and_below[0].results_by_partition[0].partition_error_code
    return code


# Strangers.


@asynccontextmanager
async def asking(folder: Path, **limits: Any) -> AsyncIterator[tuple[Broker, Clients]]:
    users.set_password(folder / "users.json", USER, PASSWORD)
    broker = Broker(folder / "data", limits=replace(QUICK, **limits), users=folder / "users.json")
    async with broker, Clients(broker.address) as clients:
        yield broker, clients


async def test_strangers_have_a_bound_of_their_own_and_users_come_in_when_they_leave(tmp_path: Path) -> None:
    async with asking(tmp_path, unauthenticated_connections=3, authentication_ms=400) as (broker, clients):
        strangers = [await clients.wire() for _ in range(3)]
        await asyncio.sleep(0.05)
        assert await (await clients.wire()).closed()
        assert metric(broker, "connections_refused_total") == 1
        assert metric(broker, "unauthenticated_connections") == 3
        for stranger in strangers:
            assert await stranger.closed()
        assert metric(broker, "unauthenticated_total") == 3
        login = {"security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "SCRAM-SHA-256"}
        admin = await clients.admin(**login, sasl_plain_username=USER, sasl_plain_password=PASSWORD)
        assert await admin.list_topics() == []
        await asyncio.sleep(0.6)  # whose it is stays known
        assert await admin.list_topics() == []


@pytest.mark.parametrize(
    "frame",
    [
        struct.pack(">i", 70_000),
        struct.pack(">i", -1),
        struct.pack(">ihhih", 10, METADATA, 5, 1, -1),
        struct.pack(">ihhih", 10, PRODUCE, 9, 1, -1),
        struct.pack(">ihhih", 10, 36, 2, 1, -1),
        struct.pack(">ihhih", 10, 17, 9, 1, -1),
        struct.pack(">ihhihh", 12, 17, 1, 1, -1, 500),
    ],
)
async def test_a_stranger_gets_nothing_but_versions_and_the_handshake(tmp_path: Path, frame: bytes) -> None:
    async with asking(tmp_path) as (_, clients):
        wire = await clients.wire()
        wire.writer.write(frame)
        assert await wire.closed()


async def test_versions_are_told_once_before_the_handshake_and_a_client_of_the_future_may_ask_again(
    tmp_path: Path,
) -> None:
    async with asking(tmp_path) as (_, clients):
        wire = await clients.wire()
        wire.writer.write(struct.pack(">ihhih", 10, 18, 99, 5, -1))
        assert (await wire.receive(18, 0, 5)).error_code is ErrorCode.unsupported_version
        assert {api.api_key for api in (await wire.ask(18, 3)).api_keys} >= {17, 36, PRODUCE}
        wire.send(18, 3)
        assert await wire.closed()


@pytest.mark.parametrize(
    "token",
    [b"", b"\0\0", b"\xff\0a\0b", b"other\0ann\0" + PASSWORD.encode(), b"\0" * 40, b"\0ann\0" + b"x" * 60_000],
)
async def test_a_token_that_is_none_is_answered_as_a_wrong_password_is(tmp_path: Path, token: bytes) -> None:
    async with asking(tmp_path) as (_, clients):
        for mechanism in ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"):
            wire = await clients.wire()
            assert (await wire.ask(17, 1, mechanism=mechanism)).error_code is ErrorCode.none
            answer = await wire.ask(36, 2, auth_bytes=token)
            assert answer.error_code is ErrorCode.sasl_authentication_failed
            assert answer.error_message == "Authentication failed: wrong user name or password."
            assert await wire.closed()


async def test_the_old_handshake_carries_bare_tokens(tmp_path: Path) -> None:
    async with asking(tmp_path) as (_, clients):
        wire = await clients.wire()
        assert (await wire.ask(17, 0, mechanism="PLAIN")).error_code is ErrorCode.none
        token = f"\0{USER}\0{PASSWORD}".encode()
        wire.writer.write(struct.pack(">i", len(token)) + token)
        assert await wire.reader.readexactly(4) == bytes(4)
        assert (await wire.ask(METADATA, 5, topics=())).brokers


async def test_a_user_taken_from_the_file_is_refused_at_the_next_connection(tmp_path: Path) -> None:
    async with asking(tmp_path) as (_, clients):
        users.set_password(tmp_path / "users.json", "bob", "other")
        users.remove(tmp_path / "users.json", USER)
        for name, password, code in (
            (USER, PASSWORD, ErrorCode.sasl_authentication_failed),
            ("bob", "other", ErrorCode.none),
        ):
            wire = await clients.wire()
            await wire.ask(17, 1, mechanism="PLAIN")
            assert (await wire.ask(36, 2, auth_bytes=f"\0{name}\0{password}".encode())).error_code is code


# Where it listens.


@pytest.mark.parametrize(
    ("tls", "asks", "missing"),
    [(False, False, "--tls-cert and --tls-key and --users"), (True, False, "--users"), (False, True, "--tls-cert")],
)
async def test_beyond_loopback_it_wants_tls_and_users(
    tmp_path: Path, files: Certificates, tls: bool, asks: bool, missing: str
) -> None:
    users.set_password(tmp_path / "users.json", USER, PASSWORD)
    pair = (files.cert, files.key) if tls else None
    who = tmp_path / "users.json" if asks else None
    with pytest.raises(AddressRefused, match=f"listens on this machine alone.*{missing}"):
        await Broker(tmp_path / "data", "0.0.0.0", tls=pair, users=who).start()


async def test_with_both_it_listens_everywhere_and_tells_clients_its_name(tmp_path: Path, files: Certificates) -> None:
    users.set_password(tmp_path / "users.json", USER, PASSWORD)
    asked = {"tls": (files.cert, files.key), "users": tmp_path / "users.json"}
    with pytest.raises(AddressRefused, match="say by what host they can, --advertise"):
        await Broker(tmp_path / "data", "0.0.0.0", **asked).start()  # type: ignore[arg-type]
    broker = Broker(tmp_path / "data", "0.0.0.0", advertise="localhost", **asked)  # type: ignore[arg-type]
    async with broker:
        assert broker.address.startswith("localhost:")


async def test_files_that_are_no_certificate_or_no_users_are_told(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("wrong")
    with pytest.raises(AddressRefused, match="no certificate and its key"):
        await Broker(tmp_path / "data", tls=(wrong, wrong)).start()
    with pytest.raises(UsersUnreadable, match="no file of users"):
        await Broker(tmp_path / "data", users=wrong).start()
    with pytest.raises(UsersUnreadable, match="cannot be read"):
        await Broker(tmp_path / "data", users=tmp_path / "none").start()


def test_the_file_of_users_holds_no_password_and_is_its_owners(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "users.json"
    monkeypatch.setenv("HEADRACE_PASSWORD", PASSWORD)
    assert users.main([str(file), USER]) == 0
    assert PASSWORD not in file.read_text() + capsys.readouterr().out
    assert file.stat().st_mode & 0o777 == 0o600
    assert users.main([str(file), "nobody", "--remove"]) == 1
    assert f"has no user 'nobody'; it has {USER}" in capsys.readouterr().err
    assert users.main([str(file), USER, "--remove"]) == 0
