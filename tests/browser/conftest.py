"""The whole stack of examples/returns as users run it, and Chromium beside it."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from headrace.streams.address import Address, parse_address
from headrace.streams.admin import ensure_topics
from headrace.streams.publisher import Row
from headrace.streams.topics import Topic
from playwright.sync_api import Browser, ConsoleMessage, Page, ViewportSize, sync_playwright

from headrace import running
from headrace.running import Running
from tests.scene import ROOT, eventually, free_port, write

sys.path.insert(0, str(ROOT / "examples" / "returns"))

import retail

CHROMIUM = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
DESK = ViewportSize(width=1280, height=800)
PHONE = ViewportSize(width=390, height=844)
SHARE = 12
"""One customer in so many is published: real lines over all 120 days, so that outcomes mature, within seconds."""
CHUNK = 400


@dataclass(frozen=True, slots=True)
class Shop:
    """A stack that runs, and what was published to it."""

    folder: Path
    gateway: str
    broker: Address
    orders: int

    def now(self) -> Running:
        found = running.read(self.folder / "data" / "stack.json")
        assert found is not None
        return found

    def healthy(self) -> bool:
        try:
            return httpx.get(f"{self.gateway}/health", trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    def order(self, customer: str) -> None:
        """Publish an order line of today, which is the first of April 2010."""
        line = {"invoice": "1", "customer": customer, "item": "85048", "description": "LIGHTS", "quantity": 12}
        line |= {"price": 6.95, "country": "France", "at": "2010-04-01T09:30:00Z"}
        answer = httpx.post(f"{self.gateway}/topics/orders", json=line, trust_env=False, timeout=30)
        assert answer.status_code == 202, answer.text

    def write(self, topic: str, row: Row) -> None:
        """Write a row past the gateway. In a thread: Playwright has this one's event loop."""
        with ThreadPoolExecutor() as pool:
            pool.submit(write, self.broker, topic, [row]).result()

    def make(self, topic: Topic) -> None:
        """A topic, where it is missing."""
        with ThreadPoolExecutor() as pool:
            pool.submit(lambda: asyncio.run(ensure_topics(self.broker, [topic]))).result()

    def kill(self, name: str) -> None:
        """Kill a process of the stack; the stack starts it again."""
        before = self.now().processes[name]
        os.kill(before, signal.SIGKILL)
        eventually(lambda: self.now().processes.get(name) not in (None, before), 60)


def sample() -> list[retail.Line]:
    """Every line of some customers, in the order of time, and some of those without a customer."""

    def taken(line: retail.Line) -> bool:
        name = line.row.key or hashlib.sha256(line.row.value).digest()
        return hashlib.sha256(name).digest()[0] % (SHARE if line.row.key else 40 * SHARE) == 0

    return [line for line in retail.lines(retail.SAMPLE) if taken(line)]


def publish(broker: Address, lines: Sequence[retail.Line]) -> None:
    for at in range(0, len(lines), CHUNK):
        for topic in ("orders", "returns"):
            rows: list[Row] = [line.row for line in lines[at : at + CHUNK] if line.topic == topic]
            if rows:
                write(broker, topic, rows)


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    folder = tmp_path_factory.mktemp("returns")
    command = [sys.executable, "-m", "headrace.command", "run", str(ROOT / "examples" / "returns" / "pipeline.py")]
    ports = ["--broker-port", str(free_port()), "--gateway-port", str(free_port())]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HEADRACE_HOME": str(folder)}
    with (folder / "run.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, *ports, "--data", str(folder / "data")], cwd=ROOT, env=environment, stdout=log, stderr=log
        )
    try:
        note = folder / "data" / "stack.json"
        eventually(lambda: running.read(note) is not None or process.poll() is not None, 200)
        assert process.poll() is None, (folder / "run.log").read_text()
        found = running.read(note)
        assert found is not None
        lines = sample()
        broker = parse_address(found.broker)
        publish(broker, lines)
        yield Shop(folder, found.gateway, broker, sum(line.topic == "orders" for line in lines))
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    found = shutil.which("chromium")
    assert found, "Chromium is not on the PATH: make test-stack installs it"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=CHROMIUM)
        yield browser
        browser.close()


class Visit:
    """A page that is open, and what it asked for and complained of since."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.hosts: set[str] = set()
        self.complaints: list[str] = []
        page.on("request", lambda request: self._asked(request.url))
        page.on("websocket", lambda socket: self._asked(socket.url))
        page.on("console", self._said)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def _said(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def _asked(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("data", "blob"):
            self.hosts.add(parts.hostname or url)


@pytest.fixture
def visit(chromium: Browser) -> Iterator[Visit]:
    """A new visitor, with a window of 1280 by 800.

    In the end the page has asked nobody but this machine, and complained of nothing that the test did not clear.
    """
    context = chromium.new_context(viewport=DESK, color_scheme="light")
    context.set_default_timeout(30_000)
    made = Visit(context.new_page())
    yield made
    context.close()
    assert made.hosts == {"127.0.0.1"}
    assert made.complaints == []


@pytest.fixture
def live(shop: Shop, visit: Visit) -> Page:
    """The page, live."""
    eventually(shop.healthy, 60)
    visit.page.goto(shop.gateway)
    visit.page.get_by_text("live", exact=True).wait_for()
    return visit.page
