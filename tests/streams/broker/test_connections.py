"""What a connection may do to the broker: nothing but its own work."""

import asyncio
import struct
from dataclasses import replace
from pathlib import Path

import pytest
from headrace.streams.broker import AddressRefused, Broker, FolderInUse, FolderUnreadable
from prometheus_client import generate_latest

from tests.streams.broker.clients import (
    FETCH,
    PRODUCE,
    QUICK,
    Clients,
    batch,
    fetch_fields,
    only,
    produce_fields,
)

METADATA = 3
MALFORMED = [
    b"",
    struct.pack(">i", -5),
    struct.pack(">i", 2**31 - 1),
    struct.pack(">i", 3) + b"abc",
    struct.pack(">ihhih", 10, 999, 0, 1, -1),
    struct.pack(">ihhih", 10, 0, 99, 1, -1),
    struct.pack(">ihhih", 10, 1, 11, 1, -1),
    struct.pack(">ihhihi", 14, 3, 1, 1, -1, 2**31 - 1),
    struct.pack(">ihhih", 10, 3, 0, 1, 30_000),
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
]


@pytest.mark.parametrize("frame", MALFORMED[1:])
async def test_a_malformed_frame_closes_its_connection_and_no_other(clients: Clients, frame: bytes) -> None:
    bystander = await clients.wire()
    wire = await clients.wire()
    wire.writer.write(frame)
    assert await wire.closed()
    assert (await bystander.ask(METADATA, 5, topics=())).brokers


async def test_half_a_frame_holds_up_nobody(clients: Clients) -> None:
    wire = await clients.wire()
    wire.writer.write(struct.pack(">i", 1000) + b"half")
    assert (await (await clients.wire()).ask(METADATA, 5, topics=())).brokers


async def test_requests_of_one_connection_are_answered_in_order(clients: Clients) -> None:
    await clients.topic("t")
    wire = await clients.wire()
    first = wire.send(FETCH, 11, **fetch_fields("t", wait_ms=200))
    second = wire.send(PRODUCE, 9, **produce_fields("t", batch(b"v")))
    third = wire.send(METADATA, 5, topics=())
    assert not only(await wire.receive(FETCH, 11, first)).records
    assert (await wire.receive(PRODUCE, 9, second)).responses
    assert (await wire.receive(METADATA, 5, third)).brokers


async def test_a_client_that_does_not_read_is_not_answered_without_bound(local: Clients, broker: Broker) -> None:
    await local.topic("t")
    wire = await local.wire()
    for _ in range(8):
        await wire.ask(PRODUCE, 9, **produce_fields("t", batch(b"x" * 900_000)))
    wire.writer.transport.pause_reading()  # type: ignore[attr-defined]
    before = broker.metrics.sent._value.get()
    for _ in range(200):
        wire.send(FETCH, 11, **fetch_fields("t"))
    await asyncio.sleep(0.5)
    # What the sockets' buffers and the bound hold, and not 200 answers.
    assert broker.metrics.sent._value.get() - before < 20_000_000


async def test_a_refused_batch_without_acknowledgement_closes_its_connection(clients: Clients) -> None:
    await clients.topic("t")
    wire = await clients.wire()
    wire.send(PRODUCE, 9, **produce_fields("t", b"no batch", acks=0))
    assert await wire.closed()


async def test_connections_requests_and_bytes_are_counted(local: Clients, broker: Broker) -> None:
    await local.topic("t", 3)
    wire = await local.wire()
    await wire.ask(PRODUCE, 9, **produce_fields("t", batch(b"v")))
    told = generate_latest(broker.metrics.registry).decode()
    assert 'headrace_broker_requests_total{api="Produce"} 1.0' in told
    assert "headrace_broker_partitions 3.0" in told
    assert "headrace_broker_open_transactions 0.0" in told
    assert "headrace_broker_connections " in told


async def test_connections_above_the_bound_are_closed(tmp_path: Path) -> None:
    async with (
        Broker(tmp_path, limits=replace(QUICK, connections=2)) as broker,
        Clients(broker.address) as clients,
    ):
        wires = [await clients.wire() for _ in range(2)]
        for wire in wires:
            await wire.ask(METADATA, 5, topics=())
        assert await (await clients.wire()).closed()
        assert (await wires[0].ask(METADATA, 5, topics=())).brokers


async def test_a_second_broker_on_a_folder_is_refused(tmp_path: Path, broker: Broker) -> None:
    with pytest.raises(FolderInUse, match="Another broker holds the folder"):
        await Broker(tmp_path / "broker").start()
    assert broker.address


async def test_a_folder_that_is_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(FolderUnreadable):
        await Broker(tmp_path / "file").start()


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::"])
async def test_only_loopback_addresses_are_served(tmp_path: Path, host: str) -> None:
    with pytest.raises(AddressRefused, match="listens on this machine alone"):
        await Broker(tmp_path, host).start()


async def test_a_port_that_is_taken_is_an_error(tmp_path: Path, broker: Broker) -> None:
    port = int(broker.address.rsplit(":", 1)[1])
    with pytest.raises(AddressRefused, match="cannot listen"):
        await Broker(tmp_path / "other", port=port).start()


async def test_a_stopped_broker_leaves_its_folder_to_the_next(tmp_path: Path) -> None:
    for _ in range(2):
        async with Broker(tmp_path) as broker, Clients(broker.address) as clients:
            waiting = asyncio.create_task((await clients.wire()).reader.read(1))
            await asyncio.sleep(0.05)
        assert await waiting == b""
