"""Three workers share eight partitions on Apache Kafka: they join, leave, are killed and stopped; the books balance."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from headrace.streams.membership import SESSION

from tests.headrace.workers import bank
from tests.scene import eventually
from tests.stack.kafka import kafka

pytestmark = [pytest.mark.stack, pytest.mark.timeout(400)]


def test_workers_on_kafka_lose_and_double_nothing_whatever_happens_to_them(tmp_path: Path) -> None:
    with kafka(tmp_path) as cluster, bank(cluster.address, tmp_path, standby=1) as the:
        the.start(0)
        the.start(1)
        with the.payments():
            the.shared(4, 4)
            the.start(2)
            the.shared(2, 3, 3)
            eventually(lambda: sorted(the.running(n, "standby") for n in range(3)) == [2, 3, 3])
            # Stopped for longer than its session, it believes that its tasks are still its own.
            the.send(0, signal.SIGSTOP)
            time.sleep(SESSION + 3)
            the.send(0, signal.SIGCONT)
            the.shared(2, 3, 3)
            the.end(1, signal.SIGKILL)
            the.shared(4, 4)
        # The log is away for a while: tasks and membership wait, and go on.
        cluster.kill()
        time.sleep(3)
        cluster.start()
        with the.payments():
            the.shared(4, 4)
            the.start(1)
            the.shared(2, 3, 3)
            assert the.end(2) == 0
            the.shared(4, 4)
        eventually(lambda: the.balance() == the.sent, 60)
        # Copies may still be moving to where a worker left.
        eventually(lambda: {t.state for w in the.workers().values() for t in w.tasks} == {"running", "standby"})
        assert [the.end(n) for n in (0, 1)] == [0, 0]
        assert the.balance() == the.sent > 100
