"""What time and size take away: retention, compaction, and producers long gone.

Everything goes in short steps between which requests are served; a step is one change, and what a killed
broker did not finish is done again.
"""

import asyncio
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass

from msgspec.structs import replace

from .batches import Batch, Record, keep_records, read_batch, records_of
from .clock import Clock
from .errors import Refusal, StoreDamaged
from .files import Held
from .limits import Limits
from .log import PartitionLog, pack_bounds, pack_span
from .store import Change, Store, aborted_key, batch_key, partition_key, producer_key, span_key
from .topics import Settings, Topic, Topics

logger = logging.getLogger(__name__)

_SHORT_STEP_SECONDS = 0.002


@dataclass(slots=True)
class _Newest:
    """The newest offset of each key, up to an offset."""

    offsets: dict[bytes, int]
    upper: int


class Cleaner:
    """Runs over all partitions, one after the other."""

    def __init__(self, store: Store, topics: Topics, limits: Limits, clock: Clock) -> None:
        self._store = store
        self._topics = topics
        self._limits = limits
        self._clock = clock
        self._resumed = 0.0
        self._damaged: set[int] = set()
        """Partitions of which something cannot be read."""
        self._unreadable: set[int] = set()
        """And files."""

    async def clean(self) -> None:
        """One round over everything, and then over the files in which it lies."""
        self._resumed = time.perf_counter()
        for topic in self._topics:
            for log in tuple(topic.partitions):
                try:
                    await self._clean(topic, log)
                except StoreDamaged as error:
                    self._tell_damage(topic, log, error)
                await self._rest()
        await self._free_files()

    async def _clean(self, topic: Topic, log: PartitionLog) -> None:
        if topic.settings.delete:
            await self._retain(topic, log)
        if topic.settings.compact and log.number not in self._damaged and self._is_dirty(log, topic.settings):
            await self._compact(topic, log)
        self._forget_producers(log)

    def _tell_damage(self, topic: Topic, log: PartitionLog, error: StoreDamaged) -> None:
        if log.number not in self._damaged:
            self._damaged.add(log.number)
            logger.error(
                "Topic %s partition %d is not compacted until the broker is started again, all others are: %s",
                topic.name,
                log.index,
                error,
            )

    async def _rest(self) -> None:
        """Let requests be served; after a long step for as long as it took, to leave half a core at least."""
        worked = time.perf_counter() - self._resumed
        await asyncio.sleep(worked if worked > _SHORT_STEP_SECONDS else 0)
        self._resumed = time.perf_counter()

    def _exists(self, topic: Topic) -> bool:
        return self._topics.get(topic.name) is topic

    # Retention.

    async def _retain(self, topic: Topic, log: PartitionLog) -> None:
        while self._exists(topic):
            start = self._retained_start(log, topic.settings)
            if start == log.start:
                return
            change = Change()
            bounds = log.stage_cut(start, change)
            self._store.commit(change)
            log.apply_cut(bounds)
            await self._rest()

    def _retained_start(self, log: PartitionLog, settings: Settings) -> int:
        """Where the log may begin now, at most one step away."""
        start, size, seen = log.start, log.bounds.size, 0
        expired_before = self._clock.wall_ms() - settings.retention_ms
        for span in log.spans(log.start):
            expired = settings.retention_ms >= 0 and 0 <= span.max_timestamp < expired_before
            # As Kafka: what is left is never less than what was asked for.
            surplus = settings.retention_bytes >= 0 and size - span.size >= settings.retention_bytes
            undecided = span.last_offset >= log.stable_end
            if undecided or not (expired or surplus) or seen >= self._limits.cleaning_step_bytes:
                break
            start = span.last_offset + 1
            size -= span.size
            seen += span.size
        return start

    # Compaction.

    @staticmethod
    def _is_dirty(log: PartitionLog, settings: Settings) -> bool:
        if log.stable_end <= log.bounds.cleaned or log.bounds.size == 0:
            return False
        dirty = log.bounds.size - min(log.bounds.clean_size, log.bounds.size)
        return dirty / log.bounds.size >= settings.min_dirty_ratio

    async def _compact(self, topic: Topic, log: PartitionLog) -> None:
        newest = await self._newest(topic, log)
        if newest is None or newest.upper <= log.bounds.cleaned:
            return
        position, kept_size = log.start, 0
        while position < newest.upper:
            if not self._exists(topic):
                return
            position, kept = self._compact_step(topic, log, position, newest)
            kept_size += kept
            await self._rest()
        if self._exists(topic):
            self._finish(log, newest.upper, kept_size)

    async def _newest(self, topic: Topic, log: PartitionLog) -> _Newest | None:
        newest = _Newest({}, log.bounds.cleaned)
        young = self._clock.wall_ms() - topic.settings.min_compaction_lag_ms
        while newest.upper < log.stable_end and len(newest.offsets) < self._limits.compaction_keys:
            before = newest.upper
            for batch in self._step(log, newest.upper, log.stable_end):
                if topic.settings.min_compaction_lag_ms and batch.max_timestamp > young:
                    return newest
                if not batch.control and not _aborted(log, batch):
                    newest.offsets.update(_keys(batch))
                newest.upper = batch.last_offset + 1
            if newest.upper == before:  # nothing left below the last stable offset but gaps
                newest.upper = log.stable_end
            await self._rest()
            if not self._exists(topic):
                return None
        return newest

    def _step(self, log: PartitionLog, offset: int, upper: int) -> Iterator[Batch]:
        # From the store and not through the tail cache: its batches are those that compaction replaces.
        size = 0
        for span in log.spans(offset):
            if span.last_offset >= upper or size >= self._limits.cleaning_step_bytes:
                return
            size += span.size
            batch = log.batch(span.last_offset)
            assert batch is not None, "a span without its batch"
            yield batch

    def _compact_step(self, topic: Topic, log: PartitionLog, position: int, newest: _Newest) -> tuple[int, int]:
        """Rewrites some batches; gives the next position and the bytes that were kept."""
        change = Change()
        freed = kept_size = 0
        now, kept_for = self._clock.wall_ms(), topic.settings.delete_retention_ms
        after = newest.upper
        for batch in self._step(log, position, newest.upper):
            data = _compacted(log, batch, newest, now, kept_for)
            if not data and batch.last_offset + 1 >= log.stable_end:
                data = batch.data  # a reader told of this end must reach it
            kept_size += len(data)
            # What is kept leaves the files of large batches for RocksDB, so that a file is not held for one of them.
            moved = batch.last_offset >= log.bounds.cleaned and log.is_apart(batch.last_offset)
            if moved or data != batch.data:
                freed += len(batch.data) - len(data)
                self._stage_replacement(log, batch, data, change)
            after = batch.last_offset + 1
        bounds = replace(log.bounds, size=log.bounds.size - freed)
        change.put(partition_key(log.number), pack_bounds(bounds))
        # An aborted transaction is forgotten in the step that takes its marker; its records went before.
        # Were it told to readers without the marker, they would skip what its producer committed afterwards.
        change.delete_range(aborted_key(log.number, position), aborted_key(log.number, after))
        self._store.commit(change)
        log.bounds = bounds
        log.aborted = [aborted for aborted in log.aborted if aborted.last_offset >= after]
        log.read_from_store_below(after)
        last_step = next(iter(self._step(log, after, newest.upper)), None) is None
        return newest.upper if last_step else after, kept_size

    @staticmethod
    def _stage_replacement(log: PartitionLog, batch: Batch, data: bytes, change: Change) -> None:
        last = batch.last_offset
        if not data:
            change.delete(batch_key(log.number, last))
            change.delete(span_key(log.number, last))
            return
        span = next(log.spans(last))
        replaced = replace(span, max_timestamp=read_batch(data).max_timestamp, size=len(data))
        change.put(batch_key(log.number, last), data)
        change.put(span_key(log.number, last), pack_span(replaced))

    def _finish(self, log: PartitionLog, upper: int, kept_size: int) -> None:
        change = Change()
        bounds = replace(log.bounds, cleaned=upper, clean_size=kept_size)
        change.put(partition_key(log.number), pack_bounds(bounds))
        self._store.commit(change)
        log.bounds = bounds

    # Files of large batches.

    async def _free_files(self) -> None:
        """Those of which nothing is needed go, and those of which little is, once that has been taken out."""
        files, logs = self._store.files, {log.number: log for topic in self._topics for log in topic.partitions}
        floors = {number: log.files_from for number, log in logs.items()}
        needless, sparse = files.needless(floors), files.sparse(floors)
        for file in needless:
            await self._store.forget_file(file)
        for file, held in sparse.items():
            if file in self._unreadable:
                continue
            try:
                for number, entry in held.items():
                    await self._gather(logs[number], file, entry)
            except StoreDamaged as error:
                self._unreadable.add(file)
                logger.error("File %d of large batches is kept, though little of it is needed: %s", file, error)
            else:
                await self._store.forget_file(file)

    async def _gather(self, log: PartitionLog, file: int, held: Held) -> None:
        """Out of the file into RocksDB, where compaction puts what it keeps as well."""
        position = max(held.first_batch, log.start)
        while position <= held.last_offset:
            change = Change()
            after = log.stage_move(file, position, held.last_offset, self._limits.cleaning_step_bytes, change)
            self._store.commit(change)
            log.read_from_store_below(after)
            position = after
            await self._rest()

    # Producers.

    def _forget_producers(self, log: PartitionLog) -> None:
        before = self._clock.wall_ms() - self._limits.producer_expiry_ms
        forgotten = [producer for producer, state in log.producers.items() if state.idle_since(before)]
        if not forgotten:
            return
        change = Change()
        for producer in forgotten:
            change.delete(producer_key(log.number, producer))
        self._store.commit(change)
        for producer in forgotten:
            del log.producers[producer]


def _keys(batch: Batch) -> dict[bytes, int]:
    try:
        return {record.key: record.offset for record in records_of(batch) if record.key is not None}
    except Refusal:
        return {}  # a codec that is not installed: the batch stays as it is


def _aborted(log: PartitionLog, batch: Batch) -> bool:
    return batch.transactional and any(
        aborted.producer_id == batch.producer_id and aborted.first_offset <= batch.base_offset
        for aborted in log.aborted_between(batch.base_offset, batch.last_offset + 1)
    )


def _compacted(log: PartitionLog, batch: Batch, newest: _Newest, now: int, tombstones_kept: int) -> bytes:
    """The batch without what newer records replace; empty when nothing is left.

    A deletion mark is kept for a time from the first compaction that comes by it, as Kafka does: a reader that began
    before, and is no further behind than that, sees every mark, however old the times of the records are.
    """
    if batch.control or _aborted(log, batch):
        # A commit's marker tells readers nothing, and an abort's only about records that go with it.
        return b""
    try:
        records = list(records_of(batch))
    except Refusal:
        return batch.data
    horizon = batch.delete_horizon
    kept = [record for record in records if _stays(record, newest.offsets, horizon is None or horizon >= now)]
    if not kept:
        return b""
    marks = any(record.value is None and record.key is not None for record in kept)
    if marks and horizon is None:
        horizon = now + tombstones_kept
    elif len(kept) == len(records):
        return batch.data
    return keep_records(batch, kept, horizon)


def _stays(record: Record, newest: dict[bytes, int], marks_stay: bool) -> bool:
    if record.key is None:
        return True  # it replaces nothing and nothing replaces it; Kafka refuses it when it is produced
    if record.offset < newest.get(record.key, -1):
        return False
    return record.value is not None or marks_stay
