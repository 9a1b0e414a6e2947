"""Child processes: started in order, kept running, stopped in reverse; none outlives its parent."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from headrace.errors import StackError

RESTARTS_PER_MINUTE = 5
"""A child that dies more often than this does not die by accident; starting it again would hide why."""
FINAL = 78
"""The exit status of a child that would fail in the same way again; sysexits.h calls it EX_CONFIG. Starting it again
would only bury what it said."""
FIRST_PAUSE = 0.2
LONGEST_PAUSE = 5.0
"""Seconds before a child is started again: doubled each time, so that what it waits for may come back."""
STOP_WAIT = 10.0
"""Seconds between SIGTERM and SIGKILL: a task's commit and a clean close of the log take a few at most."""
PROBE_EVERY = 0.1
LOG_BYTES = 5 * 1024 * 1024
"""Of one log file; one older file is kept. A child that repeats itself would fill the disk otherwise."""
LAST_LINES = 12
"""Lines of a dead child's log that its error tells."""
LINE_BYTES = 2000

NOTE = "note: "
"""How a line of a child begins that its user should see, and not only its log."""

Probe = Callable[[], Awaitable[bool]]


@dataclass(frozen=True, slots=True)
class Child:
    """A process to be run: `argv` after the interpreter, and how it tells that it is ready.

    ready: asked until it answers true; without it, the child prints a line with the word "ready" first or second
    says_so: it prints that line too, before it is asked
    """

    name: str
    argv: Sequence[str]
    ready_within: float
    ready: Probe | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    says_so: bool = False


async def to_its_end(work: Coroutine[Any, Any, None]) -> None:
    """Wait for it however often the caller's task is cancelled meanwhile; that is raised afterwards: a Ctrl-C that
    comes while a stack is stopping of itself must not leave its children behind."""
    working, cancelled = asyncio.create_task(work), None
    while not working.done():
        try:
            await asyncio.wait([working])
        except asyncio.CancelledError as error:
            cancelled = error
    working.result()
    if cancelled is not None:
        raise cancelled


class Restarts:
    """When a child may be started again. Knows no clock: the time of each death is given."""

    def __init__(self) -> None:
        self._deaths: deque[float] = deque()

    def pause(self, now: float) -> float | None:
        """Seconds to wait after a death at `now`; None when it died too often."""
        while self._deaths and now - self._deaths[0] >= 60:
            self._deaths.popleft()
        self._deaths.append(now)
        if len(self._deaths) > RESTARTS_PER_MINUTE:
            return None
        return min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** (len(self._deaths) - 1))


class Supervisor:
    """Runs children.

    logs:   a folder; each child's output goes to `<name>.log` there
    shared: file descriptors that children inherit and hold as long as they live (a lock)
    tell:   called with a sentence when a child dies or is back, and with each NOTE of a child
    """

    def __init__(self, logs: Path, *, shared: Sequence[int] = (), tell: Callable[[str], None] = lambda _: None) -> None:
        self._logs = logs
        self._shared = tuple(shared)
        self._tell = tell
        self._running: list[_Process] = []
        self._failed: asyncio.Future[None] | None = None
        # Children see the end of this pipe when this process is gone, however it went.
        self._watched, self._held = os.pipe()

    @property
    def pids(self) -> dict[str, int]:
        return {p.child.name: p.pid for p in self._running if p.pid}

    async def start(self, child: Child) -> None:
        """Start a child, wait until it is ready, and keep it running from then on.

        Raises StackError, with its last lines, where it dies first or is not ready in time.
        """
        process = _Process(child, self._logs / f"{child.name}.log", self._watched, self._shared, self._tell)
        self._running.append(process)
        await process.start()
        try:
            await process.wait_ready()
        except StackError:
            self._running.remove(process)
            raise
        process.keeper = asyncio.create_task(self._keep(process))

    async def wait(self) -> None:
        """Return never; raise StackError when a child died for good."""
        await self._failure()

    async def stop(self) -> None:
        """Stop the children, the last first, each within STOP_WAIT; all of them also where the caller is cancelled."""
        await to_its_end(self._stop())

    async def _stop(self) -> None:
        for process in reversed(self._running):
            if process.keeper is not None:
                process.keeper.cancel()
                await asyncio.gather(process.keeper, return_exceptions=True)
            await process.stop()
        self._running.clear()
        for fd in (self._watched, self._held):
            with contextlib.suppress(OSError):
                os.close(fd)

    def _failure(self) -> asyncio.Future[None]:
        if self._failed is None:
            self._failed = asyncio.get_running_loop().create_future()
        return self._failed

    async def _keep(self, process: _Process) -> None:
        restarts = Restarts()
        while True:
            how = await process.ended()
            try:
                await self._again(process, how, restarts)
            except StackError as error:
                if not self._failure().done():
                    self._failure().set_exception(error)
                return

    async def _again(self, process: _Process, how: str, restarts: Restarts) -> None:
        name = process.child.name
        while True:
            if process.status == FINAL:
                raise StackError(f"the {name} cannot go on; its log is {process.log}:\n{process.last_lines()}")
            pause = restarts.pause(time.monotonic())
            if pause is None:
                raise StackError(
                    f"the {name} died {RESTARTS_PER_MINUTE + 1} times within a minute ({how}) and is not started "
                    f"again; its last lines are in {process.log}:\n{process.last_lines()}"
                )
            self._tell(f"the {name} {how}; starting it again in {pause:.1f} s")
            await asyncio.sleep(pause)
            try:
                await process.start()
                await process.wait_ready()
            except StackError:
                how = await process.ended()
                continue
            self._tell(f"the {name} is back")
            return


class _Process:
    """A child and its output."""

    def __init__(
        self, child: Child, log: Path, watched: int, shared: Sequence[int], tell: Callable[[str], None]
    ) -> None:
        self.child = child
        self.log = log
        self.keeper: asyncio.Task[None] | None = None
        self._watched = watched
        self._shared = shared
        self._tell = tell
        self._process: asyncio.subprocess.Process | None = None
        self._pump: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()
        self._last: deque[str] = deque(maxlen=LAST_LINES)

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    @property
    def status(self) -> int | None:
        return self._process.returncode if self._process is not None else None

    async def start(self) -> None:
        self._ready.clear()
        try:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                *self.child.argv,
                "--parent-fd",
                str(self._watched),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                pass_fds=(self._watched, *self._shared),
                env={**os.environ, "PYTHONUNBUFFERED": "1", **self.child.environment},
                # Ctrl-C in a terminal goes to its whole group; the children are stopped in order instead.
                start_new_session=True,
            )
        except OSError as error:
            raise StackError(f"the {self.child.name} could not be started: {error}") from error
        self._pump = asyncio.create_task(self._copy(self._process))

    async def wait_ready(self) -> None:
        assert self._process is not None
        name, within = self.child.name, self.child.ready_within
        until = time.monotonic() + within
        while time.monotonic() < until:
            if self._process.returncode is not None:
                how = await self.ended()
                raise StackError(f"the {name} {how} before it was ready; its log is {self.log}:\n{self.last_lines()}")
            if await self._is_ready():
                return
            await asyncio.sleep(PROBE_EVERY)
        await self.stop()
        raise StackError(f"the {name} was not ready within {within:.0f} s; its log is {self.log}:\n{self.last_lines()}")

    async def _is_ready(self) -> bool:
        if (self.child.ready is None or self.child.says_so) and not self._ready.is_set():
            return False
        return self.child.ready is None or await self.child.ready()

    async def ended(self) -> str:
        """Wait for its end, and tell how it was."""
        assert self._process is not None
        code = await self._process.wait()
        if self._pump is not None:
            await self._pump
        return f"ended with status {code}" if code >= 0 else f"was killed by {signal.Signals(-code).name}"

    async def stop(self) -> None:
        if self._process is None:
            return
        for sign in (signal.SIGTERM, signal.SIGKILL):
            if self._process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    self._process.send_signal(sign)
            try:
                await asyncio.wait_for(self._process.wait(), STOP_WAIT)
                break
            except TimeoutError:
                self._last.append(f"(did not end within {STOP_WAIT:.0f} s of {sign.name})")
        if self._pump is not None:
            await asyncio.wait([self._pump], timeout=1)
            self._pump.cancel()

    def last_lines(self) -> str:
        return "\n".join(f"  {line}" for line in self._last) or "  (it said nothing)"

    async def _copy(self, process: asyncio.subprocess.Process) -> None:
        """Its output to the log file. A disk that takes nothing costs lines of the log, and never the child: one whose
        output nobody reads stands still at its next line."""
        assert process.stdout is not None
        partial = b""
        while part := await process.stdout.read(64 * 1024):
            with contextlib.suppress(OSError):
                self._append(part)
            *lines, partial = (partial + part).split(b"\n")
            partial = partial[-LINE_BYTES:]
            for line in lines:
                self._line(line)
        if partial:
            self._line(partial)

    def _append(self, part: bytes) -> None:
        """To the log file, which is turned over when it is full."""
        with self.log.open("ab") as file:
            file.write(part)
            size = file.tell()
        if size > LOG_BYTES:
            self.log.replace(self.log.with_suffix(".log.1"))

    def _line(self, line: bytes) -> None:
        text = line[-LINE_BYTES:].decode(errors="replace").rstrip()
        if text:
            self._last.append(text)
        if text.startswith(NOTE):
            self._tell(f"the {self.child.name}: {text.removeprefix(NOTE)}")
        if "ready" in re.findall(r"\w+", text)[:2]:
            self._ready.set()
