"""Whoever checks the kill tests finds one fault of each kind, planted in what a sound run left, and names it.

The window job runs once on a simulated log, with its state on disk. The tests plant what an engine or a disk might do
wrong, one thing at a time; the checks are those of the kill tests.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from headrace.streams.batch import Record
from headrace.streams.log import Partition
from headrace.streams.publisher import partition_of
from headrace.streams.rocks import RocksStore
from headrace.streams.runner import Runner

from headrace.plan import stages
from tests.headrace.test_export import alone
from tests.kill import feed, states
from tests.kill.expected import Hurry, Told
from tests.kill.rig import window
from tests.kill.verifier import PARTITIONS, Differences, check_hurries, check_versions, check_window
from tests.simulation.log import Entry, SimulatedLog
from tests.simulation.world import World

TICKS = 3_000
NUMBER = 4
"""The partition in which everything is planted."""
CHANGELOG = "window.ticks.changelog"
OUTPUTS = ("features.SoFar", "features.PerMinute", "ticks.rejected", "ticks.late")

Entries = list[Entry]


@dataclass
class Ran:
    """The log and the disk of a run that nobody disturbed."""

    log: SimulatedLog
    data: Path

    def outputs(self) -> Differences:
        return alone(self.log, check_window(self.log))

    def states(self) -> list[str]:
        return alone(self.log, states.differences(window().app(), self.log, self.data))

    @contextlib.contextmanager
    def planted(self, topic: str, plant: Callable[[Entries], str]) -> Iterator[str]:
        """A fault among a topic's entries, until the end of the block; gives what it is called."""
        partition = Partition(topic, NUMBER)
        sound = self.log.partitions[partition]
        self.log.partitions[partition] = [copy(entry) for entry in sound]
        try:
            yield plant(self.log.partitions[partition])
        finally:
            self.log.partitions[partition] = sound

    @contextlib.contextmanager
    def damaged(self, key: bytes, value: bytes | None) -> Iterator[None]:
        """A row of the state on disk, written over until the end of the block."""
        [folder] = self.data.glob(f"**/state/*.changelog-{NUMBER}")
        disk = RocksStore(folder)
        sound = disk.get(key)
        disk.write([(key, value)])
        disk.close()
        try:
            yield
        finally:
            disk = RocksStore(folder)
            disk.write([(key, sound)])
            disk.close()

    def row(self) -> tuple[bytes, bytes]:
        """A row of the state, of some sensor."""
        [folder] = self.data.glob(f"**/state/*.changelog-{NUMBER}")
        disk = RocksStore(folder)
        found = next((key, value) for key, value in disk.rows(b"") if not key.startswith(b"\x00"))
        disk.close()
        return found


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    data = tmp_path_factory.mktemp("data")
    world = World(7)
    log = SimulatedLog(world)
    for n, (topic, row) in enumerate(itertools.islice(feed.ticks(1), TICKS)):
        at = int(1000 * (feed.BEGAN + n * feed.STEP))
        log.publish(Record(topic, row.key, row.value, partition_of(row.key or b"", PARTITIONS), at))
    [stage] = stages(window().app())
    tasks, runners = [], []
    for number in range(stage.partitions):
        store = RocksStore(data / "workers" / "0" / "state" / f"{stage.changelog}-{number}")
        task, follows = stage.build(number, store)
        tasks.append(task)
        runners.append(Runner(task, log, world, stage.group, follows))
        world.spawn(f"task {number}", runners[-1].run())

    async def end() -> None:
        while any(runner.progress.state != "running" or runner.lag for runner in runners):
            await world.sleep(1.0)
        for runner in runners:
            runner.stop()

    world.spawn("end", end())
    world.run()
    for task in tasks:
        task.close()
    return Ran(log, data)


def committed(entries: Entries) -> list[int]:
    return [n for n, entry in enumerate(entries) if entry.state == "committed"]


def middle(entries: Entries) -> int:
    """Where the fault is planted."""
    found = committed(entries)
    return found[len(found) // 2]


def name(entry: Entry) -> str:
    """What the verifier calls an output: what tells it from all others of its partition."""
    try:
        said = json.loads(entry.record.value or b"")
        if "id" in said:
            return str(said["id"])
        return f"('{said['sensor']}', "
    except (ValueError, KeyError, TypeError):
        return str(entry.record.value)


def lose(entries: Entries) -> str:
    entry = entries[middle(entries)]
    entry.state = "compacted"
    return name(entry)


def double(entries: Entries) -> str:
    entry = entries[middle(entries)]
    entries.append(copy(entry))
    return name(entry)


def falsify(entries: Entries) -> str:
    entry = entries[middle(entries)]
    said = json.loads(entry.record.value or b"")
    entry.record = replace(entry.record, value=json.dumps({**said, "amount": said["amount"] + 1}).encode())
    return name(entry)


def invent(entries: Entries) -> str:
    entry = copy(entries[middle(entries)])
    said = json.loads(entry.record.value or b"")
    other = {"id": f"ticks-{NUMBER}-999999"} if "id" in said else {"sensor": "nobody"}
    entry.record = replace(entry.record, value=json.dumps({**said, **other}).encode())
    entries.append(entry)
    return name(entry)


def swap(entries: Entries) -> str:
    at = middle(entries)
    after = next(n for n in committed(entries) if n > at)
    entries[at].record, entries[after].record = entries[after].record, entries[at].record
    return name(entries[after])


def test_a_sound_run_has_no_differences(ran: Ran) -> None:
    outputs = ran.outputs()
    assert not outputs, str(outputs)
    assert {topic: outputs.compared[topic] > 0 for topic in OUTPUTS} == dict.fromkeys(OUTPUTS, True)
    assert outputs.compared["features.SoFar"] > 0.9 * TICKS
    assert ran.states() == []


@pytest.mark.parametrize("topic", ["features.SoFar", "features.PerMinute"])
@pytest.mark.parametrize(
    ("plant", "kind"),
    [
        (lose, "lost"),
        (double, "published twice"),
        (falsify, "other values"),
        (invent, "of no input"),
        (swap, "out of order"),
    ],
)
def test_one_wrong_output_is_found_and_named(
    ran: Ran, topic: str, plant: Callable[[Entries], str], kind: str
) -> None:
    with ran.planted(topic, plant) as called:
        found = ran.outputs()
    assert found.kinds == {kind: 1}
    [text] = found.told
    assert text.startswith(f"{topic}-{NUMBER}: {kind}: ")
    assert called in text


@pytest.mark.parametrize("topic", ["ticks.rejected", "ticks.late"])
@pytest.mark.parametrize(
    ("plant", "kind"), [(lose, "lost"), (double, "published twice or of no input"), (swap, "out of order")]
)
def test_one_wrong_refusal_is_found(ran: Ran, topic: str, plant: Callable[[Entries], str], kind: str) -> None:
    with ran.planted(topic, plant):
        found = ran.outputs()
    assert found.kinds == {kind: 1}
    assert found.told[0].startswith(f"{topic}-{NUMBER}: {kind}: ")


def test_an_output_in_another_partition_is_lost_there_and_of_no_input_here(ran: Ran) -> None:
    moved: list[Entry] = []

    def take(entries: Entries) -> str:
        at = middle(entries)
        moved.append(copy(entries[at]))
        return lose(entries)

    other = ran.log.entries(Partition("features.SoFar", NUMBER + 1))
    with ran.planted("features.SoFar", take) as called:
        other.append(moved[0])
        found = ran.outputs()
        other.pop()
    assert found.kinds == {"lost": 1, "of no input": 1}
    assert all(called in text for text in found.told)


@pytest.mark.parametrize("fault", ["damaged", "missing", "one too many"])
def test_one_wrong_row_on_disk_is_found_and_named(ran: Ran, fault: str) -> None:
    key, value = ran.row()
    if fault == "one too many":
        key, value = key + b" and another", b""
    elif fault == "damaged":
        value = value[:-1] + bytes([value[-1] ^ 1])
    with ran.damaged(key, None if fault == "missing" else value):
        [text] = ran.states()
    assert text.startswith(f"workers/0/state/{CHANGELOG}-{NUMBER} has {key!r}: ")


@pytest.mark.parametrize("fault", ["damaged", "missing", "one too many"])
def test_one_wrong_row_of_the_changelog_is_found_against_the_disk_and_the_source(ran: Ran, fault: str) -> None:
    key, value = ran.row()

    def plant(entries: Entries) -> str:
        if fault == "one too many":
            entries.append(Entry(Record(CHANGELOG, key + b" and another", b"1", NUMBER), 0, "committed"))
            return repr(key + b" and another")
        newest = max(n for n in committed(entries) if entries[n].record.key == key)
        wrong = None if fault == "missing" else value[:-1] + bytes([value[-1] ^ 1])
        entries[newest].record = replace(entries[newest].record, value=wrong)
        return repr(key)

    with ran.planted(CHANGELOG, plant) as called:
        found = ran.states()
    assert len(found) == 2
    assert found[0].startswith(f"workers/0/state/{CHANGELOG}-{NUMBER} has {called}: ")
    assert found[1].startswith(f"ticks-{NUMBER}: the source has {called}: ")


def test_state_that_both_disk_and_changelog_hold_wrongly_is_found_against_the_source(ran: Ran) -> None:
    key, value = ran.row()
    wrong = value[:-1] + bytes([value[-1] ^ 1])

    def plant(entries: Entries) -> str:
        newest = max(n for n in committed(entries) if entries[n].record.key == key)
        entries[newest].record = replace(entries[newest].record, value=wrong)
        return repr(key)

    with ran.planted(CHANGELOG, plant) as called, ran.damaged(key, wrong):
        [text] = ran.states()
    assert text.startswith(f"ticks-{NUMBER}: the source has {called}: ")


def test_a_task_without_state_on_disk_is_found(ran: Ran) -> None:
    [folder] = ran.data.glob(f"**/state/*.changelog-{NUMBER}")
    aside = folder.with_name("aside")
    folder.rename(aside)
    try:
        assert ran.states() == [f"ticks-{NUMBER} left no state on disk"]
    finally:
        aside.rename(folder)


def test_a_prediction_by_an_older_version_than_the_one_before_it_is_found() -> None:
    made = [Told("predictions.returns", (f"orders-2-{n}",), {"version": f"m@{v}"}) for n, v in enumerate((3, 5, 4, 5))]
    found = Differences()
    check_versions(found, 2, made)
    assert found.told == ["predictions.returns-2: older version: orders-2-2 by 4 after 5"]


def test_a_batch_that_begins_before_the_end_of_the_last_is_found() -> None:
    found = Differences()
    check_hurries(found, 2, [Hurry([0, 0], [3, 1]), Hurry([3, 1], [4, 2]), Hurry([4, 1], [5, 2])])
    assert found.kinds == {"going back": 1}
    assert found.told[0].startswith("hurries-2: going back: ")
