"""kill -9 in the middle of the main job: afterwards everything is as if nothing had happened.

`make kill-test-local KILLS=20` kills worker, broker and stack 20 times each over the whole sample; SEED=... draws the
moments of an earlier run again.
"""

from __future__ import annotations

import logging
import os
import random
import re
import shutil
import time
from pathlib import Path

import msgspec
import pytest
from headrace.streams.outcomes import Prediction, Settled

from tests.kill.job import PREDICTIONS, Job, lines, moments, publish, sources
from tests.kill.oracle import Outcome, Source, outcomes, predicted

KILLS = int(os.environ.get("KILLS", "0"))
"""Of each kind, over the whole sample. Left out: one of each kind in one run, over every sixth customer's lines."""
SEED = int(os.environ.get("SEED", random.randrange(2**32)))
WITHIN = 900.0 if KILLS else 200.0
"""Seconds for the job to get on to its next kill, or to its end."""

pytestmark = pytest.mark.timeout(7200 if KILLS else 600)
JITTER = 0.1
"""Seconds, at most, by which a kill comes later than planned: at no fixed step of a cycle."""


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> None:
    """Connections that are refused while a broker is dead are no news here."""
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Source]]:
    """The folder of a stack whose log holds every line and which has not run yet, and the lines."""
    data = tmp_path_factory.mktemp("published") / "returns"
    chosen = lines(1 if KILLS else 6)
    publish(data, chosen)
    return data, sources(chosen)


@pytest.fixture(scope="module")
def uninterrupted(
    published: tuple[Path, list[Source]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[tuple[bytes | None, bytes | None]]]:
    """What features a run gives that nobody disturbs."""
    data = tmp_path_factory.mktemp("uninterrupted") / "returns"
    shutil.copytree(published[0], data)
    with Job(data) as job:
        job.settle(WITHIN)
        return {topic: job.read(topic) for topic in ("features.Customer", "features.Item")}


@pytest.mark.parametrize("kinds", [["worker"], ["broker"], ["stack"]] if KILLS else [["worker", "broker", "stack"]])
def test_a_job_that_is_killed_again_and_again_gives_what_an_undisturbed_one_gives(
    kinds: list[str],
    published: tuple[Path, list[Source]],
    uninterrupted: dict[str, list[tuple[bytes | None, bytes | None]]],
    tmp_path: Path,
) -> None:
    print(f"SEED={SEED}")
    chance = random.Random(f"{SEED} {kinds}")
    data = tmp_path / "returns"
    shutil.copytree(published[0], data)
    wanted = predicted(published[1])
    victims = [kind for kind in kinds for _ in range(KILLS or 1)]
    chance.shuffle(victims)
    with Job(data) as job:
        for victim, moment in zip(victims, moments(chance, len(victims), len(wanted)), strict=True):
            got = job.wait_until(moment, WITHIN)
            time.sleep(chance.random() * JITTER)
            job.kill(victim)
            print(f"killed the {victim} after {got:,} of {len(wanted):,} predictions", flush=True)
        job.settle(WITHIN)
        print(f"the stack was started {job.starts} times", flush=True)
        made = [msgspec.json.decode(value or b"", type=Prediction) for _, value in job.read(PREDICTIONS.topic)]
        assert [p.id for p in made] == [f"orders-0-{offset}" for offset in wanted]
        for topic, expected in uninterrupted.items():
            assert job.read(topic) == expected, f"{topic} is not what an uninterrupted run gives"
        assert known(job) == list(outcomes(published[1]))
        verified = job.verify()
        assert verified.returncode == 0, verified.stdout + verified.stderr
        print(verified.stdout)


def known(job: Job) -> list[Outcome]:
    settled = [msgspec.json.decode(value or b"", type=Settled) for _, value in job.read("outcomes.returns")]
    return [Outcome(int(s.id.rpartition("-")[2]), s.outcome, s.known) for s in settled]


def test_the_check_finds_what_an_engine_without_transactions_does_twice_and_loses(tmp_path: Path) -> None:
    data = tmp_path / "returns"
    publish(data, lines(16))
    with Job(data, "tests.kill.careless") as job:
        job.settle(WITHIN)
    verified = job.verify()
    assert verified.returncode == 1
    assert "records differ from what their sources give" in verified.stderr
    for topic in ("features.Item", "predictions.returns"):
        [told] = re.findall(rf"^{topic} .*\n(?:    .*\n)*", verified.stdout, re.MULTILINE)
        assert "DIFFER" in told
        assert "published twice: " in told
    assert "lost: " in verified.stdout
