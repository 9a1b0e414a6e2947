"""A task of customers starts on what a folder has: `python -m benchmarks.restoring BROKER FOLDER`; see recovery."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

import uvloop
from headrace.streams import kernels
from headrace.streams.address import parse_address
from headrace.streams.behind import on_disk
from headrace.streams.kafka import KafkaLog
from headrace.streams.runner import Progress, Runner

from benchmarks.customers import app
from headrace import plan
from headrace.worker import SystemClock

LOOK_EVERY = 0.05
"""Seconds between two looks at the memory while the changelog is read."""


async def main(broker: str, folder: str) -> None:
    log, told = KafkaLog(parse_address(broker)), {"before": memory(), "reading": memory()}
    [stage] = plan.stages(app)
    began = time.perf_counter()
    task, follows = stage.build(0, on_disk(Path(folder)))
    # Without a group: what is measured is the task.
    runner = Runner(task, log, SystemClock(), stage.group, follows)
    looking = asyncio.create_task(look(runner.progress, told))
    await runner.start()
    told |= {"seconds": time.perf_counter() - began, "peak": memory()}
    looking.cancel()
    while not await runner.step():
        pass
    print(json.dumps(told), flush=True)
    await runner.close()
    await log.close()
    task.close()


async def look(progress: Progress, told: dict[str, float]) -> None:
    """Note the memory while the changelog is read; the loop stands still while the state is loaded after it."""
    while True:
        if progress.restored < progress.to_restore:
            told["reading"] = memory()
        await asyncio.sleep(LOOK_EVERY)


def memory() -> float:
    """MB that the process has held at most."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


if __name__ == "__main__":
    kernels.warm()
    uvloop.run(main(*sys.argv[1:]))
