"""Closing consumers, in whatever state the broker is."""

from __future__ import annotations

import asyncio

from aiokafka import AIOKafkaConsumer

CLOSE_WITHIN = 5.0
"""Seconds. A group's last words go to a broker that may be gone; whoever closes has to go on."""


async def stop(consumer: AIOKafkaConsumer) -> None:
    """Stop a consumer. Raises nothing but the cancellation of its caller.

    Where a fetch waits to be tried again, aiokafka's own stop() raises CancelledError, as if the caller had been
    cancelled, and leaves connections open (aiokafka's issue 647). A task that closes a consumer while the broker is
    away would end by that, silently. So it happens in a task of its own.
    """
    stopping = asyncio.ensure_future(consumer.stop())
    try:
        await asyncio.wait([stopping], timeout=CLOSE_WITHIN)
    finally:
        stopping.cancel()
    await asyncio.wait([stopping])
    if stopping.cancelled() or stopping.exception() is not None:
        await asyncio.wait([asyncio.ensure_future(consumer._client.close())], timeout=CLOSE_WITHIN)
