"""Workers that tell of themselves, without doing anything: what they publish, published for them."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec
from aiokafka import AIOKafkaProducer
from headrace.streams.address import Address
from headrace.streams.admin import ensure_topics
from headrace.streams.publisher import Row
from headrace.streams.workers import TOPIC, WORKERS, TaskStatus, WorkerStatus

from tests.scene import write


def worker(number: int, *tasks: TaskStatus, ago: float = 0.0, app: str = "crew", **more: Any) -> WorkerStatus:
    at = int((time.time() - ago) * 1000)
    return WorkerStatus(
        worker=f"w{number}", app=app, host="h", pid=number, started=number, time=at, state="running", tasks=tasks,
        **more,
    )  # fmt: skip


def task(partition: int, stage: str = "orders", **more: Any) -> TaskStatus:
    return TaskStatus(stage=stage, partition=partition, **{"state": "running", **more})


def tell(broker: Address, *statuses: WorkerStatus) -> None:
    asyncio.run(ensure_topics(broker, [TOPIC]))
    write(broker, WORKERS, [Row(s.worker.encode(), msgspec.json.encode(s)) for s in statuses])


def end(broker: Address, *workers: str) -> None:
    """Workers that end in order leave a tombstone; a producer of its own, as rows of events have a value."""

    async def main() -> None:
        async with AIOKafkaProducer(bootstrap_servers=broker.bootstrap) as producer:
            for name in workers:
                await producer.send_and_wait(WORKERS, None, name.encode())

    asyncio.run(main())
