"""`headrace verify` on a log that is as it should be, and on logs with one thing planted in them."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from headrace.models import artifacts, versions
from headrace.streams.batch import Record
from headrace.streams.log import Partition
from headrace.streams.runner import Runner
from headrace.streams.store import MemoryStore
from river import linear_model, preprocessing

import headrace as hr
from headrace import plan
from headrace.errors import VerifyError
from headrace.verify import Comparison, tell, verify
from tests.headrace.returning import Order
from tests.headrace.returning import back as taken_back
from tests.simulation.log import Entry, SimulatedLog
from tests.simulation.world import World

T0 = datetime(2010, 1, 1, tzinfo=UTC)
PARTITIONS = 2
ROWS = 400


class Customer(hr.Features, of=Order, by="customer"):
    lines = hr.count("1d")
    usual = hr.mean(hr.col.quantity)
    back = hr.count(of=taken_back)


model = hr.Model(
    "returns",
    on=Order,
    features=[Customer],
    learner=preprocessing.StandardScaler() | linear_model.LogisticRegression(),
    outcome=taken_back,
    publish_every=20,
)
app = hr.App("shop", models=[model], partitions=PARTITIONS)


async def publish(world: World, log: SimulatedLog) -> None:
    """Orders a minute apart, as they happen: some wrong, some taken back, of which one hears late."""
    waiting: list[tuple[int, int, datetime]] = []
    for minute in range(ROWS):
        at = T0 + timedelta(minutes=minute)
        number = world.random.randrange(6)
        quantity = world.random.choice([1, 2, 3, 40, "many"])
        log.publish(record("orders", number, quantity, at))
        if quantity == 40:
            waiting.append((minute + world.random.randint(0, 20), number, at))
        for due, number, at in [w for w in waiting if w[0] <= minute]:
            log.publish(record("returns", number, 1, at))
            waiting.remove((due, number, at))
        await world.sleep(world.random.random())


def record(topic: str, number: int, quantity: object, at: datetime) -> Record:
    value = {"customer": f"c{number}", "quantity": quantity, "at": at.isoformat()}
    return Record(topic, f"c{number}".encode(), json.dumps(value).encode(), number % PARTITIONS)


@pytest.fixture
def settled(finished: SimulatedLog) -> tuple[World, SimulatedLog]:
    """A log of the test's own on which the program has run to its end."""
    world = World(8)
    world.time = finished.world.time
    return world, SimulatedLog(world, partitions=copy.deepcopy(finished.partitions), groups=dict(finished.groups))


@pytest.fixture(scope="module")
def finished() -> SimulatedLog:
    """The program runs while events come, to its end."""
    world = World(7)
    log = SimulatedLog(world)
    made = [(s.build(n, MemoryStore()), s.group) for s in plan.stages(app) for n in range(s.partitions)]
    for n, ((task, follows), group) in enumerate(made):
        world.spawn(f"task {n}", Runner(task, log, world, group, follows, batch_rows=10).run())

    async def end() -> None:
        await world.sleep(ROWS)
        for n in range(len(made)):
            world.kill(f"task {n}")

    world.spawn("publisher", publish(world, log))
    world.spawn("end", end())
    world.run()
    return log


def verified(world: World, log: SimulatedLog) -> dict[str, Comparison]:
    found: list[Comparison] = []

    async def main() -> None:
        found.extend(await verify(app, log))

    world.spawn("verify", main())
    world.run()
    return {check.what: check for check in found}


def entries(log: SimulatedLog, topic: str, number: int = 0) -> list[Entry]:
    return [e for e in log.entries(Partition(topic, number)) if e.state == "committed"]


def test_a_log_as_it_should_be_is_equal_and_everything_is_compared(settled: tuple[World, SimulatedLog]) -> None:
    world, log = settled
    found = verified(world, log)
    assert all(not check.different for check in found.values()), found
    orders = sum(len(entries(log, "orders", n)) for n in range(PARTITIONS))
    rejected = found["orders.rejected"].compared + found["orders.rejected 1"].compared
    assert orders == ROWS
    assert rejected > 20
    for topic in ("features.Customer", "predictions.returns"):
        assert found[topic].compared + found[f"{topic} 1"].compared == ROWS - rejected
    assert found["scores on predictions.returns"].compared == ROWS - rejected
    assert found["scores on outcomes.returns"].compared > 100
    assert found["versions of returns"].compared > 3
    scored_by = {json.loads(e.record.value or b"")["version"] for e in entries(log, "predictions.returns")}
    assert len(scored_by) > 3


def changed(entry: Entry, **fields: Any) -> None:  # any JSON
    value = json.loads(entry.record.value or b"")
    entry.record = replace(entry.record, value=json.dumps({**value, **fields}, separators=(",", ":")).encode())


def change_a_feature(log: SimulatedLog) -> None:
    changed(entries(log, "features.Customer")[30], lines=99.0)


def change_a_feature_of_a_prediction(log: SimulatedLog) -> None:
    """The first predictions are made by the prior, so that the score does not tell."""
    changed(entries(log, "predictions.returns")[0], features={"lines": 2.0, "usual": 1.0, "back": 0.0})


def lose_a_prediction(log: SimulatedLog) -> None:
    entries(log, "predictions.returns", 1)[40].state = "aborted"


def lose_the_last_prediction(log: SimulatedLog) -> None:
    entries(log, "predictions.returns", 1)[-1].state = "aborted"


def lose_many(log: SimulatedLog) -> None:
    for entry in entries(log, "features.Customer")[20:60]:
        entry.state = "aborted"


def double_a_prediction(log: SimulatedLog) -> None:
    twice = entries(log, "predictions.returns")[40]
    log.entries(Partition("predictions.returns", 0)).append(replace(twice))


def exchange_two_predictions(log: SimulatedLog) -> None:
    one, other = entries(log, "predictions.returns")[40:42]
    one.record, other.record = other.record, one.record


def invent_a_prediction(log: SimulatedLog) -> None:
    entry = replace(entries(log, "predictions.returns")[40])
    changed(entry, id="orders-0-9999")
    log.entries(Partition("predictions.returns", 0)).append(entry)


def change_a_score(log: SimulatedLog) -> None:
    changed(entries(log, "predictions.returns")[-1], score=0.5)


def name_another_version(log: SimulatedLog) -> None:
    last = json.loads(entries(log, "predictions.returns")[-1].record.value or b"")["version"]
    old = next(e for e in entries(log, "predictions.returns") if "returns@0" not in str(e.record.value))
    assert last not in str(old.record.value)
    changed(old, version=last)


def name_a_version_that_never_was(log: SimulatedLog) -> None:
    changed(entries(log, "predictions.returns")[-1], version="returns@7777")


def turn_an_outcome(log: SimulatedLog) -> None:
    entry = entries(log, "outcomes.returns")[-1]
    changed(entry, outcome=not json.loads(entry.record.value or b"")["outcome"])


def know_an_outcome_earlier(log: SimulatedLog) -> None:
    settled = [(entry, json.loads(entry.record.value or b"")) for entry in entries(log, "outcomes.returns")]
    entry, value = next((entry, value) for entry, value in settled if value["known"] != value["at"])
    changed(entry, known=value["at"])


def change_the_score_of_an_outcome(log: SimulatedLog) -> None:
    changed(entries(log, "outcomes.returns")[-1], score=0.5)


def lose_a_rejected_event(log: SimulatedLog) -> None:
    entries(log, "orders.rejected")[3].state = "aborted"


def move_a_record_to_another_key(log: SimulatedLog) -> None:
    entry = entries(log, "features.Customer")[3]
    entry.record = replace(entry.record, key=b"c9")


def change_what_a_version_says_it_learnt(log: SimulatedLog) -> None:
    entry = entries(log, "registry")[2]
    changed(entry, learnt=json.loads(entry.record.value or b"")["learnt"] + 1)


def change_the_model_of_a_version(log: SimulatedLog) -> None:
    entry = entries(log, "registry")[2]
    version = versions.decode(entry.record.value or b"")
    estimator = versions.load(version).estimator
    estimator.learn_one({"lines": 1.0, "usual": 1.0, "back": 0.0}, True)
    assert artifacts.fingerprint(estimator) != version.fingerprint
    changed(entry, artifact=versions.pack(estimator))


def lose_the_newest_version(log: SimulatedLog) -> None:
    entries(log, "registry")[-1].state = "aborted"


def double_a_metric(log: SimulatedLog) -> None:
    log.entries(Partition("metrics.returns", 0)).append(replace(entries(log, "metrics.returns")[2]))


PLANTED: list[tuple[Callable[[SimulatedLog], None], str, int, str]] = [
    (change_a_feature, "features.Customer", 1, r"^changed: published .*\"lines\":99.0.* recomputed "),
    (change_a_feature_of_a_prediction, "predictions.returns", 1, r"^changed: published .*\"lines\":2.0"),
    (lose_a_prediction, "predictions.returns 1", 1, "^lost: "),
    (lose_the_last_prediction, "predictions.returns 1", 1, "^lost: "),
    (lose_many, "features.Customer", 40, "^lost: "),
    (double_a_prediction, "predictions.returns", 1, "^published twice: "),
    (exchange_two_predictions, "predictions.returns", 2, "^published, and not recomputed|^lost"),
    (invent_a_prediction, "predictions.returns", 1, r"^published, and not recomputed: .*orders-0-9999"),
    (change_a_score, "scores on predictions.returns", 1, "was scored 0.5; returns@.* gives 0"),
    (name_another_version, "scores on predictions.returns", 1, "was scored "),
    (name_a_version_that_never_was, "scores on predictions.returns", 1, "names returns@7777, which was never learnt"),
    (turn_an_outcome, "outcomes.returns", 1, "^changed: published "),
    (know_an_outcome_earlier, "outcomes.returns", 1, "^changed: published "),
    (change_the_score_of_an_outcome, "scores on outcomes.returns", 1, "was scored 0.5"),
    (lose_a_rejected_event, "orders.rejected", 1, "^lost: .*many"),
    (move_a_record_to_another_key, "features.Customer", 1, "^changed: published "),
    (change_what_a_version_says_it_learnt, "versions of returns", 1, r"has learnt \d+; learnt again it has \d+"),
    (change_the_model_of_a_version, "versions of returns", 1, "says it is .*, and holds "),
    (lose_the_newest_version, "versions of returns", 1, "was learnt, and is not on the registry"),
    (double_a_metric, "metrics.returns", 1, "^published twice: "),
]


@pytest.mark.parametrize(("plant", "where", "count", "told"), PLANTED, ids=[p[0].__name__ for p in PLANTED])
def test_one_planted_difference_is_found_where_it_is(
    settled: tuple[World, SimulatedLog],
    plant: Callable[[SimulatedLog], None],
    where: str,
    count: int,
    told: str,
) -> None:
    world, log = settled
    plant(log)
    found = verified(world, log)
    [check] = [c for c in found.values() if c.different and re.fullmatch(rf"{where}( \d)?", c.what)]
    assert check.different == count
    assert re.search(told, check.examples[0]), check.examples
    with pytest.raises(VerifyError, match="records differ from what their sources give"):
        tell(list(found.values()), lambda _: None)


@pytest.mark.parametrize(
    ("topic", "where", "told"),
    [
        ("features.Customer", ["features.Customer"], "^published, and not recomputed: no JSON"),
        ("predictions.returns", ["predictions.returns", "scores on predictions.returns"], "unreadable: offset|no JSON"),
        ("outcomes.returns", ["scores on outcomes.returns"], r"^unreadable: offset \d+ of outcomes.returns 0: "),
        ("metrics.returns", ["metrics.returns"], "^published, and not recomputed: no JSON"),
    ],
)
def test_records_that_others_wrote_to_a_topic_of_the_program_are_differences(
    settled: tuple[World, SimulatedLog], topic: str, where: list[str], told: str
) -> None:
    world, log = settled
    for junk in (b"no JSON", b"[1, 2]", b"[" * 100_000, b"\xff", b'{"id": []}'):
        entry = entries(log, topic)[-1]
        log.entries(Partition(topic, 0)).append(replace(entry, record=replace(entry.record, value=junk)))
    found = {what: check for what, check in verified(world, log).items() if check.different}
    assert list(found) == where
    for check in found.values():
        assert check.different == 5
        assert re.search(told, check.examples[0]), check.examples


def test_events_that_go_on_meanwhile_are_no_difference(settled: tuple[World, SimulatedLog]) -> None:
    world, log = settled
    found: list[Comparison] = []
    told: list[str] = []

    def predicted() -> int:
        return len(entries(log, "predictions.returns", 1))

    async def check() -> None:
        began = predicted()
        found.extend(await verify(app, log, told.append))
        assert predicted() > began, "the task went on meanwhile"
        world.kill("task")

    def step(_: int) -> None:
        if predicted() >= before + 20 and not found and not world.running("verify"):
            world.spawn("verify", check())

    before = predicted()
    for minute in range(ROWS, 3 * ROWS):
        log.publish(record("orders", 1, 1, T0 + timedelta(minutes=minute)))
    stage = plan.stages(app)[0]
    task, follows = stage.build(1, MemoryStore())
    world.spawn("task", Runner(task, log, world, stage.group, follows, batch_rows=1, crash=step).run())
    world.run()
    assert found
    assert [c for c in found if c.different] == []
    assert any("not yet taken, and left out" in sentence for sentence in told)
