"""What an idempotent producer has written to a partition: sequences, epochs, and the transaction it has open.

The rules are those of org.apache.kafka.storage.internals.log.ProducerAppendInfo.
"""

import struct

from kio.schema.errors import ErrorCode
from msgspec import Struct
from msgspec.structs import replace

from .batches import Batch, following_sequence
from .errors import Refusal

# As Kafka: a client may have five requests in flight, so any of the last five may come again.
REMEMBERED_BATCHES = 5
NO_OFFSET = -1
_HEAD = struct.Struct(">hqqB")
_ENDED = 0x80
_WRITTEN = struct.Struct(">iiqq")


class Written(Struct, frozen=True):
    """One batch of a producer, remembered so that it can be recognised when it comes again."""

    base_sequence: int
    last_sequence: int
    base_offset: int
    timestamp: int


class ProducerState(Struct, frozen=True):
    epoch: int
    batches: tuple[Written, ...] = ()
    first_offset: int = NO_OFFSET
    """Where its open transaction begins in this partition."""
    seen_ms: int = 0
    ended: bool = False
    """A transaction of it has ended in this partition."""

    @property
    def last_sequence(self) -> int:
        return self.batches[-1].last_sequence if self.batches else -1

    def idle_since(self, wall_ms: int) -> bool:
        return self.seen_ms < wall_ms and self.first_offset == NO_OFFSET

    def pack(self) -> bytes:
        flags = len(self.batches) | (_ENDED if self.ended else 0)
        head = _HEAD.pack(self.epoch, self.first_offset, self.seen_ms, flags)
        return head + b"".join(
            _WRITTEN.pack(batch.base_sequence, batch.last_sequence, batch.base_offset, batch.timestamp)
            for batch in self.batches
        )


def unpack_producer(data: bytes) -> ProducerState:
    epoch, first_offset, seen_ms, flags = _HEAD.unpack_from(data)
    batches = tuple(Written(*fields) for fields in _WRITTEN.iter_unpack(data[_HEAD.size :]))
    return ProducerState(epoch, batches, first_offset, seen_ms, bool(flags & _ENDED))


def duplicate_of(state: ProducerState | None, batch: Batch) -> Written | None:
    """
    The batch already written that this one repeats, if it does.

    :raises Refusal: INVALID_PRODUCER_EPOCH from a fenced producer, OUT_OF_ORDER_SEQUENCE_NUMBER after a gap.
    """
    if state is None:
        return None
    if batch.producer_epoch < state.epoch:
        raise Refusal(
            ErrorCode.invalid_producer_epoch,
            f"Producer {batch.producer_id} has epoch {batch.producer_epoch}; a newer one has {state.epoch}.",
        )
    if batch.producer_epoch > state.epoch:
        if batch.base_sequence != 0:
            raise Refusal(
                ErrorCode.out_of_order_sequence_number,
                f"A new epoch begins with sequence 0, not {batch.base_sequence}.",
            )
        return None
    for written in state.batches:
        if (written.base_sequence, written.last_sequence) == (batch.base_sequence, batch.last_sequence):
            return written
    if state.first_offset != NO_OFFSET and not batch.transactional:
        raise Refusal(
            ErrorCode.invalid_txn_state,
            f"Producer {batch.producer_id} has a transaction open in this partition.",
        )
    expected = following_sequence(state.last_sequence, 1) if state.batches else 0
    if batch.base_sequence != expected:
        raise Refusal(
            ErrorCode.out_of_order_sequence_number,
            f"Producer {batch.producer_id} sent sequence {batch.base_sequence} where {expected} follows.",
        )
    return None


def after_batch(state: ProducerState | None, batch: Batch, now_ms: int) -> ProducerState:
    """The state when `batch`, which has its offset, has been written."""
    written = Written(batch.base_sequence, batch.last_sequence, batch.base_offset, batch.max_timestamp)
    if state is None or batch.producer_epoch > state.epoch:
        first, ended = (state.first_offset, state.ended) if state is not None else (NO_OFFSET, False)
        state = ProducerState(batch.producer_epoch, (), first, 0, ended)
    first = state.first_offset
    if batch.transactional and first == NO_OFFSET:
        first = batch.base_offset
    kept = (*state.batches, written)[-REMEMBERED_BATCHES:]
    return ProducerState(state.epoch, kept, first, now_ms, state.ended)


def after_marker(state: ProducerState | None, epoch: int, now_ms: int) -> ProducerState:
    """The state when the producer's transaction has ended in this partition."""
    if state is None or epoch > state.epoch:
        return ProducerState(epoch, (), NO_OFFSET, now_ms, ended=True)
    return replace(state, first_offset=NO_OFFSET, seen_ms=now_ms, ended=True)
