"""The local stack: broker, worker and gateway of a program in one process tree."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

import httpx

from headrace import running
from headrace.app import App
from headrace.errors import NoBroker, StackError
from headrace.gateway import TOKEN
from headrace.program import load
from headrace.running import Running, TopicNote
from headrace.serving.access import check_listening
from headrace.streams.address import SETTINGS, Address, parse_address
from headrace.streams.admin import REPLICATION, ensure_topics
from headrace.supervisor import Child, Supervisor

BROKER_PORT = 9092
GATEWAY_PORT = 8080
BROKER_READY = 60.0
"""Seconds. After a kill the broker reads the end of its log first."""
OF_ANOTHER = (*SETTINGS, REPLICATION)
"""Settings of the environment that are not for the stack's own broker: it asks for no user, and keeps one copy."""
WORKER_READY = 180.0
"""Seconds. At its first start the worker compiles its kernels; after a kill it reads its changelog."""
GATEWAY_READY = 60.0
LOCK_WAIT = 20.0
"""Seconds for the children of a stack that was killed to end: they hold the folder until then."""


class Stack:
    """The local stack, running within `async with`.

    program:      the file (or module) of the program
    data:         its folder; left out, `.headrace/<application>` under the current folder (HEADRACE_HOME/<application>)
    broker:       a broker that runs already; left out, one of the stack's own is started, and what the environment says
                  of user, TLS and copies is left aside: it is for another
    broker_port, gateway_port: left out, 9092 and 8080, or free ones where these are taken
    host, token:  where the gateway listens; beyond loopback it wants a token
    replication:  copies of each topic it creates; left out, HEADRACE_REPLICATION's, else the broker's default
    tell:         called with a sentence once program, folder, broker and ports are accepted, and when something happens
                  to a process

    Entering it raises StackError (a process did not start, a port is taken, another stack has the folder), ProgramError
    and ServingError. `wait` raises StackError when a process died for good.
    """

    worker_module = "headrace.worker"

    def __init__(
        self,
        program: str | Path,
        *,
        data: str | Path | None = None,
        broker: str | None = None,
        broker_port: int | None = None,
        gateway_port: int | None = None,
        host: str = "127.0.0.1",
        token: str | None = None,
        replication: int | None = None,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        check_listening(host, token)
        self.program = str(program)
        self.app: App = load(program)
        self.data = Path(data).absolute() if data else running.home() / self.app.name
        self._given = parse_address(broker) if broker else None
        if self._given and broker_port:
            raise StackError(
                f"--broker-port {broker_port} is for a broker that is started here, and --broker (or HEADRACE_BROKER) "
                f"names one that runs already, {self._given}: leave one of them out"
            )
        self._broker_port = broker_port
        self._gateway_port = gateway_port
        self._host = host
        self._token = token
        self._replication = replication
        self._tell = tell
        self._lock: int | None = None
        self._supervisor: Supervisor | None = None
        self._broker: Address | None = None
        self._gateway = ""
        self._metrics: dict[str, str] = {}

    @property
    def broker(self) -> Address:
        if self._broker is None:
            raise StackError("the stack is not running")
        return self._broker

    @property
    def gateway(self) -> str:
        """The gateway's address: `http://host:port`."""
        return self._gateway

    @property
    def pids(self) -> dict[str, int]:
        """The processes by name."""
        return self._supervisor.pids if self._supervisor else {}

    async def __aenter__(self) -> Stack:
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.stop()

    async def wait(self) -> None:
        """Return never; raise StackError when a process died for good."""
        if self._supervisor is None:
            raise StackError("the stack is not running")
        await self._supervisor.wait()

    async def stop(self) -> None:
        """Stop gateway, worker and broker, in this order."""
        try:
            if self._supervisor is not None:
                supervisor, self._supervisor = self._supervisor, None
                await supervisor.stop()
        finally:
            self._let_go()

    def _let_go(self) -> None:
        if self._lock is not None:
            lock, self._lock = self._lock, None
            try:
                home = running.home()
                for file in (self.data / "stack.json", home / "current.json", home / running.STARTING):
                    found = running.read(file)
                    if found is not None and found.pid == os.getpid() and found.data == str(self.data):
                        file.unlink(missing_ok=True)
            finally:
                os.close(lock)

    async def _start(self) -> None:
        self._lock = await _lock(self.data)
        running.write(self._note(""), running.home() / running.STARTING)
        self._supervisor = Supervisor(self.data / "logs", shared=[self._lock], tell=self._told)
        if self._given is not None:
            self._broker = self._given
        else:
            await self._start_broker(self._supervisor)
        await ensure_topics(self.broker, self.app.topics(), replication=self._replication)
        choose_port(self._host, self._gateway_port, GATEWAY_PORT, "--gateway-port")  # complains before the long start
        self._tell(f"starting {self.app.name}: {'' if self._given else 'broker, '}worker, gateway")
        await self._supervisor.start(self._measured(self._worker_child()))
        await self._start_gateway(self._supervisor)
        self._write()

    async def _start_broker(self, supervisor: Supervisor) -> None:
        if others := [name for name in OF_ANOTHER if os.environ.get(name)]:
            self._tell(
                f"{', '.join(others)} {'is' if len(others) == 1 else 'are'} left aside: this stack's own broker asks "
                f"for no user and keeps one copy; --broker or HEADRACE_BROKER names another"
            )

        async def start(port: int) -> None:
            self._broker = Address("127.0.0.1", port, own=True)
            await supervisor.start(self._measured(_broker_child(self.data, self._broker)))

        await _on_a_port("127.0.0.1", self._broker_port, BROKER_PORT, "--broker-port", start)

    async def _start_gateway(self, supervisor: Supervisor) -> None:
        async def start(port: int) -> None:
            self._gateway = f"http://{_reachable(self._host)}:{port}"
            await supervisor.start(self._gateway_child(port))

        await _on_a_port(self._host, self._gateway_port, GATEWAY_PORT, "--gateway-port", start)

    def _worker_child(self) -> Child:
        argv = ["-m", self.worker_module, self.program, "--broker", str(self.broker), "--data", str(self.data)]
        return Child("worker", argv, WORKER_READY, environment=self._left_aside())

    def _left_aside(self) -> dict[str, str]:
        """What children must not take for settings of their broker."""
        return dict.fromkeys(OF_ANOTHER, "") if self.broker.own else {}

    def _gateway_child(self, port: int) -> Child:
        where = ["--broker", str(self.broker), "--host", self._host, "--port", str(port)]
        environment = {TOKEN: self._token or "", **self._left_aside()}

        async def healthy() -> bool:
            async with httpx.AsyncClient(timeout=3, trust_env=False) as client:
                try:
                    return (await client.get(f"{self._gateway}/health")).status_code == 200
                except httpx.HTTPError:
                    return False

        parts = [option for name, url in self._metrics.items() for option in ("--part", f"{name}={url}")]
        argv = ["-m", "headrace.gateway", self.program, *where, *parts]
        return Child("gateway", argv, GATEWAY_READY, healthy, environment, says_so=True)

    def _measured(self, child: Child) -> Child:
        """The child, serving its metrics on a port of its own."""
        port = choose_port("127.0.0.1", None, 0, "")
        self._metrics[child.name] = f"http://127.0.0.1:{port}/metrics"
        return replace(child, argv=[*child.argv, "--metrics-port", str(port)])

    def _told(self, sentence: str) -> None:
        self._tell(sentence)
        if running.read(self.data / "stack.json") is not None:
            self._write()  # a child that is back has another pid

    def _write(self) -> None:
        running.write(self._note(str(self.broker)), self.data / "stack.json", running.home() / "current.json")
        (running.home() / running.STARTING).unlink(missing_ok=True)

    def _note(self, broker: str) -> Running:
        notes = [
            TopicNote(t.name, t.kind, t.partitions, t.event.contract.key if t.event else None)
            for t in self.app.topics()
        ]
        return Running(
            app=self.app.name,
            pid=os.getpid(),
            born=running.birth(os.getpid()) or "",
            program=str(Path(self.program).absolute()) if Path(self.program).exists() else self.program,
            broker=broker,
            gateway=self._gateway,
            data=str(self.data),
            started=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
            topics=tuple(notes),
            processes=self.pids,
            metrics={**self._metrics, "gateway": f"{self._gateway}/metrics"},
        )


@contextlib.asynccontextmanager
async def reach(name: str, broker: str | None, data: Path | None) -> AsyncIterator[Address]:
    """The log of an application: the broker named or that of the stack that runs here, else that of one that is down.

    data: asks for the log of a stack that is down, in this folder; left out, .headrace/<application>

    Raises NoBroker where there is no log.
    """
    folder = data or running.home() / name
    try:
        if data is not None:
            raise NoBroker(f"there is no log of a local stack in {data}")
        address = running.find_broker(broker)
    except NoBroker:
        if not (folder / "broker").is_dir():
            raise
        async with broker_alone(folder) as alone:
            yield alone
        return
    yield address


@contextlib.asynccontextmanager
async def broker_alone(data: Path) -> AsyncIterator[Address]:
    """The broker of a stack that is down, without its worker and gateway. Raises StackError where the stack is up."""
    lock = await _lock(data)
    supervisor = Supervisor(data / "logs", shared=[lock])
    # Not the usual port: whoever publishes there by habit would write into a log that is being put in order.
    address = Address("127.0.0.1", choose_port("127.0.0.1", None, 0, "--broker-port"), own=True)
    try:
        await supervisor.start(_broker_child(data, address))
        yield address
    finally:
        try:
            await supervisor.stop()
        finally:
            os.close(lock)


def _broker_child(data: Path, broker: Address) -> Child:
    argv = ["-m", "headrace.streams.broker", "--data", str(data / "broker"), "--port", str(broker.port)]
    # Ready by its own word: on a port lost to another stack's broker, that one would answer in its stead.
    return Child("broker", argv, BROKER_READY)


def choose_port(host: str, wanted: int | None, usual: int, option: str) -> int:
    """The port wanted; or else the usual one, or a free one. Raises StackError where the one wanted is taken."""
    for port in [wanted] if wanted else [usual, 0]:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                reason = error.strerror
                continue
            return int(probe.getsockname()[1])
    raise StackError(f"port {wanted or usual} on {host} cannot be had ({reason}): give another with {option}")


async def _on_a_port(
    host: str, wanted: int | None, usual: int, option: str, start: Callable[[int], Awaitable[None]]
) -> None:
    """Start something on the port wanted; or else on the usual one, or a free one. Raises StackError."""
    for choice in (usual, 0):
        port = choose_port(host, wanted, choice, option)
        try:
            await start(port)
            return
        except StackError:
            # Another stack may have had the usual port since it was chosen, and may have left it by now: what a start
            # failed of is not told apart, a second one costs a moment.
            if wanted or port != choice:
                raise


def _reachable(host: str) -> str:
    """The address by which this machine reaches a server that listens on `host`."""
    if host in ("0.0.0.0", "::"):
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


async def _lock(data: Path) -> int:
    """A lock on the folder, which the children hold too: two stacks would write the same files."""
    os.makedirs(data, exist_ok=True)
    fd = os.open(data / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    until = time.monotonic() + LOCK_WAIT
    while True:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
        other = running.read(data / "stack.json")
        if other is not None or time.monotonic() > until:
            os.close(fd)
            who = f" (process {other.pid}, gateway {other.gateway})" if other else ""
            raise StackError(
                f"another stack{who} runs on {data}: stop it with Ctrl-C there, or give another folder with --data"
            )
        await asyncio.sleep(0.2)
