"""Real servers for tests: the local broker as a process, the gateway in a thread; both on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaProducer
from fastapi import FastAPI
from headrace.serving import gateway as gateways
from headrace.serving.gateway import Settings
from headrace.streams.address import Address
from headrace.streams.admin import answers, ensure_topics
from headrace.streams.publisher import Publisher, Receipt, Row
from headrace.streams.topics import Topic

from tests import shop

ROOT = Path(__file__).parent.parent
_numbers = itertools.count(1)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def eventually(told: Callable[[], bool], within: float = 60.0) -> None:
    """Wait until it is so."""
    until = time.monotonic() + within
    while not told():
        assert time.monotonic() < until, f"not so within {within} s"
        time.sleep(0.05)


def accepts(address: Address) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((address.host, address.port), 1):
        return True
    return False


@contextlib.contextmanager
def broker_process(folder: Path) -> Iterator[Address]:
    with stoppable_broker(folder) as (address, _):
        yield address


@contextlib.contextmanager
def stoppable_broker(folder: Path) -> Iterator[tuple[Address, subprocess.Popen[bytes]]]:
    """A local broker and its process, which a test may stop for a while."""
    address = Address("127.0.0.1", free_port())
    command = [sys.executable, "-m", "headrace.streams.broker", "--data", str(folder), "--port", str(address.port)]
    with (folder.parent / f"{folder.name}.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT)
    try:
        eventually(lambda: process.poll() is None and accepts(address) and asyncio.run(answers(address)))
        yield address, process
    finally:
        process.terminate()
        process.wait(15)


def fresh(broker: Address, like: Topic = shop.ORDERS, partitions: int | None = None) -> Topic:
    """A new topic of the kind of another."""
    topic = replace(like, name=f"{like.name}-{next(_numbers)}", partitions=partitions or like.partitions)
    asyncio.run(ensure_topics(broker, [topic]))
    return topic


def write(broker: Address, topic: str, rows: Sequence[Row]) -> list[Receipt]:
    """Write rows as they are."""

    async def main() -> list[Receipt]:
        publisher = Publisher(broker)
        await publisher.start()
        try:
            return await publisher.send(topic, rows)
        finally:
            await publisher.close()

    return asyncio.run(main())


FAR = 2**50
"""Milliseconds: a time beyond the calendar. Any publisher may tell it as that of its record."""
DEEP = b'{"at":' + b"[" * 50_000 + b"]" * 50_000 + b"}"
"""JSON that no decoder goes through."""


def write_odd(broker: Address, topic: str, value: bytes | None = None, key: bytes = b"odd", **more: Any) -> None:
    """Write a record as only another program would: a time of its own, no value, headers. FAR, where none is given."""

    async def main() -> None:
        async with AIOKafkaProducer(bootstrap_servers=broker.bootstrap) as producer:
            await producer.send_and_wait(topic, value, key, **{"timestamp_ms": FAR, **more})

    asyncio.run(main())


def order(customer: str | None = "13085", **changes: Any) -> dict[str, Any]:  # any JSON, also wrong
    line = {"invoice": "489434", "customer": customer, "item": "85048", "quantity": 12, "price": 6.95}
    return {**line, "at": "2009-12-01T07:45:00Z", **changes}


def order_line(customer: str = "13085", invoice: str = "489434") -> shop.OrderLine:
    at = datetime(2009, 12, 1, 7, 45, tzinfo=UTC)
    return shop.OrderLine(invoice=invoice, customer=customer, item="85048", quantity=12, price=6.95, at=at)


@contextlib.contextmanager
def gateway_thread(settings: Settings, prepare: Callable[[FastAPI], None] = lambda _: None) -> Iterator[FastAPI]:
    """The gateway at http://127.0.0.1:settings.port; `app.state.stop()` begins to stop it, as SIGTERM does."""
    app = gateways.create(settings)
    prepare(app)
    server = gateways.server(app, settings)
    app.state.stop = lambda: setattr(server, "should_exit", True)
    thread = threading.Thread(target=server.run, name="gateway")
    thread.start()
    try:
        eventually(lambda: server.started)
        yield app
    finally:
        server.should_exit = True
        thread.join(15)
        assert not thread.is_alive()


def url_of(settings: Settings, path: str = "") -> str:
    return f"http://127.0.0.1:{settings.port}{path}"
