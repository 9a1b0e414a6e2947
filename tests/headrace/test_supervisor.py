"""Children: started, restarted, given up, stopped."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from headrace import supervisor as supervisors
from headrace.errors import StackError
from headrace.supervisor import LONGEST_PAUSE, RESTARTS_PER_MINUTE, Child, Restarts, Supervisor
from tests.scene import eventually

READY = "import sys, time; print('ready', flush=True); time.sleep(60)"


def child(code: str, within: float = 20.0, name: str = "child") -> Child:
    return Child(name, ["-c", code], within)


async def until(told: Callable[[], bool]) -> None:
    await asyncio.to_thread(eventually, told)


def test_pauses_grow_and_end_when_it_dies_too_often() -> None:
    restarts = Restarts()
    pauses = [restarts.pause(float(i)) for i in range(RESTARTS_PER_MINUTE)]
    assert pauses == sorted(pauses, key=lambda p: p or 0)
    assert max(p or 0 for p in pauses) <= LONGEST_PAUSE
    assert restarts.pause(30.0) is None


def test_deaths_of_more_than_a_minute_ago_are_forgotten() -> None:
    restarts = Restarts()
    assert [restarts.pause(i * 60.0) for i in range(20)] == [Restarts().pause(0.0)] * 20


async def test_a_child_that_dies_before_it_is_ready_is_told_with_its_last_lines(tmp_path: Path) -> None:
    running = Supervisor(tmp_path)
    try:
        with pytest.raises(StackError, match=r"(?s)the child ended with status 3 before it was ready.*no disk left"):
            await running.start(child("import sys; print('no disk left'); sys.exit(3)"))
    finally:
        await running.stop()


async def test_a_note_of_a_child_is_told_and_its_other_lines_are_not(tmp_path: Path) -> None:
    told: list[str] = []
    running = Supervisor(tmp_path, tell=told.append)
    try:
        await running.start(child("print('loading'); print('note: compiling', flush=True); " + READY))
        assert told == ["the child: compiling"]
    finally:
        await running.stop()


async def test_a_child_goes_on_where_the_disk_takes_no_log(tmp_path: Path) -> None:
    told: list[str] = []
    (tmp_path / "child.log").symlink_to("/dev/full")
    # More than a pipe holds: it would stand still in the middle, if nobody read.
    chatter = "print('ready', flush=True); [print('x' * 1000, flush=True) for _ in range(500)]; "
    running = Supervisor(tmp_path, tell=told.append)
    try:
        await running.start(child(chatter + "print('note: said it all', flush=True); import time; time.sleep(60)"))
        await until(lambda: told == ["the child: said it all"])
        os.kill(running.pids["child"], signal.SIGKILL)
        await until(lambda: "the child is back" in told)
    finally:
        await running.stop()


async def test_a_child_that_is_never_ready_is_stopped(tmp_path: Path) -> None:
    running = Supervisor(tmp_path)
    try:
        with pytest.raises(StackError, match="the child was not ready within 1 s"):
            await running.start(child("import time; time.sleep(60)", within=0.8))
        assert running.pids == {}
    finally:
        await running.stop()


async def test_a_child_that_is_killed_is_started_again(tmp_path: Path) -> None:
    told: list[str] = []
    running = Supervisor(tmp_path, tell=told.append)
    try:
        await running.start(child(READY))
        first = running.pids["child"]
        os.kill(first, signal.SIGKILL)
        await until(lambda: "the child is back" in told)
        assert running.pids["child"] != first
        assert told[0].startswith("the child was killed by SIGKILL; starting it again")
    finally:
        await running.stop()


async def test_a_child_that_dies_again_and_again_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisors, "LONGEST_PAUSE", 0.01)
    flag = tmp_path / "once"
    code = f"import os, sys, time; first = not os.path.exists({str(flag)!r}); open({str(flag)!r}, 'w').close(); "
    code += "print('ready' if first else 'the log is locked', flush=True); time.sleep(0.3); sys.exit(4)"
    running = Supervisor(tmp_path)
    try:
        await running.start(child(code))
        async with asyncio.timeout(20):
            with pytest.raises(
                StackError, match=r"(?s)died 6 times within a minute \(ended with status 4\).*is locked"
            ):
                await running.wait()
    finally:
        await running.stop()


async def test_children_are_stopped_the_last_first(tmp_path: Path) -> None:
    order = tmp_path / "order"
    code = "import signal, sys, time; signal.signal(15, lambda *_: (open({0!r}, 'a').write({1!r}), sys.exit(0))); "
    running = Supervisor(tmp_path)
    for name in ("one", "two", "three"):
        await running.start(child(code.format(str(order), f"{name} ") + READY, name=name))
    await running.stop()
    assert order.read_text() == "three two one "


async def test_a_child_that_ignores_sigterm_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisors, "STOP_WAIT", 0.3)
    running = Supervisor(tmp_path)
    await running.start(child("import signal; signal.signal(15, signal.SIG_IGN); " + READY))
    pid = running.pids["child"]
    await running.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_a_full_log_is_turned_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisors, "LOG_BYTES", 200_000)
    running = Supervisor(tmp_path)
    code = "for i in range(60000): print('line', i)\nprint('ready', flush=True)\nimport time; time.sleep(60)"
    await running.start(child(code))
    await running.stop()
    sizes = {entry.name: entry.stat().st_size for entry in os.scandir(tmp_path)}
    assert sorted(sizes) == ["child.log", "child.log.1"]
    assert sum(sizes.values()) < 2 * (200_000 + 65_536)
