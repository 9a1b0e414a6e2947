"""A partition against an oracle: random producers, transactions, cuts, compactions and restarts, by seed.

The oracle is a plain list of records; how the committed are read is the rule of Kafka's consumers, written
apart. A failing seed is in the test's name and fails again.
"""

import asyncio
import random
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from headrace.streams.broker.batches import read_batch, receive_batch, records_of
from headrace.streams.broker.log import PartitionLog
from headrace.streams.broker.messages import whole
from headrace.streams.broker.node import Node, open_node
from headrace.streams.broker.store import Change

from tests.streams.broker.clients import QUICK, ManualClock, batch

STEPS = 120
PLACE = ("t", 0)


@dataclass(slots=True)
class Known:
    """One record as the oracle knows it; `fate` is None while its transaction is open."""

    offset: int
    key: bytes
    value: bytes
    fate: bool | None


@dataclass(slots=True)
class Transactor:
    name: str
    producer: int = -1
    epoch: int = -1
    sequence: int = 0
    open: bool = False
    written: list[Known] = field(default_factory=list)


class World:
    def __init__(self, seed: int, folder: Path) -> None:
        self.dice = random.Random(seed)
        self.folder = folder
        self.clock = ManualClock()
        self.node = self._open()
        # Cleaning is by the test's own calls; every compaction looks at everything.
        self.node.topics.create("t", 1, {"cleanup.policy": "compact", "min.cleanable.dirty.ratio": "0"})
        self.known: list[Known] = []
        self.start = 0
        self.compacted = 0
        self.transactors = [Transactor(f"x{number}") for number in range(3)]

    def _open(self) -> Node:
        limits = replace(
            QUICK,
            tail_cache_bytes=self.dice.choice([1_200, 100_000]),
            cleaning_step_bytes=300,
            compaction_keys=50,
            # Between nothing and all of it goes to files, some so small that they hold one batch.
            large_batch_bytes=self.dice.choice([50, 150, 16_384]),
            batch_file_bytes=self.dice.choice([100, 1_000]),
        )
        settings = {"fsync": False, "auto_create": False, "default_partitions": 1}
        return open_node(self.folder, limits=limits, clock=self.clock, **settings)  # type: ignore[arg-type]

    @property
    def log(self) -> PartitionLog:
        return self.node.topics.partition(*PLACE)

    # What can happen.

    def append(self, key: bytes, data: bytes, count: int, fate: bool | None) -> list[Known]:
        received = receive_batch(data, 1 << 20)
        if received.transactional:
            self.node.transactions.check_append(received, PLACE, knows_abortable=True)
        change = Change()
        staged = self.log.stage(received, change, self.clock.now_ms)
        self.node.store.commit(change)
        base = self.log.end
        self.log.apply(staged)
        written = [Known(base + n, key, b"%d" % (base + n), fate) for n in range(count)]
        self.known += written
        return written

    def values(self, count: int) -> list[bytes]:
        return [b"%d" % (self.log.end + n) for n in range(count)]

    def write_plain(self) -> None:
        count, key = self.dice.randint(1, 4), self.any_key()
        self.append(key, batch(*self.values(count), key=key), count, True)

    def any_key(self) -> bytes:
        return b"k%d" % self.dice.randint(0, 4)

    def write_in_transaction(self) -> None:
        actor = self.dice.choice(self.transactors)
        if actor.epoch < 0:
            self.begin(actor)
        if not actor.open:
            self.node.transactions.add_partitions(actor.name, actor.producer, actor.epoch, [PLACE], self.clock.now_ms)
            actor.open = True
        count, key = self.dice.randint(1, 3), self.any_key()
        producer = (actor.producer, actor.epoch, actor.sequence)
        data = batch(*self.values(count), key=key, producer=producer, transactional=True)
        actor.written += self.append(key, data, count, None)
        actor.sequence += count

    def begin(self, actor: Transactor) -> None:
        begun = self.node.transactions.begin_producer(actor.name, 60_000, -1, -1, self.clock.now_ms)
        self.settle(actor, False)
        actor.producer, actor.epoch, actor.sequence = begun.producer_id, begun.epoch, 0

    def end_transaction(self) -> None:
        actor = self.dice.choice(self.transactors)
        if not actor.open:
            return
        commit = self.dice.random() < 0.6
        bumps = self.dice.random() < 0.5
        ended = self.node.transactions.end(
            actor.name, actor.producer, actor.epoch, commit, self.clock.now_ms, bumps=bumps
        )
        if bumps:
            actor.epoch, actor.sequence = ended.epoch, 0
        self.settle(actor, commit)

    @staticmethod
    def settle(actor: Transactor, commit: bool) -> None:
        for known in actor.written:
            known.fate = commit
        actor.written, actor.open = [], False

    def begin_again(self) -> None:
        self.begin(self.dice.choice(self.transactors))

    def time_out(self) -> None:
        if self.dice.random() < 0.8:
            return
        self.clock.advance(60_000)
        self.node.transactions.tick(self.clock.now_ms)
        for actor in self.transactors:
            if actor.open:
                self.settle(actor, False)
                actor.epoch = -1

    def cut(self) -> None:
        if self.dice.random() < 0.7:
            return
        self.start = self.dice.randint(self.log.start, self.log.stable_end)
        change = Change()
        bounds = self.log.stage_cut(self.start, change)
        self.node.store.commit(change)
        self.log.apply_cut(bounds)

    async def clean(self) -> None:
        """A whole round, or one that dies between two of its steps."""
        self.compacted = max(self.compacted, self.log.stable_end)
        cleaning = asyncio.create_task(self.node.cleaner.clean())
        for _ in range(self.dice.choice([3, 5, 7, 9, 12, 15, 1000])):
            await asyncio.sleep(0)
        cleaning.cancel()
        await asyncio.wait([cleaning])

    def restart(self) -> None:
        self.node.store.close()
        self.node = self._open()

    # What must be true.

    def check(self) -> None:
        undecided = [known.offset for known in self.known if known.fate is None]
        if undecided:
            assert self.log.stable_end == min(undecided)
        else:
            assert self.log.stable_end == self.log.end
        offset = self.dice.randint(self.log.start, self.log.end)
        seen = self.read_committed(offset)
        expected = {
            known.offset: known.value
            for known in self.known
            if known.fate and offset <= known.offset < self.log.stable_end
        }
        assert seen.items() <= expected.items()
        keys = {known.offset: known.key for known in self.known if known.offset in expected}
        newest = {key: held for held, key in sorted(keys.items())}
        for missing in expected.keys() - seen.keys():
            assert missing < self.compacted, f"offset {missing} is lost"
            assert missing < newest[keys[missing]], f"offset {missing} was the newest of its key"
        assert self.log.bounds.size == sum(span.size for span in self.log.spans(self.log.start))

    def read_committed(self, offset: int) -> dict[int, bytes]:
        """As a consumer does: in steps, skipping what the broker says was aborted."""
        seen: dict[int, bytes] = {}
        upper = self.log.stable_end
        while offset < upper:
            found = self.log.read(offset, upper, self.dice.choice([1, 300, 10_000]), at_least_one=True)
            if not found:
                break
            pending = sorted(self.log.aborted_between(offset, upper), key=lambda entry: entry.first_offset)
            aborting: set[int] = set()
            for data in found:
                each = read_batch(whole(data))
                while pending and pending[0].first_offset <= each.last_offset:
                    aborting.add(pending.pop(0).producer_id)
                if each.control:
                    aborting.discard(each.producer_id)
                elif not (each.transactional and each.producer_id in aborting):
                    seen |= {r.offset: r.value or b"" for r in records_of(each) if r.offset >= offset}
                offset = max(offset, each.last_offset + 1)
        return seen


@pytest.mark.parametrize("seed", range(25))
async def test_a_partition_is_what_the_oracle_says(seed: int, tmp_path: Path) -> None:
    world = World(seed, tmp_path)
    deeds = [
        world.write_plain,
        world.write_in_transaction,
        world.write_in_transaction,
        world.write_in_transaction,
        world.end_transaction,
        world.end_transaction,
        world.begin_again,
        world.time_out,
        world.cut,
    ]
    for step in range(STEPS):
        world.dice.choice(deeds)()
        if step % 10 == 5 and seed % 2:
            await world.clean()
            for _ in range(8):  # what a cleaning that died has left is looked at more closely
                world.check()
        if step % 15 == 7:
            world.restart()
        world.check()
    world.node.store.close()
