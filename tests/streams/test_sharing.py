"""How tasks are shared among workers: all of them, evenly, and moved as little as can be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import pytest
from headrace.streams.log import Partition
from headrace.streams.sharing import Claim, Portion, share
from hypothesis import given
from hypothesis import strategies as st

TOPICS = ("orders.changelog", "returns.changelog", "learn.changelog")
PARTITIONS = {"orders.changelog": 8, "returns.changelog": 8, "learn.changelog": 1}
TASKS = [Partition(t, n) for t in TOPICS for n in range(PARTITIONS[t])]
NEW = Claim(TOPICS)


def claims_of(portions: Mapping[str, Portion], generation: int = 1) -> dict[str, Claim]:
    """What workers claim that have run their portions for a while."""
    return {
        w: Claim(TOPICS, p.running, generation, p.standby, p.standby, (*p.running, *p.standby))
        for w, p in portions.items()
    }


def moved(before: Mapping[str, Portion], after: Mapping[str, Portion]) -> int:
    owner = {task: w for w, p in before.items() for task in p.running}
    return sum(owner.get(task) != w for w, p in after.items() for task in p.running)


def complete(portions: Mapping[str, Portion]) -> bool:
    return Counter(t for p in portions.values() for t in p.running) == Counter(TASKS)


def test_workers_that_start_together_share_each_stage_evenly() -> None:
    portions = share(dict.fromkeys("abc", NEW), PARTITIONS)
    assert complete(portions)
    assert sorted(len(p.running) for p in portions.values()) == [5, 6, 6]
    for topic in TOPICS[:2]:
        assert sorted(sum(t.topic == topic for t in p.running) for p in portions.values()) in ([2, 3, 3], [2, 2, 4])


def test_one_that_joins_takes_its_share_and_no_other_task_moves() -> None:
    before = share(dict.fromkeys("ab", NEW), PARTITIONS)
    after = share({**claims_of(before), "c": NEW}, PARTITIONS)
    assert complete(after)
    assert len(after["c"].running) == moved(before, after) == 5
    assert {t.topic for t in after["c"].running} >= set(TOPICS[:2]), "a share of each large stage"


def test_when_one_leaves_only_its_tasks_move() -> None:
    before = share(dict.fromkeys("abc", NEW), PARTITIONS)
    claims = claims_of(before)
    gone = claims.pop("b")
    after = share(claims, PARTITIONS)
    assert complete(after)
    assert moved(before, after) == len(gone.running)


def test_the_tasks_of_one_that_died_go_where_a_warm_copy_is() -> None:
    before = share(dict.fromkeys("abc", NEW), PARTITIONS, standbys=1)
    claims = claims_of(before)
    claims.pop("a")
    after = share(claims, PARTITIONS, standbys=1)
    warm = {w: set(before[w].standby) for w in "bc"}
    lost = before["a"].running
    went = {t: w for w in "bc" for t in after[w].running}
    assert sum(t in warm[went[t]] for t in lost) >= len(lost) - 1, "all, as far as an even share allows"


def test_one_that_comes_back_gets_what_its_disk_has() -> None:
    before = share(dict.fromkeys("ab", NEW), PARTITIONS)
    alone = share({"a": claims_of(before)["a"]}, PARTITIONS)
    back = Claim(TOPICS, kept=before["b"].running)
    after = share({**claims_of(alone), "b": back}, PARTITIONS)
    assert set(after["b"].running) == set(before["b"].running)


def test_each_task_has_its_standbys_on_other_workers() -> None:
    portions = share(dict.fromkeys("abc", NEW), PARTITIONS, standbys=2)
    copies = Counter(t for p in portions.values() for t in p.standby)
    assert copies == Counter(dict.fromkeys(TASKS, 2))
    assert all(not set(p.running) & set(p.standby) for p in portions.values())


def copied(before: Mapping[str, Portion], after: Mapping[str, Portion]) -> dict[str, int]:
    """The copies that each worker has to make from nothing."""
    had = {w: {*p.running, *p.standby} for w, p in before.items()}
    return {w: len(set(p.standby) - had.get(w, set())) for w, p in after.items()}


@pytest.mark.parametrize("standbys", [1, 2])
def test_one_that_joins_takes_its_share_of_the_copies_and_nobody_else_begins_one(standbys: int) -> None:
    before = share(dict.fromkeys("abc", NEW), PARTITIONS, standbys)
    after = share({**claims_of(before), "d": NEW}, PARTITIONS, standbys)
    assert copied(before, after) == {"a": 0, "b": 0, "c": 0, "d": len(after["d"].standby)}
    assert len(after["d"].standby) == len(TASKS) * standbys // 4
    assert moved(before, after) == 4, "copies that move take no running task along"


def test_of_two_copies_the_task_goes_to_the_one_that_has_come_to_the_end() -> None:
    task = Partition("learn.changelog", 0)
    partitions = {"learn.changelog": 1}
    begun = Claim(TOPICS, follows=(task,))
    old = Claim(TOPICS, kept=(task,))
    done = Claim(TOPICS, follows=(task,), warm=(task,))
    for better, worse in ((done, old), (done, begun), (old, begun), (begun, NEW)):
        for names in (("a", "b"), ("b", "a")):
            portions = share({names[0]: better, names[1]: worse}, partitions, 1)
            assert portions[names[0]].running == portions[names[1]].standby == (task,)


def test_a_copy_that_has_only_begun_stays_where_it_is() -> None:
    before = share(dict.fromkeys("abc", NEW), PARTITIONS, 1)
    begun = {w: Claim(TOPICS, p.running, 1, p.standby, (), p.running) for w, p in before.items()}
    assert share(begun, PARTITIONS, 1) == before


def test_copies_are_made_where_the_program_has_the_task_and_the_others_are_spread_all_the_same() -> None:
    older = Claim(TOPICS[:1])
    portions = share({"a": older, "b": NEW, "c": NEW}, PARTITIONS, 1)
    assert Counter(t for p in portions.values() for t in p.standby) == Counter(TASKS)
    assert {t.topic for t in portions["a"].standby} == {"orders.changelog"}
    sizes = [len(p.standby) for p in portions.values()]
    assert max(sizes) - min(sizes) <= 2


def test_a_lone_worker_has_no_standbys() -> None:
    assert share({"a": NEW}, PARTITIONS, standbys=1)["a"].standby == ()


def test_of_two_that_claim_a_task_the_one_that_had_it_last_keeps_it() -> None:
    task = Partition("learn.changelog", 0)
    zombie = Claim(TOPICS, (task,), generation=3)
    owner = Claim(TOPICS, (task,), generation=7)
    for names in (("a", "b"), ("b", "a")):
        portions = share({names[0]: zombie, names[1]: owner}, {"learn.changelog": 1})
        assert portions[names[1]].running == (task,)


def test_a_task_goes_only_to_workers_whose_program_has_it() -> None:
    older = Claim(TOPICS[:1])
    portions = share({"a": older, "b": NEW}, PARTITIONS)
    assert complete(portions)
    assert {t.topic for t in portions["a"].running} == {"orders.changelog"}


@given(st.lists(st.sampled_from(["join", "leave", "crash and come back"]), max_size=12), st.integers(0, 3), st.data())
def test_whatever_comes_and_goes_the_shares_stay_whole_and_even(
    events: list[str], standbys: int, data: st.DataObject
) -> None:
    claims: dict[str, Claim] = {"w0": NEW}
    portions = share(claims, PARTITIONS, standbys)
    for number, event in enumerate(events, start=1):
        claims = claims_of(portions, number)
        if event == "join":
            claims[f"w{number}"] = NEW
        elif len(claims) > 1:
            name = data.draw(st.sampled_from(sorted(claims)))
            gone = claims.pop(name)
            if event != "leave":
                claims[f"w{number}"] = Claim(TOPICS, kept=gone.kept)
        portions = share(claims, PARTITIONS, standbys)
        assert complete(portions)
        sizes = [len(p.running) for p in portions.values()]
        assert max(sizes) - min(sizes) <= 1
        copies = Counter(t for p in portions.values() for t in set(p.standby))
        assert copies == Counter({t: n for t in TASKS if (n := min(standbys, len(claims) - 1))})
        assert not any(set(p.running) & set(p.standby) for p in portions.values())
        sizes = [len(p.standby) for p in portions.values()]
        assert max(sizes) - min(sizes) <= 1
        again = share(claims_of(portions, number + 1), PARTITIONS, standbys)
        assert again == portions, "nothing moves where nothing has changed"


@pytest.mark.parametrize("workers", [20, 40])
def test_more_workers_than_tasks_leave_some_idle(workers: int) -> None:
    portions = share({f"w{n:02}": NEW for n in range(workers)}, PARTITIONS)
    assert complete(portions)
    assert max(len(p.running) for p in portions.values()) == 1
