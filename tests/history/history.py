"""What clients of a log did and were told: operations with their times and outcomes, as lines of JSON in a file.

An operation is written down when it is invoked, with the outcome UNKNOWN; what is told in the end is filled in. So an
operation whose answer never came stays UNKNOWN, and may have happened or not. Times are of one monotonic clock, in
seconds; all clients share it.
"""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TypeVar

import msgspec

Place = tuple[str, int]
"""A topic and a partition."""
Source = tuple[str, int, int]
"""A topic, a partition and an offset."""


class Outcome(Enum):
    OK = "ok"
    FAIL = "fail"
    """It certainly did not happen."""
    UNKNOWN = "unknown"


class Send(msgspec.Struct, tag=True, kw_only=True):
    """One record sent; its value is the only one of its kind in the history."""

    producer: str
    """One life of a client: what it sends to a partition is in the order of the history."""
    topic: str
    partition: int
    value: str
    began: float
    ended: float | None = None
    outcome: Outcome = Outcome.UNKNOWN
    offset: int | None = None
    """As acknowledged; None where the acknowledgement did not tell it."""
    idempotent: bool = True
    transaction: str | None = None
    source: Source | None = None
    """The record that it was made from."""

    @property
    def place(self) -> Place:
        return self.topic, self.partition


class Transaction(msgspec.Struct, tag=True, kw_only=True):
    """One transaction: what it was asked to become, and what was said of it."""

    id: str
    began: float
    timeout: float
    """Seconds after which the broker may abort it; 0 where a predecessor's belated request may, at any time."""
    closing: float | None = None
    """When its end was asked for, or a successor that ends it; nothing but its timeout ends it before."""
    commit: bool = False
    """Whether a commit was ever asked for: where not, it can only be aborted."""
    fenced: bool = False
    """Whether a successor had begun before the commit was asked for: that ended it, and fenced its producer."""
    ended: float | None = None
    outcome: Outcome = Outcome.UNKNOWN
    group: str | None = None
    offsets: list[Source] = msgspec.field(default_factory=list)
    """The offsets that it commits for the group."""

    @property
    def committed(self) -> bool:
        return not self.never_committed and self.outcome is Outcome.OK

    @property
    def never_committed(self) -> bool:
        return not self.commit or self.fenced

    @property
    def open_until(self) -> float:
        """It was certainly open until then, if it had begun."""
        timed_out = self.began + self.timeout
        return timed_out if self.closing is None else min(self.closing, timed_out)


class Poll(msgspec.Struct, tag=True, kw_only=True):
    """What one poll gave, in its order."""

    consumer: str
    session: int
    """Within a session a consumer goes on where it was: it neither seeks nor gets other partitions."""
    committed_only: bool
    began: float
    ended: float
    records: list[tuple[str, int, int, str]]
    """Topic, partition, offset, value."""
    group: str | None = None
    final: bool = False
    """Of the reading from the first record to the last, when everything had been settled."""


class Position(msgspec.Struct, tag=True, kw_only=True):
    """Where a session of a consumer begins in a partition."""

    consumer: str
    session: int
    topic: str
    partition: int
    offset: int


class GroupOffset(msgspec.Struct, tag=True, kw_only=True):
    """An offset of a group, committed or looked up; -1 where none has been committed."""

    group: str
    topic: str
    partition: int
    offset: int
    began: float
    commit: bool
    ended: float | None = None
    outcome: Outcome = Outcome.UNKNOWN
    final: bool = False

    @property
    def place(self) -> Place:
        return self.topic, self.partition


class End(msgspec.Struct, tag=True, kw_only=True):
    """The last record of a partition, written when all clients were done; who reads everything reads up to it."""

    topic: str
    partition: int
    offset: int


class Fault(msgspec.Struct, tag=True, kw_only=True):
    """What was done to a broker."""

    kind: str
    began: float
    ended: float | None = None


Operation = Send | Transaction | Poll | Position | GroupOffset | End | Fault
T = TypeVar("T", Send, Transaction, Poll, Position, GroupOffset, End, Fault)


class History:
    def __init__(self, operations: list[Operation] | None = None) -> None:
        self.operations = operations or []

    def add(self, operation: T) -> T:
        self.operations.append(operation)
        return operation

    def all(self, kind: type[T]) -> list[T]:
        return [operation for operation in self.operations if isinstance(operation, kind)]

    def save(self, path: Path) -> None:
        path.write_bytes(b"\n".join(map(msgspec.json.encode, self.operations)))


def load(path: Path) -> History:
    return History([msgspec.json.decode(line, type=Operation) for line in path.read_bytes().splitlines()])
