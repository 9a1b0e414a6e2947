"""`headrace worker` and `headrace gateway`, each alone against a broker, as processes."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from headrace.streams.publisher import encode

from headrace.command import main
from headrace.supervisor import FINAL
from tests.headrace import poison
from tests.scene import ROOT, broker_process, eventually, free_port, write

PROGRAM = str(ROOT / "tests" / "headrace" / "poison.py")
TOKEN = "a-token-of-sixteen-characters"
AT = datetime(2010, 1, 1, tzinfo=UTC)


@contextlib.contextmanager
def running(*arguments: str, log: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "headrace.command", *arguments]
    inherited = {**os.environ, "PYTHONPATH": str(ROOT)}
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=ROOT, env={**inherited, **environment}, stdout=out, stderr=out)
    try:
        yield process
    finally:
        process.kill()
        process.wait(15)


def answers(url: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(url, trust_env=False, timeout=5).status_code == 200
    return False


def test_a_worker_alone_makes_its_topics_and_ends_with_78_where_trying_again_would_not_help(tmp_path: Path) -> None:
    # The second order is a negative once the third shows that an hour has passed.
    said = [("a", 1, 0), ("b", None, 1), ("c", 1, 3), ("d", 1, 5)]
    orders = [poison.Order(customer, quantity, AT + timedelta(hours=hour)) for customer, quantity, hour in said]
    with broker_process(tmp_path / "broker") as broker:
        port, log = free_port(), tmp_path / "worker.log"
        options = ["--data", str(tmp_path / "data"), "--metrics-port", str(port), "--state-memory", "64MB"]
        with running("worker", PROGRAM, "--broker", str(broker), *options, log=log) as worker:
            eventually(lambda: "ready: " in log.read_text(), 90)
            here = f"http://127.0.0.1:{port}/metrics"
            assert answers(here)
            assert 'headrace_worker_bound{bound="state_memory"} 6.7108864e+07' in httpx.get(here, trust_env=False).text
            hot = 'headrace_task_state_bytes{partition="0",task="orders"}'
            eventually(lambda: hot in httpx.get(here, trust_env=False).text)
            write(broker, "orders", [encode(order) for order in orders])
            assert worker.wait(60) == FINAL
    assert "headrace: the learner of returns failed on the outcome of orders-0-1" in log.read_text()
    assert "Traceback" not in log.read_text()


def test_a_gateway_alone_is_well_once_the_topics_are_there_and_wants_its_token(tmp_path: Path) -> None:
    with broker_process(tmp_path / "broker") as broker:
        port, log = free_port(), tmp_path / "gateway.log"
        here = f"http://127.0.0.1:{port}"
        given = {"HEADRACE_BROKER": str(broker), "HEADRACE_TOKEN": TOKEN}
        with running("gateway", PROGRAM, "--port", str(port), log=log, **given) as gateway:
            eventually(lambda: _reason(here).startswith("the log lacks topics of the program: "), 60)
            options = ["--data", str(tmp_path / "data"), "--metrics-port", str(free_port())]
            with running("worker", PROGRAM, "--broker", str(broker), *options, log=tmp_path / "worker.log"):
                eventually(lambda: answers(f"{here}/health"), 60)
            assert httpx.get(f"{here}/metrics", trust_env=False).status_code == 401
            allowed = {"Authorization": f"Bearer {TOKEN}"}
            assert "headrace_topic_records" in httpx.get(f"{here}/metrics", headers=allowed, trust_env=False).text
            gateway.send_signal(signal.SIGTERM)
            assert gateway.wait(15) in (0, -signal.SIGTERM)
    assert TOKEN not in log.read_text()


def _reason(here: str) -> str:
    with contextlib.suppress(httpx.HTTPError):
        return str(httpx.get(f"{here}/health", trust_env=False, timeout=5).json().get("reason", ""))
    return ""


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--host", "0.0.0.0"], "the gateway would listen on 0.0.0.0, beyond this machine, without a token"),
        (["--token", "short"], "the token must have at least 16 printable ASCII characters"),
        (["--host", "nowhere.invalid", "--token", TOKEN], "on nowhere.invalid cannot be had"),
        (["--broker", "http://x"], "'http://x' is not the address of a broker"),
    ],
)
def test_a_gateway_that_cannot_listen_says_why(
    options: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sentence in refused(monkeypatch, capsys, "gateway", PROGRAM, "--broker", "127.0.0.1:9", *options)


def test_a_port_that_is_taken_is_named_with_the_option_that_gives_another(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        told = refused(monkeypatch, capsys, "gateway", PROGRAM, "--broker", "127.0.0.1:9", "--port", port)
    assert f"port {port} on 127.0.0.1 cannot be had" in told
    assert "give another with --port" in told


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a command says that ends at once, with 1."""
    monkeypatch.setattr(sys, "argv", ["headrace", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    return capsys.readouterr().err
