"""Record batches (magic 2) as opaque bytes: header, check sum, and the markers that end transactions.

Layout: org.apache.kafka.common.record.DefaultRecordBatch. Offsets and the leader's epoch lie before the check
sum, so a broker stamps them without touching, or reading, a record.
"""

import struct
from collections.abc import Iterator
from typing import Protocol

from aiokafka.record.default_records import (
    DefaultRecordBatch,
    DefaultRecordBatchBuilder,
    _DefaultRecordBatchBuilderPy,
)
from crc32c import crc32c
from kio.schema.errors import ErrorCode
from msgspec import Struct

from .errors import Refusal

_HEADER = struct.Struct(">qiibIhiqqqhii")
_STAMP = struct.Struct(">qii")
_LENGTH_AT = 8
_LEADER_EPOCH_END = 16
_CRC_AT = 17
_ATTRIBUTES_AT = 21
_LAST_DELTA_AT = 23
_MAX_TIMESTAMP_AT = 35
_PRODUCER_AT = 43
LEADER_EPOCH = 0

_CODEC = 0x07
_APPEND_TIME = 0x08
_TRANSACTIONAL = 0x10
_CONTROL = 0x20
_DELETE_HORIZON = 0x40
_LAST_CODEC = 4  # zstd
NO_PRODUCER = -1


class Batch(Struct, frozen=True):
    """One record batch as it came from a producer or from the store."""

    data: bytes
    base_offset: int
    attributes: int
    last_delta: int
    base_timestamp: int
    max_timestamp: int
    producer_id: int
    producer_epoch: int
    base_sequence: int
    count: int

    @property
    def last_offset(self) -> int:
        return self.base_offset + self.last_delta

    @property
    def transactional(self) -> bool:
        return bool(self.attributes & _TRANSACTIONAL)

    @property
    def control(self) -> bool:
        return bool(self.attributes & _CONTROL)

    @property
    def delete_horizon(self) -> int | None:
        """The time after which compaction drops the batch's deletion marks; it stands in place of the base time."""
        return self.base_timestamp if self.attributes & _DELETE_HORIZON else None

    @property
    def idempotent(self) -> bool:
        return self.producer_id != NO_PRODUCER

    @property
    def last_sequence(self) -> int:
        return following_sequence(self.base_sequence, self.last_delta)


class Record(Protocol):
    """What aiokafka gives for one record."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]


def following_sequence(sequence: int, steps: int) -> int:
    """Sequences wrap from 2^31 - 1 to 0."""
    return (sequence + steps) & 0x7FFFFFFF


def read_batch(data: bytes) -> Batch:
    """The header of a batch the broker itself has stored."""
    base, _, _, _, _, attributes, delta, first, latest, pid, epoch, sequence, count = _HEADER.unpack_from(data)
    return Batch(data, base, attributes, delta, first, latest, pid, epoch, sequence, count)


def intact(data: bytes, last_offset: int) -> bool:
    """Whether a stored batch is the one that was stored at its place."""
    if len(data) < _HEADER.size:
        return False
    base, length, _, magic, crc, _, last_delta = _HEADER.unpack_from(data)[:7]
    if magic != 2 or length + 12 != len(data) or base + last_delta != last_offset:
        return False
    return _sum(data) == int(crc)


def receive_batch(records: bytes | None, max_bytes: int) -> Batch:
    """
    The one batch of a produce request, checked as a broker must before it trusts it.

    :raises Refusal: CORRUPT_MESSAGE, MESSAGE_TOO_LARGE or INVALID_RECORD.
    """
    if records is None or len(records) < _HEADER.size:
        raise Refusal(ErrorCode.invalid_record, "The record batch is shorter than its header.")
    if len(records) > max_bytes:
        raise Refusal(
            ErrorCode.message_too_large,
            f"The record batch has {len(records)} bytes and the topic takes {max_bytes} (max.message.bytes).",
        )
    fields = _HEADER.unpack_from(records)
    _, length, _, magic, crc, attributes, last_delta = fields[:7]
    if magic != 2:
        raise Refusal(ErrorCode.invalid_record, f"Only record batches of magic 2 are taken, not {magic}.")
    if length + 12 != len(records):
        raise Refusal(ErrorCode.invalid_record, "A produce request carries one whole batch for a partition.")
    if _sum(records) != crc:
        raise Refusal(ErrorCode.corrupt_message, "The record batch does not match its check sum.")
    count = fields[12]
    if attributes & _CONTROL or count < 1 or count != last_delta + 1 or attributes & _CODEC > _LAST_CODEC:
        raise Refusal(
            ErrorCode.invalid_record,
            f"A producer's batch holds records numbered from 0 and is no marker; this one says {count} "
            f"records, last offset delta {last_delta}, attributes {attributes:#x}.",
        )
    return Batch(records, 0, attributes, last_delta, *fields[7:])


def transaction_of(records: bytes | None) -> tuple[int, int] | None:
    """The producer and the epoch of a batch that is part of a transaction, by its header alone."""
    if records is None or len(records) < _HEADER.size:
        return None
    (attributes,) = struct.unpack_from(">h", records, _ATTRIBUTES_AT)
    producer_id, epoch = struct.unpack_from(">qh", records, _PRODUCER_AT)
    return (producer_id, epoch) if attributes & _TRANSACTIONAL else None


def stamp(batch: Batch, base_offset: int) -> tuple[bytes, memoryview]:
    """The batch's bytes with its place in the log, in two pieces."""
    (length,) = struct.unpack_from(">i", batch.data, _LENGTH_AT)
    return _STAMP.pack(base_offset, length, LEADER_EPOCH), memoryview(batch.data)[_LEADER_EPOCH_END:]


def with_append_time(batch: Batch, wall_ms: int) -> Batch:
    """The batch with the broker's time (message.timestamp.type=LogAppendTime)."""
    data = bytearray(batch.data)
    struct.pack_into(">h", data, _ATTRIBUTES_AT, batch.attributes | _APPEND_TIME)
    struct.pack_into(">q", data, _MAX_TIMESTAMP_AT, wall_ms)
    return receive_batch(_sealed(data), len(data))


def marker(producer_id: int, epoch: int, commit: bool, wall_ms: int) -> Batch:
    """The control batch that ends a transaction in a partition, as Kafka writes it: one record, version 0."""
    key = struct.pack(">hh", 0, 1 if commit else 0)
    value = struct.pack(">hi", 0, 0)  # version, coordinator epoch
    body = bytes((0, 0, 0, len(key) * 2)) + key + bytes((len(value) * 2,)) + value + b"\0"
    record = bytes((len(body) * 2,)) + body
    attributes = _TRANSACTIONAL | _CONTROL
    data = bytearray(
        _HEADER.pack(
            0,
            _HEADER.size + len(record) - 12,
            LEADER_EPOCH,
            2,
            0,
            attributes,
            0,
            wall_ms,
            wall_ms,
            producer_id,
            epoch,
            -1,
            1,
        )
    )
    data += record
    return read_batch(_sealed(data))


def records_of(batch: Batch) -> Iterator[Record]:
    """
    The records themselves, decompressed; for time look-ups and compaction only.

    :raises Refusal: UNSUPPORTED_COMPRESSION_TYPE when the codec is not installed.
    """
    try:
        yield from DefaultRecordBatch(batch.data)
    except Exception as error:  # aiokafka: a codec that is missing, or bytes that are not records
        raise Refusal(ErrorCode.unsupported_compression_type, f"The records cannot be read: {error}.") from error


def offset_at_time(batch: Batch, timestamp: int) -> tuple[int, int]:
    """The first record of the batch at or after `timestamp`, as (offset, timestamp).

    Where the records cannot be read the batch's first offset stands for them: earlier, so nothing is missed.
    """
    if batch.attributes & _APPEND_TIME:
        return batch.base_offset, batch.max_timestamp
    if batch.delete_horizon is None and batch.base_timestamp >= timestamp:
        return batch.base_offset, batch.base_timestamp
    try:
        for record in records_of(batch):
            if record.timestamp >= timestamp:
                return record.offset, record.timestamp
    except Refusal:
        pass
    return batch.base_offset, batch.base_timestamp


def keep_records(batch: Batch, kept: list[Record], delete_horizon: int | None) -> bytes:
    """A batch of the kept records with the offsets, times and producer of the one they come from."""
    # Only the builder in Python can be given a base time that is no record's.
    kind = DefaultRecordBatchBuilder if delete_horizon is None else _DefaultRecordBatchBuilderPy
    builder = kind(
        magic=2,
        compression_type=batch.attributes & _CODEC,
        is_transactional=batch.transactional,
        producer_id=batch.producer_id,
        producer_epoch=batch.producer_epoch,
        base_sequence=batch.base_sequence,
        batch_size=1 << 30,
    )
    if delete_horizon is not None:
        builder._first_timestamp = delete_horizon
        builder._max_timestamp = kept[0].timestamp
    for record in kept:
        added = builder.append(
            record.offset - batch.base_offset, record.timestamp, record.key, record.value, record.headers
        )
        assert added is not None, "a batch cannot grow by losing records"
    data = bytearray(builder.build())
    (length,) = struct.unpack_from(">i", data, _LENGTH_AT)
    _STAMP.pack_into(data, 0, batch.base_offset, length, LEADER_EPOCH)
    # Builders leave out what only a broker knows: the codec they fell back from, and the time's type.
    (attributes,) = struct.unpack_from(">h", data, _ATTRIBUTES_AT)
    attributes |= batch.attributes & _APPEND_TIME
    attributes |= 0 if delete_horizon is None else _DELETE_HORIZON
    struct.pack_into(">h", data, _ATTRIBUTES_AT, attributes)
    struct.pack_into(">i", data, _LAST_DELTA_AT, batch.last_delta)
    if batch.attributes & _APPEND_TIME:
        struct.pack_into(">q", data, _MAX_TIMESTAMP_AT, batch.max_timestamp)
    return _sealed(data)


def _sum(data: bytes | bytearray) -> int:
    return crc32c(memoryview(data)[_ATTRIBUTES_AT:])


def _sealed(data: bytearray) -> bytes:
    struct.pack_into(">I", data, _CRC_AT, _sum(data))
    return bytes(data)
