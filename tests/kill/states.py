"""The state of every task three ways, compared byte by byte: as workers left it on disk, as the changelog tells it, and
made again from the source topics in this process.

What a rebuild from the source may have otherwise, and why:
- the offset of a topic that is written in transactions: their markers may or may not have been passed yet;
- the latency of a prediction that waits for its outcome: it tells the time of the day;
- when a learner took its snapshot, which depends on where commits cut: what it has learnt is compared instead;
- the bytes of pickles, which share equal parts or not: their fingerprints are compared instead.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from headrace.models import artifacts, versions
from headrace.models.learner import Learner
from headrace.streams.batch import Record, record_by_record
from headrace.streams.log import Fetched, Log, Partition
from headrace.streams.rocks import RocksStore
from headrace.streams.runner import Follow
from headrace.streams.store import MemoryStore, Store
from headrace.streams.task import Task

from headrace.app import App
from headrace.plan import Stage, stages
from headrace.state import records

ALL = 1_000_000
"""Rows: no limit."""
MOST_TOLD = 3
_MARK, _POSITION = b"\x00mark", b"\x00position"
_LOST = "(nothing)"

Rows = dict[bytes, bytes]


async def differences(app: App, log: Log, data: Path) -> list[str]:
    """Every difference between the three, for an application whose workers have ended. data: their folder."""
    found: list[str] = []
    laid = stages(app)
    made: dict[str, Record] = {}
    # Learning first: a scorer is shown the versions that are learnt again.
    for stage in sorted(laid, key=lambda s: not s.name.startswith("learn.")):
        for number in range(stage.partitions):
            name = f"{stage.name}-{number}"
            told = MemoryStore()
            await _replay(log, stage, number, told)
            if not all_rows(told):
                continue  # it never had an event
            kept = all_rows(told)
            found += await _on_disk(log, stage, number, data, kept)
            source = await _from_source(log, stage, number, made)
            wrong = _unequal(_shown(source.rows, stage), _shown(kept, stage))
            found += [f"{name}: the source {text}" for text in wrong]
            # Rows that are wrong may be such that no task can begin with them.
            learnt_again = _learnt(source.task)
            learnt = learnt_again if wrong else _learnt(_resumed(stage, number, told))
            if learnt != learnt_again:
                found.append(f"{name}: the source has learnt {learnt_again}, the changelog {learnt}")
            found += await _alarms(log, stage, number, source.records)
            made |= {versions.decode(r.value or b"").version: r for r in source.records if r.topic == versions.REGISTRY}
    return found


def all_rows(store: Store) -> Rows:
    """Every row but where the store stands in the changelog: that passes over a commit's marker or not."""
    return {key: value for key, value in store.rows(b"") if key != _POSITION}


async def _replay(log: Log, stage: Stage, number: int, store: MemoryStore, position: int = 0) -> None:
    """Bring a store forward by the changelog from an offset on."""
    task, _ = stage.build(number, store)
    async for fetched in records(log, Partition(stage.changelog, number)):
        first = int(fetched.offset.searchsorted(position))
        rows = slice(first, None)
        task.replay(
            Fetched(
                fetched.partition, fetched.offset[rows], fetched.timestamp[rows], fetched.keys[rows],
                fetched.values[rows], fetched.next_offset, fetched.end,
            )
        )  # fmt: skip


async def _on_disk(log: Log, stage: Stage, number: int, data: Path, kept: Rows) -> list[str]:
    """The newest copy holds what the changelog tells; every older one does once it is brought forward."""
    copies = []
    for folder in _folders(data, stage, number):
        disk = RocksStore(folder)
        copy = MemoryStore()
        copy.write(list(disk.rows(b"")))
        copies.append((int((disk.get(_POSITION) or b"0").split()[0]), str(folder.relative_to(data)), copy))
        disk.close()
    if not copies:
        return [f"{stage.name}-{number} left no state on disk"]
    copies.sort(key=lambda one: one[0])
    found = [f"{copies[-1][1]} {text}" for text in _unequal(all_rows(copies[-1][2]), kept)]
    for position, name, copy in copies[:-1]:
        await _replay(log, stage, number, copy, position)
        found += [f"{name}, brought forward from {position}, {text}" for text in _unequal(all_rows(copy), kept)]
    return found


def _folders(data: Path, stage: Stage, number: int) -> list[Path]:
    return sorted(data.glob(f"**/state/{stage.changelog}-{number}"))


def _resumed(stage: Stage, number: int, store: MemoryStore) -> Task:
    task, _ = stage.build(number, store)
    task.resume()
    return task


@dataclass(slots=True)
class _Rebuilt:
    task: Task
    rows: Rows
    records: list[Record]


async def _from_source(log: Log, stage: Stage, number: int, made: Mapping[str, Record]) -> _Rebuilt:
    """One run over the whole source, no crash in it; where the stage scores, with the versions that scored."""
    store = MemoryStore()
    task, follows = stage.build(number, store)
    task.resume()
    scored = await _Scored.of(log, stage, number, follows, made)
    told: list[Record] = []
    ends = await log.ends([i.partition for i in task.inputs])
    waiting = {i.partition: [f async for f in records(log, i.partition, ends[i.partition])] for i in task.inputs}
    idle = frozenset(range(len(task.inputs)))
    for cut in [*await _cuts(log, task), [ends[i.partition] for i in task.inputs]]:
        for source, until in zip(task.inputs, cut, strict=True):
            for part in _until(waiting[source.partition], until):
                task.feed(part)
        while (work := task.work(scored.turn(told), idle)) is not None:
            told += record_by_record(work.records)
            task.keep(work, 0)
    return _Rebuilt(task, all_rows(store), told)


async def _cuts(log: Log, task: Task) -> list[list[int]]:
    """The offsets, per input, between which rows were taken in the order of their times."""
    if task.hurries is None:
        return []
    hurries = [json.loads(v or b"") async for f in records(log, task.hurries) for v in f.values]
    return [cut for hurry in hurries for cut in (hurry["before"], hurry["after"])]


def _until(waiting: list[Fetched], until: int) -> list[Fetched]:
    """What lies before an offset, taken off what waits."""
    found = []
    while waiting:
        first = waiting.pop(0)
        n = int(first.offset.searchsorted(until))
        head, rest = slice(0, n), slice(n, None)
        whole = n == len(first)
        if n or whole:
            end = first.next_offset if whole else until
            found.append(
                Fetched(first.partition, first.offset[head], first.timestamp[head], first.keys[head],
                        first.values[head], end, first.end)
            )  # fmt: skip
        if not whole:
            waiting.insert(0, Fetched(first.partition, first.offset[rest], first.timestamp[rest], first.keys[rest],
                                      first.values[rest], first.next_offset, first.end))  # fmt: skip
            break
    return found


class _Scored:
    """The versions that scored a partition's events, shown to the scorer again when their turn comes."""

    def __init__(self, topic: str, names: Sequence[str], follows: list[Follow], made: Mapping[str, Record]) -> None:
        self._topic, self._names, self._follows, self._made = topic, names, follows, made
        self._turns = [n for n in range(1, len(names)) if names[n] != names[n - 1]] + [len(names)]

    @classmethod
    async def of(
        cls, log: Log, stage: Stage, number: int, follows: list[Follow], made: Mapping[str, Record]
    ) -> _Scored:
        topic = next((t for t in stage.outputs if t.startswith("predictions.")), "")
        values = [v async for f in records(log, Partition(topic, number)) for v in f.values] if topic else []
        return cls(topic, [str(json.loads(v or b"")["version"]) for v in values], follows, made)

    def turn(self, told: Sequence[Record]) -> int:
        """How many rows may be taken now, after the version of the next prediction has been shown."""
        at = sum(1 for r in told if r.topic == self._topic) if self._topic else 0
        if at >= len(self._names):
            return ALL
        record = self._made.get(self._names[at])
        if record is not None:
            zero = np.zeros(1, np.int64)
            for follow in self._follows:
                follow.take(Fetched(follow.partition, zero, zero, [record.key], [record.value], 1, 1))
        return next(n for n in self._turns if n > at) - at


def _shown(rows: Rows, stage: Stage) -> dict[bytes, object]:
    """Rows as a rebuild from the source must have them too."""
    learning = stage.name.startswith("learn.")
    found: dict[bytes, object] = {}
    for key, value in rows.items():
        if key.startswith(b"learner."):
            continue
        if key == _MARK:
            mark = json.loads(value)
            found[key] = {k: v for k, v in mark.items() if k != "offsets" or not learning}
        elif key.startswith(b"settle."):
            found[key] = {k: v for k, v in json.loads(value).items() if k != "latency_ms"}
        elif value.startswith(b"\x80\x05"):
            found[key] = artifacts.fingerprint(artifacts.load(value))
        else:
            found[key] = value
    return found


def _learnt(task: Task) -> list[object]:
    return [(artifacts.fingerprint(o.estimator), o.tally) for o in task.operators if isinstance(o, Learner)]


async def _alarms(log: Log, stage: Stage, number: int, made: Sequence[Record]) -> list[str]:
    """Alarms of drift are a function of what was scored and learnt; several tasks write to one partition of them."""
    found = []
    for topic in (t for t in stage.outputs if t.startswith("drift.")):
        learning = stage.name.startswith("learn.")
        published = [v or b"" async for f in records(log, Partition(topic, 0)) for v in f.values]
        on_outcomes = [json.loads(v)["on"] in ("log_loss", "brier", "error", "outcome") for v in published]
        mine = [
            value
            for value, of_outcome in zip(published, on_outcomes, strict=True)
            if of_outcome == learning and (learning or json.loads(value)["event"].startswith(f"{stage.name}-{number}-"))
        ]
        wanted = [r.value or b"" for r in made if r.topic == topic]
        if mine != wanted:
            found.append(f"{topic} of {stage.name}-{number}: {len(mine)} alarms, the source gives {len(wanted)}")
    return found


def _unequal(theirs: Mapping[bytes, object], mine: Mapping[bytes, object]) -> list[str]:
    """Rows of one that the changelog tells otherwise."""
    keys = sorted(k for k in {**theirs, **mine} if theirs.get(k, _LOST) != mine.get(k, _LOST))
    told = [f"has {k!r}: {theirs.get(k, _LOST)!r}; the changelog {mine.get(k, _LOST)!r}" for k in keys[:MOST_TOLD]]
    return [*told, f"differs in {len(keys) - MOST_TOLD} more rows"] if len(keys) > MOST_TOLD else told
