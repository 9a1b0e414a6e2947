"""The log over the Kafka protocol, by aiokafka: Apache Kafka or the local broker."""

from __future__ import annotations

import asyncio
import os
import time
from collections import defaultdict
from collections.abc import Awaitable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, TypeVar

import numpy as np
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import (
    IllegalOperation,
    InvalidProducerEpoch,
    KafkaConnectionError,
    KafkaError,
    MessageSizeTooLargeError,
    OffsetOutOfRangeError,
    ProducerFenced,
)
from headrace.streams import kip890, rawio, recordbatches
from headrace.streams.address import Address, client_options
from headrace.streams.batch import Block, Record, record_by_record
from headrace.streams.closing import stop
from headrace.streams.diagnosis import diagnose
from headrace.streams.errors import (
    BadSetting,
    Fenced,
    LogUnavailable,
    MalformedBatch,
    RecordTooLarge,
    TransactionUnknown,
)
from headrace.streams.log import NO_OFFSETS, Fetched, Partition, Reader, Sender, Turns, Writer
from headrace.streams.recordbatches import Columns
from headrace.streams.spans import Spans
from numpy.typing import NDArray

START_WITHIN = 30.0
"""Seconds for a client to find the log: longer than Apache Kafka's restart after kill -9 (5 to 16 s)."""

ANSWER_WITHIN = 30.0
"""Seconds for one exchange with the log; beyond it the task starts again from what is committed."""

BATCH_BYTES = 1 << 20
"""Bytes of one produced batch, Kafka's own default bound for a message set."""

FETCH_BYTES = 2 << 20
"""Bytes of a partition that come at one go: for small events, some 30,000. Kafka's own default, half of it, made
batches of 10,000, and each costs as much Python whatever is in it."""

BACKOFF_MS = 10
"""Between attempts to write. A transaction that begins before the last one's markers are written is tried again after
this; aiokafka's own 100 ms doubled the time of a commit on Kafka."""

IDS = 2
"""Transactional ids of a writer, in turn."""

TRANSACTION_WITHIN_MS = 60_000
"""After this long without an end the log aborts a dead owner's transaction, so that readers go on."""

FEW_BYTES = 32 << 10
"""Bytes of a batch that are sooner sent with the next."""

FEW = 20
"""Records in blocks that are sooner appended one by one than laid out as columns."""

TRANSPORT = "HEADRACE_TRANSPORT"
TRANSPORTS = ("batches", "records")
"""Whole batches, by private classes of aiokafka; or a record at a time, by its public ones, should those fail."""

T = TypeVar("T")

_FENCED = (ProducerFenced, InvalidProducerEpoch)

_Got = Columns | list[Any]  # aiokafka's records are untyped


def whole_batches() -> bool:
    """Whether the environment has batches go whole. Raises BadSetting."""
    said = os.environ.get(TRANSPORT) or TRANSPORTS[0]
    if said not in TRANSPORTS:
        raise BadSetting(
            f"{TRANSPORT}={said!r} is not one of {', '.join(TRANSPORTS)}: leave it out, or name one of them"
        )
    return said == TRANSPORTS[0]


class KafkaLog:
    """The log at an address. Raises BadSetting."""

    def __init__(self, address: Address, client_id: str = "headrace") -> None:
        self.address = address
        self.whole = whole_batches()
        self._client_id = client_id
        self._asking: AIOKafkaConsumer | None = None
        self._opening = asyncio.Lock()
        self._second: bool | None = None

    async def reader(self, offsets: Mapping[Partition, int]) -> Reader:
        await self._warm()
        consumer = await self._consumer(None)
        if self.whole:
            rawio.take_columns(consumer)
        tps = {TopicPartition(*p): offset for p, offset in offsets.items()}
        consumer.assign(list(tps))
        for tp, offset in tps.items():
            consumer.seek(tp, offset)
        return _Reader(consumer)

    async def writer(self, owner: str) -> Writer:
        # On Kafka a producer that begins again at once finds its last markers unwritten and waits: so they are written
        # while another is at work.
        return Turns([_Writer(p, self.whole) for p in await self._producers(*(f"{owner}.{n}" for n in range(IDS)))])

    async def sender(self) -> Sender:
        [producer] = await self._producers(None)
        return _Sender(producer, self.whole)

    async def _producers(self, *transactional: str | None) -> list[AIOKafkaProducer]:
        """Started producers: idempotent ones, or of these transactional ids."""
        await self._warm()
        producers = [
            AIOKafkaProducer(
                **client_options(self.address),
                client_id=self._client_id,
                enable_idempotence=True,
                transactional_id=id,
                transaction_timeout_ms=TRANSACTION_WITHIN_MS,
                max_batch_size=BATCH_BYTES,
                request_timeout_ms=int(ANSWER_WITHIN * 1000),
                retry_backoff_ms=BACKOFF_MS,
            )
            for id in transactional
        ]
        try:
            for producer in producers:  # one after the other, as `Turns` tells
                await self._start(producer.start())
                if producer._txn_manager.transactional_id is not None and await self._implied(producer):
                    kip890.speak(producer)
        except BaseException:
            for producer in producers:
                await stop(producer)
            raise
        return producers

    async def _implied(self, producer: AIOKafkaProducer) -> bool:
        """Whether transactions are of version 2. Raises LogUnavailable."""
        if self._second is None:
            at = f"the log at {self.address}"
            self._second = self.whole and await _bounded(kip890.spoken(producer), ANSWER_WITHIN, at)
        return self._second

    async def committed(self, group: str, partitions: Sequence[Partition]) -> dict[Partition, int]:
        consumer = await self._consumer(group)
        try:
            consumer.assign([TopicPartition(*p) for p in partitions])
            found = {}
            for p in partitions:
                offset = await _bounded(consumer.committed(TopicPartition(*p)), ANSWER_WITHIN, "no answer")
                if offset is not None:
                    found[p] = offset
            return found
        finally:
            await stop(consumer)

    async def ends(self, partitions: Sequence[Partition]) -> dict[Partition, int]:
        consumer = await self._ask()
        return await self._offsets(consumer.end_offsets([TopicPartition(*p) for p in partitions]))

    async def starts(self, partitions: Sequence[Partition]) -> dict[Partition, int]:
        consumer = await self._ask()
        return await self._offsets(consumer.beginning_offsets([TopicPartition(*p) for p in partitions]))

    async def _offsets(self, asked: Awaitable[dict[TopicPartition, int]]) -> dict[Partition, int]:
        found = await _bounded(asked, ANSWER_WITHIN, f"the log at {self.address} does not answer")
        return {Partition(tp.topic, tp.partition): offset for tp, offset in found.items()}

    async def close(self) -> None:
        if self._asking is not None:
            await stop(self._asking)
            self._asking = None

    async def _ask(self) -> AIOKafkaConsumer:
        async with self._opening:  # the tasks of a worker ask together, and share one
            if self._asking is None:
                self._asking = await self._consumer(None)
        return self._asking

    async def _warm(self) -> None:
        """Nothing is compiled while records wait."""
        if self.whole and not recordbatches.ready():
            await asyncio.to_thread(recordbatches.warm)

    async def _consumer(self, group: str | None) -> AIOKafkaConsumer:
        consumer = AIOKafkaConsumer(
            **client_options(self.address),
            client_id=self._client_id,
            group_id=group,
            enable_auto_commit=False,
            auto_offset_reset="none",
            isolation_level="read_committed",
            fetch_max_wait_ms=50,
            max_partition_fetch_bytes=FETCH_BYTES,
            request_timeout_ms=int(ANSWER_WITHIN * 1000),
        )
        try:
            await self._start(consumer.start())
        except BaseException:
            await stop(consumer)
            raise
        return consumer

    async def _start(self, starting: Awaitable[None]) -> None:
        """Raises LogUnavailable; BadSecurity where it would be in vain to try again."""
        try:
            await asyncio.wait_for(starting, START_WITHIN)
        except (KafkaConnectionError, OSError, TimeoutError) as error:
            raise await diagnose(self.address) from error
        except KafkaError as error:
            raise LogUnavailable(f"the log at {self.address} did not let a client start: {error!r}") from error


class _Reader:
    def __init__(self, consumer: AIOKafkaConsumer) -> None:
        self._consumer = consumer

    async def fetch(self, partitions: Sequence[Partition], limit: int, wait: float) -> list[Fetched]:
        if not partitions:
            return []
        tps = [TopicPartition(*p) for p in partitions]
        try:
            got = await self._get(tps, limit, wait)
            # The bound is over all of them, and the first may have used it up.
            for tp in tps if got else ():
                if tp not in got:
                    got |= await self._get([tp], limit, 0.0)
            return [f for tp in tps if (f := await self._columns(tp, got.get(tp, rawio.NOTHING))) is not None]
        except (KafkaError, OSError, MalformedBatch) as error:
            raise LogUnavailable(f"reading failed: {error}") from error

    async def _get(self, tps: list[TopicPartition], limit: int, wait: float) -> dict[TopicPartition, _Got]:
        try:
            found: dict[TopicPartition, _Got] = await self._consumer.getmany(
                *tps, timeout_ms=int(wait * 1000), max_records=limit
            )
        except OffsetOutOfRangeError as error:
            # Caught here: what was got of the others before is the caller's, and never comes again.
            await self._to_beginning(error.args[0])
            return {}
        return found

    async def _to_beginning(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Go on at the log's beginning where retention has moved it past the offset.

        Raises LogUnavailable where the log ends before the offset: whoever reads starts again, and finds out why.
        """
        try:
            begins = await asyncio.wait_for(self._consumer.beginning_offsets(list(offsets)), ANSWER_WITHIN)
        except TimeoutError as error:
            raise LogUnavailable("reading failed: no answer in time") from error
        for tp, offset in offsets.items():
            if offset > begins[tp]:
                raise LogUnavailable(f"{tp.topic}, partition {tp.partition}, has no offset {offset:,} any more")
            self._consumer.seek(tp, begins[tp])

    async def _columns(self, tp: TopicPartition, got: _Got) -> Fetched | None:
        partition = Partition(tp.topic, tp.partition)
        end = self._consumer.last_stable_offset(tp)
        position = await self._consumer.position(tp)
        if not len(got) and (end is None or position < end):
            return None
        end = max(position, end or 0)
        if isinstance(got, Columns):
            return Fetched(partition, got.offset, got.timestamp, got.keys, got.values, position, end)
        return Fetched(
            partition,
            np.array([r.offset for r in got], np.int64),
            np.array([r.timestamp for r in got], np.int64),
            [r.key for r in got],
            [r.value for r in got],
            position,
            end,
        )

    async def close(self) -> None:
        await stop(self._consumer)


class _Sender:
    transactional = False

    def __init__(self, producer: AIOKafkaProducer, whole: bool) -> None:
        self._producer = producer
        self._whole = whole
        self._fenced = False

    async def send(self, records: Sequence[Record | Block], home: int) -> dict[Partition, int]:
        by_partition: dict[Partition, list[Record | Block]] = defaultdict(list)
        for output in records:
            if isinstance(output, Record) or len(output):
                number = home if output.partition is None else output.partition
                by_partition[Partition(output.topic, number)].append(output)
        self._announce(by_partition)
        sent = []
        for partition, those in by_partition.items():
            for batch in self._batches(those):
                future = await self._ask(_send_batch(self._producer, batch, partition))
                sent.append((partition, batch.record_count(), future))
                if batch.size() > FEW_BYTES:
                    await asyncio.sleep(0)  # while it is under way the next is built
        ends: dict[Partition, int] = {}
        for partition, count, future in sent:
            try:
                stored = await self._ask(future)
            except RecordTooLarge:
                largest = max(record_by_record(by_partition[partition]), key=lambda r: len(r.value or b""))
                raise RecordTooLarge(
                    f"a record of {len(largest.value or b''):,} bytes, key {largest.key!r}, is larger than "
                    f"{partition.topic} takes: raise max.message.bytes of that topic, then start the worker again"
                ) from None
            if stored.offset < 0:
                # The broker has it already, and does not say where: the position after it is found by starting again.
                raise LogUnavailable(f"{partition.topic} has a batch already that was sent again, and tells no offset")
            ends[partition] = stored.offset + count
        await self._take_offsets()
        return ends

    def _announce(self, partitions: Iterable[Partition]) -> None:
        """Say where the records of a transaction will go."""

    async def _take_offsets(self) -> None:
        """Have the offsets of a transaction taken, once its records are."""

    def _batches(self, outputs: list[Record | Block]) -> Iterator[Any]:
        """What one partition gets, in order, as batches for aiokafka's send_batch."""
        if not self._whole or sum([len(o) for o in outputs if isinstance(o, Block)]) < FEW:
            yield from self._appended(outputs)
            return
        # Each batch is a request of its own: records between blocks go in their batch, but for those with headers.
        for plain, some in groupby(outputs, lambda o: isinstance(o, Block) or not o.headers):
            if plain:
                for data, count in recordbatches.build(*laid_out(some), BATCH_BYTES):
                    yield rawio.Built(data, count, self.transactional)
            else:
                yield from self._appended(some)

    def _appended(self, outputs: Iterable[Record | Block]) -> Iterator[Any]:
        batch = self._producer.create_batch()
        for output in outputs:
            headers: list[tuple[str, bytes]] = []
            if isinstance(output, Block):
                rows: Iterable[tuple[bytes | None, bytes | None]] = zip(output.keys, output.values, strict=True)
            else:
                rows, headers = ((output.key, output.value),), list(output.headers)
            for key, value in rows:
                if batch.append(key=key, value=value, timestamp=output.timestamp, headers=headers) is None:
                    yield batch
                    batch = self._producer.create_batch()
                    # The first record of a batch always finds room, whatever its size.
                    batch.append(key=key, value=value, timestamp=output.timestamp, headers=headers)
        yield batch

    async def close(self) -> None:
        await stop(self._producer)
        # What failed beneath and was not waited for would be told as an exception that nobody took.
        producer = self._producer
        ended = [b._drain_waiter for batches in producer._message_accumulator._batches.values() for b in batches]
        if producer._txn_manager is not None:
            ended.append(producer._txn_manager.wait_for_transaction_end())
        for future in ended:
            if future is not None and future.done() and not future.cancelled():
                future.exception()

    async def _ask(self, awaitable: Awaitable[Any]) -> Any:  # aiokafka is untyped
        try:
            async with asyncio.timeout(ANSWER_WITHIN):
                return await awaitable
        except _FENCED as error:
            self._fenced = True
            raise Fenced("a newer owner of this task has taken over") from error
        except MessageSizeTooLargeError as error:
            raise RecordTooLarge(str(error)) from error
        except (KafkaError, IllegalOperation, OSError, TimeoutError) as error:
            # IllegalOperation: the transaction has failed beneath, in aiokafka's own task, between two of its batches.
            raise LogUnavailable(f"writing failed: {error}") from error


class _Writer(_Sender):
    """One transactional id."""

    transactional = True

    async def begin(self, group: str = "", offsets: Mapping[Partition, int] = NO_OFFSETS) -> None:
        if self._fenced:
            raise Fenced("a newer owner of this task has taken over")
        self._takes = {TopicPartition(*p): offset for p, offset in offsets.items()}, group
        await self._ask(self._producer.begin_transaction())

    def _announce(self, partitions: Iterable[Partition]) -> None:
        # At once: where transactions are of version 1, a request is sent for the first of them else, and another, a
        # round trip later, for the others.
        rawio.announce(self._producer, partitions)

    async def _take_offsets(self) -> None:
        # Not beside the records: Kafka verifies one request of a transaction at a time, and of two that meet it refuses
        # one, which then waits for BACKOFF_MS; on one node, of every fourth transaction.
        if self._takes[0]:
            await self._ask(self._producer.send_offsets_to_transaction(*self._takes))

    async def commit(self) -> None:
        try:
            async with asyncio.timeout(ANSWER_WITHIN):
                await self._producer.commit_transaction()
        except _FENCED as error:
            self._fenced = True
            raise Fenced("a newer owner of this task has taken over") from error
        except (KafkaError, IllegalOperation, OSError, TimeoutError) as error:
            raise TransactionUnknown(f"the outcome of a commit is unknown: {error}") from error

    async def abort(self) -> None:
        await self._ask(self._producer.abort_transaction())


def laid_out(outputs: Iterable[Record | Block]) -> tuple[Spans, Spans, NDArray[np.int64]]:
    """Keys, values and times in milliseconds of all of them, in order."""
    now = int(time.time() * 1000)
    keys, values, times = [], [], []
    for kind, some in groupby(outputs, type):
        if kind is Record:
            rows = list(record_by_record(some))
            keys.append(Spans.of([r.key for r in rows]))
            values.append(Spans.of([r.value for r in rows]))
            times.append(np.array([now if r.timestamp is None else r.timestamp for r in rows], np.int64))
            continue
        for block in some:
            assert isinstance(block, Block)
            keys.append(block.keys)
            values.append(block.values)
            times.append(np.full(len(block), now if block.timestamp is None else block.timestamp))
    return Spans.joined(keys), Spans.joined(values), np.concatenate(times)


async def _send_batch(producer: AIOKafkaProducer, batch: object, partition: Partition) -> asyncio.Future[Any]:
    sent: asyncio.Future[Any] = await producer.send_batch(batch, partition.topic, partition=partition.number)
    return _heard(sent)


def _heard(future: asyncio.Future[T]) -> asyncio.Future[T]:
    """Where one fails the others are not waited for, and each would be told as an exception that nobody took."""
    future.add_done_callback(lambda done: done.cancelled() or done.exception())
    return future


async def _bounded(awaitable: Awaitable[T], seconds: float, what: str) -> T:
    try:
        return await asyncio.wait_for(awaitable, seconds)
    except (KafkaError, OSError, TimeoutError) as error:
        raise LogUnavailable(f"{what}: {error or 'no answer in time'}") from error
