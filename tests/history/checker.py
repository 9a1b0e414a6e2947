"""Which histories a log must not have: a history in, its anomalies out. No IO, no clock.

After Jepsen's tests of Kafka (jepsen.tests.kafka), whose names stand beside ours. What an operation of unknown
outcome did is taken from what was read: it may have happened or not, but not by halves.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from itertools import accumulate

from tests.history.history import (
    End,
    GroupOffset,
    History,
    Outcome,
    Place,
    Poll,
    Position,
    Send,
    Source,
    Transaction,
)


class Kind(Enum):
    LOST = "lost"
    """Acknowledged or read, and not there in the end; or passed over by a group (lost-write, unseen)."""
    DOUBLED = "doubled"
    """Sent once by an idempotent client and there twice, or processed twice (duplicate)."""
    REORDERED = "reordered"
    """Before a record that was sent before it (int-nonmonotonic-send, nonmonotonic-send)."""
    TWO_VALUES = "two values at one offset"
    """Two clients were told, or one at two times (inconsistent-offsets)."""
    ABORTED_READ = "aborted and read"
    """By a reader of the committed (G1a)."""
    EARLY_READ = "read before its commit"
    """By a reader of the committed (precommitted-read)."""
    BEYOND_OPEN = "read beyond an open transaction"
    """By a reader of the committed, who must wait at the last stable offset."""
    FRACTURED = "fractured"
    """A transaction of which a part is there: some records and not others, or records without offsets."""
    OFFSET_BACK = "group's offset went back"
    """What a group had committed, and was told it had, is no longer so."""
    POLL_BACK = "poll went back"
    """(int-nonmonotonic-poll, nonmonotonic-poll)."""
    POLL_SKIP = "poll skipped"
    """(int-poll-skip, poll-skip)."""
    ZOMBIE = "fenced and committed"
    """A producer whose successor had begun was told that its commit was done."""
    PHANTOM = "phantom"
    """Read, and never sent, or sent elsewhere, or refused; an offset of a group that nobody asked to commit."""
    STUCK = "stuck"
    """When everything was settled, a reader of everything did not come to the end."""


@dataclass(frozen=True, slots=True)
class Anomaly:
    kind: Kind
    what: str

    def __str__(self) -> str:
        return f"{self.kind.value}: {self.what}"


def anomalies(history: History) -> list[Anomaly]:
    """Everything that is wrong with a history, the kinds in the order above."""
    facts = Facts(history)
    found: list[Anomaly] = []
    for check in (
        _lost,
        _passed_over,
        _doubled,
        _processed_twice,
        _reordered,
        _two_values,
        _aborted_or_early,
        _beyond_open,
        _fractured,
        _offsets_torn,
        _zombies,
        _offset_back,
        _sessions,
        _group_skips,
        _phantoms,
        _phantom_offsets,
        _stuck,
    ):
        found += check(facts)
    return sorted(found, key=lambda anomaly: list(Kind).index(anomaly.kind))


class Facts:
    """A history, looked up in the ways that the checks need."""

    def __init__(self, history: History) -> None:
        self.sends = history.all(Send)
        self.transactions = {transaction.id: transaction for transaction in history.all(Transaction)}
        self.polls = history.all(Poll)
        self.positions = history.all(Position)
        self.group_offsets = history.all(GroupOffset)
        self.ends = {(end.topic, end.partition): end.offset for end in history.all(End)}
        self.by_value = {send.value: send for send in self.sends}
        self.parts: dict[str, list[Send]] = defaultdict(list)
        """The sends of each transaction."""
        for send in self.sends:
            if send.transaction is not None:
                self.parts[send.transaction].append(send)
        self.final: dict[bool, dict[Place, dict[int, str]]] = {True: defaultdict(dict), False: defaultdict(dict)}
        """By whether only the committed was read: what is in each partition at the end, by offset."""
        self.read_at: dict[str, set[Source]] = defaultdict(set)
        """Where each value was ever read."""
        for poll in self.polls:
            for topic, partition, offset, value in poll.records:
                self.read_at[value].add((topic, partition, offset))
                if poll.final:
                    self.final[poll.committed_only][topic, partition][offset] = value
        self.settled: dict[bool, dict[str, int]] = {
            committed_only: {
                value: offset
                for records in self.final[committed_only].values()
                for offset, value in sorted(records.items(), reverse=True)
            }
            for committed_only in (True, False)
        }
        """The first offset of each value at the end."""
        self.visible = {
            committed_only: {place: sorted(records) for place, records in self.final[committed_only].items()}
            for committed_only in (True, False)
        }

    def transaction_of(self, send: Send) -> Transaction | None:
        return None if send.transaction is None else self.transactions[send.transaction]

    def must_be_there(self, send: Send) -> bool:
        transaction = self.transaction_of(send)
        return send.outcome is Outcome.OK and (transaction is None or transaction.committed)


# Records.


def _lost(facts: Facts) -> Iterator[Anomaly]:
    committed, everything = facts.settled[True], facts.final[False]
    for send in facts.sends:
        if facts.must_be_there(send) and send.value not in committed:
            yield Anomaly(Kind.LOST, f"{_name(send)} was acknowledged and is not there in the end")
    told: set[Source] = set()
    for poll in facts.polls:
        for topic, partition, offset, value in poll.records:
            here = topic, partition, offset
            if offset not in everything.get((topic, partition), {}) and here not in told:
                told.add(here)
                yield Anomaly(
                    Kind.LOST, f"{value} was read at {_at(here)} by {poll.consumer} and is not there in the end"
                )


def _doubled(facts: Facts) -> Iterator[Anomaly]:
    for value, places in facts.read_at.items():
        send = facts.by_value.get(value)
        if len(places) > 1 and send is not None and send.idempotent:
            yield Anomaly(
                Kind.DOUBLED, f"{_name(send)} was sent once and is at {' and '.join(map(_at, sorted(places)))}"
            )


def _reordered(facts: Facts) -> Iterator[Anomaly]:
    offsets = facts.settled[False]
    # The order of one idempotent client.
    last: dict[tuple[str, Place], Send] = {}
    by_place: dict[Place, list[Send]] = defaultdict(list)
    for send in facts.sends:
        if send.value not in offsets:
            continue
        by_place[send.place].append(send)
        if send.idempotent:
            before = last.get((send.producer, send.place))
            if before is not None and offsets[before.value] > offsets[send.value]:
                yield Anomaly(
                    Kind.REORDERED,
                    f"{_name(send)} is at {offsets[send.value]}, and {before.value}, which {send.producer} sent "
                    f"before it, at {offsets[before.value]}",
                )
            else:
                last[send.producer, send.place] = send
    # What was acknowledged before another was sent comes before it, whoever sent them.
    for sends in by_place.values():
        done = sorted((s for s in sends if s.outcome is Outcome.OK and s.ended is not None), key=lambda s: s.ended or 0)
        newest: Send | None = None
        at = 0
        for send in sorted(sends, key=lambda s: s.began):
            while at < len(done) and (done[at].ended or 0) < send.began:
                if newest is None or offsets[done[at].value] > offsets[newest.value]:
                    newest = done[at]
                at += 1
            if newest is not None and offsets[newest.value] > offsets[send.value]:
                yield Anomaly(
                    Kind.REORDERED,
                    f"{_name(send)} is at {offsets[send.value]}, and {newest.value}, which was acknowledged before it "
                    f"was sent, at {offsets[newest.value]}",
                )


def _two_values(facts: Facts) -> Iterator[Anomaly]:
    values: dict[Source, set[str]] = defaultdict(set)
    for value, places in facts.read_at.items():
        for place in places:
            values[place].add(value)
    for send in facts.sends:
        if send.outcome is not Outcome.OK or send.offset is None:
            continue
        told = (*send.place, send.offset)
        values[told].add(send.value)
        read = facts.read_at.get(send.value)
        if read and told not in read:
            yield Anomaly(
                Kind.TWO_VALUES,
                f"{_name(send)} was acknowledged at {send.offset} and is at {' and '.join(map(_at, sorted(read)))}",
            )
    for place, found in values.items():
        if len(found) > 1:
            yield Anomaly(Kind.TWO_VALUES, f"{_at(place)} was told to hold {' and '.join(sorted(found))}")


def _phantoms(facts: Facts) -> Iterator[Anomaly]:
    for value, places in facts.read_at.items():
        send = facts.by_value.get(value)
        for topic, partition, offset in sorted(places):
            if send is None:
                yield Anomaly(Kind.PHANTOM, f"{value} was read at {_at((topic, partition, offset))}; nobody sent it")
            elif send.outcome is Outcome.FAIL:
                yield Anomaly(Kind.PHANTOM, f"{_name(send)} was refused and is at {_at((topic, partition, offset))}")
            elif send.place != (topic, partition):
                yield Anomaly(Kind.PHANTOM, f"{_name(send)} is at {_at((topic, partition, offset))}")


def _phantom_offsets(facts: Facts) -> Iterator[Anomaly]:
    asked: dict[tuple[str, Place], set[int]] = defaultdict(lambda: {-1})
    for offset in facts.group_offsets:
        if offset.commit and offset.outcome is not Outcome.FAIL:
            asked[offset.group, offset.place].add(offset.offset)
    for transaction in facts.transactions.values():
        for topic, partition, after in transaction.offsets:
            if transaction.group is not None and not transaction.never_committed:
                asked[transaction.group, (topic, partition)].add(after)
    told: set[tuple[str, Place, int]] = set()
    for offset in facts.group_offsets:
        what = offset.group, offset.place, offset.offset
        if offset.outcome is Outcome.OK and offset.offset not in asked[offset.group, offset.place] and what not in told:
            told.add(what)
            yield Anomaly(
                Kind.PHANTOM,
                f"{offset.group} in {offset.topic}/{offset.partition} is at {offset.offset}, which no commit asked for",
            )


def _stuck(facts: Facts) -> Iterator[Anomaly]:
    for place, end in sorted(facts.ends.items()):
        for committed_only in (True, False):
            reached = max(facts.final[committed_only].get(place, {}), default=-1)
            if reached < end:
                what = "the committed" if committed_only else "everything"
                yield Anomaly(
                    Kind.STUCK, f"who reads {what} in {place[0]}/{place[1]} comes to {reached}, and the end is {end}"
                )


# Transactions.


def _aborted_or_early(facts: Facts) -> Iterator[Anomaly]:
    aborted: set[str] = set()
    for poll in facts.polls:
        if not poll.committed_only:
            continue
        for topic, partition, offset, value in poll.records:
            send = facts.by_value.get(value)
            transaction = facts.transaction_of(send) if send is not None else None
            if transaction is None:
                continue
            where = f"{value} of transaction {transaction.id} was read at {_at((topic, partition, offset))}"
            if transaction.never_committed:
                if value not in aborted:
                    aborted.add(value)
                    yield Anomaly(Kind.ABORTED_READ, f"{where} by {poll.consumer}; it was never committed")
            elif transaction.closing is not None and poll.ended < transaction.closing:
                yield Anomaly(
                    Kind.EARLY_READ,
                    f"{where} by {poll.consumer}, {transaction.closing - poll.ended:.3f} s before its commit was asked",
                )


def _beyond_open(facts: Facts) -> Iterator[Anomaly]:
    """A transaction holds its partition from its first record on, for as long as nothing can have ended it."""
    first: dict[tuple[str, Place], int] = {}
    for send in facts.sends:
        if send.transaction is None:
            continue
        at = send.offset if send.outcome is Outcome.OK and send.offset is not None else None
        if at is None:
            at = facts.settled[False].get(send.value)
        if at is not None:
            key = send.transaction, send.place
            first[key] = min(at, first.get(key, at))
    held: dict[Place, list[tuple[int, float, str]]] = defaultdict(list)
    for (transaction, place), offset in first.items():
        held[place].append((offset, facts.transactions[transaction].open_until, transaction))
    starts: dict[Place, list[int]] = {}
    latest: dict[Place, list[tuple[int, float, str]]] = {}
    for place, entries in held.items():
        entries.sort()
        starts[place] = [offset for offset, _, _ in entries]
        latest[place] = list(accumulate(entries, _longer_open))
    for poll in facts.polls:
        if not poll.committed_only:
            continue
        for place, offset in _highest(poll.records).items():
            at = bisect_left(starts.get(place, []), offset)
            if at == 0:
                continue
            begun, until, transaction = latest[place][at - 1]
            if until > poll.ended:
                yield Anomaly(
                    Kind.BEYOND_OPEN,
                    f"{poll.consumer} read {_at((*place, offset))} while transaction {transaction}, open since "
                    f"{begun}, had another {until - poll.ended:.3f} s to go at least",
                )


def _longer_open(one: tuple[int, float, str], other: tuple[int, float, str]) -> tuple[int, float, str]:
    return one if one[1] >= other[1] else other


def _highest(records: Iterable[tuple[str, int, int, str]]) -> dict[Place, int]:
    highest: dict[Place, int] = {}
    for topic, partition, offset, _ in records:
        highest[topic, partition] = max(offset, highest.get((topic, partition), -1))
    return highest


def _fractured(facts: Facts) -> Iterator[Anomaly]:
    committed = facts.settled[True]
    for name, parts in facts.parts.items():
        acknowledged = [send for send in parts if send.outcome is Outcome.OK]
        there = [send.value for send in parts if send.value in committed]
        missing = [send.value for send in acknowledged if send.value not in committed]
        if there and missing:
            yield Anomaly(
                Kind.FRACTURED, f"of transaction {name} {', '.join(there)} are there and {', '.join(missing)} are not"
            )


def _offsets_torn(facts: Facts) -> Iterator[Anomaly]:
    """The offset of a group that commits by transactions alone is that of the last transaction that is there."""
    plain = {offset.group for offset in facts.group_offsets if offset.commit}
    final = {(o.group, o.place): o.offset for o in facts.group_offsets if o.final and o.outcome is Outcome.OK}
    there: dict[tuple[str, Place], tuple[int, str]] = {}
    not_there: dict[tuple[str, Place], dict[int, str]] = defaultdict(dict)
    for transaction in facts.transactions.values():
        parts = facts.parts.get(transaction.id, [])
        if transaction.group is None or transaction.group in plain or not parts:
            continue
        whole = transaction.committed or any(send.value in facts.settled[True] for send in parts)
        for topic, partition, offset in transaction.offsets:
            key = transaction.group, (topic, partition)
            if whole:
                there[key] = max(there.get(key, (-1, "")), (offset, transaction.id))
            else:
                not_there[key][offset] = transaction.id
    for key, offset in final.items():
        wanted, name = there.get(key, (-1, ""))
        group, (topic, partition) = key
        if offset < wanted:
            yield Anomaly(
                Kind.FRACTURED,
                f"transaction {name} is there, and its offset {wanted} of group {group} in {topic}/{partition} is not: "
                f"that is {offset}",
            )
        elif offset > wanted and offset in not_there.get(key, {}):
            yield Anomaly(
                Kind.FRACTURED,
                f"transaction {not_there[key][offset]} is not there, and its offset {offset} of group {group} in "
                f"{topic}/{partition} is",
            )


def _zombies(facts: Facts) -> Iterator[Anomaly]:
    for transaction in facts.transactions.values():
        if transaction.fenced and transaction.commit and transaction.outcome is Outcome.OK:
            yield Anomaly(Kind.ZOMBIE, f"transaction {transaction.id} was committed after its successor had begun")


def _processed(facts: Facts) -> dict[str, dict[Source, list[str]]]:
    """By group: for each record of the source, what is there in the end that was made from it."""
    made: dict[str, dict[Source, list[str]]] = defaultdict(lambda: defaultdict(list))
    for value in facts.settled[True]:
        send = facts.by_value.get(value)
        transaction = facts.transaction_of(send) if send is not None else None
        if send is not None and send.source is not None and transaction is not None and transaction.group is not None:
            made[transaction.group][send.source].append(value)
    return made


def _processed_twice(facts: Facts) -> Iterator[Anomaly]:
    for group, sources in _processed(facts).items():
        for source, values in sources.items():
            if len(values) > 1:
                yield Anomaly(
                    Kind.DOUBLED, f"{_at(source)} was processed by {group} into {' and '.join(sorted(values))}"
                )


def _passed_over(facts: Facts) -> Iterator[Anomaly]:
    made = _processed(facts)
    for committed in facts.group_offsets:
        if not committed.final or committed.group not in made:
            continue
        for offset, value in sorted(facts.final[True].get(committed.place, {}).items()):
            here = (*committed.place, offset)
            if offset < committed.offset and here not in made[committed.group]:
                yield Anomaly(
                    Kind.LOST, f"{value} at {_at(here)} was passed over by {committed.group}, at {committed.offset} now"
                )


# Groups and consumers.


def _offset_back(facts: Facts) -> Iterator[Anomaly]:
    """An offset that was told before another look began is not greater than what that look told."""
    told: dict[tuple[str, Place], list[tuple[float, float, int, str]]] = defaultdict(list)
    for found in facts.group_offsets:
        if found.outcome is Outcome.OK and found.ended is not None:
            what = "committed" if found.commit else "found"
            told[found.group, found.place].append((found.began, found.ended, found.offset, what))
    for transaction in facts.transactions.values():
        if transaction.committed and transaction.group is not None and transaction.ended is not None:
            for topic, partition, offset in transaction.offsets:
                what = f"committed by transaction {transaction.id}"
                # Its commit was asked for before `ended`: nothing is told of an earlier moment.
                began = transaction.began if transaction.closing is None else transaction.closing
                told[transaction.group, (topic, partition)].append((began, transaction.ended, offset, what))
    for (group, (topic, partition)), looks in told.items():
        done = sorted(looks, key=lambda look: look[1])
        highest, how, at = -1, "", 0
        for began, _, offset, what in sorted(looks):
            while at < len(done) and done[at][1] < began:
                if done[at][2] > highest:
                    highest, how = done[at][2], done[at][3]
                at += 1
            if offset < highest:
                yield Anomaly(
                    Kind.OFFSET_BACK,
                    f"{group} in {topic}/{partition}: {highest} was {how}, and after that {offset} was {what}",
                )


def _sessions(facts: Facts) -> Iterator[Anomaly]:
    """Within a session a consumer gets every record that it may see, once, in order."""
    reached: dict[tuple[str, int, Place], tuple[int, bool]] = {
        (position.consumer, position.session, (position.topic, position.partition)): (position.offset - 1, True)
        for position in facts.positions
    }
    for poll in facts.polls:
        if poll.final:
            continue
        for topic, partition, offset, value in poll.records:
            place = topic, partition
            key = poll.consumer, poll.session, place
            before, is_start = reached.get(key, (offset - 1, True))
            reached[key] = offset, False
            if offset <= before:
                after = "beginning at" if is_start else "reading"
                yield Anomaly(
                    Kind.POLL_BACK,
                    f"{poll.consumer} read {value} at {_at((*place, offset))} after {after} {before + is_start}",
                )
                continue
            visible = facts.visible[poll.committed_only].get(place, [])
            skipped = visible[bisect_right(visible, before) : bisect_left(visible, offset)]
            if skipped:
                yield Anomaly(
                    Kind.POLL_SKIP,
                    f"{poll.consumer} went on from {before + 1} to {offset} in {topic}/{partition}, "
                    f"past {len(skipped)} records from {skipped[0]} on",
                )


def _group_skips(facts: Facts) -> Iterator[Anomaly]:
    """What lies before a group's offset was given to one of its members."""
    given: dict[str, set[Source]] = defaultdict(set)
    for poll in facts.polls:
        if poll.group is not None:
            given[poll.group].update((topic, partition, offset) for topic, partition, offset, _ in poll.records)
    for committed in facts.group_offsets:
        if not committed.final or committed.group not in given:
            continue
        for offset in facts.visible[True].get(committed.place, []):
            here = (*committed.place, offset)
            if offset < committed.offset and here not in given[committed.group]:
                yield Anomaly(
                    Kind.POLL_SKIP,
                    f"{_at(here)} was given to no member of {committed.group}, at {committed.offset} now",
                )


def _at(place: Source) -> str:
    topic, partition, offset = place
    return f"{topic}/{partition}@{offset}"


def _name(send: Send) -> str:
    return f"{send.value} of {send.producer} to {send.topic}/{send.partition}"
