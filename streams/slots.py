"""A worker's folder on disk: several workers of one machine share a data folder, and each takes a part of its own."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterable
from pathlib import Path

from headrace.streams.errors import StateError
from headrace.streams.log import Partition

MAX_SLOTS = 256
"""Workers of one application on one data folder. More are a mistake: each holds a copy of what it has run."""


class Slot:
    """The first free folder `<data>/workers/<number>`, held until `release` or the end of the process.

    What earlier workers left there is used again: a task that comes back finds its state, and needs the changelog from
    there on only.
    """

    def __init__(self, data: Path) -> None:
        for number in range(MAX_SLOTS):
            path = data / "workers" / str(number)
            try:
                path.mkdir(parents=True, exist_ok=True)
                fd = os.open(path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
            except OSError as error:
                raise _unusable(path, error) from error
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
                continue
            except OSError as error:
                os.close(fd)
                raise _unusable(path, error) from error
            self.path, self._fd = path, fd
            return
        raise StateError(
            f"{MAX_SLOTS} workers hold all the folders under {data / 'workers'}: "
            f"give this one another folder with --data"
        )

    def store(self, task: Partition) -> Path:
        """Where the state of a task lies."""
        return self.path / "state" / f"{task.topic}-{task.number}"

    def kept(self, tasks: Iterable[Partition]) -> tuple[Partition, ...]:
        """Those of the tasks that have a state here."""
        return tuple(t for t in tasks if self.store(t).exists())

    @property
    def member(self) -> str:
        """The id under which the last worker here joined its group; it is dead, for this one has its lock."""
        with contextlib.suppress(OSError, UnicodeDecodeError):
            return (self.path / "member").read_text()
        return ""

    @member.setter
    def member(self, name: str) -> None:
        # Without it a worker that was killed is missed only when its session ends: slower, and nothing worse.
        with contextlib.suppress(OSError):
            (self.path / "member").write_text(name)

    def release(self) -> None:
        os.close(self._fd)


def _unusable(path: Path, error: OSError) -> StateError:
    return StateError(
        f"a worker's folder {path} cannot be made or locked ({error.strerror}): see that the disk has room and takes "
        f"files and locks of this user, or give another folder with --data"
    )
