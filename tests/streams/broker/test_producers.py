"""Idempotent producers: what comes twice is written once, and gaps and old epochs are refused."""

from typing import Any

from kio.schema.errors import ErrorCode

from tests.streams.broker.clients import (
    FETCH,
    PRODUCE,
    Clients,
    Wire,
    batch,
    fetch_fields,
    only,
    produce_fields,
)

INIT_PRODUCER = 22


async def new_producer(wire: Wire) -> int:
    answer = await wire.ask(INIT_PRODUCER, 4, transactional_id=None)
    assert answer.producer_epoch == 0
    return int(answer.producer_id)


async def sent(wire: Wire, producer: int, sequence: int, *, epoch: int = 0, count: int = 1) -> Any:
    records = batch(*[b"v"] * count, producer=(producer, epoch, sequence))
    answer = await wire.ask(PRODUCE, 9, **produce_fields("t", records))
    return answer.responses[0].partition_responses[0]


async def test_each_of_the_last_five_batches_is_recognised_and_answered_as_before(clients: Clients) -> None:
    await clients.topic("t")
    wire = await clients.wire()
    producer = await new_producer(wire)
    offsets = [(await sent(wire, producer, 2 * n, count=2)).base_offset for n in range(7)]
    again = [(await sent(wire, producer, 2 * n, count=2)).base_offset for n in range(2, 7)]
    assert again == offsets[2:]
    assert only(await wire.ask(FETCH, 11, **fetch_fields("t"))).high_watermark == 14


async def test_a_gap_in_the_sequence_is_refused(clients: Clients) -> None:
    await clients.topic("t")
    wire = await clients.wire()
    producer = await new_producer(wire)
    await sent(wire, producer, 0)
    assert (await sent(wire, producer, 2)).error_code is ErrorCode.out_of_order_sequence_number
    assert (await sent(wire, producer, 1)).error_code is ErrorCode.none


async def test_sequences_wrap_at_the_greatest_integer(clients: Clients) -> None:
    await clients.topic("t")
    wire = await clients.wire()
    producer = await new_producer(wire)
    assert (await sent(wire, producer, 2**31 - 2, count=3)).error_code is ErrorCode.none
    assert (await sent(wire, producer, 1)).error_code is ErrorCode.none


async def test_a_new_epoch_begins_at_zero_and_fences_the_old(clients: Clients) -> None:
    await clients.topic("t")
    wire = await clients.wire()
    producer = await new_producer(wire)
    await sent(wire, producer, 0)
    assert (await sent(wire, producer, 1, epoch=1)).error_code is ErrorCode.out_of_order_sequence_number
    assert (await sent(wire, producer, 0, epoch=1)).error_code is ErrorCode.none
    assert (await sent(wire, producer, 1, epoch=0)).error_code is ErrorCode.invalid_producer_epoch


async def test_every_producer_gets_an_id_of_its_own(clients: Clients) -> None:
    wire = await clients.wire()
    assert len({await new_producer(wire) for _ in range(5)}) == 5
