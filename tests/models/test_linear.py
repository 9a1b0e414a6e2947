"""Twins of linear models learn and predict the bits of river, wherever batches are cut; the others have none."""

# mypy: disable-error-code="no-untyped-call"
# Some constructors of river have no types.

from __future__ import annotations

import copy
import hashlib
import math
import os
import subprocess
import sys
from collections.abc import Callable, Hashable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from headrace.models import artifacts, linear
from headrace.streams import kernels
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from river import compose, linear_model, optim, preprocessing, utils

from headrace import program
from headrace.plan import model_columns
from tests.models.estimators import NUMBERS, TEXTS

ROOT = Path(__file__).parents[2]
NAMES = ("a", "b", "c", "d")
Make = Callable[[], Any]

OPTIMIZERS: list[Make] = [
    lambda: optim.SGD(0.05),
    lambda: optim.SGD(optim.schedulers.InverseScaling(0.1, 0.3)),
    lambda: optim.SGD(optim.schedulers.Optimal(optim.losses.Log())),
    lambda: optim.AdaGrad(0.05, eps=1.0),
    lambda: optim.Adam(0.01),
    lambda: optim.RMSProp(0.01),
    lambda: optim.Momentum(0.01),
    lambda: optim.NesterovMomentum(0.01),
    lambda: optim.AdaDelta(),
    lambda: optim.FTRLProximal(l1=0.1),
]
SCALERS: list[Make] = [
    preprocessing.StandardScaler,
    lambda: preprocessing.StandardScaler(with_std=False),
    preprocessing.MinMaxScaler,
    preprocessing.MaxAbsScaler,
]
SETTINGS: list[dict[str, Any]] = [
    {"l2": 0.01},
    {"l1": 0.001},
    {"clip_gradient": 0.3, "initializer": optim.initializers.Constant(0.5)},
    {"loss": optim.losses.Hinge(), "intercept_lr": optim.schedulers.Optimal(optim.losses.Hinge())},
    {"loss": optim.losses.BinaryFocalLoss()},
    {"loss": optim.losses.Log(weight_pos=3.0, weight_neg=2), "intercept_init": -2, "intercept_lr": 0},
]


def logistic(optimizer: Any = None, **settings: Any) -> Any:
    return linear_model.LogisticRegression(optimizer, **settings)


MODELS: list[Make] = [
    *(lambda o=o: preprocessing.StandardScaler() | logistic(o()) for o in OPTIMIZERS),
    *(lambda s=s: s() | logistic(optim.AdaGrad()) for s in SCALERS),
    *(lambda e=e: preprocessing.StandardScaler() | logistic(optim.AdaGrad(), **e) for e in SETTINGS),
    *(lambda e=e: logistic(optim.SGD(0.001), **e) for e in SETTINGS[:2]),
    lambda: logistic(optim.NesterovMomentum(0.001), l1=0.001),
    lambda: logistic(optim.Adam(optim.schedulers.InverseScaling(0.1)), l1=0.001),
    lambda: compose.Pipeline(("only", linear_model.Perceptron(l2=0.1))),
    linear_model.Perceptron,
]
models = pytest.mark.parametrize("make", MODELS, ids=lambda make: str(make()).replace("\n", "")[:60])


def rows(seed: int, count: int = 150) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Features, a part of them missing, the first feature at the beginning always; and outcomes."""
    chance = np.random.default_rng(seed)
    x = chance.normal(1.0, 3.0, (count, len(NAMES))) * chance.choice([0.0, 1.0, 1.0, 1e3], (count, 1))
    x[chance.random(x.shape) < 0.15] = np.nan
    x[:7, 0] = np.nan
    return x, chance.random(count) < 0.3


def shown(row: Sequence[float]) -> dict[Hashable, float]:
    return {name: value for name, value in zip(NAMES, row, strict=True) if not math.isnan(value)}


def learn(model: Any, x: NDArray[np.float64], y: NDArray[np.bool_]) -> None:
    """As river learns them."""
    for row, outcome in zip(x.tolist(), y.tolist(), strict=True):
        model.learn_one(shown(row), outcome)


def twin_of(model: Any) -> linear.Twin:
    found = linear.twin(model, NAMES)
    assert found is not None
    return found


@models
def test_a_twin_learns_and_predicts_the_bits_of_river_and_is_itself_again_after_it_was_stored(make: Make) -> None:
    x, y = rows(1)
    model, twin = make(), twin_of(make())
    for start, end in ((0, 1), (1, 9), (9, 9), (9, 150)):
        learn(model, x[start:end], y[start:end])
        assert twin.learn_many(x[start:end], y[start:end])
        assert artifacts.fingerprint(twin.river()) == artifacts.fingerprint(model)
        twin = twin_of(artifacts.load(artifacts.dump(twin.river())))
    asked = copy.deepcopy(model)  # some scalers of river note what they are asked
    assert twin.predict_many(x).tolist() == [asked.predict_proba_one(shown(row))[True] for row in x.tolist()]


@models
def test_a_twin_that_has_learnt_nothing_is_the_estimator_and_predicts_as_it_does(make: Make) -> None:
    x, _ = rows(2, 20)
    model, twin = make(), twin_of(make())
    assert artifacts.fingerprint(twin.river()) == artifacts.fingerprint(model)
    wanted = [model.predict_proba_one(shown(row))[True] for row in x.tolist()]
    np.testing.assert_array_equal(twin.predict_many(x), wanted)


@given(st.lists(st.integers(0, 60), max_size=8), st.sampled_from(MODELS), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_where_batches_are_cut_and_stored_changes_no_bit(cuts: list[int], make: Make, seed: int) -> None:
    x, y = rows(seed, 60)
    whole, parted = twin_of(make()), twin_of(make())
    assert whole.learn_many(x, y)
    places = [0, *sorted(cuts), 60]
    for start, end in pairwise(places):
        assert parted.learn_many(x[start:end], y[start:end])
        parted = twin_of(parted.river()) if start % 2 else parted
    assert artifacts.fingerprint(parted.river()) == artifacts.fingerprint(whole.river())


def test_the_returns_example_learns_by_a_twin() -> None:
    (model,) = program.load(str(ROOT / "examples" / "returns" / "pipeline.py")).models
    assert linear.twin(model.learner, [name for _, name in model_columns(model)]) is not None


def test_an_estimator_given_to_a_twin_is_never_changed() -> None:
    model = MODELS[0]()
    before = artifacts.fingerprint(model)
    twin = twin_of(model)
    twin.learn_many(*rows(1))
    twin.river().learn_one({"a": 1.0}, True)
    assert artifacts.fingerprint(model) == before
    model.learn_one({"a": 1.0}, True)
    assert artifacts.fingerprint(twin.river()) != artifacts.fingerprint(model)


class Own(linear_model.LogisticRegression):
    """A user's."""


def odd(**attributes: Any) -> Any:
    model = logistic()
    model.learn_one({"a": 1.0}, True)
    for name, value in attributes.items():
        setattr(model, name, value)
    return model


UNCOVERED: dict[str, Make] = {
    "a subclass": Own,
    "a window": lambda: preprocessing.StandardScaler(window_size=5) | logistic(),
    "two scalers": lambda: preprocessing.StandardScaler() | preprocessing.MinMaxScaler() | logistic(),
    "another scaler": lambda: preprocessing.RobustScaler() | logistic(),
    "no model": lambda: compose.Pipeline(preprocessing.StandardScaler()),
    "random weights": lambda: logistic(initializer=optim.initializers.Normal(seed=1)),
    "another optimizer": lambda: logistic(optim.AMSGrad()),
    "a regressor": linear_model.LinearRegression,
    "a loss of regression": lambda: logistic(loss=optim.losses.Squared()),
    "several outputs": linear_model.SoftmaxRegression,
    "norms by BLAS": linear_model.PAClassifier,
    "a division by what may be 0": lambda: logistic(optim.Adam(eps=0.0)),
    "mini-batches": lambda: odd(_y_name="outcome"),
    "a feature of another name": lambda: odd(_weights=utils.VectorDict({"z": 1.0})),
    "a weight that is no number": lambda: odd(intercept=math.nan),
    "an attribute of its own": lambda: odd(colour="red"),
    "FTRL with the model's own L1, which river cannot": lambda: logistic(optim.FTRLProximal(), l1=0.1),
}


@pytest.mark.parametrize("make", UNCOVERED.values(), ids=UNCOVERED)
def test_what_is_not_covered_is_left_to_river(make: Make) -> None:
    assert linear.twin(make(), NAMES) is None


def test_of_the_families_of_river_linear_models_of_plain_numbers_have_a_twin() -> None:
    covered = {name for name, make in (NUMBERS | TEXTS).items() if linear.twin(make(), ("a", "b")) is not None}
    assert covered == {"logistic", "logistic, adam"}


def test_a_river_that_learns_otherwise_has_no_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "_agreed", {})
    step = optim.SGD._step_with_vector
    monkeypatch.setattr(optim.SGD, "_step_with_vector", lambda self, w, g: step(self, w, g * (1 + 1e-15)))
    assert linear.twin(logistic(), NAMES) is None


def test_numbers_beyond_float64_are_left_to_river_and_nothing_of_their_batch_is_learnt() -> None:
    twin = twin_of(logistic(optim.AdaGrad()))
    x, y = rows(1, 30)
    assert twin.learn_many(x, y)
    before = artifacts.fingerprint(twin.river())
    x[20, 1] = 1e200
    assert not twin.learn_many(x, y)
    assert artifacts.fingerprint(twin.river()) == before
    with pytest.raises(OverflowError):
        learn(twin.river(), x, y)


def digest() -> str:
    """What every model learns of some rows, and predicts."""
    made = []
    for make in MODELS:
        twin = twin_of(make())
        assert twin.learn_many(*rows(4, 40))
        made.append(f"{artifacts.fingerprint(twin.river())} {twin.predict_many(rows(5, 20)[0]).tolist()}")
    return hashlib.sha256("".join(made).encode()).hexdigest()


def test_without_the_compiler_the_bits_are_the_same() -> None:
    command = [sys.executable, "-c", "from tests.models.test_linear import digest; print(digest())"]
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "0" if kernels.INTERPRETED else "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == digest()
