"""An engine with its transactions switched off, and `headrace` that runs it.

It writes outputs and state (with the offsets) each on its own: the outputs first, as an engine does that promises at
least once, or the state first. As the worker of a stack it kills itself twice between the two; as one of several
workers (`worker PROGRAM ...`) it takes its time between the two, and others kill it. Whoever checks must find what was
done twice and what was lost.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from headrace.streams.address import Address, client_options
from headrace.streams.batch import Block, Record, record_by_record
from headrace.streams.kafka import KafkaLog
from headrace.streams.log import NO_OFFSETS, Partition, Writer

from headrace import worker
from headrace.command import main
from headrace.stack import Stack

DEATHS = Path(os.environ["HEADRACE_HOME"]) / "deaths"
"""How often it has killed itself, a byte each."""
ONE_OF_SEVERAL = sys.argv[1:2] == ["worker"]
PAUSE = 0.5
"""Seconds between outputs and state where others do the killing."""
ALIVE = 2
"""Transactions that it ends without harm after each start: the barrier's, and that of a batch."""


class CarelessLog(KafkaLog):
    """A log whose writers know no transactions."""

    async def writer(self, owner: str) -> Writer:
        producer = AIOKafkaProducer(**client_options(self.address), enable_idempotence=True)
        await producer.start()
        return CarelessWriter(producer, self.address, owner == "returns.orders-0")


class CarelessWriter:
    def __init__(self, producer: AIOKafkaProducer, address: Address, suicidal: bool) -> None:
        self._producer = producer
        self._address = address
        self._suicidal = suicidal
        self._batches = 0

    async def begin(self, group: str = "", offsets: Mapping[Partition, int] = NO_OFFSETS) -> None:
        self._takes = group, offsets
        self._batches += 1

    async def send(self, records: Sequence[Record | Block], home: int) -> dict[Partition, int]:
        deaths = DEATHS.stat().st_size if DEATHS.exists() else 0
        outputs = [r for r in record_by_record(records) if not r.topic.endswith(".changelog")]
        state = [r for r in record_by_record(records) if r.topic.endswith(".changelog")]
        dies = self._suicidal and deaths < 2 and self._batches > ALIVE
        sent: dict[Partition, asyncio.Future[Any]] = {}  # aiokafka is untyped
        first = random.random() < 0.5 if ONE_OF_SEVERAL else deaths == 0
        parts = (outputs, state) if first else (state, outputs)
        for part in parts:
            for r in part:
                number = home if r.partition is None else r.partition
                sending = self._producer.send(r.topic, r.value, r.key, number, r.timestamp, list(r.headers))
                sent[Partition(r.topic, number)] = await sending
            await self._producer.flush()
            if ONE_OF_SEVERAL and part is parts[0]:
                await asyncio.sleep(PAUSE)
            if dies:
                with DEATHS.open("ab") as file:
                    file.write(b"x")
                os.kill(os.getpid(), signal.SIGKILL)
        return {p: (await last).offset + 1 for p, last in sent.items()}

    async def commit(self) -> None:
        group, offsets = self._takes
        if not offsets:
            return
        consumer = AIOKafkaConsumer(**client_options(self._address), group_id=group, enable_auto_commit=False)
        await consumer.start()
        consumer.assign([TopicPartition(*p) for p in offsets])
        await consumer.commit({TopicPartition(*p): offset for p, offset in offsets.items()})
        await consumer.stop()

    async def abort(self) -> None:
        pass

    async def close(self) -> None:
        await self._producer.stop()


if __name__ == "__main__":
    worker.KafkaLog = CarelessLog  # type: ignore[attr-defined]
    if "--parent-fd" in sys.argv:
        sys.exit(worker.main())
    Stack.worker_module = "tests.kill.careless"
    main()
