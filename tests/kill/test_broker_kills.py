"""The brokers of Apache Kafka die under load: the workers go on once there is a log, and nothing is lost or doubled."""

from __future__ import annotations

import logging
import os
import random
import time
from pathlib import Path

import pytest

from tests.kill import rig
from tests.kill.feed import Feed
from tests.stack.kafka import Cluster, kafka

SEED = int(os.environ.get("SEED", random.randrange(2**32)))
DEATHS = 3
AWAY = (0.0, 6.0)
"""Seconds that a killed node is away."""
CUT_OFF = 12.0
"""Seconds that a node is cut off: its session with the controllers, three seconds, ends, and others lead."""
BACK_WITHIN = 180.0
"""Seconds until all that was published before is taken again: clients' time-outs, and the work that waited."""

pytestmark = [pytest.mark.stack, pytest.mark.timeout(600)]


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> None:
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)


def survive(job: rig.Job, cluster: Cluster, folder: Path, deaths: list[tuple[str, int]]) -> None:
    print(f"SEED={SEED}")
    chance = random.Random(f"{SEED} {job.name} {len(cluster.nodes)}")
    rig.create_topics(job, cluster.address, len(cluster.nodes))
    with rig.Workers(job.program, str(cluster.address), folder / "data") as workers:
        at_work = rig.Rig(job, cluster.address, workers, chance)
        for _ in range(rig.WORKERS):
            workers.add()
        workers.wait_ready()
        with Feed(cluster.address, job.events(SEED), job.rate) as feed:
            for how, node in deaths:
                at_work.sleep(chance.uniform(1.0, 4.0))
                began = time.monotonic()
                if how == "killed":
                    cluster.kill(node)
                    at_work.sleep(chance.uniform(*AWAY))
                    cluster.start(node)
                else:
                    cluster.pause(node)
                    at_work.sleep(CUT_OFF)
                    cluster.resume(node)
                away = time.monotonic() - began
                taken = at_work.recover(BACK_WITHIN)
                print(f"node {node} {how} for {away:.1f} s; all taken {taken:.1f} s later", flush=True)
        print(f"{feed.published:,} events published, some of them {feed.again} times again", flush=True)
        at_work.settle()
        at_work.end()
        assert not workers.gone, "\n".join(workers.gone)
        at_work.check()


@pytest.mark.parametrize("job", [rig.window(100.0), rig.customers(16, 30.0)], ids=lambda job: job.name)
def test_a_broker_that_is_killed_under_load_costs_nothing_but_time(job: rig.Job, tmp_path: Path) -> None:
    folder = tmp_path / "kafka"
    folder.mkdir()
    with kafka(folder) as cluster:
        survive(job, cluster, tmp_path, [("killed", 1)] * DEATHS)


def test_a_leader_killed_and_a_node_cut_off_cost_nothing_but_time(tmp_path: Path) -> None:
    folder = tmp_path / "kafka"
    folder.mkdir()
    with kafka(folder, nodes=3) as cluster:
        survive(rig.window(60.0), cluster, tmp_path, [("killed", 2), ("cut off", 3), ("killed", 1)])
