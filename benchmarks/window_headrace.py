"""The window job by Headrace: `python -m benchmarks.window_headrace BROKER FOLDER EVENTS [GUARANTEE]`; see window."""

from __future__ import annotations

import sys
from pathlib import Path

import uvloop
from headrace.streams import kernels
from headrace.streams.address import parse_address
from headrace.streams.behind import on_disk
from headrace.streams.kafka import KafkaLog
from headrace.streams.runner import Runner

import headrace as hr
from benchmarks.window import Clock, PerMinute
from headrace import plan
from headrace.app import Guarantee
from headrace.worker import SystemClock


async def main(broker: str, folder: str, events: int, guarantee: Guarantee = "exactly_once") -> None:
    log = KafkaLog(parse_address(broker))
    app = hr.App("window", features=[PerMinute], guarantee=guarantee)
    [stage] = plan.stages(app)
    task, follows = stage.build(0, on_disk(Path(folder) / "state"))
    # Without a group: what is measured is the task.
    runner = Runner(task, log, SystemClock(), stage.group, follows, ahead=stage.ahead)
    clock = Clock(events)
    await runner.start()
    done = 0
    while done < events:
        done += await runner.step()
        clock.seen(done)
    await runner.settle()
    print(clock.told(), flush=True)
    await runner.close()
    await log.close()
    runner.task.close()


if __name__ == "__main__":
    kernels.warm()
    uvloop.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), *sys.argv[4:]))  # type: ignore[arg-type]
