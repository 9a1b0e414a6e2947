"""The benchmarks run, and what they compare says the same."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from headrace.streams.membership import SESSION

from benchmarks import first, gaps, recovery, restart, window, workers
from benchmarks.figures import local_broker
from benchmarks.peers import latencies
from benchmarks.peers.__main__ import compared
from benchmarks.peers.engines import ENGINES

pytestmark = [pytest.mark.stack, pytest.mark.timeout(300)]


def test_the_window_job_and_fausts_agree_on_every_event() -> None:
    # In a thread of its own: the browser's driver leaves an event loop running in this one.
    with ThreadPoolExecutor(1) as thread:
        figures = {figure.name: figure.median for figure in thread.submit(window.measure, 1, 6_000).result()}
    assert all(value > 0 for value in figures.values())


def test_a_task_goes_on_from_its_whole_state_however_it_comes_back() -> None:
    # That it does is checked in it, on both brokers.
    with ThreadPoolExecutor(1) as thread:
        figures = {figure.name: figure.median for figure in thread.submit(recovery.measure, 1, 3_000_000).result()}
    assert list(figures) == list(recovery.UNITS)
    assert all(value > 0 for value in figures.values())


def test_only_the_partitions_of_a_worker_that_is_killed_stand_still() -> None:
    few = {"local broker": local_broker}, {"": 0}
    with ThreadPoolExecutor(1) as thread:
        figures = {figure.name: figure.median for figure in thread.submit(gaps.measure, 1, *few).result()}
    killed = "local broker, a worker is killed"
    assert figures[f"{killed}, longest"] > 1000 * SESSION / 2 > figures[f"{killed}, median"]


def test_engines_of_the_window_job_are_judged_on_apache_kafka() -> None:
    # Two of them, for the others take minutes to fetch; what they tell is checked in it.
    two = [replace(engine, warm_up=0.0) for engine in ENGINES[:2]]
    with ThreadPoolExecutor(1) as thread:
        rows = thread.submit(lambda: asyncio.run(compared(two, 500_000, 10.0))).result()
    assert [row.engine.name for row in rows] == ["Headrace", "Kafka Streams"]
    assert all(row.span.events_per_s > 0 for row in rows)


def test_a_worker_is_back_with_its_whole_state_however_it_ended() -> None:
    # That no state is lost, and every event told of once, is checked in it.
    with ThreadPoolExecutor(1) as thread:
        rows = thread.submit(lambda: asyncio.run(restart.compared(1_000_000, load=0.5))).result()
    assert [row["name"] for row in rows] == ["Headrace"] * 3 + ["Kafka Streams"] * 3
    assert [row["case"] for row in rows] == [*restart.CASES] * 2
    assert len({row["rows_of_state"] for row in rows}) == 1
    assert all(row["seconds"] > 0 and row["outputs_checked"] for row in rows)


def test_engines_are_timed_by_one_client_from_publishing_to_the_committed_result() -> None:
    with ThreadPoolExecutor(1) as thread:
        rows = thread.submit(lambda: asyncio.run(latencies.compared([200], 1.0, latencies.QUICK[:2], 0.0))).result()
    assert [row["name"] for row in rows] == ["Headrace on Kafka, the peers' job", "Kafka Streams"]
    assert all(0 < row["p50_ms"] <= row["p99_ms"] for row in rows)


def test_the_first_event_after_a_start_is_told_of() -> None:
    local = {"local broker": local_broker}
    with ThreadPoolExecutor(1) as thread:
        [row] = thread.submit(lambda: asyncio.run(first.compared(local, first.CASES[:1]))).result()
    assert row["said"][-1].startswith("ready")
    assert row["first_ms"] > 0
    assert row["next_p50_ms"] <= row["next_most_ms"]


def test_workers_that_share_the_partitions_tell_of_every_event_once() -> None:
    # What they tell is checked in it.
    with ThreadPoolExecutor(1) as thread:
        [row] = thread.submit(lambda: asyncio.run(workers.measured([2], [2], 20_000))).result()
    assert row["name"] == "2 workers, 2 partitions"
    assert row["events_per_s"] > 0
