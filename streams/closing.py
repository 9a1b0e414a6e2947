"""Closing clients, in whatever state the broker is."""

from __future__ import annotations

import asyncio

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

CLOSE_WITHIN = 5.0
"""Seconds. The last words of a group or a transaction go to a broker that may be gone; whoever closes has to go on."""

_ENDING: set[asyncio.Task[None]] = set()
"""Held, as the loop itself holds no task whose caller is gone."""


async def stop(client: AIOKafkaConsumer | AIOKafkaProducer) -> None:
    """Stop a consumer or a producer. Raises nothing but the cancellation of its caller, whose client is closed all the
    same.

    Where a fetch waits to be tried again, aiokafka's own stop() raises CancelledError, as if the caller had been
    cancelled, and leaves connections open (aiokafka's issue 647). A task that closes a consumer while the broker is
    away would end by that, silently. So it happens in a task of its own. One that does not end in time leaves a
    producer's sender at work and connections open, and both are ended here.
    """
    ending = asyncio.create_task(_stop(client))
    _ENDING.add(ending)
    ending.add_done_callback(_ENDING.discard)
    await asyncio.shield(ending)


async def _stop(client: AIOKafkaConsumer | AIOKafkaProducer) -> None:
    stopping = asyncio.ensure_future(client.stop())
    await asyncio.wait([stopping], timeout=CLOSE_WITHIN)
    stopping.cancel()
    await asyncio.wait([stopping])
    if stopping.cancelled() or stopping.exception() is not None:
        ending = asyncio.ensure_future(_cut(client))
        await asyncio.wait([ending], timeout=CLOSE_WITHIN)
        if not ending.done():
            ending.cancel()
        elif not ending.cancelled():
            ending.exception()


async def _cut(client: AIOKafkaConsumer | AIOKafkaProducer) -> None:
    """Close the connections of a client that did not stop, and first whoever would open them again."""
    if isinstance(client, AIOKafkaProducer):
        sending = client._sender.sender_task if client._sender is not None else None
        if sending is not None:
            sending.cancel()
            await asyncio.wait([sending])
        await client.client.close()
    else:
        await client._client.close()
