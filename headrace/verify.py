"""`headrace verify`: recompute everything from the source topics and compare it with what was published.

Four things, whatever died in between: every feature from the events; every outcome from the events; every model
version from the outcomes before its offset; every prediction from its features and the version it names. It
compares what had been taken when it began, so events may go on meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from headrace import plan, program
from headrace.app import App
from headrace.errors import VerifyError
from headrace.models import artifacts, versions
from headrace.models.errors import ArtifactError
from headrace.models.model import Model
from headrace.serving.scorer import score
from headrace.stack import reach
from headrace.state import newest_mark, part, records
from headrace.streams.batch import Record, record_by_record
from headrace.streams.codecs import NO_JSON
from headrace.streams.kafka import KafkaLog
from headrace.streams.log import Fetched, Log, Partition
from headrace.streams.runner import SETTLE_ROWS
from headrace.streams.store import MemoryStore
from headrace.streams.task import Hurry, Task

FETCH_ROWS = 2_000
MAX_SHOWN = 3
"""Differences told of one kind; the count says how many there are."""

LOOK_AHEAD = 5_000
"""Published records among which an expected one is looked for, and remembered to tell what was published twice: more
than two transactions hold, so that one that is lost or doubled costs only its own records."""

KEPT_VERSIONS = 3
"""Loaded versions held at once: predictions name them nearly in order."""


@dataclass(slots=True)
class Comparison:
    """What one comparison found: how many records it compared, how many differ in which way, and examples of each.

    again: records published once more where the application promises at least once; no difference
    """

    what: str
    compared: int = 0
    again: int = 0
    ways: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    @property
    def different(self) -> int:
        return self.ways.total()

    def differ(self, way: str, example: str) -> None:
        self.ways[way] += 1
        if self.ways[way] <= MAX_SHOWN:
            self.examples.append(f"{way}: {example}")


@dataclass(slots=True, frozen=True)
class _Extent:
    """What of a task is compared: its inputs up to `taken`. What that gave was published from `sure` on at the latest,
    and before `last`: other tasks and later events may have written there too."""

    taken: Mapping[Partition, int]
    sure: Mapping[Partition, int]
    last: Mapping[Partition, int]


async def _extent(log: Log, group: str, inputs: Sequence[Partition], outputs: Sequence[Partition]) -> _Extent:
    # In this order: all before `sure` comes of what was taken, and all that comes of it lies before `last`.
    sure = await log.ends(outputs)
    committed = await log.committed(group, inputs)
    return _Extent({p: committed.get(p, 0) for p in inputs}, sure, await log.ends(outputs))


async def verify(app: App, log: Log, progress: Callable[[str], None] = lambda _: None) -> list[Comparison]:
    """Recompute and compare everything of an application. Reads the log, changes nothing.

    Raises VerifyError where what is there was made by another version of the program.
    """
    found = []
    # Upstream first: a version that a prediction names has been learnt by the time that learning is looked at.
    tasks = [(s, n) for s in plan.stages(app) for n in range(s.partitions)]
    await _check_program(log, tasks)
    extents = {}
    for stage, number in tasks:
        inputs = [Partition(t, 0 if stage.name.startswith("learn.") else number) for t in stage.inputs]
        outputs = [_where(t, number) for t in stage.outputs]
        extent = extents[stage.name, number] = await _extent(log, stage.group, inputs, outputs)
        for p, end in (await log.ends(inputs)).items():
            # A transaction's marker may be all that is left.
            if end - extent.taken[p] > 1:
                progress(f"{stage.name}: {end - extent.taken[p]:,} of {p.topic} are not yet taken, and left out")
    for stage, number in tasks:
        if not stage.name.startswith("learn."):
            progress(f"recomputing {stage.name}, partition {number}")
            found += await _events(log, stage, number, extents[stage.name, number])
    for model in app.models:
        if model.outcome is not None:
            with contextlib.closing(_Versions()) as made:
                stage = next(s for s in plan.stages(app) if s.name == f"learn.{model.name}")
                progress(f"learning {model.name} again")
                found += await _learning(log, stage, model, extents[stage.name, 0], made)
                progress(f"scoring {model.name} again")
                ends = {p: end for s, n in tasks for p, end in extents[s.name, n].last.items()}
                for topic in (f"predictions.{model.name}", f"outcomes.{model.name}"):
                    check = Comparison(f"scores on {topic}")
                    for partition in (p for p in ends if p.topic == topic):
                        await _scores(log, model, partition, ends[partition], made, check)
                    found.append(check)
    return found


async def _check_program(log: Log, tasks: Sequence[tuple[plan.Stage, int]]) -> None:
    """Raises VerifyError where the newest commit of a task was made by other declarations."""
    changed = []
    for stage, number in tasks:
        task, _ = stage.build(number, MemoryStore())
        mark = await newest_mark(log, task.changelog)
        if mark is not None and mark.program != task.program:
            changed.append(f"{stage.name} {number}" if stage.partitions > 1 else stage.name)
    if changed:
        raise VerifyError(
            f"the program was changed since {', '.join(changed)} ran: what was published comes of other declarations, "
            f"and would differ. Verify it with the program as it was, or begin anew with `headrace reset PROGRAM`"
        )


def _where(topic: str, number: int) -> Partition:
    """Where a task writes records of a topic."""
    kind = topic.partition(".")[0]
    return Partition(topic, 0 if kind in ("outcomes", "metrics", "drift", versions.REGISTRY) else number)


async def _recomputed(log: Log, task: Task, extent: _Extent) -> AsyncIterator[Record]:
    """Run a task's own operators over its inputs, in the order in which it took them: what comes of them."""
    task.resume()
    sources = {i.partition: _Source(log, i.partition, extent.taken[i.partition]) for i in task.inputs}
    async for until in _cuts(log, task, extent):
        ended: set[int] = set()
        while len(ended) < len(task.inputs) or task.merge.available(frozenset(ended)):
            for n, source in enumerate(task.inputs):
                if n not in ended and not source.buffered:
                    fetched = await sources[source.partition].next(until[n])
                    if fetched is None:
                        ended.add(n)
                    else:
                        task.feed(fetched)
            work = task.work(FETCH_ROWS, frozenset(ended))
            for record in record_by_record(work.records) if work else ():
                yield record


async def _cuts(log: Log, task: Task, extent: _Extent) -> AsyncIterator[list[int]]:
    """The offsets, per input, between which rows were taken in the order of their times; see `Hurry`."""
    taken = [extent.taken[i.partition] for i in task.inputs]
    if task.hurries is not None:
        async for fetched in records(log, task.hurries):
            for value in fetched.values:
                hurry = _hurry(value, task.hurries, len(taken))
                if all(offset <= end for offset, end in zip(hurry.after, taken, strict=True)):
                    yield hurry.before
                    yield hurry.after
    yield taken


def _hurry(value: bytes | None, partition: Partition, inputs: int) -> Hurry:
    try:
        hurry = msgspec.json.decode(value or b"", type=Hurry)
    except NO_JSON as error:
        raise VerifyError(f"{partition.topic} {partition.number} holds a record that no task wrote: {error}") from None
    if len(hurry.before) != inputs or len(hurry.after) != inputs:
        raise VerifyError(f"{partition.topic} {partition.number} holds a record that no task wrote: {value!r}")
    return hurry


class _Source:
    """A partition up to an offset, read piece by piece."""

    def __init__(self, log: Log, partition: Partition, end: int) -> None:
        self._batches = records(log, partition, end)
        self._rest: Fetched | None = None

    async def next(self, until: int) -> Fetched | None:
        """The next records before an offset; None where there are no more."""
        fetched = self._rest or await anext(self._batches, None)
        if fetched is None:
            return None
        if fetched.next_offset <= until:
            self._rest = None
            return fetched
        n = int(fetched.offset.searchsorted(until))
        self._rest = part(fetched, n, len(fetched), fetched.next_offset)
        return part(fetched, 0, n, until) if n else None


async def _events(log: Log, stage: plan.Stage, number: int, extent: _Extent) -> list[Comparison]:
    """Compare features, predictions, outcomes, rejected and late with what the events give."""
    task, _ = stage.build(number, MemoryStore())
    # What drift detectors say depends on the scores of the day.
    topics = [t for t in stage.outputs if not t.startswith("drift.")]
    mine = f"{stage.name}-{number}-"
    label = f" {number}" if number else ""
    compared = {
        t: _Published(log, t, _where(t, number), extent, mine, label, again=t in stage.ahead) for t in topics
    }
    async for record in _recomputed(log, task, extent):
        if record.topic in compared:
            await compared[record.topic].compare(record)
    events = 0
    async for fetched in records(log, Partition(stage.name, number), extent.taken[Partition(stage.name, number)]):
        events += len(fetched)
    said = (compared.get(f"{stage.name}.{kind}") for kind in ("rejected", "late"))
    refused = sum(published.expected for published in said if published is not None)
    for topic, published in compared.items():
        await published.rest()
        if topic.startswith("predictions.") and published.expected != events - refused:
            valid = events - refused
            count = published.expected
            published.check.differ("not counted", f"{valid:,} valid events, and {count:,} predictions of them")
    return [published.check for published in compared.values()]


async def _learning(log: Log, stage: plan.Stage, model: Model, extent: _Extent, made: _Versions) -> list[Comparison]:
    """Learn the outcomes again from the first one: every version and every metric must be the same."""
    task, _ = stage.build(0, MemoryStore())
    topic = f"metrics.{model.name}"
    metrics = _Published(log, topic, Partition(topic, 0), extent, again=topic in stage.ahead)
    newest = None
    async for record in _recomputed(log, task, extent):
        if record.topic == versions.REGISTRY:
            newest = made.keep(versions.decode(record.value or b""))
        elif record.topic == topic:
            await metrics.compare(record)
    await metrics.rest()
    check = Comparison(f"versions of {model.name}")
    registry = Partition(versions.REGISTRY, 0)
    seen: set[str] = set()
    begin = await _begin(log, registry, model.name, extent.last[registry])
    async for fetched in records(log, registry, extent.last[registry], begin):
        for offset, key, value in zip(fetched.offset.tolist(), fetched.keys, fetched.values, strict=True):
            if key == model.name.encode() and value is not None:
                published = versions.decode(value)
                if offset < extent.sure[registry] or published.version in made:
                    _same_version(check, published, made)
                if published.version in seen:
                    check.differ("published twice", published.version)
                seen.add(published.version)
    # Compaction leaves the newest version at least.
    if newest is not None and newest not in seen:
        check.differ("lost", f"{newest} was learnt, and is not on the registry")
    return [metrics.check, check]


async def _begin(log: Log, registry: Partition, model: str, end: int) -> int:
    """The offset from which versions of a model count: a reset takes back those before it by a record without value."""
    begin = 0
    async for fetched in records(log, registry, end):
        for offset, key, value in zip(fetched.offset.tolist(), fetched.keys, fetched.values, strict=True):
            if key == model.encode() and value is None:
                begin = offset + 1
    return begin


def _same_version(check: Comparison, published: versions.Version, made: _Versions) -> None:
    check.compared += 1
    again = made.get(published.version)
    if again is None:
        check.differ("published, and not recomputed", published.version)
        return
    for name in ("fingerprint", "offset", "at", "learnt", "positives", "rate"):
        was, now = getattr(published, name), getattr(again, name)
        if was != now:
            check.differ("changed", f"{published.version} has {name} {was}; learnt again it has {now}")
            return
    try:
        holds = artifacts.fingerprint(versions.load(published).estimator)
    except ArtifactError as error:
        check.differ("unreadable", f"{published.version}: {error}")
    else:
        if holds != published.fingerprint:
            check.differ("changed", f"{published.version} says it is {published.fingerprint}, and holds {holds}")


class _Scored(msgspec.Struct):
    """What a prediction and an outcome both tell of a score."""

    id: str
    score: float
    baselines: dict[str, float]
    version: str
    features: dict[str, float | str | None]


async def _scores(log: Log, model: Model, partition: Partition, end: int, made: _Versions, check: Comparison) -> None:
    """Score the features of each prediction, or outcome, again by the version it names."""
    assert model.outcome is not None
    prior = model.outcome.prior
    first = versions.Loaded(f"{model.name}@0", prior, None)
    loaded: dict[str, versions.Loaded] = {}
    async for fetched in records(log, partition, end):
        for offset, value in zip(fetched.offset.tolist(), fetched.values, strict=True):
            check.compared += 1
            try:
                said = msgspec.json.decode(value or b"", type=_Scored)
            except NO_JSON as error:
                check.differ("unreadable", f"offset {offset} of {partition.topic} {partition.number}: {error}")
                continue
            version = first if said.version == first.name else _load(loaded, made, said.version)
            if version is None:
                check.differ("no such version", f"{said.id} names {said.version}, which was never learnt")
                continue
            again = score(version, said.features, prior)
            if again != said.score:
                check.differ("scored otherwise", f"{said.id} was scored {said.score}; {said.version} gives {again}")
            elif said.baselines["base"] != version.rate:
                base = said.baselines["base"]
                check.differ("scored otherwise", f"{said.id} has base rate {base}; {said.version} has {version.rate}")


def _load(loaded: dict[str, versions.Loaded], made: _Versions, name: str) -> versions.Loaded | None:
    if name not in loaded:
        version = made.get(name)
        if version is None:
            return None
        while len(loaded) >= KEPT_VERSIONS:
            del loaded[next(iter(loaded))]
        loaded[name] = versions.load(version)
    return loaded[name]


class _Versions:
    """The versions that were learnt again, on disk: a long run has thousands."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115
        self._places: dict[str, tuple[int, int]] = {}

    def keep(self, version: versions.Version) -> str:
        """Returns its name."""
        self._places[version.version] = self._file.seek(0, 2), self._file.write(versions.encode(version))
        return version.version

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def get(self, name: str) -> versions.Version | None:
        if name not in self._places:
            return None
        start, length = self._places[name]
        self._file.seek(start)
        return versions.decode(self._file.read(length))

    def close(self) -> None:
        self._file.close()


@dataclass(slots=True)
class _Entry:
    """A published record: what it is about, what of it the events determine, and whether it is surely of this task."""

    about: Hashable
    lasting: object
    sure: bool
    value: bytes | None


class _Published:
    """What a task published on one topic, compared with what is expected, one after the other.

    mine:  how the ids of this task's records begin, where other tasks write to the same partition
    again: whether a record may come more than once, as the application promises at least once
    """

    def __init__(
        self,
        log: Log,
        topic: str,
        partition: Partition,
        extent: _Extent,
        mine: str = "",
        label: str = "",
        again: bool = False,
    ) -> None:
        self.check = Comparison(topic + label)
        self.expected = 0
        self._kind = topic.rpartition(".")[2] if topic.endswith((".rejected", ".late")) else topic.partition(".")[0]
        self._mine = mine if self._kind == "outcomes" else ""
        self._sure = extent.sure[partition]
        self._batches = records(log, partition, extent.last[partition])
        self._ahead: deque[_Entry] = deque()
        self._about: Counter[Hashable] = Counter()
        self._lately: dict[Hashable, None] = {}
        self._again = again
        self._remembered = LOOK_AHEAD + (SETTLE_ROWS if again else 0)

    async def compare(self, record: Record) -> None:
        """The next record expected."""
        self.check.compared += 1
        self.expected += 1
        about, lasting = self._read(record.key, record.value)
        await self._fill(1)
        while self._again and self._ahead and self._ahead[0].about != about and self._ahead[0].about in self._lately:
            self._extra(self._next())
            await self._fill(1)
        if not self._ahead or self._ahead[0].about != about:
            await self._fill(LOOK_AHEAD)
            if not self._about[about]:
                self.check.differ("lost", _short(record.value))
                return
            while self._ahead[0].about != about:
                self._extra(self._next())
        published = self._next()
        if published.lasting != lasting:
            self.check.differ("changed", f"published {_short(published.value)}, recomputed {_short(record.value)}")
        self._lately[about] = None
        if len(self._lately) > self._remembered:
            del self._lately[next(iter(self._lately))]

    async def rest(self) -> None:
        """After the last one expected: what is left comes of what was not taken yet, or of nothing."""
        while self._ahead or await self._fill(FETCH_ROWS):
            published = self._next()
            if published.sure or published.about in self._lately:
                self._extra(published)

    def _extra(self, published: _Entry) -> None:
        twice = published.about in self._lately
        if twice and self._again:
            self.check.again += 1
            return
        self.check.compared += 1
        self.check.differ("published twice" if twice else "published, and not recomputed", _short(published.value))

    def _next(self) -> _Entry:
        entry = self._ahead.popleft()
        self._about[entry.about] -= 1
        if not self._about[entry.about]:
            del self._about[entry.about]
        return entry

    async def _fill(self, count: int) -> bool:
        """Have as many records at hand, if there are; whether there are any."""
        while len(self._ahead) < count:
            fetched = await anext(self._batches, None)
            if fetched is None:
                break
            for offset, key, value in zip(fetched.offset.tolist(), fetched.keys, fetched.values, strict=True):
                about, lasting = self._read(key, value)
                if not self._mine or str(about).startswith(self._mine):
                    self._ahead.append(_Entry(about, lasting, offset < self._sure, value))
                    self._about[about] += 1
        return bool(self._ahead)

    def _read(self, key: bytes | None, value: bytes | None) -> tuple[Hashable, object]:
        """What a record is about, and the part of it that is a function of what was taken."""
        if value is None or self._kind not in _PASSING:
            return (key, value), None
        try:
            found = msgspec.json.decode(value, type=dict[str, Any])
        except NO_JSON:
            return (key, value), None
        about = str(found["id"]) if "id" in found else (key, str(found.get("start")), str(found.get("at")))
        passing = _PASSING[self._kind]
        lasting = {k: v for k, v in found.items() if k not in passing} if passing else value
        return about, (key, lasting)


_PASSING: dict[str, frozenset[str]] = {
    "features": frozenset(),
    "metrics": frozenset(),
    "predictions": frozenset({"score", "version", "route", "latency_ms", "baselines"}),
    "outcomes": frozenset({"score", "version", "baselines"}),
}
"""By kind of topic, the fields that depend on the version and the time of the day; other records are compared whole."""


def _short(value: bytes | None) -> str:
    text = "nothing" if value is None else value.decode("utf-8", "replace")
    return text if len(text) <= 240 else f"{text[:240]}..."


def tell(found: Sequence[Comparison], say: Callable[[str], None]) -> None:
    """Print each comparison. Raises VerifyError where anything differs."""
    for check in found:
        ways = ", ".join(f"{count:,} {way}" for way, count in check.ways.items())
        verdict = f"{check.different:,} DIFFER: {ways}" if check.different else "equal"
        again = f", {check.again:,} published again" if check.again else ""
        say(f"{check.what:<32} {check.compared:>10,} compared   {verdict}{again}")
        for example in check.examples:
            say(f"    {example}")
    different = sum(c.different for c in found)
    if different:
        raise VerifyError(f"{different:,} records differ from what their sources give")


def print_verified(program_file: str, broker: str | None, data: Path | None) -> None:
    """Verify the application of a program, on the log of a stack that runs, or on that of one that is down.

    Raises VerifyError where anything differs, and NoBroker where there is no log.
    """
    loaded = program.load(program_file)

    async def main() -> list[Comparison]:
        async with reach(loaded.name, broker, data) as address:
            log = KafkaLog(address, "headrace-verify")
            try:
                return await verify(loaded, log, lambda text: print(text, file=sys.stderr, flush=True))
            finally:
                await log.close()

    tell(asyncio.run(main()), print)
