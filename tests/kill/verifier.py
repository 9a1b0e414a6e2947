"""Checks every output of both jobs against what their input topics give: nothing lost, nothing twice, in order, equal.

It reads committed records only, and recomputes by `expected`, never by the engine.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

from headrace.streams.log import Log, Partition

from headrace.state import records
from tests.kill.expected import Hurry, Line, Told, customers, micros, window

PARTITIONS = 8
MOST_TOLD = 5
"""Differences of one kind and topic that are told one by one; all are counted."""

_TIMES = ("at", "start", "end", "known", "matures", "watermark")
_OF_THE_DAY = {"score", "version", "baselines", "route", "latency_ms"}
"""What a prediction owes to the version that scored it; `headrace verify` checks it."""


class Differences:
    """What was found wrong, by topic and kind, and how many records were compared."""

    def __init__(self) -> None:
        self.compared: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()
        self.told: list[str] = []

    def add(self, topic: str, kind: str, text: str) -> None:
        self.kinds[kind] += 1
        if self.kinds[kind] <= MOST_TOLD:
            self.told.append(f"{topic}: {kind}: {text}")

    def __bool__(self) -> bool:
        return bool(self.kinds)

    def __str__(self) -> str:
        counts = ", ".join(f"{n:,} {topic}" for topic, n in sorted(self.compared.items()))
        wrong = ", ".join(f"{n:,} {kind}" for kind, n in self.kinds.items()) or "all equal"
        return "\n".join([f"compared {counts}: {wrong}", *self.told])


async def check_window(log: Log) -> Differences:
    found = Differences()
    for number in range(PARTITIONS):
        told = _by_topic(window(number, await _lines(log, "ticks", number)))
        for topic in ("ticks.rejected", "ticks.late", "features.SoFar", "features.PerMinute"):
            compare(found, f"{topic}-{number}", told[topic], await published(log, topic, number))
    return found


async def check_customers(log: Log) -> Differences:
    found = Differences()
    settled = await published(log, "outcomes.returns", 0)
    for number in range(PARTITIONS):
        orders, returns = [await _lines(log, topic, number) for topic in ("orders", "returns")]
        hurries = [Hurry(**json.loads(line.value)) for line in await _lines(log, "customers.orders.hurries", number)]
        check_hurries(found, number, hurries)
        told = _by_topic(customers(number, orders, returns, hurries))
        refused = [f"{topic}.{kind}" for topic in ("orders", "returns") for kind in ("rejected", "late")]
        for topic in (*refused, "features.Customer", "features.CustomerItem"):
            compare(found, f"{topic}-{number}", told[topic], await published(log, topic, number))
        made = await published(log, "predictions.returns", number)
        compare(found, f"predictions.returns-{number}", told["predictions.returns"], made)
        check_versions(found, number, made)
        mine = [one for one in settled if one.what[0].startswith(f"orders-{number}-")]
        compare(found, f"outcomes.returns-{number}", told["outcomes.returns"], mine)
    strange = [one.what[0] for one in settled if not one.what[0].startswith(tuple(_tasks()))]
    for what in strange:
        found.add("outcomes.returns", "of no input", what)
    return found


def _tasks() -> Iterable[str]:
    return (f"orders-{number}-" for number in range(PARTITIONS))


def check_hurries(found: Differences, number: int, hurries: Sequence[Hurry]) -> None:
    """A task's batches follow one another: what it says of them must too."""
    taken = [0, 0]
    for hurry in hurries:
        if any(b < t for b, t in zip(hurry.before, taken, strict=True)):
            found.add(f"hurries-{number}", "going back", f"{hurry} after {taken}")
        taken = hurry.after


def check_versions(found: Differences, number: int, made: Sequence[Told]) -> None:
    """A version is never older than the one before it: whoever takes a task over reads the registry to its end."""
    newest = -1
    for one in made:
        version = int(one.said["version"].rpartition("@")[2])
        if version < newest:
            found.add(f"predictions.returns-{number}", "older version", f"{one.what[0]} by {version} after {newest}")
        newest = max(newest, version)


def _by_topic(told: Iterable[Told]) -> defaultdict[str, list[Told]]:
    found: defaultdict[str, list[Told]] = defaultdict(list)
    for one in told:
        found[one.topic].append(one)
    return found


async def _lines(log: Log, topic: str, number: int) -> list[Line]:
    found = []
    async for fetched in records(log, Partition(topic, number)):
        for offset, key, value in zip(fetched.offset.tolist(), fetched.keys, fetched.values, strict=True):
            found.append(Line(offset, key, value or b""))
    return found


async def published(log: Log, topic: str, number: int) -> list[Told]:
    """What was published, as `expected` says it."""
    reading = _reading(topic)
    return [
        reading(topic, key, value or b"")
        async for fetched in records(log, Partition(topic, number))
        for key, value in zip(fetched.keys, fetched.values, strict=True)
    ]


def _reading(topic: str) -> Callable[[str, bytes | None, bytes], Told]:
    return _refused if topic.endswith((".rejected", ".late")) else _made


def _refused(topic: str, key: bytes | None, value: bytes) -> Told:
    # The reader of the log hands out no headers, where its origin stands; order and bytes tell it as well.
    return Told(topic, (), {"key": key, "value": value})


def _made(topic: str, key: bytes | None, value: bytes) -> Told:
    said = json.loads(value)
    for name in _TIMES:
        if said.get(name) is not None:
            said[name] = micros(said[name])
    what = (said.pop("id"),) if "id" in said else (said.pop("sensor"), said.pop("start"), said.pop("revision"))
    return Told(topic, what, {**said, "key": key})


def compare(found: Differences, where: str, wanted: Sequence[Told], got: Sequence[Told]) -> None:
    """Compare what was published in a partition, `got`, with what must be, in order."""
    found.compared[where.rpartition("-")[0] or where] += len(wanted)
    if _reading(where.rpartition("-")[0]) is _refused:
        _compare_bytes(found, where, wanted, got)
        return
    times = Counter(one.what for one in got)
    expected = {one.what: one.said for one in wanted}
    for what, count in times.items():
        if count > 1:
            found.add(where, "published twice", f"{what}, {count} times")
        if what not in expected:
            found.add(where, "of no input", str(what))
    for one in wanted:
        if one.what not in times:
            found.add(where, "lost", str(one.what))
    for one in got:
        said = {name: value for name, value in one.said.items() if name not in _OF_THE_DAY}
        if one.what in expected and said != expected[one.what]:
            found.add(where, "other values", f"{one.what}: {said}, not {expected[one.what]}")
    order = list(dict.fromkeys(one.what for one in got if one.what in expected))
    place = {what: n for n, what in enumerate(one.what for one in wanted)}
    for earlier, later in pairwise(order):
        if place[earlier] > place[later]:
            found.add(where, "out of order", f"{later} after {earlier}")


def _compare_bytes(found: Differences, where: str, wanted: Sequence[Told], got: Sequence[Told]) -> None:
    mine = [(one.said["key"], one.said["value"]) for one in got]
    theirs = [(one.said["key"], one.said["value"]) for one in wanted]
    if mine != theirs:
        extra, missing = Counter(mine) - Counter(theirs), Counter(theirs) - Counter(mine)
        for kind, some in (("lost", missing), ("published twice or of no input", extra)):
            for one, count in some.items():
                found.add(where, kind, f"{one}, {count} times")
        if not extra and not missing:
            found.add(where, "out of order", f"{len(mine)} records")
