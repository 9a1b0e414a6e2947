"""What a worker tells of itself on the topic `workers`, and how the group's leader keeps that topic clean."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable

import msgspec
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from headrace.streams.address import Address, client_options
from headrace.streams.errors import StreamsError
from headrace.streams.log import Log, Partition
from headrace.streams.workers import TELL_EVERY, WORKERS, WorkerStatus, decode

logger = logging.getLogger("headrace.workers")

TELL_WITHIN = 5.0
"""Seconds for the log to take a record; the next says more."""

CLEAN_EVERY = 5.0
"""Seconds between two looks of the leader at the topic."""

FORGET_AFTER = 120.0
"""Seconds of silence after which the leader removes a worker's record: readers show it as gone until then, so that who
looks finds out what died. Without an end every start of a worker that was killed would leave a record for ever."""

FETCH_ROWS = 1_000


class Presence:
    """Publishes `status()` every TELL_EVERY. What fails here is told once and harms no task."""

    def __init__(self, address: Address, status: Callable[[], WorkerStatus], client_id: str) -> None:
        self._address = address
        self._status = status
        self._client_id = client_id
        self._producer: AIOKafkaProducer | None = None
        self._silent = False

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            await self.tell()
            await asyncio.sleep(TELL_EVERY)

    async def tell(self) -> None:
        """Once."""
        status = self._status()
        await self._tell(status.worker, msgspec.json.encode(status))

    async def leave(self) -> None:
        """The last word of a worker that ends in order: its record goes."""
        await self._tell(self._status().worker, None)
        await self.close()

    async def forget(self, worker: str) -> None:
        await self._tell(worker, None)

    async def close(self) -> None:
        if self._producer is not None:
            producer, self._producer = self._producer, None
            with contextlib.suppress(KafkaError, OSError, TimeoutError):
                await asyncio.wait_for(producer.stop(), TELL_WITHIN)

    async def _tell(self, worker: str, value: bytes | None) -> None:
        try:
            async with asyncio.timeout(TELL_WITHIN):
                if self._producer is None:
                    producer = AIOKafkaProducer(
                        **client_options(self._address),
                        client_id=self._client_id,
                        request_timeout_ms=int(TELL_WITHIN * 1000),
                    )
                    try:
                        await producer.start()
                    except BaseException:
                        await producer.stop()
                        raise
                    self._producer = producer
                await self._producer.send_and_wait(WORKERS, value, key=worker.encode(), partition=0)
            self._silent = False
        except (KafkaError, OSError, TimeoutError, StreamsError) as error:
            if not self._silent:
                logger.warning("the topic %s does not take this worker's state, its tasks go on: %r", WORKERS, error)
            self._silent = True


class Cleaner:
    """The leader's duty: removes the records of this application's workers that fell silent.

    leads: whether this worker leads now; another one may at any time, and removing twice does no harm
    """

    def __init__(self, log: Log, app: str, presence: Presence, leads: Callable[[], bool]) -> None:
        self._log = log
        self._app = app
        self._presence = presence
        self._leads = leads
        self._heard: dict[str, float] = {}

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            try:
                if self._leads():
                    await self._lead()
            except StreamsError as error:
                logger.info("the topic %s is not cleaned now: %s", WORKERS, error)
            await asyncio.sleep(CLEAN_EVERY)

    async def _lead(self) -> None:
        partition = Partition(WORKERS, 0)
        # By this worker's clock from when it heard them, for the clocks of machines differ.
        self._heard.clear()
        reader = await self._log.reader({partition: 0})
        try:
            while self._leads():
                for fetched in await reader.fetch([partition], FETCH_ROWS, 0.1):
                    for key, value in zip(fetched.keys, fetched.values, strict=True):
                        self._hear((key or b"").decode(errors="replace"), value)
                for worker in self.silent():
                    logger.info("worker %s has been silent for %.0f s; its record goes", worker, FORGET_AFTER)
                    await self._presence.forget(worker)
                await asyncio.sleep(CLEAN_EVERY)
        finally:
            await reader.close()

    def _hear(self, worker: str, value: bytes | None) -> None:
        self._heard.pop(worker, None)
        status = None if value is None else decode(value)
        if status is not None and status.app == self._app:
            self._heard[worker] = time.monotonic()

    def silent(self) -> list[str]:
        return [w for w, at in self._heard.items() if time.monotonic() - at > FORGET_AFTER]
