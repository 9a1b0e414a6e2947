"""Hot state is a cache above the store: bounded, filled when an entity comes, and never to be seen in a result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from headrace.streams import aggregations as agg
from headrace.streams import asof, hotset, index
from headrace.streams.asof import FeatureSet
from headrace.streams.batch import record_by_record
from headrace.streams.errors import BadSetting
from headrace.streams.expressions import Expression, col
from headrace.streams.features import Features, operator
from headrace.streams.filter import Filter
from headrace.streams.memory import SHARE_KEPT, Memory, parse_size
from headrace.streams.rocks import RocksStore
from headrace.streams.spans import Spans
from headrace.streams.store import MemoryStore, Store
from headrace.streams.tables import ENTITY, entities_of, entity_keys, entity_of
from headrace.streams.task import Task
from headrace.streams.windows import last_n, session
from hypothesis import given, settings
from hypothesis import strategies as st

from .stage import Stage, moment
from .test_bounds import Visit, feature_set, folds

ROOM = 40_000
"""Bytes for some 70 of the entities of these tests."""


def visited(features: dict[str, Expression], bound: int | None, store: Store | None = None) -> tuple[Stage, FeatureSet]:
    """A stage of one feature set with a bound, on a store of its own or on this one."""
    memory = Memory(bound)
    made: list[Any] = []

    def operators() -> list[Any]:
        step = feature_set(features)
        assert isinstance(step, FeatureSet)
        again = FeatureSet(Declared(step), memory)
        made[:] = [again]
        return [again]

    stage = Stage([Visit], operators)
    if store is not None:
        stage.task = Task("stage", 0, stage.task.inputs, operators(), store, stage.task.changelog)
        stage.task.resume()
    return stage, made[0]


def again(stage: Stage, features: dict[str, Expression]) -> tuple[Stage, FeatureSet]:
    """The same after a restart."""
    store = MemoryStore()
    store.write(stage.changelog)
    other, step = visited(features, 1, store)
    other.log = stage.log
    return other, step


class Declared:
    """The declaration of a set that is there."""

    def __init__(self, step: FeatureSet) -> None:
        self._declaration = step.declared


def visit(stage: Stage, key: int | str, second: float, page: str = "/") -> None:
    stage.publish(Visit, {"who": str(key), "n": int(second) % 7, "page": page, "at": moment(second)})


def come(stage: Stage, keys: Sequence[int], begin: float = 0.0, every: float = 0.01) -> None:
    for n, key in enumerate(keys):
        visit(stage, key, begin + n * every)
    stage.drain((20,))


def test_no_more_is_hot_than_the_bound_and_a_batch_and_who_came_last_stays() -> None:
    stage, step = visited({"n": agg.count(), "k": agg.distinct(col.page)}, ROOM)
    most = 0
    for begin in range(0, 2_000, 20):
        come(stage, [*range(begin, begin + 20), *range(5)], begin)
        most = max(most, step.residence.size)
    assert most <= ROOM
    assert step.residence.evictions > 1_000
    assert 10 < step.residence.entities < 400
    before = step.residence.misses
    assert before < 25, "who comes again and again is never looked for"
    come(stage, range(1_990, 2_000), 2_000)
    assert step.residence.misses == before, "those that came last are hot"
    come(stage, range(11, 21), 2_001)
    assert step.residence.misses == before + 10, "those that came first are read again"
    assert [record.value for record in stage.made("features.Per")[-1:]] == [
        b'{"id":"visits-0-2519","who":"20","at":"2023-11-14T22:46:41.090000Z","n":2,"k":1}'
    ]


def test_a_start_reads_no_entity_before_it_comes(tmp_path: Path) -> None:
    store = RocksStore(tmp_path)
    stage, _ = visited({"n": agg.count("1h"), "s": agg.count(session("10s"))}, None, store)
    come(stage, range(300))
    again, step = visited({"n": agg.count("1h"), "s": agg.count(session("10s"))}, None, store)
    again.log = stage.log
    assert step.residence.entities == 0
    come(again, range(7, 9), 5)
    assert (step.residence.entities, step.residence.misses) == (2, 2)
    assert [b'"n":2,"s":2}' in (r.value or b"") for r in again.made("features.Per")] == [True, True]
    assert {row["entity"]["who"] for row in step.told(10**16)} == {str(n) for n in range(300)}, "all are told"
    assert step.residence.entities == 2
    store.close()


@pytest.mark.usefixtures("looking")
def test_who_was_never_there_is_not_looked_for() -> None:
    stage, step = visited({"n": agg.count()}, 1)
    come(stage, range(1_000))
    new = step.residence.misses
    assert new < 50, "a filter knows that they are new"
    come(stage, range(500), 12)
    assert step.residence.misses >= new + 500
    stage, step = again(stage, {"n": agg.count()})
    come(stage, range(2_000, 2_400), 20)
    old = step.residence.misses
    assert old > 30, "a start knows nobody"
    come(stage, range(3_000, 5_000), 30)
    assert step.residence.misses < old + 1_400, "and everybody once it has looked"
    assert all(b'"n":1}' in (r.value or b"") for r in stage.made("features.Per"))


def test_a_filter_holds_all_that_was_noted_and_little_else() -> None:
    held, made = Filter(), [b"%d" % n for n in range(60_000)]
    for begin in range(0, 40_000, 7_000):
        held.note(Spans.of(made[begin : min(begin + 7_000, 40_000)]))
    found = held.may_hold(Spans.of(made))
    assert found[:40_000].all()
    assert found[40_000:].mean() < 0.02
    assert held.size < 2 * 40_000 * 2


@pytest.fixture
def looking(monkeypatch: pytest.MonkeyPatch) -> None:
    """The store is looked through early, and keys are idle as soon as their windows and lateness are over."""
    monkeypatch.setattr(index, "SWEEP_FROM", 32)
    monkeypatch.setattr(hotset, "SWEPT_AT_LEAST", 8)
    monkeypatch.setattr(asof, "WAKE", 0)


def rows(stage: Stage) -> dict[bytes, bytes]:
    held: dict[bytes, bytes] = {}
    for key, value in stage.changelog:
        held.pop(key, None)
        if value is not None:
            held[key] = value
    return held


@pytest.mark.usefixtures("looking")
def test_idle_entities_leave_the_store_too() -> None:
    for kind in ("10s", session("5s")):
        stage, step = visited(folds(kind), 1)
        for begin in range(0, 3_000, 20):
            come(stage, range(begin, begin + 20), begin)
        prefix = b"Per\x00" + ENTITY
        entities = {entity_of(key[4:])[0] for key in rows(stage) if key.startswith(prefix)}
        assert len(entities) < 300, "of 3,000 that came, those of the last windows, and some not looked at yet"
        texts = [key for key in rows(stage) if b"/text-" in key]
        assert len(texts) < 300
        assert step.residence.entities == 0
        stage.restart()
        come(stage, range(2_999, 3_000), 2_985)
        assert b'"n":2,' in (stage.made("features.Per")[-1].value or b""), "others stay"


@pytest.mark.usefixtures("looking")
def test_texts_of_cold_entities_stay_while_those_of_no_pane_are_forgotten() -> None:
    stage, _ = visited({"page": agg.last(col.page), "two": agg.first(col.page, last_n(2))}, 1)
    visit(stage, "old", 0, "/old")
    for n in range(1_000):
        visit(stage, "new", n, f"/{n}")
        if n % 20 == 0:
            stage.drain((20,))
    texts = [key for key in rows(stage) if b"/text-" in key]
    assert len(texts) < 300
    stage.restart()
    visit(stage, "old", 1_000, "/x")
    stage.drain()
    assert b'"page":"/x","two":"/old"' in (stage.made("features.Per")[-1].value or b"")


@settings(derandomize=True, max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from([0, 1, 4, 30])), min_size=1, max_size=60),
    st.lists(st.tuples(st.integers(1, 6), st.integers(1, 3), st.booleans()), min_size=1, max_size=5),
)
def test_what_goes_ahead_of_its_commit_or_is_aborted_is_never_read_wrong(
    comers: list[tuple[str, int]], turns: list[tuple[int, int, bool]]
) -> None:
    """Some batches are committed together; what is aborted is taken again from the store, as after a crash."""
    features = {**folds("10s"), "s": agg.count(session("5s")), "old": agg.first(col.page, last_n(3))}

    def run(bound: int | None, turns: list[tuple[int, int, bool]]) -> list[bytes | None]:
        stage, _ = visited(features, bound)
        second = 0
        for n, (who, pause) in enumerate(comers):
            second += pause
            visit(stage, who, second + n / 1000, f"/{n % 5}")
        made: list[bytes | None] = []
        stage.feed()
        turn = 0
        while True:
            rows, batches, aborted = turns[turn % len(turns)]
            turn += 1
            works = [work for _ in range(batches) if (work := stage.task.work(rows)) is not None]
            if not works:
                return made
            if aborted and turn % 2:
                stage.task.resume()
                stage.feed()
                continue
            made += [r.value for work in works for r in record_by_record(work.records) if r.topic == "features.Per"]
            changes = [change for work in works for change in work.changes]
            stage.task.keep(replace(works[-1], changes=changes), turn)

    wanted = run(None, [(1_000, 1, False)])
    with pytest.MonkeyPatch.context() as patch:
        for module, name, value in ((index, "SWEEP_FROM", 0), (hotset, "SWEPT_AT_LEAST", 1), (asof, "WAKE", 0)):
            patch.setattr(module, name, value)
        for bound in (1, 12_000, None):
            assert run(bound, turns) == wanted


def test_several_sets_share_one_bound_and_the_largest_gives_way() -> None:
    class Small(Features, of=Visit, by="page"):
        n = agg.count()

    class Large(Features, of=Visit, by="who"):
        n = agg.count()
        k = agg.distinct(col.n)

    memory = Memory(ROOM)
    steps = [operator(Small, memory), operator(Large, memory)]
    stage = Stage([Visit], lambda: list(steps))
    come(stage, range(2_000))
    assert memory.size <= ROOM
    assert [step.residence.evictions > 0 for step in steps] == [False, True]
    assert steps[1].residence.size > ROOM * SHARE_KEPT / 4
    stage.task.close()
    assert memory.size == 0, "a task that is gone holds nothing"


def test_an_entity_whose_name_begins_another_has_rows_of_its_own() -> None:
    names = Spans.of([b"c1", b"c10", b"", b"\x00[1,2]", b"c1\x00\x00"])
    keys = [bytes(key or b"") for key in entity_keys(names)]
    store = MemoryStore()
    store.write([(key + b"12345678" + bytes([n]), b"%d" % n) for n, key in enumerate(keys)])
    found = store.many(keys)
    assert found.counts == [1] * 5
    assert found.values == [b"0", b"1", b"2", b"3", b"4"]
    whole = Spans.of([key + b"rest" for key in keys])
    entities, rests = entities_of(whole)
    assert list(entities) == list(names)
    assert set(rests) == {b"rest"}
    assert [entity_of(key)[0] for key in keys] == list(names)


def test_both_stores_give_the_rows_of_many_prefixes_alike(tmp_path: Path) -> None:
    held = [(b"a\x00%03d" % n, b"%d" % n) for n in range(50)] + [(b"b", b"b")]
    asked = [b"a\x0001", b"a\x009", b"a\x00049", b"a", b"", b"b", b"zz"]
    stores: list[Store] = [MemoryStore(), RocksStore(tmp_path)]
    found = []
    for store in stores:
        store.write(held)
        found.append((store.many(asked), list(store.rows(b"a\x00", b"047")), list(store.rows(b"b", b"c"))))
        store.close()
    assert found[0] == found[1]
    assert found[0][0].counts == [10, 0, 1, 50, 51, 1, 0]
    assert found[0][1:] == ([(b"047", b"47"), (b"048", b"48"), (b"049", b"49")], [])


@pytest.mark.parametrize(("text", "size"), [("512MB", 512 << 20), ("1.5 gb", 3 << 29), ("4096", 4096), ("1kb", 1024)])
def test_a_size_is_read_as_people_write_it(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "much", "-1GB", "12PB", "1 2GB"])
def test_a_size_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(BadSetting, match="is not a size of memory: write"):
        parse_size(text)
