"""Brokers with a flaw each, to show that the checker finds it; and one that only loses answers, as a network does."""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from headrace.streams.broker import answers_records
from headrace.streams.broker.__main__ import main
from headrace.streams.broker.batches import Batch, read_batch, stamp
from headrace.streams.broker.coordinator import GroupCoordinator
from headrace.streams.broker.errors import Refusal, Unanswerable
from headrace.streams.broker.log import Append, PartitionLog
from headrace.streams.broker.messages import whole
from headrace.streams.broker.server import Broker
from headrace.streams.broker.store import Change, Store
from headrace.streams.broker.transactions import Transaction, TransactionCoordinator
from headrace.streams.broker.writers import Piece
from kio.schema.errors import ErrorCode
from rocksdict import WriteOptions

Patch = pytest.MonkeyPatch
FLAWS: dict[str, Callable[[Patch], None]] = {}
EVERY = 7
"""A flaw shows at every so-manieth chance: often enough to be met, seldom enough that clients go on."""


def plant(flaw: str, patch: Patch) -> None:
    """Put a flaw into the broker of this process."""
    FLAWS[flaw](patch)


def _flaw(put: Callable[[Patch], None]) -> Callable[[Patch], None]:
    FLAWS[put.__name__.replace("_", "-")] = put
    return put


class _Now:
    """True at every so-manieth question, and never again after some: the last record of all is left alone."""

    def __init__(self, every: int = EVERY, most: int = 1 << 30) -> None:
        self._count = itertools.count(1)
        self._every, self._last = every, every * most

    def __call__(self) -> bool:
        number = next(self._count)
        return number % self._every == 0 and number <= self._last


# What a network does. No flaw of a broker: nothing may come of it.


PRODUCE = 0
CHANGING = {PRODUCE, 8, 24, 25, 26, 28}
"""OffsetCommit, and what belongs to transactions."""


@_flaw
def loses_answers(patch: Patch) -> None:
    """What was asked for is done, and the connection is gone before the answer."""
    _loses_answers(patch, CHANGING, every=60)


def _loses_answers(patch: Patch, of: set[int], every: int) -> None:
    respond, now = Broker._respond, _Now(every)

    def respond_or_not(self: Any, node: Any, frame: bytes, host: str) -> Any:
        answer = respond(self, node, frame, host)
        if int.from_bytes(frame[:2]) in of and now():
            raise Unanswerable("The answer is lost.")
        return answer

    patch.setattr(Broker, "_respond", respond_or_not)


# What is written.


@_flaw
def drops_batches(patch: Patch) -> None:
    """Acknowledged and not written."""
    produce_one, now = answers_records._produce_one, _Now(most=5)

    def produce_or_drop(call: Any, topic: str, data: Any, change: Any, staged: Any, *more: Any) -> dict[str, Any]:
        if not read_batch(data.records).transactional and now():
            return {"index": data.index, "base_offset": call.node.topics.partition(topic, data.index).end}
        return produce_one(call, topic, data, change, staged, *more)

    patch.setattr(answers_records, "_produce_one", produce_or_drop)
    _accepts_all_sequences(patch)


@_flaw
def repeats_batches(patch: Patch) -> None:
    """Sequences are not looked at: what comes again is written again."""
    _loses_answers(patch, {PRODUCE}, every=20)
    _accepts_all_sequences(patch)


def _accepts_all_sequences(patch: Patch) -> None:
    patch.setattr(PartitionLog, "repeated", lambda self, batch: None)


@_flaw
def swaps_batches(patch: Patch) -> None:
    """A batch is acknowledged, kept back, and written after the next one of its producer in its partition."""
    _accepts_all_sequences(patch)
    produce_one, apply, now = answers_records._produce_one, PartitionLog.apply, _Now(most=10)
    kept: dict[PartitionLog, Batch] = {}

    def produce_later(call: Any, topic: str, data: Any, change: Any, staged: Any, *more: Any) -> dict[str, Any]:
        log, batch = call.node.topics.partition(topic, data.index), read_batch(data.records)
        if log not in kept and batch.idempotent and not batch.transactional and now():
            kept[log] = batch
            return {"index": data.index, "base_offset": log.end}
        return produce_one(call, topic, data, change, staged, *more)

    def apply_both(self: PartitionLog, append: Append) -> None:
        apply(self, append)
        if self in kept and kept[self].producer_id == append.batch.producer_id:
            change = Change()
            later = self.stage(kept.pop(self), change, 0)
            self._store.commit(change)
            apply(self, later)

    patch.setattr(answers_records, "_produce_one", produce_later)
    patch.setattr(PartitionLog, "apply", apply_both)


@_flaw
def forgets_at_death(patch: Patch) -> None:
    """What was acknowledged is in memory alone, and written every half second."""
    flushed = [0.0]
    without_journal: Any = WriteOptions()  # its attributes are typed as methods
    without_journal.disable_wal = True

    def commit_to_memory(self: Any, change: Any) -> None:
        self._db.write(change.batch, without_journal)
        if time.monotonic() - flushed[0] > 0.5:
            self._db.flush()
            flushed[0] = time.monotonic()

    patch.setattr(Store, "commit", commit_to_memory)


# What is served.


@_flaw
def has_two_histories(patch: Patch) -> None:
    """Now and then a batch is shown in another's place."""
    read, now = PartitionLog.read, _Now()
    shown: dict[tuple[int, int], Piece] = {}

    def read_another(self: PartitionLog, *where: Any, **how: Any) -> list[Piece]:
        found = read(self, *where, **how)
        for at, data in enumerate(found):
            batch = read_batch(whole(data))
            if batch.transactional:
                continue
            alike = self.number, batch.last_delta
            if alike in shown and now():
                found[at] = b"".join(stamp(read_batch(whole(shown[alike])), batch.base_offset))
            shown[alike] = data
        return found

    patch.setattr(PartitionLog, "read", read_another)


@_flaw
def skips_batches(patch: Patch) -> None:
    """Of several batches one is left out."""
    read, now = PartitionLog.read, _Now()

    def read_less(self: PartitionLog, *where: Any, **how: Any) -> list[Piece]:
        found = read(self, *where, **how)
        return found[:1] + found[2:] if len(found) > 2 and now() else found

    patch.setattr(PartitionLog, "read", read_less)


@_flaw
def forgets_where_readers_are(patch: Patch) -> None:
    """Readers are told that there is no such offset, and begin anew."""
    read, now = PartitionLog.read, _Now(60)

    def read_or_refuse(self: PartitionLog, offset: int, *where: Any, **how: Any) -> list[Piece]:
        if offset > 0 and now():
            raise Refusal(ErrorCode.offset_out_of_range, "No such offset.")
        return read(self, offset, *where, **how)

    patch.setattr(PartitionLog, "read", read_or_refuse)


@_flaw
def shows_the_aborted(patch: Patch) -> None:
    """Readers of the committed are not told what was aborted."""
    patch.setattr(PartitionLog, "aborted_between", lambda self, offset, upper: [])


@_flaw
def shows_the_open(patch: Patch) -> None:
    """There is no last stable offset: open transactions are read like ended ones."""
    patch.setattr(PartitionLog, "stable_end", property(lambda self: self.end))


# How transactions end.


@_flaw
def tears_transactions(patch: Patch) -> None:
    """Committed in one partition and aborted in another."""
    stage_marker, now = PartitionLog.stage_marker, _Now(3)

    def stage_another(self: PartitionLog, producer: int, epoch: int, commit: bool, *more: Any) -> Append:
        return stage_marker(self, producer, epoch, commit != now(), *more)

    patch.setattr(PartitionLog, "stage_marker", stage_another)


@_flaw
def forgets_markers(patch: Patch) -> None:
    """The transactions of one producer end, but not in their last partition."""
    stage_markers = TransactionCoordinator._stage_markers

    def stage_fewer(self: Any, transaction: Transaction, *more: Any) -> list[tuple[PartitionLog, Append]]:
        if transaction.id == "transactor-1" and transaction.partitions:
            kept = transaction.partitions - {max(transaction.partitions)}
            transaction = msgspec.structs.replace(transaction, partitions=kept)
        return stage_markers(self, transaction, *more)

    patch.setattr(TransactionCoordinator, "_stage_markers", stage_fewer)


@_flaw
def forgets_offsets_of_transactions(patch: Patch) -> None:
    """A transaction is committed without the offsets that it was given."""
    patch.setattr(TransactionCoordinator, "add_offsets", lambda self, *of, **how: None)


@_flaw
def lets_zombies_live(patch: Patch) -> None:
    """A successor is given the epoch of the producer before it, and what that has open stays open."""
    _accepts_all_sequences(patch)
    begin_producer = TransactionCoordinator.begin_producer

    def begin_again(self: TransactionCoordinator, name: str, *more: Any) -> Transaction:
        return self.get(name) or begin_producer(self, name, *more)

    patch.setattr(TransactionCoordinator, "begin_producer", begin_again)


# Offsets of groups.


@_flaw
def drops_commits(patch: Patch) -> None:
    """A group's commits are acknowledged and not written."""
    patch.setattr(GroupCoordinator, "commit", lambda self, group, offsets: None)


@_flaw
def commits_too_much(patch: Patch) -> None:
    """A group's offset is kept as one that lies beyond what was committed."""
    commit = GroupCoordinator.commit

    def commit_more(self: GroupCoordinator, group: str, offsets: dict[Any, Any]) -> None:
        commit(self, group, {place: replace(at, offset=at.offset + 3) for place, at in offsets.items()})

    patch.setattr(GroupCoordinator, "commit", commit_more)


def run(flaws: Sequence[str], arguments: Sequence[str], file: Path) -> None:
    """The local broker as a process of its own, with flaws; what it says goes to a file."""
    with file.open("ab") as out, pytest.MonkeyPatch.context() as patch:
        for descriptor in (1, 2):
            os.dup2(out.fileno(), descriptor)
        for flaw in flaws:
            plant(flaw, patch)
        sys.exit(main(arguments))
