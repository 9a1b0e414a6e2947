"""What the window job's engines are judged by: the oracle, the check of what they told, the clock, and the result."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.peers.__main__ import Row, as_json
from benchmarks.peers.children import Children, Failed, Meter, busy
from benchmarks.peers.engines import ENGINES
from benchmarks.peers.job import Events, Right, events, oracle
from benchmarks.peers.outputs import Span, Told, Wrong, check, timed


@pytest.fixture(scope="module")
def made() -> Events:
    """Ten events of a user and more, in three minutes."""
    few = events(600_000)
    mine = few.user < 40
    return Events(few.user[mine], few.ts[mine], few.cents[mine], few.item[mine])


@pytest.fixture(scope="module")
def right(made: Events) -> Right:
    return oracle(made)


def told(made: Events, right: Right) -> Told:
    """What an engine tells that is right."""
    return Told(made.user, made.window, right.count, right.sum, np.arange(len(made)))


def test_the_oracle_counts_and_sums_each_users_minute_anew() -> None:
    minute, ts = 60_000, [1, 2, 59_999, 60_000, 60_001]
    few = Events(np.array([7, 8, 7, 7, 7]), np.array(ts) + minute, np.array([100, 250, 5, 33, 33]), np.zeros(5, int))
    said = oracle(few)
    assert said.count.tolist() == [1, 1, 2, 1, 2]
    assert said.sum.tolist() == [1.0, 2.5, 1.05, 0.33, 0.66]


def test_events_are_in_order_of_time_with_no_two_of_a_user_in_one_millisecond() -> None:
    some = events(50_000)
    assert (np.diff(some.ts) >= 0).all()
    assert len(np.unique(some.ts * 10_000 + some.user)) == len(some)
    first = json.loads(next(some.values(0, 1)))
    assert first["ts"] == 1_700_000_000_123
    assert first["user"] == f"u{some.user[0]}"
    assert first["amount"] == some.cents[0] / 100


def test_what_is_right_passes_in_any_order_and_to_any_point(made: Events, right: Right) -> None:
    whole = told(made, right)
    shuffled = np.random.default_rng(1).permutation(len(made))
    check(_rows(whole, shuffled), made, right)
    check(_rows(whole, np.arange(len(made) // 3)), made, right)
    check(replace(whole, sum=right.sum + 5e-7), made, right)


@pytest.mark.parametrize(
    ("field", "by", "why"),
    [
        ("sum", 2e-6, "sum"),
        ("sum", float("nan"), "sum"),
        ("window", 1, "count|sum|more than once"),
        ("window", 1_000, "no event"),
        ("count", 10_000, "no event"),
        ("count", -1, "no event|sum"),
        ("user", 1, "count|sum|no event|more than once"),
        ("user", 50_000, "no event"),
    ],
)
def test_one_wrong_value_is_found(made: Events, right: Right, field: str, by: float, why: str) -> None:
    whole = told(made, right)
    column = getattr(whole, field).copy()
    column[len(column) // 2] += by
    with pytest.raises(Wrong, match=why):
        check(replace(whole, **{field: column}), made, right)


def test_an_output_told_twice_is_found(made: Events, right: Right) -> None:
    with pytest.raises(Wrong, match="more than once"):
        check(_rows(told(made, right), np.array([0, 1, 1])), made, right)


def test_a_missing_output_before_others_of_its_user_is_found(made: Events, right: Right) -> None:
    last = int(np.flatnonzero(made.user == made.user[0])[3])
    with pytest.raises(Wrong, match="earlier event"):
        check(_rows(told(made, right), np.delete(np.arange(len(made)), last)), made, right)


def test_the_clock_runs_from_the_first_output_past_the_warm_up_to_the_last() -> None:
    appended = np.array([1_000, 1_500, 2_000, 2_000, 3_000, 4_000, 4_000, 9_000])
    span = timed(appended, warm=1_900, seconds=60)
    assert (span.events, span.seconds) == (4, 7.0)
    assert timed(appended[::-1], warm=1_900, seconds=2.5) == Span(3, 2_000, 4_000)
    assert timed(appended, 0, 60).begin == 1_000


def test_what_all_belongs_to_the_warm_up_is_refused() -> None:
    with pytest.raises(Wrong, match="more events"):
        timed(np.array([1_000, 2_000]), 2_001, 60)
    with pytest.raises(Wrong, match="more events"):
        timed(np.array([1_000, 2_000]), 2_000, 60)


def test_the_result_has_the_machine_the_versions_and_a_row_for_each_engine() -> None:
    rows = [Row(e, Span(1_000 * (n + 1), 0, 2_000), 1.5) for n, e in enumerate(ENGINES[:2])]
    kept = json.loads(json.dumps(as_json("2 cores", rows)))
    assert kept["machine"] == "2 cores"
    assert set(kept["versions"]) == {"Apache Kafka", *(e.name for e in ENGINES[:2])}
    assert [r["events_per_s"] for r in kept["rows"]] == [500, 1_000]
    assert all({"name", "guarantee", "events_per_s"} <= set(r) for r in kept["rows"])


def test_engines_have_names_topics_and_promises_of_their_own() -> None:
    assert len({e.name for e in ENGINES}) == len({e.topic for e in ENGINES}) == len(ENGINES)
    assert ENGINES[0].name == "Headrace"
    assert all("once" in e.guarantee for e in ENGINES)


def test_children_end_with_their_block(tmp_path: Path) -> None:
    with Children(tmp_path, set(), set()) as children:
        process = children.start("sleeps", [sys.executable, "-c", "import time; time.sleep(600)"])
        children.check()
    assert process.poll() is not None


def test_a_child_that_fails_is_told_with_what_it_said(tmp_path: Path) -> None:
    with Children(tmp_path, set(), set()) as children, pytest.raises(Failed, match=r"(?s)status 3.*no such thing"):
        children.run("fails", [sys.executable, "-c", "import sys; print('no such thing'); sys.exit(3)"], 30.0)


def test_a_child_that_does_not_end_is_given_up(tmp_path: Path) -> None:
    with Children(tmp_path, set(), set()) as children, pytest.raises(Failed, match="did not end"):
        children.run("sleeps", [sys.executable, "-c", "import time; time.sleep(600)"], 0.2)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the system does not tell")
def test_a_meter_tells_how_busy_a_process_was() -> None:
    meter = Meter(os.getpid())
    meter.sample()
    began = busy(os.getpid())
    while busy(os.getpid()) < began + 0.1:
        pass
    meter.sample()
    (first, _), (last, _) = meter._samples
    assert meter.between(first, last) == pytest.approx(0.1, abs=0.05)  # the system counts in ticks
    assert meter.reached(0.0, 0.05) == last
    assert meter.reached(0.0, 60.0) is None


def _rows(whole: Told, rows: NDArray[np.int64]) -> Told:
    return Told(whole.user[rows], whole.window[rows], whole.count[rows], whole.sum[rows], whole.appended[rows])
