"""Processes of an engine, each on the cores that are its: the worker has one for itself, the rest takes the others.

All are ended when their block ends, and by the kernel where this process dies before.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

LAST = 300
"""Characters of a log that an error tells: a line."""


class Failed(Exception):
    """An engine cannot be had, did not start, or died."""


def cores() -> tuple[set[int], set[int]]:
    """The worker's, and those of the broker and the rest; the same where there is one."""
    if not hasattr(os, "sched_getaffinity"):
        return set(), set()
    worker, *rest = sorted(os.sched_getaffinity(0))
    return {worker}, set(rest) or {worker}


class Children:
    """Processes with their logs in a folder."""

    def __init__(self, folder: Path, worker: set[int], rest: set[int]) -> None:
        self.folder = folder
        self._cores = {True: worker, False: rest}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        for process in self._processes.values():
            process.wait()

    def start(
        self, name: str, command: Sequence[str], *, worker: bool = False, environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """A process in the folder, in a group of its own, that writes to `name`.log."""
        prefix = []
        if shutil.which("setpriv"):
            prefix += ["setpriv", "--pdeathsig", "KILL"]
        if self._cores[worker] and shutil.which("taskset"):
            prefix += ["taskset", "-c", ",".join(map(str, sorted(self._cores[worker])))]
        with (self.folder / f"{name}.log").open("ab") as log:
            started = subprocess.Popen(
                [*prefix, *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )
        self._processes[name] = started
        return started

    def run(
        self, name: str, command: Sequence[str], within: float, environment: Mapping[str, str] | None = None
    ) -> str:
        """A process to its end; what it wrote. Raises Failed."""
        process = self.start(name, command, environment=environment)
        try:
            status = process.wait(within)
        except subprocess.TimeoutExpired:
            raise Failed(f"{name} did not end within {within:.0f} s: {self.said(name)}") from None
        if status:
            raise Failed(f"{name} ended with status {status}: {self.said(name)}")
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def check(self) -> None:
        """Raises Failed where one has ended that should run."""
        for name, process in self._processes.items():
            if process.poll():
                raise Failed(f"{name} ended with status {process.returncode}: {self.said(name)}")

    def said(self, name: str) -> str:
        """The last line of its log that is no place in a trace."""
        lines = (self.folder / f"{name}.log").read_text(errors="replace").splitlines()
        told = [line for line in lines if line.strip() and not line[0].isspace()]
        return told[-1][:LAST] if told else "it said nothing"


def busy(pid: int) -> float:
    """Seconds of the processor that a process has taken, its threads among them."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return float("nan")
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Meter:
    """How busy a process was, and when."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._samples: list[tuple[float, float]] = []

    def sample(self) -> None:
        self._samples.append((time.time(), busy(self._pid)))

    def reached(self, since: float, seconds: float) -> float | None:
        """The moment, by the wall's clock, when it had been so long busy since a moment; None where it has not yet.

        Where the system does not tell, the wall's own seconds stand for it.
        """
        later = [s for s in self._samples if s[0] >= since]
        for moment, spent in later:
            taken = spent - later[0][1]
            if taken >= seconds or (math.isnan(taken) and moment >= since + seconds):
                return moment
        return None

    def between(self, begin: float, end: float) -> float:
        """Seconds of the processor, to the distance of two samples; NaN where the system does not tell."""
        first, last = (min(self._samples, key=lambda s: abs(s[0] - moment)) for moment in (begin, end))
        return last[1] - first[1]
