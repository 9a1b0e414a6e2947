"""What the benchmark of restarts is judged by: what is told of each order."""

from __future__ import annotations

import msgspec
import pytest
from headrace.streams.address import Address

from benchmarks.recovery import DAYS
from benchmarks.restart import ENGINES, Shop, Wrong


@pytest.fixture
def shop() -> Shop:
    """Of one customer, who has ordered twice since."""
    shop = Shop(Address("127.0.0.1", 9), ENGINES[0], 1)
    customer = {msgspec.json.decode(shop.order().value)["customer"] for _ in range(2)}
    assert customer == {"customer-0000000"}
    return shop


def told(orders: int) -> dict[str, object]:
    return {"customer": "customer-0000000", "orders": orders}


def test_each_order_counts_with_those_that_are_in_the_state(shop: Shop) -> None:
    shop.take(told(DAYS + 1))
    shop.take(told(DAYS + 2))
    assert shop.outputs == shop.published == 2


def test_a_state_that_lacks_a_row_is_seen(shop: Shop) -> None:
    with pytest.raises(Wrong, match=f"{DAYS} orders, where {DAYS + 1} are right"):
        shop.take(told(DAYS))


def test_an_order_that_is_told_twice_is_seen(shop: Shop) -> None:
    shop.take(told(DAYS + 1))
    with pytest.raises(Wrong):
        shop.take(told(DAYS + 1))


def test_more_is_told_than_was_published(shop: Shop) -> None:
    shop.take(told(DAYS + 1))
    shop.take(told(DAYS + 2))
    with pytest.raises(Wrong):
        shop.take(told(DAYS + 3))
