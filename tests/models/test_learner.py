"""The learner: the same model from the same outcomes, whatever dies in between, for every family of river."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from headrace.models import artifacts, versions
from headrace.models.errors import LearnerError
from headrace.models.learner import SNAPSHOT_EVERY, Learner
from headrace.models.maturity import Mature, MatureRows
from headrace.streams.batch import Operator, one_by_one, record_by_record
from headrace.streams.inputs import Input, Source
from headrace.streams.log import Fetched, Partition
from headrace.streams.outcomecolumns import OutcomeCodec, OutcomeColumns
from headrace.streams.outcomes import Settled
from headrace.streams.store import MemoryStore
from headrace.streams.task import Task
from hypothesis import given, settings
from hypothesis import strategies as st
from river import forest, linear_model, optim, preprocessing

from tests.models.estimators import NUMBERS, TEXTS, Make
from tests.models.outcomes import PRIOR, batches, model, run, settled, stream

FAMILIES = [(name, make, name in TEXTS) for name, make in (NUMBERS | TEXTS).items()]
families = pytest.mark.parametrize(("name", "make", "texts"), FAMILIES, ids=[name for name, *_ in FAMILIES])


def logistic() -> linear_model.LogisticRegression:
    return linear_model.LogisticRegression()


def learn(learner: Learner, outcomes: Sequence[Settled], cut: int | None = None, restart: int = 0) -> list[str]:
    """The versions published, told by their offsets, counts and fingerprints."""
    out = run(learner, outcomes, cut, restart)
    made = [versions.decode(r.value or b"") for r in out]
    return [f"{v.version} {v.learnt} {v.positives} {v.rate} {v.at} {v.fingerprint}" for v in made]


@families
def test_after_restarts_anywhere_versions_and_state_are_the_same_to_the_bit(
    name: str, make: Make, texts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.models.learner.SNAPSHOT_EVERY", 40)
    outcomes = stream(5, 250, texts)
    declared = model(make(), publish_every=50)
    live, restarted = Learner(declared), Learner(declared)
    expected = learn(live, outcomes)
    assert len(expected) == 5
    assert learn(restarted, outcomes, cut=1, restart=2) == expected
    assert restarted.tally == live.tally
    assert artifacts.fingerprint(restarted.estimator) == artifacts.fingerprint(live.estimator)
    features: dict[Hashable, Any] = {"a": 0.5, "b": -1.0, **({"country": "Peru"} if texts else {})}
    assert restarted.estimator.predict_proba_one(features) == live.estimator.predict_proba_one(features)


@given(
    st.integers(0, 20), st.integers(0, 20), st.integers(0, 4), st.sampled_from(["logistic", "logistic, adam", "tree"])
)
@settings(max_examples=30, deadline=None)
def test_versions_are_those_of_river_alone_however_outcomes_are_read_cut_and_restored(
    seed: int, cut: int, restart: int, name: str
) -> None:
    outcomes = stream(seed, 80)
    chance = random.Random(seed)
    for n in chance.sample(range(80), 6):
        # Odd ones: the columns have no such feature, or it stands elsewhere.
        features = chance.choice([{"c": 1.5, **outcomes[n].features}, dict(reversed(outcomes[n].features.items()))])
        outcomes[n] = msgspec.structs.replace(outcomes[n], features=features)
    estimator, wanted = NUMBERS[name]().clone(), []
    for n, one in enumerate(outcomes, 1):
        estimator.learn_one({k: v for k, v in one.features.items() if v is not None}, one.outcome)
        wanted += [artifacts.fingerprint(estimator)] if n % 20 == 0 else []
    columns = OutcomeColumns([("a", False), ("b", False)], ["base", "customer"])
    for read in (columns, OutcomeColumns()):
        learner = Learner(model(NUMBERS[name](), publish_every=20), columns)
        made = run(learner, outcomes, cut, restart, read)
        assert [versions.decode(r.value or b"").fingerprint for r in made] == wanted


def test_where_numbers_grow_beyond_float64_the_outcome_is_named_and_all_before_it_is_learnt() -> None:
    outcomes = [settled(n, n % 2 == 0, a=1e200 if n == 7 else 1.0) for n in range(10)]
    learner = Learner(model(linear_model.LogisticRegression(optim.AdaGrad())))
    with pytest.raises(LearnerError, match=r"outcome of orders-0-7, features \{'a': 1e\+200\}: OverflowError"):
        run(learner, outcomes)
    assert learner.tally.learnt == 7


def test_another_process_learns_the_same_model() -> None:
    code = "from tests.models.test_learner import fingerprints\nprint(' '.join(fingerprints()))\n"
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONHASHSEED": "42"}
    run = subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True)
    assert run.stdout.split() == fingerprints(), run.stderr


def fingerprints() -> list[str]:
    """Of learners whose state holds sets, texts, generators and cycles."""
    found = []
    for name in ("one-hot", "naive bayes, gaussian", "tree of texts", "forest of texts", "forest, mondrian"):
        learner = Learner(model((NUMBERS | TEXTS)[name]()))
        run(learner, stream(5, 150, name in TEXTS))
        found.append(artifacts.fingerprint(learner.estimator))
    return found


def test_the_fingerprint_tells_one_outcome_more() -> None:
    learner = Learner(model(logistic()))
    run(learner, stream(5, 100))
    before = artifacts.fingerprint(learner.estimator)
    run(learner, stream(6, 1))
    assert artifacts.fingerprint(learner.estimator) != before


def test_a_version_comes_every_so_many_outcomes_and_names_the_offset_up_to_which_it_learnt() -> None:
    found = [v.split()[:3] for v in learn(Learner(model(logistic(), publish_every=30)), stream(1, 100))]
    assert [(name, learnt) for name, learnt, _ in found] == [(f"returns@{n}", str(n)) for n in (30, 60, 90)]


def test_outcomes_that_one_record_let_mature_are_never_parted_by_a_version() -> None:
    learner = Learner(model(logistic(), publish_every=2))
    (batch,) = batches(stream(1, 6), iter([6]))
    rows = batch.streams["mature.returns"]
    assert isinstance(rows, MatureRows)
    rows.seen[:] = [3, 3, 3, 4, 8, 8]
    out: list[object] = []
    learner.process(batch, out)  # type: ignore[arg-type]
    made = [versions.decode(r.value) for r in out]  # type: ignore[attr-defined]
    assert [(v.version, v.learnt) for v in made] == [("returns@3", 3), ("returns@8", 6)]


def test_the_rate_begins_at_the_prior_and_goes_to_the_share_of_true() -> None:
    learner = Learner(model(logistic()))
    assert learner.rate == PRIOR
    run(learner, [settled(n, n % 2 == 0, a=1.0) for n in range(900)])
    assert learner.rate == (450 + 100 * PRIOR) / 1_000


def test_missing_features_are_not_shown_to_the_estimator() -> None:
    learner = Learner(model(preprocessing.StandardScaler() | logistic()))
    run(learner, [settled(0, True, a=1.0, b=None)])
    pipeline: Any = learner.estimator
    assert set(pipeline["StandardScaler"].counts) == {"a"}


def test_an_outcome_that_the_estimator_fails_on_is_named() -> None:
    learner = Learner(model(preprocessing.StandardScaler() | logistic()))
    with pytest.raises(LearnerError, match=r"outcome of orders-0-7, features \{'a': 'text'\}: TypeError"):
        run(learner, [settled(7, True, a="text")])


def test_the_declared_learner_is_never_changed() -> None:
    declared = model(NUMBERS["naive bayes, gaussian"]())
    before = artifacts.fingerprint(declared.learner)
    run(Learner(declared), stream(1, 50))
    assert artifacts.fingerprint(declared.learner) == before


def written(learner: Learner, outcomes: Sequence[Settled]) -> tuple[int, int, int]:
    """(bytes written, most rows at once, bytes of a snapshot) at one outcome a commit."""
    store = MemoryStore()
    size = most = 0
    for batch in batches(outcomes, iter(lambda: 1, 0)):
        learner.process(batch, [])
        changes = list(one_by_one(learner.changes()))
        store.write(changes)
        size += sum(len(key) + len(value or b"") for key, value in changes)
        most = max(most, len(list(store.rows(b""))))
    return size, most, len(artifacts.dump(learner.estimator))


def test_what_commits_write_is_in_proportion_to_the_outcomes_not_to_the_estimator() -> None:
    outcomes = stream(1, 300)
    size, rows, snapshot = written(Learner(model(forest.ARFClassifier(n_models=3, seed=1))), outcomes)
    assert snapshot > 50_000
    # A snapshot weighs no more than the outcomes before it, so there is twice the outcomes and the tally.
    assert size < 300 * 2_000
    assert rows <= SNAPSHOT_EVERY + 2


def test_a_start_learns_no_more_outcomes_again_than_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.models.learner.SNAPSHOT_EVERY", 20)
    _, rows, _ = written(Learner(model(forest.ARFClassifier(n_models=3, seed=1))), stream(1, 200))
    assert rows == 20 + 2


def test_a_learner_that_has_learnt_nothing_writes_nothing_and_loads_nothing() -> None:
    learner = Learner(model(logistic()))
    assert learner.changes() == []
    learner.load([])
    assert learner.tally.learnt == 0


def test_what_others_wrote_among_the_outcomes_is_left_out_and_told(caplog: pytest.LogCaptureFixture) -> None:
    declared = model(logistic(), publish_every=5)
    wanted = learn(Learner(declared), stream(5, 40))
    junk: list[bytes | None] = [b"no JSON", None, b"{}", b"\xff", b"[" * 100_000]
    values: list[bytes | None] = []
    for n, outcome in enumerate(stream(5, 40)):
        values += [msgspec.json.encode(outcome), junk[n % len(junk)]]
    source = Input(Source("outcomes.returns", OutcomeCodec()), Partition("outcomes.returns", 0))
    operators: list[Operator] = [Mature("returns"), Learner(declared)]
    task = Task("learn", 0, [source], operators, MemoryStore(), Partition("changes", 0))
    task.resume()
    count = len(values)
    rows = np.arange(count)
    task.feed(Fetched(source.partition, rows, rows, [None] * count, values, count, count))
    work = task.work(count)
    assert work is not None
    assert work.offsets == {source.partition: count}
    made = [versions.decode(r.value or b"") for r in record_by_record(work.records)]
    assert [v.fingerprint for v in made] == [told.split()[-1] for told in wanted]
    assert len(made) == 8
    assert len(caplog.messages) == 40
    assert caplog.messages[0].startswith("outcomes.returns-0-1 is left out: it is no outcome (")
