"""`headrace reset`: an application begins anew from the events on the log.

What came of the events goes: derived topics, versions, state, positions. The events stay. It can be interrupted
anywhere and run again; until it has ended, no task of the program starts:

1. each task's changelog gets a mark that says so. It is written as the task's owner, which fences a worker that is
   still there;
2. the state in local folders goes;
3. derived topics are deleted, and made again, empty;
4. versions are taken back, and the positions of the consumer groups deleted;
5. every row of each changelog is deleted by a record without value; once all are, the marks too. So a worker elsewhere
   whose folder holds a copy of the old state learns of it as it would of any other change.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import msgspec
import typer

from headrace import program, running
from headrace.app import App
from headrace.errors import NoBroker, ResetError
from headrace.models.versions import REGISTRY
from headrace.running import BROKER
from headrace.stack import broker_alone
from headrace.state import rebuild
from headrace.streams import removal
from headrace.streams.address import Address, parse_address
from headrace.streams.admin import ensure_topics
from headrace.streams.batch import NEVER, Record
from headrace.streams.kafka import KafkaLog
from headrace.streams.log import Log, Partition
from headrace.streams.rocks import RocksStore
from headrace.streams.roster import read_crew
from headrace.streams.task import MARK, RESETTING, Mark
from headrace.streams.topics import Topic
from headrace.streams.traffic import Traffic
from headrace.streams.workers import GONE_AFTER

CHANGELOG = ".changelog"

ROWS = 5_000
"""Rows deleted in one transaction: far within a transaction's time on a slow log."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Doom:
    """What goes and what stays.

    derived:    topics that are deleted and made again
    changelogs: partitions of changelogs, those of processors that the program no longer has among them
    groups:     consumer groups, of the tasks and of the workers
    models:     whose versions go
    folders:    of local state
    sources:    topics that stay
    replicas:   of the topics that are made again
    """

    derived: tuple[str, ...]
    changelogs: tuple[Partition, ...]
    groups: tuple[str, ...]
    models: tuple[str, ...]
    folders: tuple[Path, ...]
    sources: tuple[str, ...]
    replicas: int

    @property
    def nothing(self) -> bool:
        return not (self.derived or self.changelogs or self.groups or self.folders)


def print_reset(program_file: str, broker: str | None, data: Path | None, yes: bool, say: Say) -> None:
    """Reset the application of a program, after a question; on a local stack that is down, or on a broker.

    Raises ResetError where a worker runs or nobody answers, and NoBroker where there is no log.
    """
    app = program.load(program_file)
    folder = (data or running.home() / app.name).absolute()
    stack = running.read(folder / "stack.json")
    if stack is not None:
        raise ResetError(f"{app.name} runs (process {stack.pid}, {stack.gateway}): stop it with Ctrl-C there first")

    async def main() -> None:
        if broker:
            await of(parse_address(broker))
            return
        if not (folder / "broker").is_dir():
            raise NoBroker(
                f"no local stack of {app.name} has run in {folder}, and no broker is named: give --broker (or "
                f"{BROKER}), or the folder of the stack with --data"
            )
        async with broker_alone(folder) as address:
            await of(address)

    async def of(address: Address) -> None:
        doom = await survey(app, address, folder)
        if doom.nothing:
            say(f"{app.name} has neither state nor derived topics on {address}: there is nothing to reset")
            return
        for line in await describe(app, address, doom):
            say(line)
        if not yes:
            ask(app.name)
        await reset(app, address, doom, say)
        say(f"{app.name} begins anew at its next start")

    asyncio.run(main())


def ask(name: str) -> None:
    """Raises ResetError where the answer is not yes, or nobody can be asked."""
    if not sys.stdin.isatty():
        raise ResetError("a reset asks before it destroys anything, and nobody can answer here: give --yes")
    if not typer.confirm(f"Destroy this and let {name} begin anew?", default=False, err=True):
        raise ResetError("nothing was changed")


async def survey(app: App, address: Address, folder: Path) -> Doom:
    """What a reset would do. Raises ResetError where a worker of the application runs, and LogUnavailable."""
    topics = app.topics()
    groups = {p.group for p in app.processors()} | {f"{app.name}.workers"}
    there = await removal.look(address, groups)
    # Processors that the program had once left their changelogs, and their groups are called after these.
    logs = [n for n in there.topics if n.startswith(f"{app.name}.") and n.endswith(CHANGELOG)]
    left = {name.removesuffix(CHANGELOG) for name in logs} - groups
    if left:
        there = await removal.look(address, groups | left)
    await check_idle(app, address, there)
    derived = [t.name for t in topics if _derived(t)]
    hurries = [n for n in there.topics if n.startswith(f"{app.name}.") and n.endswith(".hurries")]
    mine = [t.name for t in topics if t.name in there.topics]
    return Doom(
        derived=tuple(n for n in dict.fromkeys([*derived, *hurries]) if n in there.topics),
        changelogs=tuple(Partition(n, p) for n in logs for p in range(there.topics[n][0])),
        groups=tuple(there.groups),
        models=tuple(m.name for m in app.models if m.outcome is not None and REGISTRY in there.topics),
        folders=tuple(f for f in (folder / "state", folder / "workers") if f.is_dir()),
        sources=tuple(t.name for t in topics if t.kind == "event" and t.name in there.topics),
        replicas=max((there.topics[n][1] for n in mine), default=1),
    )


def _derived(topic: Topic) -> bool:
    return topic.kind not in ("event", "registry", "changelog")


async def check_idle(app: App, address: Address, there: removal.Listed) -> None:
    """Raises ResetError where a worker of the application runs, as it tells itself or as the log knows."""
    crew = await read_crew(address, app.name, ())
    if crew.alive:
        who = ", ".join(f"process {w.status.pid} on {w.status.host}" for w in crew.alive)
        raise ResetError(
            f"workers of {app.name} run ({who}): stop them first (one that was killed counts for {GONE_AFTER:.0f} s)"
        )
    busy = [name for name, members in there.groups.items() if members]
    if busy:
        raise ResetError(
            f"group {busy[0]} has members, so a worker of {app.name} runs somewhere: stop it first (one that was "
            f"killed counts for up to a minute)"
        )


async def describe(app: App, address: Address, doom: Doom) -> list[str]:
    """What goes and what stays, as lines to be read."""
    known = {t.name: t for t in app.topics()}
    listed = [known.get(n) or Topic(n, "changelog", 1) for n in (*doom.derived, *doom.sources)]
    traffic = Traffic(address, listed, ())
    await traffic.start()
    try:
        flow = await traffic.flow()
    finally:
        await traffic.close()
    # Markers of transactions are counted with what is written in them.
    held = {t.name: f"{t.name} ({'' if t.exact else 'at most '}{t.records:,} records)" for t in flow.topics}
    lines = [f"headrace reset lets {app.name} begin anew, on {address}", "", "these go:"]
    lines += [f"  topic      {held[name]}, made again empty" for name in doom.derived]
    lines += [f"  versions   of model {name}, on {REGISTRY}" for name in doom.models]
    logs = list(dict.fromkeys(p.topic for p in doom.changelogs))
    for name in logs:
        count = sum(p.topic == name for p in doom.changelogs)
        lines.append(f"  state      {name}, {count} partition{'' if count == 1 else 's'}")
    lines += [f"  state      {folder}" for folder in doom.folders]
    lines += [f"  positions  of group {name}" for name in doom.groups]
    lines += ["", "these stay, and everything is computed from them again:"]
    lines += [f"  events     {held[name]}" for name in doom.sources] or ["  no events"]
    return [*lines, ""]


async def reset(app: App, address: Address, doom: Doom, say: Say = lambda _: None) -> None:
    """Do it. It can be cut off anywhere and run again. Raises ResetError, StreamsError and LogUnavailable."""
    log = KafkaLog(address, "headrace-reset")
    try:
        await begin(log, doom.changelogs)
        await check_idle(app, address, await removal.look(address, doom.groups))
        for folder in doom.folders:
            say(f"deleting {folder}")
            shutil.rmtree(folder, ignore_errors=True)
            if folder.exists():
                raise ResetError(f"{folder} cannot be deleted: delete it yourself, then run the reset again")
        if doom.derived:
            say("deleting derived topics, and making them again")
        await removal.delete_topics(address, doom.derived)
        await ensure_topics(address, app.topics(), replication=doom.replicas)
        say("deleting versions, positions and state")
        await retire(log, app.name, doom.models)
        await removal.delete_groups(address, doom.groups)
        for changelog in doom.changelogs:
            await empty(log, changelog)
        await finish(log, doom.changelogs)
    finally:
        await log.close()


def _owner(changelog: Partition) -> str:
    """The name under which its task writes."""
    return f"{changelog.topic.removesuffix(CHANGELOG)}-{changelog.number}"


async def begin(log: Log, changelogs: Sequence[Partition]) -> None:
    """Step 1: mark every task, so that none starts before the end, and fence whoever still runs one."""
    unfinished = msgspec.json.encode(Mark([], [], NEVER, RESETTING))
    for changelog in changelogs:
        writer = await log.writer(_owner(changelog))
        try:
            await writer.begin()
            await writer.send([Record(changelog.topic, MARK, unfinished, changelog.number)], changelog.number)
            await writer.commit()
        finally:
            await writer.close()


async def retire(log: Log, app: str, models: Sequence[str]) -> None:
    """Step 4: take back every version of these models."""
    if not models:
        return
    writer = await log.writer(f"{app}.reset-0")
    try:
        await writer.begin()
        await writer.send([Record(REGISTRY, name.encode(), None, 0) for name in models], 0)
        await writer.commit()
    finally:
        await writer.close()


async def empty(log: Log, changelog: Partition) -> None:
    """Step 5: delete every row of a changelog but the mark."""
    with tempfile.TemporaryDirectory() as folder:
        store = RocksStore(Path(folder) / "rows")  # on disk, as state may be larger than memory
        try:
            await rebuild(log, changelog, store)
            await _delete(log, changelog, (key for key, _ in store.rows(b"") if key != MARK))
        finally:
            store.close()


async def finish(log: Log, changelogs: Sequence[Partition]) -> None:
    """Step 5, its end: from here on a task may start."""
    for changelog in changelogs:
        await _delete(log, changelog, iter([MARK]))


async def _delete(log: Log, changelog: Partition, keys: Iterator[bytes]) -> None:
    topic, number = changelog
    some = list(islice(keys, ROWS))
    if not some:
        return
    writer = await log.writer(_owner(changelog))
    try:
        while some:
            await writer.begin()
            await writer.send([Record(topic, key, None, number) for key in some], number)
            await writer.commit()
            some = list(islice(keys, ROWS))
    finally:
        await writer.close()
