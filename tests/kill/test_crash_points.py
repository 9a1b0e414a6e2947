"""A worker dies after each numbered step of its tasks, on a real log: the next one goes on as if nothing had been."""

from __future__ import annotations

import logging
import os
import random
from pathlib import Path

import pytest
from headrace.streams.address import Address

from tests.kill import rig
from tests.kill.crashing import STATUS
from tests.kill.feed import Feed
from tests.scene import broker_process

SEED = int(os.environ.get("SEED", random.randrange(2**32)))
STEPS = (1, 2, 3, 4, 5)
DIES_WITHIN = 60.0
"""Seconds for a worker to start and to come to its step."""


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> None:
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)


def die_at_each_step(job: rig.Job, broker: Address, folder: Path) -> None:
    print(f"SEED={SEED}")
    chance = random.Random(f"{SEED} {job.name}")
    rig.create_topics(job, broker)
    with (
        rig.Workers(job.program, str(broker), folder / "data") as workers,
        Feed(broker, job.events(SEED), job.rate) as feed,
    ):
        at_work = rig.Rig(job, broker, workers, chance)
        for step in chance.sample(STEPS, len(STEPS)):
            commits = chance.randrange(1, 12)
            planned = {"CRASH_AFTER_STEP": str(step), "CRASH_AFTER_COMMITS": str(commits)}
            with rig.Workers(job.program, str(broker), folder / "data", "tests.kill.crashing", planned) as doomed:
                worker = doomed.add()
                status = worker.process.wait(DIES_WITHIN)
                assert status == STATUS, f"ended with {status} instead of dying after step {step}:\n{worker.told()}"
                print(f"died after step {step} and {commits} commits", flush=True)
        workers.add()
        feed.stop()
        at_work.settle()
        at_work.end()
        assert not workers.gone, "\n".join(workers.gone)
        at_work.check()


@pytest.mark.timeout(180)
def test_a_worker_that_dies_after_any_step_loses_and_doubles_nothing(tmp_path: Path) -> None:
    with broker_process(tmp_path / "broker") as broker:
        die_at_each_step(rig.window(100.0), broker, tmp_path)


@pytest.mark.stack
@pytest.mark.timeout(300)
@pytest.mark.parametrize("job", [rig.window(), rig.customers(16)], ids=lambda job: job.name)
def test_a_worker_that_dies_after_any_step_loses_and_doubles_nothing_on_kafka(
    job: rig.Job, kafka_alone: Address, tmp_path: Path
) -> None:
    die_at_each_step(job, kafka_alone, tmp_path)
