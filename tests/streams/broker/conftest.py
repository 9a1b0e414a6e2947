"""Brokers and clients for each test.

With HEADRACE_TEST_KAFKA=host:port in the environment, tests that need nothing but `clients` run against that
Apache Kafka, whose topics and groups they delete: what they say about the local broker is true of Kafka.
"""

import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from headrace.streams.broker import Broker

from tests.streams.broker.clients import QUICK, Clients, ManualClock


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Broker]:
    async with Broker(tmp_path / "broker", limits=QUICK) as running:
        yield running


@pytest.fixture
async def clients(broker: Broker) -> AsyncIterator[Clients]:
    kafka = os.environ.get("HEADRACE_TEST_KAFKA")
    async with Clients(kafka or broker.address) as made:
        if kafka:
            await made.clear()
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
