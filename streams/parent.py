"""A child process that ends with its parent, however the parent ends."""

from __future__ import annotations

import os
import signal
import threading
import time

LAST_MOMENTS = 10.0
"""Seconds between SIGTERM and the hard end. Longer, and a child that hangs in its clean-up would keep the data
folder locked against the next start."""


def watch_parent(fd: int | None) -> None:
    """End this process when the other end of the pipe `fd` closes, as it does even when the parent is killed.

    A daemon thread reads the pipe: at its end this process gets SIGTERM, and is gone `LAST_MOMENTS` later in any case.
    Does nothing where `fd` is None: the process was started by hand.
    """
    if fd is None:
        return
    os.set_inheritable(fd, False)
    threading.Thread(target=_watch, args=(fd,), name="watch-parent", daemon=True).start()


def _watch(fd: int) -> None:
    while os.read(fd, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(LAST_MOMENTS)
    os._exit(1)
