"""One task of customers comes back: `python -m benchmarks.restoring BROKER FOLDER [standby]`; see recovery.

It starts on what the folder has; as a standby, it first follows the changelog to its end, and takes over then.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

import uvloop
from headrace.streams import kernels
from headrace.streams.address import parse_address
from headrace.streams.kafka import KafkaLog
from headrace.streams.runner import Progress, Runner
from headrace.streams.standby import Standby
from headrace.streams.store import RocksStore

from benchmarks.customers import app
from headrace import plan
from headrace.worker import SystemClock

LOOK_EVERY = 0.01
"""Seconds between two looks whether the standby is there."""


async def main(broker: str, folder: str, standby: str = "") -> None:
    log, clock, told = KafkaLog(parse_address(broker)), SystemClock(), {"before": memory()}
    [stage] = plan.stages(app)
    if standby:
        progress = Progress()
        task, _ = stage.build(0, RocksStore(Path(folder)))
        copy = Standby(task, log, clock, progress)
        began = time.perf_counter()
        following = asyncio.create_task(copy.run())
        while not following.done() and not 0 < progress.to_restore <= progress.restored:
            await asyncio.sleep(LOOK_EVERY)
        told |= {"followed": time.perf_counter() - began, "following": memory()}
        copy.stop()
        await following
        task.close()
    began = time.perf_counter()
    task, follows = stage.build(0, RocksStore(Path(folder)))
    # Without a group: what is measured is the task.
    runner = Runner(task, log, clock, stage.group, follows)
    await runner.start()
    told |= {"seconds": time.perf_counter() - began, "peak": memory()}
    while not await runner.step():
        pass
    print(json.dumps(told), flush=True)
    await runner.close()
    await log.close()
    task.close()


def memory() -> float:
    """MB that the process has held at most."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


if __name__ == "__main__":
    kernels.warm()
    uvloop.run(main(*sys.argv[1:]))
