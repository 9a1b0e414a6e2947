"""A learner that cannot learn is refused when it is declared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from headrace.models.model import Model
from headrace.models.rehearsal import rehearse
from headrace.streams.errors import DeclarationError
from headrace.streams.event import Kind
from river import anomaly, cluster, compose, dummy, ensemble, forest, linear_model, neighbors, preprocessing, tree

import headrace as hr
from tests.models.estimators import NUMBERS, TEXTS
from tests.models.outcomes import Customer, Order, model

NUMERIC: Mapping[str, Kind] = {"a": "float", "b": "int", "c": "bool"}
MIXED: Mapping[str, Kind] = {"a": "float", "b": "float", "country": "str"}


@pytest.mark.parametrize("name", NUMBERS | TEXTS)
def test_every_family_of_classifiers_passes(name: str) -> None:
    rehearse(model((NUMBERS | TEXTS)[name]()), MIXED if name in TEXTS else NUMERIC)


def same(x: Any) -> Any:
    return x


@pytest.mark.parametrize(
    ("learner", "told"),
    [
        (lambda: linear_model.LinearRegression(), "LinearRegression is no classifier"),
        (lambda: preprocessing.StandardScaler() | linear_model.LinearRegression(), "no classifier"),
        (lambda: preprocessing.StandardScaler() | preprocessing.MinMaxScaler(), "MinMaxScaler is no classifier"),
        (lambda: cluster.KMeans(seed=1), "no classifier"),
        (lambda: anomaly.HalfSpaceTrees(seed=1), "no classifier"),
        (lambda: "LogisticRegression", "no classifier"),
        (lambda: ensemble.VotingClassifier([linear_model.LogisticRegression(), dummy.PriorClassifier()]),
         "tells no probabilities"),
        (lambda: forest.ARFClassifier(), "is random and ARFClassifier has no seed"),
        (lambda: preprocessing.MinMaxScaler() | neighbors.KNNClassifier(), "SWINN has no seed"),
        (lambda: ensemble.BaggingClassifier(tree.HoeffdingTreeClassifier()), "BaggingClassifier has no seed"),
        (lambda: compose.FuncTransformer(same) | linear_model.LogisticRegression(), "cannot be stored: .*same"),
        (lambda: compose.FuncTransformer(lambda x: x) | linear_model.LogisticRegression(), "cannot be stored"),
    ],
)  # fmt: skip
def test_what_cannot_learn_is_refused_by_name_and_with_what_to_do(learner: Callable[[], Any], told: str) -> None:
    with pytest.raises(DeclarationError, match=f"Model returns: its learner .*{told}"):
        rehearse(model(learner()), NUMERIC)


def test_text_that_the_learner_cannot_take_is_named() -> None:
    with pytest.raises(DeclarationError, match=r"country is text: encode it"):
        rehearse(model(preprocessing.StandardScaler() | linear_model.LogisticRegression()), MIXED)


def test_an_application_is_refused_with_its_learner() -> None:
    assert hr.App("shop", models=[model(TEXTS["one-hot"]())])
    with pytest.raises(DeclarationError, match=r"country is text"):
        hr.App("shop", models=[model(NUMBERS["logistic"]())])
    with pytest.raises(DeclarationError, match=r"no classifier"):
        hr.App("shop", models=[model(linear_model.LinearRegression())])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("declare", "told"),
    [
        (lambda: Model("Returns", on=Order, features=[Customer], learner=NUMBERS["prior"]()), "must be lower-case"),
        (lambda: Model("returns", on=Order, features=[], learner=NUMBERS["prior"]()), "features is empty"),
        (lambda: model(NUMBERS["prior"](), publish_every=0), "publish_every=0 must be at least 1"),
        (lambda: Model("returns", on=Order, features=[Customer], learner=NUMBERS["prior"](),
                       watch=[hr.drift.ADWIN("log_loss")]), "watches outcomes, and the model has none"),
    ],
)  # fmt: skip
def test_a_model_that_cannot_be_is_refused(declare: Callable[[], object], told: str) -> None:
    with pytest.raises(DeclarationError, match=told):
        declare()
