"""One query by Headrace, in a process on one core: `python -m benchmarks.nexmark.job BROKER FOLDER EVENTS QUERY`."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import uvloop
from headrace.streams import kernels
from headrace.streams.address import parse_address
from headrace.streams.behind import on_disk
from headrace.streams.kafka import KafkaLog
from headrace.streams.runner import Runner

from benchmarks.nexmark.queries import QUERIES, Query
from benchmarks.window import Clock
from headrace import plan
from headrace.worker import SystemClock

CORE = 0


async def main(broker: str, folder: str, events: int, query: Query) -> None:
    log = KafkaLog(parse_address(broker))
    runners = []
    for i, stage in enumerate(plan.stages(query.app)):
        task, follows = stage.build(0, on_disk(Path(folder) / f"{query.name}-{i}"))
        # Without a group: what is measured are the tasks.
        runners.append(Runner(task, log, SystemClock(), stage.group, follows, ahead=stage.ahead))
    clock = Clock(events)
    for runner in runners:
        await runner.start()
    first, *after = runners
    ended = asyncio.Event()
    following = [asyncio.create_task(_follow(runner, ended)) for runner in after]
    done = 0
    while done < events:
        done += await first.step()
        clock.seen(done)
    await first.settle()
    ended.set()
    for runner, follow in zip(after, following, strict=True):
        await follow
        await _finish(log, runner)
    print(clock.told(), flush=True)
    for runner in runners:
        await runner.close()
        runner.task.close()
    await log.close()


async def _follow(runner: Runner, ended: asyncio.Event) -> None:
    while not ended.is_set():
        await runner.step()


async def _finish(log: KafkaLog, runner: Runner) -> None:
    """Take all that is there."""
    [source] = runner.task.inputs
    end = (await log.ends([source.partition]))[source.partition]
    while source.buffered or source.offset < end:
        await runner.step()
    await runner.settle()


if __name__ == "__main__":
    os.sched_setaffinity(0, {CORE})
    kernels.warm()
    uvloop.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), QUERIES[sys.argv[4]]))
