"""Brokers and clients for each test.

A test that takes `clients` is a statement about Kafka: it runs against the local broker, and again, in `make
test-stack`, against Apache Kafka. One that takes `local` or `timed_clients` is about the local broker alone.
"""

from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from headrace.streams.broker import Broker

from tests.stack.kafka import Cluster, kafka
from tests.streams.broker.clients import QUICK, Clients, ManualClock


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Broker]:
    async with Broker(tmp_path / "broker", limits=QUICK) as running:
        yield running


@pytest.fixture(scope="session")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """An Apache Kafka of its own, for these tests delete every topic and group; as quick as QUICK."""
    quick = {
        "group.min.session.timeout.ms": "100",
        "log.retention.ms": "604800000",
        "log.initial.task.delay.ms": "100",
        "log.retention.check.interval.ms": "200",
        "log.cleaner.backoff.ms": "200",
        "transaction.abort.timed.out.transaction.cleanup.interval.ms": "100",
    }
    settings = {name.replace(".", "_"): value for name, value in quick.items()}
    with kafka(tmp_path_factory.mktemp("kafka"), 1, **settings) as cluster:
        yield cluster


@pytest.fixture(params=["local", pytest.param("kafka", marks=pytest.mark.stack)])
def either(request: pytest.FixtureRequest) -> str | None:
    """The address of Apache Kafka, or nothing for the local broker."""
    if request.param == "local":
        return None
    cluster: Cluster = request.getfixturevalue("alone")
    return cluster.bootstrap


@pytest.fixture
async def clients(either: str | None, tmp_path: Path) -> AsyncIterator[Clients]:
    """Clients of the local broker and, in a second run of the test, of Apache Kafka."""
    if either is not None:
        async with Clients(either) as made:
            await made.clear()
            yield made
        return
    async with Broker(tmp_path / "broker", limits=QUICK) as running, Clients(running.address) as made:
        yield made


@pytest.fixture
async def local(broker: Broker) -> AsyncIterator[Clients]:
    """Clients of the local broker, for what Kafka does otherwise."""
    async with Clients(broker.address) as made:
        yield made


@pytest.fixture
async def timed_broker(tmp_path: Path, clock: ManualClock) -> AsyncIterator[Broker]:
    """Its deadlines and its cleaning come only when the test says so."""
    still = replace(QUICK, deadline_check_ms=3_600_000, cleaning_interval_ms=3_600_000)
    async with Broker(tmp_path / "broker", limits=still, clock=clock) as running:
        yield running


@pytest.fixture
async def timed_clients(timed_broker: Broker) -> AsyncIterator[Clients]:
    async with Clients(timed_broker.address) as made:
        yield made
