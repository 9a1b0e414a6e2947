"""Three workers on Apache Kafka, killed, asked to end, frozen past their session, joined and left by others, while
events are published: afterwards every output and every state is what its events give.

`make kill-test KILLS=1000` is the long run, half of the kills to each job; SEED=... draws an earlier run's again.
"""

from __future__ import annotations

import logging
import os
import random
import time
from pathlib import Path

import pytest
from headrace.streams.address import Address

from tests.kill import rig
from tests.kill.feed import Feed

KILLS = int(os.environ.get("KILLS", "30"))
SEED = int(os.environ.get("SEED", random.randrange(2**32)))
LONG = KILLS > 60
CARELESS_BURSTS = 6
JOBS = [rig.window(), rig.customers(1 if LONG else 12)]

pytestmark = [pytest.mark.stack, pytest.mark.timeout(300 + 20 * KILLS)]


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> None:
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.name)
def test_workers_that_die_in_any_way_lose_and_double_nothing(
    job: rig.Job, kafka_alone: Address, tmp_path: Path
) -> None:
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{job.name} {time.monotonic() - began:7.1f} s  {text}", flush=True)

    print(f"SEED={SEED} KILLS={KILLS}")
    rig.create_topics(job, kafka_alone)
    with rig.Workers(job.program, str(kafka_alone), tmp_path / "data") as workers:
        at_work = rig.Rig(job, kafka_alone, workers, random.Random(f"{SEED} {job.name}"), say=say)
        for _ in range(rig.WORKERS):
            workers.add()
        workers.wait_ready()
        say("ready")
        with Feed(kafka_alone, job.events(SEED), job.rate) as feed:
            kills = rig.rotation(KILLS // len(JOBS))
            while kills:
                at_work.burst(kills[: rig.BURST])
                del kills[: rig.BURST]
            assert not feed.ended, "the events ended before the kills did: these were not under load"
        say(f"{feed.published:,} events published")
        at_work.settle()
        at_work.end()
        say("settled")
        assert not workers.gone, "\n".join(workers.gone)
        at_work.check()


def test_the_check_finds_what_workers_without_transactions_do_twice_and_lose(
    kafka_alone: Address, tmp_path: Path
) -> None:
    print(f"SEED={SEED}")
    job = rig.window(100.0)
    events = job.events(SEED)
    rig.create_topics(job, kafka_alone)
    with rig.Workers(job.program, str(kafka_alone), tmp_path / "data", "tests.kill.careless") as workers:
        at_work = rig.Rig(job, kafka_alone, workers, random.Random(f"{SEED} careless"))
        for _ in range(rig.WORKERS):
            workers.add()
        workers.wait_ready()
        # A kill does harm between a worker's two writes only, and each of a burst's may miss that moment.
        for _ in range(CARELESS_BURSTS):
            with Feed(kafka_alone, events, job.rate):
                at_work.burst(["KILL"] * 5)
            at_work.settle()
            found = at_work.asked(job.check)
            print(found)
            if found.kinds["published twice"] or found.kinds["lost"]:
                return
    pytest.fail("a broken engine was taken for a sound one")
