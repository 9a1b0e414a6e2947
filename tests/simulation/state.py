"""A task's state three ways: as its live owner holds it, as the changelog tells it, and made again from the source."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from headrace.models import artifacts, versions
from headrace.models.learner import Learner
from headrace.streams.batch import Record, one_by_one, record_by_record
from headrace.streams.log import Fetched, Partition
from headrace.streams.runner import Follow
from headrace.streams.store import MemoryStore
from headrace.streams.task import Mark, Task

from headrace.plan import Stage
from tests.simulation.fleet import Fleet, Place
from tests.simulation.log import EPOCH_MS, SimulatedLog

ALL = 1_000_000
"""Rows: no limit."""

_OWN = (b"\x00mark", b"\x00position")
"""Rows of the task's own: how far it is, which a rebuild from the source counts otherwise."""


@dataclass(slots=True)
class Rebuilt:
    """A task made again, its committed rows, and what it published on the way."""

    task: Task
    follows: list[Follow]
    store: MemoryStore
    records: list[Record]


def fetched(log: SimulatedLog, partition: Partition, begin: int = 0, end: int | None = None) -> Fetched:
    """What is committed in a partition, from an offset to another or to the end."""
    end = len(log.entries(partition)) if end is None else end
    found = [(offset, entry) for offset, entry in log.committed_entries(*partition) if begin <= offset < end]
    return Fetched(
        partition,
        np.array([offset for offset, _ in found], np.int64),
        np.array([entry.timestamp for _, entry in found], np.int64),
        [entry.record.key for _, entry in found],
        [entry.record.value for _, entry in found],
        end,
        end,
    )


def rows(store: MemoryStore) -> dict[bytes, bytes]:
    return {key: value for key, value in store.rows(b"") if key not in _OWN}


def from_changelog(log: SimulatedLog, stage: Stage, number: int) -> Rebuilt:
    store = MemoryStore()
    task, follows = stage.build(number, store)
    task.replay(fetched(log, Partition(stage.changelog, number)))
    task.resume()
    return Rebuilt(task, follows, store, [])


def from_source(fleet: Fleet, stage: Stage, number: int) -> Rebuilt:
    """One run over the whole source, no crash in it; where the stage scores, with the versions that scored."""
    log, store = fleet.log, MemoryStore()
    task, follows = stage.build(number, store)
    task.resume()
    made: list[Record] = []
    idle = frozenset(range(len(task.inputs)))
    scored = _Scored(log, stage, number, follows)
    for ends in [*fleet.silences, {}]:
        for source in task.inputs:
            task.feed(fetched(log, source.partition, source.position, ends.get(source.partition)))
        while (work := task.work(scored.turn(made), idle)) is not None:
            made += record_by_record(work.records)
            task.keep(work, 0)
    return Rebuilt(task, follows, store, made)


class _Scored:
    """The versions that scored a partition's events, shown to the scorer again when their turn comes."""

    def __init__(self, log: SimulatedLog, stage: Stage, number: int, follows: list[Follow]) -> None:
        self._follows = follows
        self._topic = next((t for t in stage.outputs if t.startswith("predictions.")), "")
        told = log.committed_records(self._topic, number) if self._topic else []
        self._names = [str(msgspec.json.decode(r.value or b"")["version"]) for r in told]
        registry = log.committed_records(versions.REGISTRY)
        self._records = {versions.decode(r.value or b"").version: r for r in registry}

    def turn(self, made: list[Record]) -> int:
        """How many rows may be taken now, after the version of the next prediction has been shown."""
        at = sum(1 for r in made if r.topic == self._topic) if self._topic else 0
        if at >= len(self._names):
            return ALL
        record = self._records.get(self._names[at])
        if record is not None:
            for follow in self._follows:
                zero = np.zeros(1, np.int64)
                follow.take(Fetched(follow.partition, zero, zero, [record.key], [record.value], 1, 1))
        return next((n for n, name in enumerate(self._names[at:]) if name != self._names[at]), ALL)


def other_bytes(log: SimulatedLog, topics: Iterable[str], number: int, source: Rebuilt) -> list[str]:
    """The topics that do not hold what the run without faults published, byte for byte."""
    found = []
    for topic in topics:
        got = [(r.key, r.value, r.headers) for r in log.committed_records(topic, number)]
        wanted = [(r.key, r.value, r.headers) for r in source.records if r.topic == topic]
        found += [f"{topic}: a run without faults gives other bytes"] if got != wanted else []
    return found


def unequal(fleet: Fleet, place: Place, source: Rebuilt, probe: Mapping[str, Sequence[Record]]) -> list[str]:
    """What differs between the three. probe: per input, further records that make the tasks tell their state."""
    log, live = fleet.log, fleet.ended[place]
    changelog = from_changelog(log, fleet.stage(place), place[1])
    found = _other_offsets(fleet, place, changelog.store)
    disk = _told(rows(fleet.kept[place]))
    kept = _told(rows(changelog.store))
    found += _differences("the live owner's store", disk, kept)
    found += _differences("the source", _cut(_told(rows(source.store))), _cut(kept))
    answers = [
        _answer(log, task, follows, probe)
        for task, follows in (
            (live.task, live.follows),
            (changelog.task, changelog.follows),
            (source.task, source.follows),
        )
    ]
    for what, answer in (("the live task", answers[0]), ("the task from the source", answers[2])):
        for part, theirs, mine in zip(("records", "changes"), answer, answers[1], strict=True):
            found += _differences(f"{what}, asked for {part},", _cut(theirs), _cut(mine))
    mine = _learnt(changelog.task)
    for what, task in (("the live task", live.task), ("the task from the source", source.task)):
        found += _differences(what, _learnt(task), mine)
    return found


def _other_offsets(fleet: Fleet, place: Place, store: MemoryStore) -> list[str]:
    """Where the group's committed offsets are not those that the state reflects."""
    stage = fleet.stage(place)
    mark = store.get(b"\x00mark")
    reflected = msgspec.json.decode(mark, type=Mark).offsets if mark else [0] * len(stage.inputs)
    group = fleet.log.groups.get(stage.group, {})
    committed = [group.get(Partition(topic, place[1]), 0) for topic in stage.inputs]
    return [f"{place} committed {committed}, and its state is of {reflected}"] if committed != reflected else []


def _cut(told: Mapping[bytes, object]) -> dict[bytes, object]:
    """Without the learner's rows: when it takes a snapshot depends on where commits cut, not what it learns."""
    return {key: value for key, value in told.items() if not key.startswith(b"learner.")}


def _learnt(task: Task) -> dict[bytes, object]:
    """What the learners of a task have learnt."""
    learners = [o for o in task.operators if isinstance(o, Learner)]
    return {o.name.encode(): (artifacts.fingerprint(o.estimator), o.tally) for o in learners}


def _answer(
    log: SimulatedLog, task: Task, follows: Sequence[Follow], probe: Mapping[str, Sequence[Record]]
) -> tuple[dict[bytes, object], dict[bytes, object]]:
    """(records, changes) of a task that takes the probe."""
    for follow in follows:
        follow.take(fetched(log, follow.partition))
    for source in task.inputs:
        further = probe.get(source.partition.topic, ())
        begin = len(log.entries(source.partition))
        task.feed(
            Fetched(
                source.partition,
                np.arange(begin, begin + len(further)),
                np.full(len(further), EPOCH_MS, np.int64),
                [r.key for r in further],
                [r.value for r in further],
                begin + len(further),
                begin + len(further),
            )
        )
    records: list[Record] = []
    changes: dict[bytes, bytes | None] = {}
    # What one input brings is held back by the others' last rows until these are taken.
    while (work := task.work(ALL, frozenset(range(len(task.inputs))))) is not None:
        records += record_by_record(work.records)
        changes.update(one_by_one(work.changes))
    # Hurries tell of offsets, and one who was there has passed over more aborted records than one who was told.
    told = [r for r in records if not r.topic.endswith(".hurries")]
    said = {b"%d %s" % (i, r.topic.encode()): _value(r.value) for i, r in enumerate(told)}
    return said, _told(changes)


def _told(rows: Mapping[bytes, bytes | None]) -> dict[bytes, object]:
    return {key: _value(value) for key, value in rows.items()}


def _value(value: bytes | None) -> object:
    """A value to be compared: pickles of one state differ in what they share, so they stand as fingerprints."""
    if value is not None and value.startswith(b"\x80\x05"):
        return artifacts.fingerprint(artifacts.load(value))
    if value is not None and value.startswith(b'{"model"') and b'"artifact"' in value:
        return msgspec.structs.replace(versions.decode(value), artifact="")
    return value


def _differences(what: str, theirs: Mapping[bytes, object], mine: Mapping[bytes, object]) -> list[str]:
    keys = [k for k in {**theirs, **mine} if theirs.get(k, "-") != mine.get(k, "-")]
    return [f"{what} has {key!r}: {theirs.get(key, '-')!r}, the changelog {mine.get(key, '-')!r}" for key in keys[:5]]

