"""What the tests of this folder share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from headrace.streams.address import Address

from tests.stack.kafka import kafka


@pytest.fixture
def kafka_alone(tmp_path: Path) -> Iterator[Address]:
    """Apache Kafka for one test: the topics of a job have fixed names."""
    folder = tmp_path / "kafka"
    folder.mkdir()
    with kafka(folder) as cluster:
        yield cluster.address
