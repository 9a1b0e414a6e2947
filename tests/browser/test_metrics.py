"""The metrics of the whole stack, as one scrape."""

from __future__ import annotations

import os
import signal

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.browser.conftest import Shop
from tests.scene import eventually

pytestmark = [pytest.mark.stack, pytest.mark.timeout(300)]


def scraped(shop: Shop) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Samples by name. Raises ValueError where a name is told twice."""
    text = httpx.get(f"{shop.gateway}/metrics", trust_env=False).raise_for_status().text
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    families = [family.name for family in text_string_to_metric_families(text)]
    assert len(families) == len(set(families)), "Prometheus refuses a page that tells a family twice"
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def parts(shop: Shop) -> dict[str, float]:
    return {labels["part"]: up for labels, up in scraped(shop)["headrace_part_up"]}


def held(shop: Shop, topic: str) -> float:
    return sum(v for labels, v in scraped(shop)["headrace_topic_records"] if labels == {"topic": topic})


def test_one_scrape_of_the_gateway_tells_of_every_part(shop: Shop) -> None:
    eventually(shop.healthy, 60)
    eventually(lambda: parts(shop) == {"broker": 1, "worker": 1})
    eventually(lambda: sum(v for t, v in scraped(shop)["headrace_task_rows"] if t["task"] == "orders") > 0)
    eventually(lambda: held(shop, "orders") >= shop.orders)
    found = scraped(shop)
    assert sum(value for _, value in found["headrace_broker_requests_total"]) > 0
    for part in ("broker", "worker", "gateway"):
        assert found[f"headrace_{part}_process_resident_memory_bytes"][0][1] > 1e6
        assert found[f"headrace_{part}_bound"]


def test_a_part_that_hangs_is_told_and_the_others_are_served(shop: Shop) -> None:
    eventually(lambda: parts(shop) == {"broker": 1, "worker": 1}, 60)
    worker = shop.now().processes["worker"]
    os.kill(worker, signal.SIGSTOP)
    try:
        assert parts(shop) == {"broker": 1, "worker": 0}
        assert "headrace_task_rows" not in scraped(shop)
    finally:
        os.kill(worker, signal.SIGCONT)
    eventually(lambda: parts(shop) == {"broker": 1, "worker": 1})
