"""A worker within this process: what ends it."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from headrace.streams import metrics
from headrace.streams.address import Address
from headrace.streams.runner import Runner
from prometheus_client import CollectorRegistry

from headrace.presence import Cleaner
from headrace.supervisor import FINAL
from headrace.worker import main, opened, serve
from tests.headrace.bank import app
from tests.scene import ROOT


async def test_a_part_that_fails_where_nobody_foresaw_it_ends_the_worker(
    broker: Address, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(_: Cleaner) -> None:
        await asyncio.sleep(0.5)
        raise LookupError("nobody foresaw it")

    monkeypatch.setattr(Cleaner, "run", fails)
    with pytest.raises(LookupError, match="nobody foresaw it"):
        async with asyncio.timeout(40):
            await serve(app, str(broker), tmp_path)


async def test_a_worker_is_ready_once_its_tasks_take_events(
    broker: Address, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    start, open_tasks = Runner.start, []

    async def slowly(self: Runner) -> None:
        await asyncio.sleep(0.5)
        await start(self)
        open_tasks.append(self.task.number)

    monkeypatch.setattr(Runner, "start", slowly)
    serving = asyncio.create_task(serve(app, str(broker), tmp_path))
    try:
        async with asyncio.timeout(60):
            while "ready" not in capsys.readouterr().out:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert len(open_tasks) == app.partitions
    finally:
        serving.cancel()
        await asyncio.wait([serving], timeout=30)


async def test_a_worker_whose_tasks_restore_for_long_is_ready_meanwhile() -> None:
    fleet: Any = SimpleNamespace(assignment=SimpleNamespace(running={1}), statuses=lambda: ())
    async with asyncio.timeout(5):
        await opened(fleet, 0.1)


def test_metrics_whose_port_is_taken_are_served_at_another_only_where_none_was_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    registry = CollectorRegistry()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        other = metrics.serve(registry, port, or_other=True)
        assert other not in (0, port)
        assert httpx.get(f"http://127.0.0.1:{other}/metrics", trust_env=False).status_code == 200
        assert not caplog.messages
        assert metrics.serve(registry, port) == 0
        assert f"metrics are not served: port {port} on 127.0.0.1 cannot be had" in caplog.text


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_a_worker_says_that_it_is_stopping_and_that_it_has_stopped(
    broker: Address, tmp_path: Path, sign: signal.Signals
) -> None:
    program = str(ROOT / "tests" / "headrace" / "bank.py")
    command = [sys.executable, "-m", "headrace.worker", program, "--broker", str(broker), "--data", str(tmp_path)]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True)
    with process:
        assert process.stdout is not None
        said = iter(process.stdout.readline, "")
        assert any(line.startswith("ready: ") for line in said), (tmp_path / "log").read_text()
        process.send_signal(sign)
        assert [line.strip() for line in said] == [
            "stopping: open cycles end first; a second signal ends it at once",
            "stopped",
        ]
    assert process.returncode == 0


def test_a_bound_of_memory_that_is_none_ends_the_worker_with_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["tests/headrace/bank.py", "--broker", "127.0.0.1:1", "--data", "nowhere"]
    assert main([*argv, "--state-memory", "much"]) == FINAL
    monkeypatch.setenv("HEADRACE_STATE_MEMORY", "plenty")
    assert main(argv) == FINAL
    said = capsys.readouterr().err
    assert "worker stopped: 'much' is not a size of memory: write \"512MB\" or \"2GB\"" in said
    assert "'plenty' is not a size of memory" in said
