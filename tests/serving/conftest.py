from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from headrace.serving.gateway import Settings
from headrace.streams.address import Address
from headrace.streams.topics import Topic

from tests import shop
from tests.scene import free_port, fresh, gateway_thread, url_of


@pytest.fixture
def orders(broker: Address) -> Topic:
    """An event topic of two partitions."""
    return fresh(broker)


@pytest.fixture
def settings(broker: Address, orders: Topic) -> Settings:
    return Settings("shop", broker, (orders, fresh(broker, shop.PREDICTIONS)), port=free_port(), stall=1.0)


@pytest.fixture
def client(settings: Settings) -> Iterator[httpx.Client]:
    """A client of a gateway that reaches its log."""
    with gateway_thread(settings) as app, httpx.Client(base_url=url_of(settings), trust_env=False) as made:
        from tests.scene import eventually

        eventually(lambda: bool(app.state.gateway.connected))
        yield made
