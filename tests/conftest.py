"""What tests of several packages share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from headrace.streams.address import Address

from tests.scene import broker_process


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    """A local broker, for the whole session: tests take topics of their own."""
    with broker_process(tmp_path_factory.mktemp("broker") / "log") as address:
        yield address
