"""Metrics against their definitions, and the evaluator: what it judges, its bins, restarts."""

from __future__ import annotations

import math
from datetime import timedelta

import msgspec
import numpy as np
import pytest
from headrace.models.evaluation import Evaluator, Quality, exact
from headrace.models.judgekernels import BINS, CLIP, LIMIT
from headrace.streams.outcomecolumns import OutcomeColumns
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from river import linear_model

from tests.models.outcomes import model, run, settled, stream

Scores = list[tuple[float, bool]]
scored = st.lists(st.tuples(st.floats(0, 1) | st.sampled_from([0.1, 0.5]), st.booleans()), min_size=1, max_size=60)


def defined(scores: Scores) -> dict[str, float | None]:
    """ROC AUC as the share of pairs in order, average precision over thresholds, log loss as a mean."""
    positives = [s for s, y in scores if y]
    negatives = [s for s, y in scores if not y]
    pairs = [1.0 if p > n else 0.5 if p == n else 0.0 for p in positives for n in negatives]
    precision = 0.0
    before = 0
    for threshold in sorted(set(positives), reverse=True):
        hits = sum(s >= threshold for s in positives)
        all_ = hits + sum(s >= threshold for s in negatives)
        precision += hits / all_ * (hits - before)
        before = hits
    clipped = [(min(max(s, CLIP), 1 - CLIP), y) for s, y in scores]
    return {
        "roc_auc": sum(pairs) / len(pairs) if pairs else None,
        "average_precision": precision / len(positives) if positives else None,
        "log_loss": -sum(math.log(s if y else 1 - s) for s, y in clipped) / len(scores),
    }


def arrays(scores: Scores) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    return np.array([s for s, _ in scores], np.float64), np.array([y for _, y in scores], np.bool_)


@given(scored)
def test_exact_metrics_are_their_definitions_ties_included(scores: Scores) -> None:
    assert exact(*arrays(scores)) == pytest.approx(defined(scores), abs=1e-9)


def test_nothing_can_be_said_of_no_scores() -> None:
    assert exact(*arrays([])) == {"roc_auc": None, "average_precision": None, "log_loss": None}


@pytest.mark.parametrize("outcome", [True, False])
def test_ranking_of_one_class_is_undefined(outcome: bool) -> None:
    quality = Quality()
    quality.add(*arrays([(0.2, outcome)]))
    found = quality.metrics()
    assert found["roc_auc"] is None
    assert found["average_precision"] == (1.0 if outcome else None)
    assert found["log_loss"] == pytest.approx(-math.log(0.2 if outcome else 0.8))


@given(scored)
def test_bins_move_auc_by_no_more_than_half_the_pairs_that_share_one(scores: Scores) -> None:
    quality = Quality()
    quality.add(*arrays(scores))
    binned, real = quality.metrics(), defined(scores)
    assert binned["log_loss"] == pytest.approx(real["log_loss"])
    if real["roc_auc"] is None:
        assert binned["roc_auc"] is None
        return
    assert binned["roc_auc"] is not None
    negatives, positives = quality.counts
    sharing = int((positives * negatives).sum()) / int(positives.sum() * negatives.sum())
    assert abs(binned["roc_auc"] - real["roc_auc"]) <= sharing / 2 + 1e-9


def test_bins_move_auc_by_less_than_a_thousandth_on_scores_as_spread_as_real_ones() -> None:
    chance = np.random.default_rng(1)
    logits = chance.normal(-4.5, 0.8, 20_000)
    outcomes = chance.random(20_000) < 1 / (1 + np.exp(-logits))
    scores = 1 / (1 + np.exp(-logits))
    quality = Quality()
    quality.add(scores, outcomes)
    binned, real = quality.metrics(), exact(scores, outcomes)
    for name in ("roc_auc", "average_precision", "log_loss"):
        assert binned[name] == pytest.approx(real[name], abs=1e-3)


@pytest.mark.parametrize("score", [0.0, 1.0, CLIP / 2, 1 / (1 + math.exp(LIMIT)), 0.5])
def test_every_score_has_its_bin_and_a_finite_loss(score: float) -> None:
    quality = Quality()
    quality.add(*arrays([(score, True), (score, False), (math.nan, True)]))
    assert int(quality.counts.sum()) == 2
    assert quality.counts.shape == (2, BINS)
    loss = quality.metrics()["log_loss"]
    assert loss is not None
    assert math.isfinite(loss)


@given(scored)
def test_bins_and_losses_are_those_of_each_score_in_turn_to_the_bit(scores: Scores) -> None:
    counts, loss = np.zeros((2, BINS), np.int64), 0.0
    for score, outcome in scores:
        clipped = min(max(score, CLIP), 1 - CLIP)
        logit = math.log(clipped / (1 - clipped))
        counts[int(outcome), min(BINS - 1, max(0, int((logit + LIMIT) / (2 * LIMIT) * BINS)))] += 1
        loss += -math.log(clipped if outcome else 1 - clipped)
    quality = Quality()
    quality.add(*arrays(scores))
    assert (quality.counts == counts).all()
    assert quality.losses[0] == loss
    assert Quality.unpack(quality.pack()).pack() == quality.pack()


def test_predictions_of_the_first_horizon_are_not_judged() -> None:
    evaluator = Evaluator(model(linear_model.LogisticRegression(), publish_every=1))
    minutes = int(timedelta(days=30).total_seconds() // 60)
    out = run(evaluator, [settled(0), settled(minutes - 1), settled(minutes, True, 0.25), settled(minutes + 1)])
    reports = [msgspec.json.decode(r.value or b"") for r in out]
    assert [r["outcomes"] for r in reports] == [1, 2]
    assert reports[0]["log_loss"] == pytest.approx(-math.log(0.25))
    assert reports[0]["roc_auc"] is None
    assert reports[1]["roc_auc"] == 1.0
    assert reports[1]["base_roc_auc"] == 0.5
    assert set(reports[1]) >= {"customer_roc_auc", "base_log_loss", "average_precision", "version", "at"}


def test_restarts_and_cuts_change_no_report() -> None:
    # The first outcome is far back, so that all others are judged.
    outcomes = [settled(-60 * 24 * 31), *stream(3, 500)]

    def reports(cut: int | None, restart: int, read: OutcomeColumns | None = None) -> list[bytes | None]:
        evaluator = Evaluator(model(linear_model.LogisticRegression(), publish_every=20))
        return [r.value for r in run(evaluator, outcomes, cut, restart, read)]

    expected = reports(None, 0)
    assert len(expected) == 25
    assert reports(1, 1) == expected
    assert reports(2, 3) == expected
    assert reports(2, 3, OutcomeColumns()) == expected, "read one by one"
