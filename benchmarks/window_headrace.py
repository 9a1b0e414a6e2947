"""The window job by Headrace: `python -m benchmarks.window_headrace BROKER FOLDER EVENTS`; see window."""

from __future__ import annotations

import sys
from pathlib import Path

import uvloop
from headrace.streams import kernels
from headrace.streams.kafka import KafkaLog

from benchmarks.window import Clock, app
from headrace.worker import runners


async def main(broker: str, folder: str, events: int) -> None:
    log = KafkaLog(broker)
    [runner] = runners(app, log, Path(folder))
    clock = Clock(events)
    await runner.start()
    done = 0
    while done < events:
        done += await runner.step()
        clock.seen(done)
    print(clock.told(), flush=True)
    await runner.close()
    await log.close()
    runner.task.close()


if __name__ == "__main__":
    kernels.warm()
    uvloop.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
