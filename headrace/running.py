"""The local stack that runs here, as the files it left for other terminals tell it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import msgspec

from headrace.errors import NoBroker
from headrace.streams.address import Address, parse_address

BROKER = "HEADRACE_BROKER"
HOME = "HEADRACE_HOME"
STARTING = "starting.json"
"""Beside current.json: the stack that has begun to start last. Others must not take it for one that runs."""


class TopicNote(msgspec.Struct, frozen=True):
    """A topic, as publishers in other terminals need to know it."""

    name: str
    kind: str
    partitions: int
    key: str | None = None


class Running(msgspec.Struct, frozen=True):
    """A running stack. `born` is the kernel's start time of its process, so that a pid used again is told apart."""

    app: str
    pid: int
    born: str
    program: str
    broker: str
    gateway: str
    data: str
    started: str
    topics: tuple[TopicNote, ...] = ()
    processes: dict[str, int] = {}
    metrics: dict[str, str] = {}
    """Where each process serves its own; the gateway serves those of all."""

    def alive(self) -> bool:
        return birth(self.pid) == self.born


def home() -> Path:
    """The folder of all local stacks started from here."""
    return Path(os.environ.get(HOME) or ".headrace").absolute()


def birth(pid: int) -> str | None:
    """Something that tells the process apart from later ones of the same pid; None where there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        if Path("/proc/self").exists():
            return None
    else:
        fields = stat.rpartition(")")[2].split()
        return None if fields[0] == "Z" else fields[19]
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "unknown"


def write(running: Running, *files: Path) -> None:
    """Each file is replaced whole: a reader sees the old or the new one."""
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f".{file.name}.{os.getpid()}")
        part.write_bytes(msgspec.json.format(msgspec.json.encode(running), indent=2))
        part.replace(file)


def read(file: Path) -> Running | None:
    """The stack of a file; None where it is missing, unreadable or left by a stack that is gone."""
    try:
        running = msgspec.json.decode(file.read_bytes(), type=Running)
    except (OSError, msgspec.MsgspecError):
        return None
    return running if running.alive() else None


def current() -> Running | None:
    """The stack started last from this folder, if it still runs."""
    return read(home() / "current.json")


def find_broker(given: str | None = None) -> Address:
    """The broker: the one given, else HEADRACE_BROKER's, else the local stack's.

    Raises NoBroker where there is none of these, and BadAddress where one cannot be read.
    """
    named = given or os.environ.get(BROKER)
    if named:
        return parse_address(named)
    running = current()
    if running is None:
        starting = read(home() / STARTING)
        if starting is not None:
            raise NoBroker(
                f"the local stack of {starting.app} is starting (process {starting.pid}; the first start compiles, and "
                f"takes half a minute): try again once it says that it runs"
            )
        raise NoBroker(
            f"no local stack runs from this folder ({home()}) and no broker is named: start one with "
            f"`headrace run pipeline.py`, or set {BROKER}=kafka://host:port"
        )
    return replace(parse_address(running.broker), own="broker" in running.processes)
