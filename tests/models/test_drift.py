"""Every detector, through the monitor: alarms in time, few false ones, the same whatever dies in between.

The values watched are errors (0 or 1) or the Brier score, which here takes any value that a test wants.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import msgspec
import numpy as np
import pytest
from headrace.models import drift
from headrace.models.drift import DriftMonitor, Watch
from headrace.streams.batch import Batch, Column, Outputs, Rows, record_by_record
from headrace.streams.durations import micros
from headrace.streams.errors import DeclarationError
from headrace.streams.outcomes import Settled
from river import compose, linear_model
from scipy import stats  # type: ignore[import-untyped]

import headrace as hr
from tests.models.outcomes import T0, model, run, settled

BEFORE = 1_000

BLIND = 100
"""Values after a false alarm, with which the detector starts anew: it has nothing yet to compare the change with."""


@dataclass(frozen=True)
class Case:
    """A detector, the change it is shown, and what is known of it.

    low, high: the mean before and after the change, of 0 and 1 or of values spread by 0.2 around it
    delay:     values within which the alarm comes
    chance:    of a false alarm at each value
    """

    watch: Watch
    low: float
    high: float
    delay: int
    chance: float

    def __str__(self) -> str:
        return self.watch.kind + ("" if self.watch.mean_of == 1 else f" of {self.watch.mean_of}")


def hoeffding(change: float, confidence: float) -> int:
    """Values until a difference of means stands out of its bound, three standard deviations of noise allowed for.

    The bound of Frías-Blanco et al. (2015), theorem 2: with n0 values before and n1 after, a difference d is seen when
    d >= sqrt(ln(2 / confidence) (1 / n0 + 1 / n1) / 2).
    """
    return next(
        n
        for n in range(1, BEFORE)
        if change - 3 * 0.5 / math.sqrt(n) >= math.sqrt(math.log(2 / confidence) * (1 / BEFORE + 1 / n) / 2)
    )


CASES = [
    # Bifet and Gavaldà (2007), section 3: a difference d of the means of n0 and n1 values of variance s2 is seen where
    # d >= sqrt(2 s2 ln(2 n / delta) / m) + 2 ln(2 n / delta) / 3 m, m their harmonic mean: from n1 = 55 here. A test
    # comes every 32 values, and the buckets let the cut lie half of n1 away.
    Case(drift.ADWIN("brier"), 0.3, 0.6, 128, 0.002 / 32),
    # Wald: a sum of values whose mean is `delta` below zero passes the h with probability exp(-2 delta h / s2), on each
    # side. After a change by d it grows by d - delta a value: 6 / 0.25 = 24 values and the noise of so many.
    Case(drift.PageHinkley("brier", delta=0.05, threshold=6.0), 0.3, 0.6, 60, 2 * math.exp(-2 * 0.05 * 6 / 0.2**2)),
    # After `stat_size` values the newest part is all from after the change.
    Case(drift.KSWIN("brier"), 0.3, 0.7, 30, 0.005),
    Case(drift.KSWIN("brier", window_size=50, stat_size=20, mean_of=5), 0.3, 0.6, 100, 0.005 / 5),
    # p + s must pass p_min + 3 s_min, at most 0.15 where the lowest rate was seen in the first 100 values. The mean of
    # all rises from 0.1 to there in 1,000 * 0.05 / (0.5 - 0.05) = 111 values; half as many again for the noise.
    Case(drift.DDM(), 0.1, 0.6, 170, float(stats.norm.sf(3))),
    # No chance is promised; the figure is what it does with errors of one in ten.
    Case(drift.EDDM(), 0.1, 0.6, 128, 0.005),
    # Twice, for the cut may lie before the change.
    Case(drift.HDDM_A(), 0.1, 0.6, 2 * hoeffding(0.5, 0.001), 0.001),
    # The bound of two weighted means is sqrt(2 ln(1 / 0.001) / 2 * 0.05 / 1.95) = 0.42, so 0.8 (1 - 0.95^n) passes it
    # and 0.1 of noise from n = 21 on.
    Case(drift.HDDM_W(), 0.1, 0.9, 40, 0.001),
]
cases = pytest.mark.parametrize("case", CASES, ids=str)


def values(case: Case, seed: int, before: int, after: int) -> list[Settled]:
    chance = random.Random(seed)
    made = []
    for n in range(before + after):
        mean = case.low if n < before else case.high
        if case.watch.binary:
            made.append(settled(n, True, score=0.0 if chance.random() < mean else 1.0))
        else:
            value = min(max(chance.gauss(mean, 0.2), 0.0), 1.0)
            made.append(settled(n, False, score=math.sqrt(value)))
    return made


def alarms(case: Case, outcomes: Sequence[Settled], cut: int | None = None, restart: int = 0) -> list[int]:
    """At which of the outcomes there were alarms."""
    monitor = DriftMonitor(model(linear_model.LogisticRegression(), watch=[case.watch]), "outcome")
    out = run(monitor, outcomes, cut, restart)
    assert {r.topic for r in out} <= {"drift.returns"}
    return [int(msgspec.json.decode(r.value or b"")["event"].rpartition("-")[2]) for r in out]


@cases
def test_the_alarm_comes_within_the_known_delay(case: Case) -> None:
    blind = 0
    seeds = 6 if case.watch.kind == "KSWIN" else 20
    for seed in range(seeds):
        found = alarms(case, values(case, seed, BEFORE, case.delay))
        if any(BEFORE - BLIND <= n < BEFORE for n in found):
            blind += 1
        else:
            assert any(BEFORE <= n < BEFORE + case.delay for n in found), f"seed {seed}: alarms at {found}"
    assert blind <= seeds // 2


@cases
def test_there_are_no_more_false_alarms_than_the_setting_promises(case: Case) -> None:
    seeds = 5 if case.watch.kind == "KSWIN" else 40
    found = sum(len(alarms(case, values(case, seed, BEFORE, 0))) for seed in range(seeds))
    assert found <= stats.binom.ppf(1 - 1e-6, seeds * BEFORE, case.chance)


@cases
def test_restarts_and_cuts_change_no_alarm(case: Case) -> None:
    outcomes = values(case, 7, 200, 200)
    expected = alarms(case, outcomes)
    assert alarms(case, outcomes, cut=1, restart=1) == expected
    assert alarms(case, outcomes, cut=2, restart=3) == expected
    assert expected


@pytest.mark.parametrize(
    ("on", "error"),
    [
        ("log_loss", lambda score, outcome: -math.log(score if outcome else 1 - score)),
        ("brier", lambda score, outcome: (score - outcome) ** 2),
        ("error", lambda score, outcome: float((score >= 0.5) != outcome)),
        ("outcome", lambda score, outcome: float(outcome)),
    ],
)
def test_errors_and_their_means_are_python_s_to_the_bit(on: str, error: Callable[[float, bool], float]) -> None:
    chance = random.Random(3)
    outcomes = [settled(n, chance.random() < 0.4, chance.random()) for n in range(300)]
    seen: list[float] = []
    watch = replace(drift.PageHinkley(on, mean_of=7), make=lambda: Noting(seen))
    alarms = run(DriftMonitor(model(linear_model.LogisticRegression(), watch=[watch]), "outcome"), outcomes, cut=5)
    errors = [error(one.score, one.outcome) for one in outcomes]
    assert seen == [list(accumulate(errors[n : n + 7]))[-1] / 7 for n in range(0, 294, 7)]
    assert [msgspec.json.decode(r.value or b"")["value"] for r in alarms] == seen


class Noting:
    """A detector that notes what it sees, and takes all of it for drift."""

    drift_detected = True

    def __init__(self, seen: list[float]) -> None:
        self.update = seen.append

    def __reduce__(self) -> tuple[type, tuple[list[float]]]:
        return Noting, ([],)


@pytest.mark.parametrize("on", ["score", "amount"])
def test_scores_and_features_are_watched_as_they_are_predicted_and_missing_ones_left_out(on: str) -> None:
    watch = drift.PageHinkley(on, threshold=3.0)
    columns = {"score": "score.returns", "amount": "Customer.amount"}
    monitor = DriftMonitor(model(linear_model.LogisticRegression(), watch=[watch]), "prediction", columns)
    n = np.arange(120)
    seen = np.where(n < 100, 0.1, 0.9)
    fields: dict[str, Column] = {"score.returns": seen, "Customer.amount": np.where(n % 3 == 0, np.nan, seen)}
    out: Outputs = []
    rows = Rows(n, fields, "orders", 0, n)
    monitor.process(Batch(np.full(120, micros(T0)), n, {"orders": rows}), out)
    assert len(out) >= 1
    [alarm, *_] = [msgspec.json.decode(r.value or b"") for r in record_by_record(out)]
    assert (alarm["detector"], alarm["on"], alarm["value"]) == ("PageHinkley", on, 0.9)
    assert 100 < int(alarm["event"].rpartition("-")[2]) < 112


@pytest.mark.parametrize(
    ("declare", "told"),
    [
        (lambda: drift.DDM("score"), 'write DDM\\("error"\\)'),
        (lambda: drift.ADWIN("score", mean_of=0), "mean_of=0 must be at least 1"),
        (lambda: drift.PageHinkley("score", mode="sideways"), "Valid values"),
        (lambda: declared(drift.ADWIN("scores")), "watches nothing that is a number"),
        (lambda: declared(drift.ADWIN("country")), "watches nothing that is a number"),
        (lambda: declared(drift.ADWIN("score"), drift.ADWIN("score")), "watched twice"),
    ],
)
def test_a_watch_that_cannot_be_is_refused_when_declared(declare: Callable[[], object], told: str) -> None:
    with pytest.raises(DeclarationError, match=told):
        declare()


def declared(*watch: Watch) -> hr.App:
    learner = compose.Discard("country") | linear_model.LogisticRegression()
    return hr.App("shop", models=[model(learner, watch=watch)])


def test_one_number_may_be_watched_with_two_settings() -> None:
    assert declared(drift.ADWIN("score"), drift.ADWIN("score", delta=0.1)).models
