"""`headrace verify`: recompute everything from the source topics and compare it with what was published.

Four things, whatever died in between: every feature from the events; every outcome from the events; every model
version from the outcomes before its offset; every prediction from its features and the version it names.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec
import typer

from headrace import plan, program
from headrace.app import App
from headrace.errors import VerifyError
from headrace.models import versions
from headrace.models.learner import Learner
from headrace.models.maturity import Mature
from headrace.models.model import Model
from headrace.serving.scorer import score
from headrace.streams.batch import Record
from headrace.streams.inputs import Input, Source
from headrace.streams.kafka import KafkaLog
from headrace.streams.log import Fetched, Log, Partition
from headrace.streams.outcomes import OutcomeCodec, Prediction
from headrace.streams.store import MemoryStore
from headrace.streams.task import Task

FETCH_ROWS = 2_000
MAX_SHOWN = 5
"""Differences told of one comparison; the count says how many there are."""

KEPT_VERSIONS = 3
"""Loaded versions held at once: predictions name them nearly in order."""


@dataclass(slots=True)
class Comparison:
    """What one comparison found."""

    what: str
    compared: int = 0
    different: int = 0
    examples: list[str] = field(default_factory=list)

    def differ(self, example: str) -> None:
        self.different += 1
        if len(self.examples) < MAX_SHOWN:
            self.examples.append(example)


async def records(log: Log, partition: Partition) -> AsyncIterator[Fetched]:
    """Everything committed in a partition, from its beginning to its present end."""
    end = (await log.ends([partition]))[partition]
    reader = await log.reader({partition: 0})
    position = 0
    try:
        while position < end:
            for fetched in await reader.fetch([partition], FETCH_ROWS, 1.0):
                position = fetched.next_offset
                yield fetched
    finally:
        await reader.close()


async def verify(app: App, log: Log, progress: Callable[[str], None] = lambda _: None) -> list[Comparison]:
    """Recompute and compare everything of an application. Reads the log, changes nothing."""
    found = []
    for stage in plan.stages(app):
        if not stage.name.startswith("learn."):
            for number in range(stage.partitions):
                progress(f"recomputing {stage.name}, partition {number}")
                found += await _events(app, log, stage, number)
    for model in app.models:
        if model.outcome is not None:
            progress(f"learning {model.name} again")
            compared, known = await _versions(log, model)
            progress(f"scoring {model.name} again")
            found += [compared, await _predictions(app, log, model, known)]
    return found


async def _events(app: App, log: Log, stage: plan.Stage, number: int) -> list[Comparison]:
    """Run the stage's own operators over the source topics, and compare features, rejected, late and outcomes."""
    task, _ = stage.build(number, MemoryStore())
    task.resume()
    streams = {i.partition: records(log, i.partition) for i in task.inputs}
    compared = [t for t in stage.outputs if t.partition(".")[0] not in ("predictions", "drift")]
    actual = {t: _Following(log, Partition(t, 0 if t.startswith("outcomes.") else number)) for t in compared}
    checks = {t: Comparison(t) for t in compared}
    ended: set[int] = set()
    while len(ended) < len(task.inputs) or task.merge.available(frozenset(ended)):
        for n, source in enumerate(task.inputs):
            if n not in ended and not source.buffered:
                fetched = await anext(streams[source.partition], None)
                if fetched is None:
                    ended.add(n)
                else:
                    task.feed(fetched)
        work = task.work(FETCH_ROWS, frozenset(ended))
        for record in work.records if work else ():
            if record.topic in checks:
                await _compare(checks[record.topic], record, actual[record.topic])
    for topic, following in actual.items():
        async for extra in following.rest():
            checks[topic].compared += 1
            checks[topic].differ(f"published, and not recomputed: {_short(extra)}")
    return list(checks.values())


async def _compare(check: Comparison, record: Record, actual: _Following) -> None:
    check.compared += 1
    published = await actual.next()
    expected = _lasting(record.topic, record.value)
    if published is _END:
        check.differ(f"recomputed, and never published: {_short(record.value)}")
    elif _lasting(record.topic, published) != expected:
        check.differ(f"published {_short(published)}, recomputed {_short(record.value)}")


def _lasting(topic: str, value: bytes | None) -> Any:
    """The part of a record that is a function of the events: of an outcome, not what the model of the day said."""
    if value is None or not topic.startswith("outcomes."):
        return value
    outcome = msgspec.json.decode(value)
    return {k: v for k, v in outcome.items() if k not in ("score", "version", "baselines")}


_END: Any = object()


class _Following:
    """The values of one partition, one after the other."""

    def __init__(self, log: Log, partition: Partition) -> None:
        self._batches = records(log, partition)
        self._values: Iterator[bytes | None] = iter(())

    async def next(self) -> Any:
        """The next value, or `_END`."""
        while True:
            value = next(self._values, _END)
            if value is not _END:
                return value
            fetched = await anext(self._batches, None)
            if fetched is None:
                return _END
            self._values = iter(fetched.values)

    async def rest(self) -> AsyncIterator[bytes | None]:
        while (value := await self.next()) is not _END:
            yield value


async def _versions(log: Log, model: Model) -> tuple[Comparison, dict[str, versions.Version]]:
    """Learn the outcomes again from the first one; every version on the registry must come out the same."""
    check = Comparison(f"versions of {model.name}")
    topic = f"outcomes.{model.name}"
    learner = Learner(model)
    source = Input(Source(topic, OutcomeCodec()), Partition(topic, 0))
    task = Task(f"learn.{model.name}", 0, [source], [Mature(model.name), learner], MemoryStore(), Partition("", 0))
    task.resume()
    made: dict[str, versions.Version] = {}
    async for fetched in records(log, source.partition):
        task.feed(fetched)
        work = task.work(len(fetched), frozenset())
        for record in work.records if work else ():
            version = versions.decode(record.value or b"")
            made[version.version] = version
    async for fetched in records(log, Partition(versions.REGISTRY, 0)):
        for key, value in zip(fetched.keys, fetched.values, strict=True):
            if key == model.name.encode() and value is not None:
                _same_version(check, versions.decode(value), made)
    return check, made


def _same_version(check: Comparison, published: versions.Version, made: dict[str, versions.Version]) -> None:
    check.compared += 1
    again = made.get(published.version)
    if again is None:
        check.differ(f"{published.version} is on the registry, and learning again makes no such version")
    elif (again.fingerprint, again.learnt, again.rate) != (published.fingerprint, published.learnt, published.rate):
        check.differ(f"{published.version} is {published.fingerprint}, learnt again {again.fingerprint}")


async def _predictions(app: App, log: Log, model: Model, known: dict[str, versions.Version]) -> Comparison:
    """Score each prediction's features again by the version it names; each event must have exactly one."""
    check = Comparison(f"predictions.{model.name}")
    assert model.outcome is not None
    prior = model.outcome.prior
    loaded: dict[str, versions.Loaded] = {f"{model.name}@0": versions.Loaded(f"{model.name}@0", prior, None)}
    for number in range(app.partitions):
        seen: set[str] = set()
        async for fetched in records(log, Partition(f"predictions.{model.name}", number)):
            for value in fetched.values:
                made = msgspec.json.decode(value or b"", type=Prediction)
                check.compared += 1
                if made.id in seen:
                    check.differ(f"{made.id} is predicted twice")
                seen.add(made.id)
                version = _load(loaded, known, made.version)
                if version is None:
                    check.differ(f"{made.id} names {made.version}, which was never learnt")
                elif score(version, made.features, prior) != made.score or made.baselines["base"] != version.rate:
                    again = score(version, made.features, prior)
                    check.differ(f"{made.id} was scored {made.score}; {made.version} scores it {again}")
        await _each_predicted(check, log, model, number, seen)
    return check


async def _each_predicted(check: Comparison, log: Log, model: Model, number: int, seen: set[str]) -> None:
    """Every event of the topic is predicted, rejected or late."""
    topic = model.on.contract.topic
    refused = 0
    for kind in ("rejected", "late"):
        async for fetched in records(log, Partition(f"{topic}.{kind}", number)):
            refused += len(fetched)
    events = 0
    async for fetched in records(log, Partition(topic, number)):
        events += len(fetched)
    if events != len(seen) + refused:
        check.differ(f"{topic}: {events} events, but {len(seen)} predicted and {refused} rejected or late")


def _load(
    loaded: dict[str, versions.Loaded], known: dict[str, versions.Version], name: str
) -> versions.Loaded | None:
    if name not in loaded:
        if name not in known:
            return None
        while len(loaded) >= KEPT_VERSIONS:
            del loaded[next(iter(loaded))]
        loaded[name] = versions.load(known[name])
    return loaded[name]


def _short(value: bytes | None) -> str:
    text = "nothing" if value is None else value.decode("utf-8", "replace")
    return text if len(text) <= 240 else f"{text[:240]}..."


def tell(found: Sequence[Comparison], say: Callable[[str], None]) -> None:
    """Print each comparison. Raises VerifyError where anything differs."""
    for check in found:
        verdict = "equal" if not check.different else f"{check.different:,} DIFFER"
        say(f"{check.what:<32} {check.compared:>10,} compared   {verdict}")
        for example in check.examples:
            say(f"    {example}")
    different = sum(c.different for c in found)
    if different:
        raise VerifyError(f"{different:,} records differ from what their sources give")


def join(app: typer.Typer) -> None:
    @app.command(name="verify")
    def verify_command(
        program_file: Annotated[str, typer.Argument(metavar="PROGRAM", help="the Python file of the application")],
        broker: Annotated[str | None, typer.Option(help="kafka://host:port", metavar="ADDRESS")] = None,
    ) -> None:
        """Recompute features, outcomes, versions and predictions from their sources, and compare."""
        from headrace.running import find_broker

        loaded = program.load(program_file)
        address = find_broker(broker)

        async def main() -> list[Comparison]:
            log = KafkaLog(address.bootstrap, "headrace-verify")
            try:
                return await verify(loaded, log, lambda text: typer.echo(text, err=True))
            finally:
                await log.close()

        tell(asyncio.run(main()), typer.echo)
