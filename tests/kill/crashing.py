"""`headrace worker` that ends between two numbered steps of a task, as if the machine had: nothing is closed.

CRASH_AFTER_STEP: 1 to 5. CRASH_AFTER_COMMITS: the transactions of all its tasks before that.
"""

from __future__ import annotations

import os
from typing import Any

from headrace.streams.runner import Runner

from headrace.command import main

STATUS = 77
"""Tells a crash that was planned from one that was not."""


def crash_runners(last_step: int, after: int) -> None:
    """Have every runner of this process count its steps, and the process die after one."""
    begin = Runner.__init__
    commits = 0

    def crash(step: int) -> None:
        nonlocal commits
        commits += step == 5
        if step == last_step and commits >= after:
            os._exit(STATUS)

    def start(runner: Runner, *told: Any, **named: Any) -> None:
        begin(runner, *told, **named)
        runner.crash = crash

    Runner.__init__ = start  # type: ignore[assignment, method-assign]


if __name__ == "__main__":
    crash_runners(int(os.environ["CRASH_AFTER_STEP"]), int(os.environ["CRASH_AFTER_COMMITS"]))
    main()
