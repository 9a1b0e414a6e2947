"""The live page over the whole stack of examples/returns, seen in Chromium."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import httpx
import msgspec
import pytest
from headrace.streams.publisher import Row
from headrace.streams.workers import TOPIC, WORKERS, TaskStatus, WorkerStatus
from playwright.sync_api import Locator, Page, expect

from headrace.program import load
from tests.browser.conftest import DESK, PHONE, Shop, Visit
from tests.scene import ROOT, eventually, free_port

pytestmark = [pytest.mark.stack, pytest.mark.timeout(300)]

PIPELINE = ROOT / "examples" / "returns" / "pipeline.py"
TOKEN = "sixteen-or-more-characters"


def section(page: Page, heading: str) -> Locator:
    return page.get_by_role("region", name=heading)


def figure(page: Page, name: str) -> str:
    """What is written in a node of the graph."""
    node = section(page, "pipeline").locator("g").filter(has=page.locator("title", has_text=re.compile(f"^{name}$")))
    return " ".join(node.locator("text").all_text_contents())


def test_the_pipeline_is_a_graph_of_topics_and_processors_with_rates_and_lag(live: Page, shop: Shop) -> None:
    app = load(PIPELINE)
    names = [t.name for t in app.topics() if t.kind not in ("changelog", "late", "rejected")]
    drawn = section(live, "pipeline").locator("g.topic title, g.processor title").all_text_contents()
    assert sorted(drawn) == sorted([*names, *(p.name for p in app.processors())])
    eventually(lambda: f"{shop.orders:,}" in figure(live, "orders") and "rejected" in figure(live, "orders"))
    assert re.search(r"[\d.]+/s · ~?[\d.,k]+$", figure(live, "predictions.returns"))
    assert re.search(r"/s · lag [\d,.k]+$", figure(live, "learn.returns"))
    assert section(live, "pipeline").locator("path.edge").count() > len(names)


def test_a_prediction_is_seen_as_it_comes(live: Page, shop: Shop) -> None:
    first = section(live, "predictions").get_by_role("row").nth(1)
    expect(first).to_contain_text("embedded")
    shop.order("77001")
    expect(first).to_contain_text("77001")
    expect(first).to_contain_text("2010-04-01 09:30")
    assert re.search(r"0\.\d{4}returns@\d+", first.text_content() or "")


def test_quality_is_drawn_over_time_beside_its_baselines(live: Page) -> None:
    quality = section(live, "quality")
    for name in ("model", "base", "customer", "item"):
        expect(quality.locator("svg text", has_text=re.compile(f"^{name}$"))).to_be_visible()
    expect(quality).to_contain_text(re.compile(r"returns0\.\d{4}.*base 0\.\d{4}.*[\d,]+ outcomes"))
    quality.get_by_role("button", name="ROC AUC").click()
    expect(quality.get_by_role("button", name="ROC AUC")).to_have_attribute("aria-pressed", "true")
    # Of a constant rate no order follows: the base rate's AUC is one half.
    expect(quality).to_contain_text(re.compile(r"base 0\.[45]\d{3}"))


def test_drift_alarms_are_listed_as_they_come(live: Page, shop: Shop) -> None:
    alarm = {"model": "returns", "at": "2010-03-01T12:00:00Z", "detector": "KSWIN", "on": "log_loss", "value": 0.25}
    said = {**alarm, "event": "orders-0-7", "message": "KSWIN saw log_loss of returns change at 2010-03-01 12:00"}
    shop.write("drift.returns", Row(b"KSWIN(log_loss)", json.dumps(said).encode()))
    newest = section(live, "drift alarms").locator(".alarm").first
    expect(newest).to_contain_text("returns KSWIN on log_loss = 0.25")
    expect(newest).to_contain_text("2010-03-01 12:00")


def test_what_is_rejected_is_seen_with_its_reason(live: Page, shop: Shop) -> None:
    refused = section(live, "late and rejected")
    expect(refused.get_by_text("the key field customer is empty").first).to_be_visible()
    shop.write("orders", Row(b"7", b'{"invoice": "1", "customer": "7", "quantity": "<b>many</b>"}'))
    expect(refused.locator(".refusal").first).to_contain_text(re.compile(r"orders rejected.*Expected `int`, got `str`"))


def told(number: int, partitions: Sequence[TaskStatus], ago: float = 0.0) -> Row:
    """What a worker would tell of itself."""
    at = int((time.time() - ago) * 1000)
    status = WorkerStatus(
        worker=f"w{number}", app="returns", host="elsewhere", pid=number, started=number, time=at, state="running",
        generation=1_000_000, tasks=tuple(partitions),
    )  # fmt: skip
    return Row(status.worker.encode(), msgspec.json.encode(status))


def test_workers_are_seen_with_their_tasks_and_how_far_a_restore_is(live: Page, shop: Shop) -> None:
    """Another worker tells that it has taken a task over: a later generation is believed."""
    workers = section(live, "workers")
    shop.make(TOPIC)
    restoring = TaskStatus(stage="orders", partition=0, state="restoring", restored=45, to_restore=100)
    shop.write(WORKERS, told(77, [restoring]))
    expect(workers.locator(".cell.restoring")).to_contain_text("45%")
    expect(workers.locator(".chip", has_text="elsewhere:77")).to_contain_text("1 task")
    shop.write(WORKERS, told(77, [TaskStatus(stage="orders", partition=0, state="running", commits=1234)]))
    expect(workers.locator(".chip", has_text="elsewhere:77")).to_contain_text("1,234 commits")
    # It says nothing more: it is gone, and so it is told.
    expect(workers.locator(".chip.gone", has_text="elsewhere:77")).to_contain_text("silent for", timeout=30_000)


def test_markup_in_an_event_is_shown_as_text(live: Page, shop: Shop) -> None:
    shop.order("<img src=x onerror=alert(1)>")
    expect(section(live, "predictions").get_by_text("<img src=x onerror=alert(1)>").first).to_be_visible()
    assert live.locator("img").count() == 0


@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_everything_fits_the_window_and_can_be_read(live: Page, size: dict[str, int]) -> None:
    live.set_viewport_size(size)  # type: ignore[arg-type]  # a ViewportSize, as parametrize hands it on
    section(live, "quality").locator("svg text", has_text="model").wait_for()
    assert live.evaluate("document.documentElement.scrollWidth") <= size["width"], "nothing sticks out to the right"
    for place in live.locator("header, section, .tile").all():
        box = place.bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= size["width"]
        assert box["height"] > 30
    # Letters of less than about 8 pixels cannot be read: the graph is scrolled sideways instead.
    drawing = section(live, "pipeline").locator("svg")
    assert drawing.evaluate("e => e.getBoundingClientRect().width / e.viewBox.baseVal.width") * 11.5 > 8
    if size is DESK:
        assert live.evaluate("document.documentElement.scrollHeight") <= size["height"], "one look shows all"


def test_the_page_is_used_by_keyboard_and_read_by_landmarks(live: Page) -> None:
    assert live.title() == "returns · Headrace"
    assert live.locator("html").get_attribute("lang")
    expect(live.get_by_role("banner").get_by_role("heading", level=1)).to_have_text("returns")
    names = [s.get_attribute("aria-label") for s in live.get_by_role("main").get_by_role("region").all()]
    assert names == ["figures", "pipeline", "workers", "quality", "predictions", "drift alarms", "late and rejected"]
    expect(live.get_by_role("banner").get_by_role("status")).to_have_text("live")
    reached = []
    for _ in range(14):
        live.keyboard.press("Tab")
        reached.append(
            live.evaluate("document.activeElement.getAttribute('aria-label') || document.activeElement.textContent")
        )
    for wanted in ("topics", "metrics", "light or dark", "log loss", "ROC AUC"):
        assert wanted in reached
    live.get_by_role("button", name="ROC AUC").focus()
    live.keyboard.press("Enter")
    expect(live.get_by_role("button", name="ROC AUC")).to_have_attribute("aria-pressed", "true")
    live.get_by_role("button", name="light or dark").focus()
    live.keyboard.press("Space")
    expect(live.locator("body")).to_have_class(re.compile("body--dark"))


def test_a_log_that_does_not_answer_is_told_until_it_answers_again(live: Page, shop: Shop) -> None:
    broker = shop.now().processes["broker"]
    os.kill(broker, signal.SIGSTOP)
    try:
        expect(live.get_by_role("status")).to_contain_text("does not answer", timeout=40_000)
    finally:
        os.kill(broker, signal.SIGCONT)
    expect(live.get_by_role("status")).to_have_text("live", timeout=60_000)


@pytest.mark.parametrize("name", ["broker", "worker", "gateway"])
def test_the_page_goes_on_by_itself_after_a_kill(live: Page, visit: Visit, shop: Shop, name: str) -> None:
    shop.kill(name)
    eventually(shop.healthy, 60)
    customer = {"broker": "77101", "worker": "77102", "gateway": "77103"}[name]
    shop.order(customer)
    expect(section(live, "predictions").get_by_text(customer).first).to_be_visible(timeout=60_000)
    expect(live.get_by_role("status")).to_have_text("live", timeout=60_000)
    # A browser complains of every connection that is refused, and the gateway was gone for a while.
    visit.complaints[:] = [c for c in visit.complaints if name != "gateway" or "ERR_CONNECTION_REFUSED" not in c]


@contextmanager
def guarded(shop: Shop) -> Iterator[str]:
    """Another gateway to the same log, which wants a token."""
    port = free_port()
    command = [sys.executable, "-m", "headrace.gateway", str(PIPELINE), "--broker", str(shop.broker)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HEADRACE_TOKEN": TOKEN}
    with (shop.folder / "guarded.log").open("wb") as log:
        process = subprocess.Popen([*command, "--port", str(port)], cwd=ROOT, env=environment, stdout=log, stderr=log)
    try:
        url = f"http://127.0.0.1:{port}"

        def answers() -> bool:
            try:
                return httpx.get(f"{url}/health", trust_env=False).status_code == 200
            except httpx.HTTPError:
                return False

        eventually(answers, 60)
        yield url
    finally:
        process.terminate()
        process.wait(20)


def test_a_gateway_with_a_token_shows_its_page_to_who_brings_it(visit: Visit, shop: Shop) -> None:
    with guarded(shop) as url:
        with visit.page.expect_console_message(lambda message: "401" in message.text):
            refused = visit.page.goto(url)
        assert refused is not None
        assert refused.status == 401
        assert "open /?token=<token>" in visit.page.inner_text("body")
        visit.complaints.clear()  # Chromium's, of the 401
        visit.page.goto(f"{url}/?token={TOKEN}")
        expect(visit.page.get_by_role("status")).to_have_text("live")
        assert visit.page.url == f"{url}/", "the token does not stay in the address"
        shop.order("77201")
        expect(section(visit.page, "predictions").get_by_text("77201").first).to_be_visible()
        visit.page.goto("about:blank")
