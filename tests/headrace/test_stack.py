"""The local stack as users run it: a process tree that starts, is found, and leaves nothing running."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from headrace.serving.errors import ServingError
from headrace.streams.admin import ensure_topics
from headrace.streams.errors import BadSecurity, TopicMismatch
from headrace.streams.topics import Topic

from headrace import running
from headrace import stack as stacks
from headrace.client import connect
from headrace.errors import StackError
from headrace.running import Running
from headrace.stack import Stack, choose_port
from tests.scene import ROOT, broker_process, eventually, free_port, order

PROGRAM = ROOT / "tests" / "shop.py"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("HEADRACE_BROKER", raising=False)
    monkeypatch.setattr(Stack, "worker_module", "tests.headrace.stub_worker")
    return tmp_path / "home"


@contextmanager
def headrace_run(home: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """`headrace run`, up when entered; whatever it leaves is killed, after the test had its look."""
    log = (home.parent / "run.log").open("wb")
    command = [sys.executable, "-m", "tests.headrace.run_stack", "run", str(PROGRAM), *options]
    process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
    try:
        eventually(lambda: running.current() is not None or process.poll() is not None, 60)
        assert process.poll() is None, (home.parent / "run.log").read_text()
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.wait(40)
        log.close()


def gone(pids: list[int]) -> bool:
    return not any(running.birth(pid) for pid in pids)


def stack_now() -> Running:
    found = running.current()
    assert found is not None
    return found


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_a_stack_is_found_by_others_and_ends_whole_on_a_signal(home: Path, sign: signal.Signals) -> None:
    with headrace_run(home) as process:
        found = stack_now()
        pids = list(found.processes.values())
        assert list(found.processes) == ["broker", "worker", "gateway"]
        with connect() as connection:
            assert {"orders", "predictions.returns"} <= set(connection.topics())
            assert connection.publish("orders", order("17850")).offset == 0
        assert httpx.get(f"{found.gateway}/health", trust_env=False).status_code == 200
        process.send_signal(sign)
        assert process.wait(40) == 0
        assert gone(pids), "no child outlives an orderly stop"
    assert running.current() is None
    said = (home.parent / "run.log").read_text().splitlines()
    assert said[0] == "starting shop: broker, worker, gateway"
    assert said[-2:] == ["stopping gateway, worker and broker", "stopped; the next run goes on from here"]


def test_nothing_outlives_a_stack_that_is_killed_and_the_next_goes_on(home: Path) -> None:
    with headrace_run(home) as process:
        pids = list(stack_now().processes.values())
        with connect() as connection:
            connection.publish("orders", order("17850"))
        process.kill()
        process.wait(10)
        eventually(lambda: gone(pids))
    with headrace_run(home), connect() as connection:
        assert [m.key for m in connection.subscribe("orders", "earliest", timeout=2)] == ["17850"]


@pytest.mark.parametrize("name", ["broker", "worker", "gateway"])
def test_a_child_that_is_killed_is_back_at_the_same_place(home: Path, name: str) -> None:
    with headrace_run(home):
        before = stack_now()
        os.kill(before.processes[name], signal.SIGKILL)
        eventually(lambda: stack_now().processes.get(name) not in (None, before.processes[name]))
        after = stack_now()
        assert (after.broker, after.gateway) == (before.broker, before.gateway)
        with connect() as connection:
            connection.publish("orders", order())
        eventually(lambda: httpx.get(f"{after.gateway}/health", trust_env=False).status_code == 200)


def test_a_stack_that_is_stopped_while_it_starts_says_so(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUB_FAILS", "never ready")
    log = home.parent / "run.log"
    command = [sys.executable, "-m", "tests.headrace.run_stack", "run", str(PROGRAM)]
    with log.open("wb") as out, subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out) as process:
        eventually(lambda: log.read_text() == "starting shop: broker, worker, gateway\n", 60)
        process.send_signal(signal.SIGINT)
        assert process.wait(40) == 0
    assert log.read_text().splitlines()[1:] == [
        "stopping gateway, worker and broker",
        "stopped; the next run goes on from here",
    ]


async def test_a_second_stack_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    async with Stack(PROGRAM, data=tmp_path / "data") as stack:
        with pytest.raises(StackError, match=rf"another stack \(process {os.getpid()}, gateway {stack.gateway}\)"):
            await Stack(PROGRAM, data=tmp_path / "data").__aenter__()
        assert stack.pids.keys() == {"broker", "worker", "gateway"}


async def test_a_stack_that_is_cancelled_while_it_stops_stops_to_the_end(tmp_path: Path) -> None:
    stack = await Stack(PROGRAM, data=tmp_path / "data").__aenter__()
    pids = list(stack.pids.values())
    stopping = asyncio.create_task(stack.stop())
    for _ in range(3):
        await asyncio.sleep(0.01)
        assert not stopping.done()
        stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    assert gone(pids)
    assert running.current() is None
    async with Stack(PROGRAM, data=tmp_path / "data"):
        pass


async def test_a_worker_that_cannot_start_is_told_with_its_last_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUB_FAILS", "1")
    with pytest.raises(StackError, match=r"(?s)the worker ended with status 1 .*the state cannot be read"):
        await Stack(PROGRAM, data=tmp_path / "data").__aenter__()
    assert running.current() is None


async def test_a_usual_port_that_is_lost_at_the_last_moment_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as other:

        def chosen(host: str, wanted: int | None, usual: int, option: str) -> int:
            port = choose_port(host, wanted, usual, option)
            if usual == stacks.BROKER_PORT:
                other.bind(("127.0.0.1", port))  # another stack was quicker
                other.listen()
            return port

        monkeypatch.setattr(stacks, "BROKER_PORT", free_port())
        monkeypatch.setattr(stacks, "choose_port", chosen)
        async with Stack(PROGRAM, data=tmp_path / "data") as stack:
            assert stack.broker.port != other.getsockname()[1]
            assert list(stack.pids) == ["broker", "worker", "gateway"]


def test_settings_that_are_for_another_broker_are_left_aside_and_told_once(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADRACE_USER", "ann")
    monkeypatch.setenv("HEADRACE_PASSWORD", "of another broker")
    monkeypatch.setenv("HEADRACE_TLS_CA", "/no/such/file.pem")
    monkeypatch.setenv("HEADRACE_REPLICATION", "3")
    with headrace_run(home):
        found = stack_now()
        assert list(found.processes) == ["broker", "worker", "gateway"]
        with connect() as connection:  # another terminal of the same environment
            assert connection.publish("orders", order("17850")).offset == 0
        assert httpx.get(f"{found.gateway}/health", trust_env=False).status_code == 200
    told = [said for said in (home.parent / "run.log").read_text().splitlines() if "left aside" in said]
    names = "HEADRACE_USER, HEADRACE_PASSWORD, HEADRACE_TLS_CA, HEADRACE_REPLICATION"
    assert told == [
        f"{names} are left aside: this stack's own broker asks for no user and keeps one copy; --broker or "
        f"HEADRACE_BROKER names another"
    ]


def test_a_stack_on_a_broker_of_the_environment_starts_none_and_takes_its_settings(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with broker_process(tmp_path / "broker") as address:
        monkeypatch.setenv("HEADRACE_BROKER", str(address))
        with headrace_run(home):
            found = stack_now()
            assert (found.broker, list(found.processes)) == (str(address), ["worker", "gateway"])
            assert not running.find_broker().own
        monkeypatch.setenv("HEADRACE_USER", "ann")
        monkeypatch.setenv("HEADRACE_PASSWORD", "of another broker")
        with pytest.raises(BadSecurity, match="asks for no user on this port, and HEADRACE_USER is set"):
            asyncio.run(Stack(PROGRAM, data=tmp_path / "data", broker=str(address)).__aenter__())
        with pytest.raises(StackError, match="--broker-port 9092 is for a broker that is started here, and --broker"):
            Stack(PROGRAM, broker=str(address), broker_port=9092)


def test_topics_with_other_partitions_are_refused(tmp_path: Path) -> None:
    with broker_process(tmp_path / "broker") as address:
        asyncio.run(ensure_topics(address, [Topic("orders", "event", 1)]))
        with pytest.raises(TopicMismatch, match="topic orders has 1 partitions in the log and 2 in the program"):
            asyncio.run(Stack(PROGRAM, data=tmp_path / "data", broker=str(address)).__aenter__())


def test_listening_beyond_this_machine_wants_a_token() -> None:
    with pytest.raises(ServingError, match="without a token"):
        Stack(PROGRAM, host="0.0.0.0")


def test_a_port_that_is_taken_is_told_when_it_was_asked_for_and_passed_over_when_not() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(StackError, match=f"port {port} on 127.0.0.1 cannot be had .*--gateway-port"):
            choose_port("127.0.0.1", port, 8080, "--gateway-port")
        assert choose_port("127.0.0.1", None, port, "--gateway-port") not in (0, port)
