"""The log of one partition: appended to, read from, cut at its start.

An append is staged into the request's change and applied to memory when the change is committed, so memory
never runs ahead of the store.
"""

import struct
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator

from kio.schema.errors import ErrorCode
from msgspec import Struct
from msgspec.structs import replace

from .batches import Batch, intact, marker, offset_at_time, read_batch, stamp
from .errors import BrokenOff, Refusal, StoreDamaged, StoreFailed
from .files import unpack_place
from .producers import (
    NO_OFFSET,
    ProducerState,
    Written,
    after_batch,
    after_marker,
    duplicate_of,
    unpack_producer,
)
from .store import (
    Change,
    Store,
    aborted_key,
    batch_key,
    is_apart,
    partition_key,
    partition_prefixes,
    producer_key,
    size_of,
    span_key,
)

# What Python takes for a batch in the cache beside its bytes; lone records would else fill it tenfold.
_CACHED_OVERHEAD_BYTES = 300
_BOUNDS = struct.Struct(">qqqqqq")
_SPAN = struct.Struct(">qqqi")
_ABORTED = struct.Struct(">qqq")


class Bounds(Struct, frozen=True):
    """What is kept of a partition beside its batches."""

    start: int = 0
    end: int = 0
    size: int = 0
    latest_timestamp: int = -1
    """The greatest record time ever written here, as it is in the newest span."""
    cleaned: int = 0
    """Compaction has been up to here."""
    clean_size: int = 0
    """The bytes it left."""


class Span(Struct, frozen=True):
    """A batch without its records."""

    base_offset: int
    last_offset: int
    max_timestamp: int
    latest_timestamp: int
    """The greatest time up to and with this batch: it never falls, so a time is found by bisection."""
    size: int


class AbortedTransaction(Struct, frozen=True):
    producer_id: int
    first_offset: int
    last_offset: int
    stable_offset: int
    """The last stable offset when it was aborted; later entries begin at or after it."""


class Append(Struct, frozen=True):
    """A staged append, to be applied when its change is committed."""

    bounds: Bounds
    batch: Batch
    value: bytes
    """What stands for the batch in the store."""
    producer: ProducerState | None
    aborted: AbortedTransaction | None = None


class _Cached(Struct, frozen=True):
    last_offset: int
    value: bytes


class StoredBatch:
    """A large batch that is read when its turn to be sent has come: readers then hold little memory, and wait less."""

    __slots__ = ("_last_offset", "_log", "_size", "_value")

    def __init__(self, log: "PartitionLog", last_offset: int, value: bytes, size: int) -> None:
        self._log = log
        self._last_offset = last_offset
        self._value = value
        self._size = size

    def __len__(self) -> int:
        return self._size

    def read(self, at: int = 0) -> bytes:
        """From byte `at` on. :raises BrokenOff: when it is damaged or unreadable, or has been deleted meanwhile."""
        return self._log.read_stored(self._last_offset, self._value, at)

    def send(self, at: int, socket: int) -> int:
        """Send it unread, from byte `at` on, if it was checked; how many bytes the socket took."""
        return self._log.send_stored(self._value, at, socket)

    def part(self, at: int, size: int) -> bytes:
        """So many bytes from `at` on, if it was checked; none where it must be read."""
        return self._log.part_of_stored(self._value, at, size)


class TailCache:
    """What stands for the newest batches of all partitions, within one bound; the oldest goes first, whosever it is."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._order: deque[tuple[PartitionLog, int]] = deque()
        self.size = 0

    def add(self, log: "PartitionLog", size: int) -> None:
        size += _CACHED_OVERHEAD_BYTES
        self._order.append((log, size))
        self.size += size
        while self.size > self._limit:
            oldest, freed = self._order.popleft()
            oldest.forget_oldest()
            self.size -= freed


class PartitionLog:
    """One partition. Its number in the store is its own for ever; topic and index are its name to clients."""

    def __init__(self, store: Store, cache: TailCache, topic: str, index: int, number: int) -> None:
        self.topic = topic
        self.index = index
        self.number = number
        self.watchers: set[Callable[[], None]] = set()
        self.producers: dict[int, ProducerState] = {}
        self.aborted: list[AbortedTransaction] = []
        self._open: dict[int, int] = {}
        self._store = store
        self._cache = cache
        self._tail: list[_Cached] = []
        self._tail_head = 0
        self._cached_from = 0
        self._careful = False
        self.bounds = Bounds()
        self._load()

    def _load(self) -> None:
        found = self._store.get(partition_key(self.number))
        if found is not None:
            self.bounds = Bounds(*_BOUNDS.unpack(found))
        _, _, _, producers, aborted = partition_prefixes(self.number)
        for key, value in self._store.scan(producers):
            producer_id = int.from_bytes(key[-8:])
            self.producers[producer_id] = state = unpack_producer(value)
            if state.first_offset != NO_OFFSET:
                self._open[producer_id] = state.first_offset
        for key, value in self._store.scan(aborted):
            producer_id, first, stable = _ABORTED.unpack(value)
            self.aborted.append(AbortedTransaction(producer_id, first, int.from_bytes(key[-8:]), stable))

    @property
    def start(self) -> int:
        return self.bounds.start

    @property
    def end(self) -> int:
        """The offset of the next record; with one replica, the high watermark."""
        return self.bounds.end

    @property
    def stable_end(self) -> int:
        """The last stable offset: every transaction before it has ended."""
        return min(self._open.values(), default=self.bounds.end)

    def repeated(self, batch: Batch) -> Written | None:
        """The earlier batch that an idempotent one repeats; raises as `duplicate_of`."""
        return duplicate_of(self.producers.get(batch.producer_id), batch) if batch.idempotent else None

    # Appending.

    def stage(self, batch: Batch, change: Change, now_ms: int) -> Append:
        placed = replace(batch, base_offset=self.end)
        state = None
        if batch.idempotent:
            state = after_batch(self.producers.get(batch.producer_id), placed, now_ms)
        return self._stage(placed, state, None, change)

    def stage_marker(self, producer_id: int, epoch: int, commit: bool, change: Change, now_ms: int) -> Append:
        """The end of a producer's transaction here, whether or not it wrote anything."""
        placed = replace(marker(producer_id, epoch, commit, now_ms), base_offset=self.end)
        before = self.producers.get(producer_id)
        aborted = None
        if not commit and before is not None and before.first_offset != NO_OFFSET:
            others = [first for owner, first in self._open.items() if owner != producer_id]
            stable = min(others, default=placed.last_offset + 1)
            aborted = AbortedTransaction(producer_id, before.first_offset, placed.last_offset, stable)
            change.put(
                aborted_key(self.number, aborted.last_offset),
                _ABORTED.pack(producer_id, aborted.first_offset, stable),
            )
        return self._stage(placed, after_marker(before, epoch, now_ms), aborted, change)

    def _stage(
        self, batch: Batch, state: ProducerState | None, aborted: AbortedTransaction | None, change: Change
    ) -> Append:
        size = len(batch.data)
        latest = max(self.bounds.latest_timestamp, batch.max_timestamp)
        bounds = replace(self.bounds, end=batch.last_offset + 1, size=self.bounds.size + size, latest_timestamp=latest)
        last = batch.last_offset
        value = self._store.put_batch(change, self.number, last, stamp(batch, batch.base_offset))
        change.put(span_key(self.number, last), _SPAN.pack(batch.base_offset, batch.max_timestamp, latest, size))
        change.put(partition_key(self.number), pack_bounds(bounds))
        if state is not None:
            change.put(producer_key(self.number, batch.producer_id), state.pack())
        return Append(bounds, batch, value, state, aborted)

    def apply(self, append: Append) -> None:
        """Into memory, once committed; readers that wait are told."""
        assert append.batch.base_offset == self.end, "appends are applied in the order in which they were staged"
        self.bounds = append.bounds
        if append.producer is not None:
            producer_id = append.batch.producer_id
            self.producers[producer_id] = append.producer
            if append.producer.first_offset == NO_OFFSET:
                self._open.pop(producer_id, None)
            else:
                self._open[producer_id] = append.producer.first_offset
        if append.aborted is not None:
            self.aborted.append(append.aborted)
        self._tail.append(_Cached(append.batch.last_offset, append.value))
        self._cache.add(self, len(append.value))
        self.tell_watchers()

    def tell_watchers(self) -> None:
        for watcher in tuple(self.watchers):
            watcher()

    def forget_oldest(self) -> None:
        """Called by the cache. The list is cut now and then, so that forgetting is cheap."""
        self._tail_head += 1
        if self._tail_head > 64 and self._tail_head * 2 > len(self._tail):
            del self._tail[: self._tail_head]
            self._tail_head = 0

    # Reading.

    def read(self, offset: int, upper: int, max_bytes: int, *, at_least_one: bool) -> list[bytes | StoredBatch]:
        """
        Whole batches from the one that holds `offset`, below `upper`, within `max_bytes`.

        :raises Refusal: OFFSET_OUT_OF_RANGE; CORRUPT_MESSAGE where the first of them is damaged on disk;
            KAFKA_STORAGE_ERROR where what leads to it is.
        """
        if not self.start <= offset <= self.end:
            raise Refusal(ErrorCode.offset_out_of_range, f"Offset {offset} is not within {self.start} to {self.end}.")
        found: list[bytes | StoredBatch] = []
        if offset >= upper:
            return found
        size = 0
        try:
            for last, value in self._from(offset):
                own_size = size_of(value)
                size += own_size
                if last >= upper or (size > max_bytes and (found or not at_least_one)):
                    break
                apart = is_apart(value) and not self._careful
                if apart and (self._store.knows(value) or (found and self._store.reaches(value))):
                    found.append(StoredBatch(self, last, value, own_size))
                    continue
                data = self._whole(last, value)
                if data is None:
                    if found:
                        break
                    raise Refusal(
                        ErrorCode.corrupt_message,
                        f"The batch of {self.topic} partition {self.index} that ends at offset {last} is damaged.",
                    )
                found.append(data)
        except StoreFailed as failed:
            # What lies before the damage is served; at it the reader is told, and never passes it unseen.
            if not found:
                raise Refusal(ErrorCode.kafka_storage_error, str(failed)) from failed
        return found

    def read_stored(self, last_offset: int, value: bytes, at: int) -> bytes:
        """What `read` left to be read later; raises as `StoredBatch.read`."""
        try:
            data, why = self._whole(last_offset, value), "gone"
            # It may have been taken out of its file meanwhile; but the end of another would not fit what was sent.
            if data is None and at == 0:
                now = self._store.get(batch_key(self.number, last_offset))
                data = self._whole(last_offset, now) if now is not None and size_of(now) == size_of(value) else None
        except StoreFailed:  # the store has said so
            data, why = None, "unreadable"
        if data is None:
            # The client asks again from where it was: this time no answer may begin that cannot be ended.
            self._careful = True
            raise BrokenOff(f"The batch of {self.topic} partition {self.index} that ends at {last_offset} is {why}.")
        return data[at:]

    # Damage since a batch was checked is the reader's to find, by the batch's own sum.

    def send_stored(self, value: bytes, at: int, socket: int) -> int:
        """As `StoredBatch.send`."""
        return self._store.send(value, at, socket) if self._store.knows(value) else 0

    def part_of_stored(self, value: bytes, at: int, size: int) -> bytes:
        """As `StoredBatch.part`."""
        return self._store.part(value, at, size) if self._store.knows(value) else b""

    def _from(self, offset: int) -> Iterator[tuple[int, bytes]]:
        """What stands for batches, by their last offset."""
        tail, head = self._tail, self._tail_head
        if head < len(tail) and offset > tail[head].last_offset and offset >= self._cached_from:
            at = bisect_left(tail, offset, lo=head, key=lambda cached: cached.last_offset)
            for cached in tail[at:]:
                yield cached.last_offset, cached.value
            return
        prefix = partition_prefixes(self.number)[1]
        for key, value in self._store.scan(prefix, batch_key(self.number, offset), checked=False):
            yield int.from_bytes(key[-8:]), value

    def _whole(self, last_offset: int, value: bytes) -> bytes | None:
        """The batch, or None where it is damaged: its own sum is checked, ten times faster than RocksDB checks its."""
        data = self._store.whole(value)
        found = intact(data, last_offset)
        self._store.know(value, found)
        return data if found else None

    def read_from_store_below(self, offset: int) -> None:
        """The store has what compaction left there; the cache still has what it took away."""
        self._cached_from = max(self._cached_from, offset)

    def spans(self, offset: int) -> Iterator[Span]:
        """Batches from the one that holds `offset` on, without reading records."""
        prefix = partition_prefixes(self.number)[2]
        for key, value in self._store.scan(prefix, span_key(self.number, offset)):
            base, max_timestamp, latest, size = _SPAN.unpack(value)
            yield Span(base, int.from_bytes(key[-8:]), max_timestamp, latest, size)

    def batch(self, last_offset: int) -> Batch | None:
        """:raises StoreDamaged:"""
        value = self._store.get(batch_key(self.number, last_offset))
        if value is None:
            return None
        data = self._whole(last_offset, value)
        if data is None:
            raise self._damaged(last_offset)
        return read_batch(data)

    def _damaged(self, last_offset: int) -> StoreDamaged:
        return self._store.damaged(f"the batch of {self.topic} partition {self.index} that ends at {last_offset}")

    def is_apart(self, last_offset: int) -> bool:
        """Whether the batch is in a file beside the store."""
        value = self._store.get(batch_key(self.number, last_offset))
        return value is not None and is_apart(value)

    @property
    def files_from(self) -> int:
        """Before it nothing is in files: compaction takes what it keeps out of them."""
        return max(self.start, self.bounds.cleaned)

    def stage_move(self, file: int, offset: int, upper: int, max_bytes: int, change: Change) -> int:
        """
        Take the batches from `offset` up to `upper` that are in the file out of it; gives where to go on.

        :raises StoreDamaged:
        """
        seen = 0
        prefix = partition_prefixes(self.number)[1]
        for key, value in self._store.scan(prefix, batch_key(self.number, offset)):
            last = int.from_bytes(key[-8:])
            if last > upper or seen >= max_bytes:
                return last
            seen += size_of(value)
            if is_apart(value) and unpack_place(value).file == file:
                data = self._whole(last, value)
                if data is None:
                    raise self._damaged(last)
                change.put(key, data)
        return upper + 1

    def aborted_between(self, offset: int, upper: int) -> list[AbortedTransaction]:
        """The aborted transactions with records at or after `offset` and below `upper`."""
        found = []
        at = bisect_left(self.aborted, offset, key=lambda aborted: aborted.last_offset)
        for aborted in self.aborted[at:]:
            if aborted.first_offset < upper:
                found.append(aborted)
            if aborted.stable_offset >= upper:
                break
        return found

    # Looking up by time.

    def find_time(self, timestamp: int) -> tuple[int, int] | None:
        """The first record at or after `timestamp`, as (offset, timestamp); of a damaged batch its first offset."""
        low, high = self.start, self.end
        while low < high:
            middle = (low + high) // 2
            span = next(self.spans(middle), None)
            if span is None or span.latest_timestamp >= timestamp:
                high = middle
            else:
                low = span.last_offset + 1
        for span in self.spans(low):
            # What raised the running maximum may have been deleted since.
            if span.max_timestamp >= timestamp:
                try:
                    batch = self.batch(span.last_offset)
                except StoreDamaged:  # a reader that begins there is told
                    return max(span.base_offset, self.start), span.max_timestamp
                assert batch is not None, "a span without its batch"
                offset, found = offset_at_time(batch, timestamp)
                return max(offset, self.start), found
        return None

    def find_latest_time(self) -> tuple[int, int] | None:
        """The first record that has the greatest time of the log."""
        best: Span | None = None
        found = self.find_time(self.bounds.latest_timestamp)
        if found is not None:
            return found
        for span in self.spans(self.start):
            if best is None or span.max_timestamp > best.max_timestamp:
                best = span
        return None if best is None else self.find_time(best.max_timestamp)

    # Cutting the start.

    def stage_cut(self, start: int, change: Change) -> Bounds:
        """Forget what lies before `start`; a batch that holds it stays whole."""
        start = min(max(start, self.start), self.end)
        freed = 0
        for span in self.spans(self.start):
            if span.last_offset >= start:
                break
            freed += span.size
        # From the old start and not from 0: ranges that overlap would pile up and slow down every seek.
        for key in (batch_key, span_key, aborted_key):
            change.delete_range(key(self.number, self.start), key(self.number, start))
        bounds = replace(self.bounds, start=start, size=self.bounds.size - freed)
        change.put(partition_key(self.number), pack_bounds(bounds))
        return bounds

    def apply_cut(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self.aborted = [aborted for aborted in self.aborted if aborted.last_offset >= bounds.start]
        self.tell_watchers()


def pack_bounds(bounds: Bounds) -> bytes:
    return _BOUNDS.pack(
        bounds.start, bounds.end, bounds.size, bounds.latest_timestamp, bounds.cleaned, bounds.clean_size
    )


def pack_span(span: Span) -> bytes:
    return _SPAN.pack(span.base_offset, span.max_timestamp, span.latest_timestamp, span.size)


def stage_delete(number: int, change: Change) -> None:
    """Everything a partition owns."""
    for prefix in partition_prefixes(number):
        change.delete_prefix(prefix)
