"""The same load, nemesis and checker on Apache Kafka: one node, and three of which the leaders die."""

from __future__ import annotations

import asyncio
import os
import random
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient

from tests.history.conftest import REAL_CLIENTS
from tests.history.findings import assert_sound
from tests.history.nemesis import Harm, Victim
from tests.history.workload import Settings, record
from tests.stack.kafka import Cluster, kafka

SECONDS = float(os.environ.get("SECONDS", "40"))
SEED = int(os.environ.get("SEED", random.randrange(2**32)))
LEAST = int(20 * SECONDS)
SETTLING = 120.0
"""Seconds: a killed node reads its log, is elected, and ends what was open; here beside other tests."""

pytestmark = [pytest.mark.stack, pytest.mark.timeout(SECONDS * 3 + 600), *REAL_CLIENTS]


@dataclass
class Node:
    """One node of a cluster as the nemesis takes it."""

    cluster: Cluster
    number: int

    def kill(self) -> None:
        self.cluster.kill(self.number)

    def stop(self) -> None:
        self.cluster.stop(self.number)

    def start(self) -> None:
        self.cluster.start(self.number)

    def pause(self) -> None:
        self.cluster.pause(self.number)

    def resume(self) -> None:
        self.cluster.resume(self.number)


def run(cluster: Cluster, folder: Path, harm: Harm, replication: int) -> None:
    settings = Settings(
        bootstrap=cluster.bootstrap,
        seed=SEED,
        seconds=SECONDS,
        least=LEAST,
        pace=0.04,
        patience=4.0,
        settling=SETTLING,
        replication=replication,
    )
    assert_sound(asyncio.run(record(settings, harm)), folder / "history.jsonl", SEED, LEAST)
    assert {fault.kind for fault in harm.done} == set(harm.kinds)


def test_one_node_killed_paused_and_restarted_has_a_history_without_anomalies(tmp_path: Path) -> None:
    with kafka(tmp_path) as cluster:
        run(cluster, tmp_path, Harm([Node(cluster, 1)], SEED, between=(2, 5), away=(0.2, 5)), 1)


def test_three_nodes_of_which_the_leader_is_killed_or_cut_off_have_a_history_without_anomalies(tmp_path: Path) -> None:
    with kafka(tmp_path, nodes=3) as cluster:
        nodes = [Node(cluster, number) for number in cluster.nodes]
        leader = partial(_leader, cluster, random.Random(SEED))
        harm = Harm(nodes, SEED, between=(3, 6), away=(1, 8), choose=leader, kinds=("kill", "pause"))
        run(cluster, tmp_path, harm, 3)


def _leader(cluster: Cluster, dice: random.Random) -> Victim:
    """Of a partition that clients write to."""

    async def ask() -> int:
        admin = AIOKafkaAdminClient(bootstrap_servers=cluster.bootstrap)
        try:
            await admin.start()
            (topic,) = await admin.describe_topics(["a"])
            return int(dice.choice(topic["partitions"])["leader"])
        finally:
            await admin.close()

    number = asyncio.run(ask())
    return Node(cluster, number if number in cluster.nodes else 1)
