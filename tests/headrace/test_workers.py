"""Several workers share the tasks of a program on the local broker: they come, go and die, and the books balance."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.headrace.workers import PARTITIONS, bank
from tests.scene import broker_process, eventually


@pytest.mark.timeout(300)
def test_workers_that_come_go_and_die_lose_and_double_nothing(tmp_path: Path) -> None:
    with broker_process(tmp_path / "broker") as address, bank(address, tmp_path) as the:
        the.start(0)
        with the.payments():
            the.shared(PARTITIONS)
            the.start(1)
            the.shared(4, 4)
            assert the.end(0) == 0
            the.shared(PARTITIONS)
            assert len(the.workers()) == 1, "one that ended in order leaves no record"
            the.start(2)
            the.shared(4, 4)
            killed = the.processes[2].pid
            the.end(2, signal.SIGKILL)
            # The next takes the dead one's folder, with what is there of the state.
            the.start(2)
            the.shared(4, 4)
        eventually(lambda: the.balance() == the.sent)
        assert [the.end(n) for n in (1, 2)] == [0, 0]
        assert [w.pid for w in the.workers().values()] == [killed], "those that end in order leave no record"
        assert the.balance() == the.sent > 100
