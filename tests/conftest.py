"""What tests of several packages share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from headrace.streams.address import Address

from tests.scene import broker_process
from tests.stack.kafka import Cluster, kafka


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    """A local broker, for the whole session: tests take topics of their own."""
    with broker_process(tmp_path_factory.mktemp("broker") / "log") as address:
        yield address


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One node of Apache Kafka, for the whole session: tests take topics of their own, and leave it running."""
    with kafka(tmp_path_factory.mktemp("kafka")) as running:
        yield running


@pytest.fixture(scope="session")
def apache(cluster: Cluster) -> Address:
    """Where Apache Kafka serves."""
    return cluster.address
