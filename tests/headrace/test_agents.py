"""A program's own Faust agents run beside its tasks, and whatever becomes of them the tasks go on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from headrace.streams.errors import DeclarationError
from headrace.streams.publisher import Row

from headrace.program import load
from tests.headrace.workers import PARTITIONS, bank
from tests.scene import ROOT, broker_process, eventually, write

WATCHED = ROOT / "tests" / "headrace" / "watched_bank.py"

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


@pytest.mark.stack
@pytest.mark.timeout(300)
def test_agents_run_beside_the_tasks_and_harm_none(tmp_path: Path) -> None:
    with broker_process(tmp_path / "broker") as address, bank(address, tmp_path, program=WATCHED) as the:
        the.start(0)
        log = tmp_path / "data" / "workers" / "0" / "agents.log"

        def said(text: str, times: int = 1) -> bool:
            return log.exists() and log.read_text().count(text) >= times

        with the.payments():
            the.shared(PARTITIONS)
            eventually(lambda: said("ready: 1 agents of bank") and said("ticked, leader True"), 60)
            write(address, "notes", [Row(None, b"one"), Row(None, b"wrong"), Row(None, b"two")])
            eventually(lambda: said("noted two"))
            assert said("agent watch failed on an event and goes on with the next: ValueError: this note is wrong")
            before = the.status(0)
            write(address, "notes", [Row(None, b"fatal")])
            eventually(lambda: said("agents stopped, for Faust crashed: RuntimeError: the consumer is gone"), 60)
            eventually(lambda: said("ready: 1 agents of bank", 2), 60)
            write(address, "notes", [Row(None, b"three")])
            eventually(lambda: said("noted three"), 60)
        eventually(lambda: the.balance() == the.sent)
        after = the.status(0)
        assert before is not None
        assert after is not None
        assert (after.pid, after.generation) == (before.pid, before.generation), "the tasks did not notice"
        assert sum(t.restarts for t in after.tasks) == 0
        assert the.end(0) == 0

        command = [sys.executable, "-m", "headrace.command", "faust", str(WATCHED), "--broker", str(address), "greet"]
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True)
        assert b"this is bank.agents" in done.stdout, done.stderr.decode()


def test_what_would_break_exactly_once_is_refused_with_a_sentence() -> None:
    app = load(WATCHED)
    with pytest.raises(DeclarationError, match=r"Table\('counts'\): .* counts some of them twice.*hr.Features"):
        app.faust.Table("counts", default=int)
    with pytest.raises(DeclarationError, match="concurrency=4 would lose events in a crash"):
        app.faust.agent(app.faust.topic("notes"), concurrency=4)


def test_a_program_without_agents_does_not_load_faust() -> None:
    script = "import sys; from headrace import program, worker; app = program.load('tests/headrace/bank.py')"
    done = subprocess.run(
        [sys.executable, "-c", f"{script}; print(app.has_agents, 'faust' in sys.modules)"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["False", "False"]
