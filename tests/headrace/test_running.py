"""Finding the broker, and the stack that runs here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from headrace.streams.errors import BadAddress

from headrace import running
from headrace.errors import NoBroker
from headrace.running import Running, TopicNote, find_broker


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path))
    monkeypatch.delenv("HEADRACE_BROKER", raising=False)
    return tmp_path


def stack(pid: int, born: str | None) -> Running:
    notes = (TopicNote("orders", "event", 1, "customer"),)
    return Running("shop", pid, born or "", "shop.py", "kafka://127.0.0.1:9192", "http://x", "/data", "now", notes)


def test_the_broker_of_the_running_stack_is_found(home: Path) -> None:
    running.write(stack(os.getpid(), running.birth(os.getpid())), home / "current.json")
    assert str(find_broker()) == "kafka://127.0.0.1:9192"


def test_the_environment_goes_before_the_running_stack_and_an_argument_before_both(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running.write(stack(os.getpid(), running.birth(os.getpid())), home / "current.json")
    monkeypatch.setenv("HEADRACE_BROKER", "kafka://elsewhere:9292")
    assert str(find_broker()) == "kafka://elsewhere:9292"
    assert str(find_broker("here:1")) == "kafka://here:1"


def test_a_file_left_by_a_stack_that_is_gone_is_noticed(home: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    born = running.birth(process.pid)
    process.wait()
    running.write(stack(process.pid, born), home / "current.json")
    assert running.current() is None


def test_a_pid_that_another_process_has_now_is_told_apart(home: Path) -> None:
    running.write(stack(os.getpid(), "12345"), home / "current.json")
    assert running.current() is None


@pytest.mark.parametrize("content", [b"", b"{", b'{"app": 1}', b"\xff"])
def test_a_file_that_cannot_be_read_is_no_stack(home: Path, content: bytes) -> None:
    (home / "current.json").write_bytes(content)
    with pytest.raises(NoBroker, match=r"start one with `headrace run pipeline\.py`, or set HEADRACE_BROKER="):
        find_broker()


@pytest.mark.parametrize("text", ["", "localhost", "kafka://host", "http://host:9092", "host:0", "host:70000", "a b:1"])
def test_an_address_that_is_none_is_told(text: str) -> None:
    with pytest.raises(BadAddress if text else NoBroker):
        find_broker(text)


def test_an_address_of_version_six_is_read() -> None:
    assert find_broker("kafka://[::1]:9092").bootstrap == "[::1]:9092"


def test_a_stack_that_is_starting_is_told_as_such_and_is_no_broker_yet(home: Path) -> None:
    running.write(stack(os.getpid(), running.birth(os.getpid())), home / running.STARTING)
    with pytest.raises(NoBroker, match=rf"the local stack of shop is starting \(process {os.getpid()};.* try again"):
        find_broker()
    running.write(stack(os.getpid(), "12345"), home / running.STARTING)
    with pytest.raises(NoBroker, match="no local stack runs from this folder"):
        find_broker()
