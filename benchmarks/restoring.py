"""One task of customers comes back: `python -m benchmarks.restoring BROKER FOLDER [standby]`; see recovery.

It starts on what the folder has; as a standby it first reads the changelog to its end, and takes over then.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import uvloop
from headrace.streams import kernels
from headrace.streams.address import parse_address
from headrace.streams.kafka import KafkaLog
from headrace.streams.runner import Progress, Runner, replay
from headrace.streams.store import RocksStore

from benchmarks.customers import app
from headrace import plan
from headrace.worker import SystemClock


async def main(broker: str, folder: str, standby: str = "") -> None:
    log, clock, told = KafkaLog(parse_address(broker)), SystemClock(), {"before": memory()}
    [stage] = plan.stages(app)
    if standby:
        task, _ = stage.build(0, RocksStore(Path(folder)))
        began = time.perf_counter()
        await replay(task, log, Progress(), time.time, lambda: False)
        told |= {"followed": time.perf_counter() - began, "following": memory()}
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
