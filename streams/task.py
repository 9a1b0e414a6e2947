"""A task: one partition of a stage and its state, exactly once.

Its cycle has five steps, numbered the same in DESIGN, here and in `runner`:

1. read a micro-batch;
2. run the operators over it, changing hot state in place and noting the rows touched;
3. in one log transaction produce outputs and one changelog record per touched row, and add the consumed offsets;
4. commit;
5. write the touched rows to the store, together with the changelog position.

Before its first cycle it writes a barrier into its changelog and restores up to that: a log says where its end is from
one node's memory, and a node that was cut off and has come back says so for a moment of a log that has moved on without
it. What is written, no such node can take; whoever has read the barrier has read all that earlier owners committed.

The store holds committed rows only, and may hold some back from the disk for a while (`behind`). What is hot is a cache
above it, and an operator that can reads in step 2 what it lacks. After an abort, a fence or an unknown outcome the hot
state is thrown away and loaded again from the store and the changelog, by the same path as after a crash. A task knows
no asyncio, no log and no clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from headrace.streams.batch import (
    NEVER,
    Batch,
    Block,
    Change,
    Changes,
    Lazy,
    Operator,
    Outputs,
    Record,
    Resident,
    Touched,
)
from headrace.streams.errors import HeadraceError, OperatorError, ProgramChanged
from headrace.streams.inputs import Input, Merge
from headrace.streams.log import Fetched, Partition
from headrace.streams.memory import Residence
from headrace.streams.spans import Spans, woven
from headrace.streams.store import Shelf, Store

MARK = b"\x00mark"
"""The key of the row that tells where a commit stands."""
BARRIER = b"\x00barrier"
"""The key of what a task writes into its changelog before it restores: the deletion of a row that never was."""
RESETTING = "being reset"
"""Stands for the program in the mark of a task whose reset has begun: until it ends, no start goes on from halves."""
_POSITION = b"\x00position"

MANY_ROWS = 100_000
"""Changelog records for which it pays to leave the store out of order until they are in: a few seconds' work."""


class Mark(msgspec.Struct, frozen=True):
    """Where a commit stands: written to the changelog in the same transaction as the rows it explains.

    offsets:   per input, the next row to be taken
    highs:     per input, the greatest event time taken, microseconds
    watermark: microseconds
    program:   the fingerprint of the declarations that made this state
    """

    offsets: list[int]
    highs: list[int]
    watermark: int
    program: str


class Hurry(msgspec.Struct, frozen=True):
    """A batch that did not wait for an idle input, on the task's topic of hurries: per input, the offsets before and
    after it.

    Its rows may stand before others that came later and would have preceded them. Between hurries rows are in the order
    of their times; so with them whoever recomputes takes the rows in the order in which they were taken.
    """

    before: list[int]
    after: list[int]


@dataclass(slots=True, frozen=True)
class Work:
    """What step 2 made: records of one transaction, the rows touched, and the offsets they reflect."""

    records: Outputs
    changes: Changes
    offsets: dict[Partition, int]
    rows: int


class Task:
    """One partition of a stage.

    name:      of the stage; with the partition it owns the transactional id
    inputs:    merged in event-time order
    operators: run in this order over each batch
    changelog: where touched rows go
    hurries:   where batches are told of that did not wait for an idle input; None where nobody will ask
    program:   fingerprint of the declarations; state of another program is refused
    """

    def __init__(
        self,
        name: str,
        number: int,
        inputs: Sequence[Input],
        operators: Sequence[Operator],
        store: Store,
        changelog: Partition,
        program: str = "",
        hurries: Partition | None = None,
    ) -> None:
        self.name = name
        self.number = number
        self.inputs = list(inputs)
        self.merge = Merge(self.inputs)
        self.operators = list(operators)
        self._resident = [operator for operator in self.operators if isinstance(operator, Resident)]
        self.changelog = changelog
        self._store = store
        self._place: tuple[int, int] | None = None
        self._program = program
        self.hurries = hurries

    @property
    def program(self) -> str:
        """The fingerprint of the declarations."""
        return self._program

    @property
    def position(self) -> int:
        """The changelog offset up to which the store is written."""
        return self._written()[0]

    @property
    def written(self) -> int:
        """A time, seconds since 1970, when the changelog held whatever changed after the position; 0 if not known."""
        return self._written()[1]

    def _written(self) -> tuple[int, int]:
        if self._place is None:
            position, _, at = (self._store.get(_POSITION) or b"0").partition(b" ")
            self._place = int(position), int(at or 0)
        return self._place

    def _write(self, changes: Iterable[Change | Touched], position: int, at: float) -> None:
        self._store.write([*changes, (_POSITION, b"%d %d" % (position, at))])
        self._place = position, int(at)

    def current(self, at: float) -> None:
        """Note that at this time the changelog held whatever changed after the position."""
        self._write([], self.position, at)

    def forget(self) -> None:
        """Empty the store, to make it again from the whole changelog."""
        self._store.empty()
        self._place = None

    def replay(self, fetched: Fetched, now: float = 0.0) -> None:
        """Bring the store forward by committed changelog records (recovery between steps 4 and 5).

        now: seconds since 1970; a record of later than that is of a clock that is wrong
        """
        # Whatever follows a commit was written after it. A barrier may follow what is gone already.
        commits = (at for key, at in zip(fetched.keys[::-1], fetched.timestamp[::-1], strict=True) if key != BARRIER)
        at = max(self.written, min(now, next(commits, 0) / 1000))
        keys = Spans.of(fetched.keys)
        keys = Spans(keys.data, keys.start, np.maximum(keys.length, 0))  # none of ours is missing
        self._write([Touched(keys, Spans.of(fetched.values))], fetched.next_offset, at)

    def expect(self, rows: int) -> None:
        """Note that about so many changelog records are still to be replayed."""
        self._store.ordering(rows < MANY_ROWS)

    def resume(self) -> None:
        """Throw hot state away and load what is committed. Call it once the changelog is replayed.

        Raises ProgramChanged where the state is of another program.
        """
        stored = self._store.get(MARK)
        mark = msgspec.json.decode(stored, type=Mark) if stored else None
        if mark and mark.program == RESETTING:
            raise ProgramChanged(f"the reset of {self.name} did not end: run `headrace reset PROGRAM` again")
        if mark and mark.program != self._program:
            raise ProgramChanged(
                f"the state of {self.name} was made by another version of the program. To go on, take back what was "
                f"changed; to begin anew from the events on the log, run `headrace reset PROGRAM`"
            )
        for n, source in enumerate(self.inputs):
            if mark:
                source.resume(mark.offsets[n], mark.highs[n])
            else:
                source.resume(0, NEVER)
        self.merge.watermark = mark.watermark if mark else NEVER
        for operator in self.operators:
            operator.clear()
            shelf = Shelf(self._store, operator.name.encode() + b"\x00")
            if isinstance(operator, Lazy):
                operator.attach(shelf)
            else:
                operator.load(shelf.rows())

    def feed(self, fetched: Fetched) -> None:
        """Step 1: buffer what was read."""
        for source in self.inputs:
            if source.partition == fetched.partition:
                source.feed(fetched)

    def work(self, limit: int, idle: frozenset[int] = frozenset()) -> Work | None:
        """Step 2, over at most `limit` rows; None where nothing can be taken yet."""
        before = [i.offset for i in self.inputs]
        waited = self.merge.available(frozenset()) if idle else limit
        taken = self.merge.take(limit, idle)
        if not taken.rows:
            return None
        records: Outputs = [*taken.refused]
        if taken.rows > waited and self.hurries is not None:
            hurry = Hurry(before, [i.offset for i in self.inputs])
            records.append(Record(self.hurries.topic, None, msgspec.json.encode(hurry), self.hurries.number))
        for operator in self.operators:
            self._process(operator, taken.batch, records)
        changes: Changes = []
        for operator in self.operators:
            prefix = operator.name.encode() + b"\x00"
            for change in operator.changes():
                if isinstance(change, Touched):
                    changes.append(Touched(woven([prefix, b""], [change.keys]), change.values))
                else:
                    changes.append((prefix + change[0], change[1]))
        mark = Mark([i.offset for i in self.inputs], [i.high for i in self.inputs], self.merge.watermark, self._program)
        changes.append((MARK, msgspec.json.encode(mark)))
        return Work(records, changes, {i.partition: i.offset for i in self.inputs}, taken.rows)

    def _process(self, operator: Operator, batch: Batch, records: Outputs) -> None:
        events = [f"{r.event_id(0)} to {r.offset[-1]}" for r in batch.streams.values() if len(r.offset)]
        try:
            operator.process(batch, records)
        except HeadraceError:
            raise
        except Exception as error:
            raise OperatorError(
                f"{operator.name} of task {self.name} failed on one of the events {', '.join(events)}: "
                f"{type(error).__name__}: {error}. Mend the program, then start again: it goes on at these events"
            ) from error

    def logged(self, changes: Iterable[Change | Touched]) -> Outputs:
        """Step 3: the changelog records of touched rows."""
        topic, number = self.changelog
        return [
            Block(topic, c.keys, c.values, number) if isinstance(c, Touched) else Record(topic, *c, number)
            for c in changes
        ]

    def barrier(self) -> Record:
        """What is written into the changelog before the restore, and read at its end."""
        return Record(self.changelog.topic, BARRIER, None, self.changelog.number)

    def keep(self, work: Work, position: int, at: float = 0.0) -> None:
        """Step 5. position: the changelog offset after this commit's records; at: as `written`."""
        self._write(work.changes, position, at)
        for operator in self._resident:
            operator.kept()

    def rest(self) -> None:
        """Write what is held back of the store: nothing comes just now."""
        self._store.rest()

    @property
    def residence(self) -> Residence:
        """What is hot of the state."""
        return sum((operator.residence for operator in self._resident), Residence())

    def close(self) -> None:
        for operator in self.operators:
            if isinstance(operator, Lazy):
                operator.clear()
        self._store.close()
