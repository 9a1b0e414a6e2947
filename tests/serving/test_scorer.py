"""The embedded scorer: which version answers, what it is shown, and what it says where it cannot answer."""

from __future__ import annotations

import base64
import math
from typing import Any

import msgspec
import numpy as np
import pytest
from headrace.models import artifacts, versions
from headrace.models.errors import ArtifactError
from headrace.models.learner import Learner
from headrace.serving.errors import ScoringError
from headrace.serving.scorer import Scorer, score
from headrace.streams.batch import Batch, Column, Fields, Outputs, Rows, record_by_record
from headrace.streams.durations import micros
from headrace.streams.log import Fetched, Partition
from headrace.streams.outcomes import Prediction
from headrace.streams.spans import Spans
from hypothesis import given, settings
from hypothesis import strategies as st
from river import linear_model, preprocessing

from tests.models.outcomes import PRIOR, T0, model, run, stream
from tests.serving.onebyone import ScorerOneByOne

LEARNER = preprocessing.StandardScaler() | linear_model.LogisticRegression()
COLUMNS = [("Customer.a", "a"), ("Customer.b", "b"), ("Customer.country", "country")]


def scorer() -> Scorer:
    return Scorer(model(LEARNER), COLUMNS, {"customer": "Customer._rate"}, now=lambda: T0.timestamp() + 2.5)


def registry(*values: bytes | None, key: bytes = b"returns") -> Fetched:
    n = len(values)
    empty = np.zeros(n, np.int64)
    return Fetched(Partition("registry", 0), np.arange(n), empty, [key] * n, list(values), n, n)


def published() -> list[bytes]:
    return [r.value or b"" for r in run(Learner(model(LEARNER, publish_every=100)), stream(1, 300))]


def predictions(one: Scorer, **columns: list[Any]) -> list[Prediction]:
    rows = len(next(iter(columns.values())))
    fields: dict[str, Column] = {"customer": np.array(["anna"] * rows, np.object_)}
    given = {"a": [1.0] * rows, "b": [1.0] * rows, "country": [None] * rows, "_rate": [0.5] * rows, **columns}
    for name, values in given.items():
        text = name == "country"
        fields[f"Customer.{name}"] = np.array(values, np.object_) if text else np.array(values, np.float64)
    at = np.arange(rows)
    published = np.full(rows, micros(T0))
    orders = Rows(at, fields, "orders", 3, at + 10, published)
    batch = Batch(published.copy(), np.zeros(rows, np.int64), {"orders": orders})
    made: Outputs = []
    one.process(batch, made)
    out = list(record_by_record(made))
    assert [r.value for r in out] == list(batch.streams["orders"].encoded["prediction.returns"])
    assert {(r.topic, r.key) for r in out} == {("predictions.returns", b"anna")}
    return [msgspec.json.decode(r.value or b"", type=Prediction) for r in out]


def test_before_the_first_version_the_answer_is_the_declared_prior() -> None:
    (made,) = predictions(scorer(), a=[0.3])
    assert (made.score, made.version) == (PRIOR, "returns@0")
    assert made.baselines == {"base": PRIOR, "customer": 0.5}


def test_the_prediction_names_the_version_and_carries_the_features_that_made_it() -> None:
    one = scorer()
    newest = published()[-1]
    one.follow(registry(newest))
    made = predictions(one, a=[0.3, math.nan], b=[math.nan, 2.0])
    assert [p.id for p in made] == ["orders-3-10", "orders-3-11"]
    assert made[0].features == {"a": 0.3, "b": None, "country": None}
    assert made[1].features == {"a": None, "b": 2.0, "country": None}
    assert {p.version for p in made} == {"returns@300"}
    assert {p.latency_ms for p in made} == {2500.0}
    estimator = versions.load(versions.decode(newest)).estimator
    assert made[0].score == estimator.predict_proba_one({"a": 0.3})[True]
    assert made[1].score == estimator.predict_proba_one({"b": 2.0})[True]


def test_versions_are_followed_in_the_order_of_the_registry_and_other_models_ignored() -> None:
    one = scorer()
    first, second, third = published()
    one.follow(registry(first, second))
    assert one.version.name == "returns@200"
    one.follow(registry(third, key=b"others"))
    assert one.version.name == "returns@200"
    one.follow(registry(None, key=b"others"))
    assert one.version.name == "returns@200"
    one.follow(registry(third))
    assert one.version.name == "returns@300"


def test_after_a_reset_took_the_versions_back_it_scores_as_before_the_first() -> None:
    one = scorer()
    first, second, third = published()
    one.follow(registry(first, second, None))
    assert (one.version.name, one.version.estimator) == ("returns@0", None)
    one.follow(registry(None, third))
    assert one.version.name == "returns@300"


def test_a_version_that_cannot_be_read_stops_the_scorer_and_is_named() -> None:
    version = msgspec.structs.replace(versions.decode(published()[0]), artifact=base64.b64encode(b"?").decode())
    with pytest.raises(ArtifactError, match="returns@100"):
        scorer().follow(registry(versions.encode(version)))
    with pytest.raises(ArtifactError, match="no version of a model"):
        scorer().follow(registry(b"?"))


def test_where_a_baseline_is_missing_the_base_rate_stands_in() -> None:
    one = scorer()
    one.follow(registry(published()[-1]))
    made = predictions(one, _rate=[math.nan, 0.25])
    assert [p.baselines["customer"] for p in made] == [one.version.rate, 0.25]
    assert {p.baselines["base"] for p in made} == {one.version.rate}


class Answering:
    def __init__(self, answer: object) -> None:
        self.answer = answer

    def predict_proba_one(self, x: dict[str, object]) -> Any:
        return self.answer


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({}, PRIOR),
        ({True: math.nan}, PRIOR),
        ({True: math.inf}, PRIOR),
        ({False: 1.0}, PRIOR),
        ({True: 0}, 0.0),
        ({True: 1 + 1e-12, False: 0.0}, 1.0),
        ({True: -1e-12}, 0.0),
        ({True: 0.25, False: 0.75}, 0.25),
    ],
)
def test_a_model_without_a_finite_answer_says_the_prior(answer: object, said: float) -> None:
    assert score(versions.Loaded("returns@1", 0.4, Answering(answer)), {"a": 1.0}, PRIOR) == said


def test_a_model_that_fails_on_an_event_is_told_with_the_event_and_the_features() -> None:
    one = scorer()
    one.version = versions.Loaded("returns@300", 0.4, linear_model.SoftmaxRegression())
    one.version.estimator.learn_one({"country": 1.0}, True)
    with pytest.raises(ScoringError, match=r"returns@300 cannot score event orders-3-11 with .*'Peru'.*TypeError"):
        predictions(one, country=[None, "Peru"])


def test_scoring_changes_no_version() -> None:
    one = scorer()
    one.follow(registry(published()[-1]))
    before = artifacts.fingerprint(one.version.estimator)
    predictions(one, a=[0.1, 99.0, math.nan])
    assert artifacts.fingerprint(one.version.estimator) == before


ODD = [0.0, -0.0, 0.1, 1.0, -2.5, 1e-7, 123456.75, 1e15, 1e16, -1.5e17, 2.0**60, 1e300, 5e-324, math.nan]
TEXTS = ["", "Peru", 'a "b"', "é\\日", "\n\x00", "},{", "\x7f"]


@pytest.mark.parametrize("learnt", ["nothing", "river", "a twin"])
def test_predictions_by_columns_have_the_bytes_of_those_made_one_at_a_time(learnt: str) -> None:
    names = ["a", "b", "n", "yes"] + (["country"] if learnt == "river" else [])
    columns = [(f"Customer.{name}", name) for name in names]
    known = [{name: float(i % 3) for name in names if name != "country"} for i in range(7)]

    @settings(derandomize=True, max_examples=25, deadline=None)
    @given(st.data(), st.integers(1, 30))
    def check(data: st.DataObject, rows: int) -> None:
        def drawn(values: st.SearchStrategy[Any]) -> list[Any]:
            return data.draw(st.lists(values, min_size=rows, max_size=rows))

        numbers = st.sampled_from(ODD) | st.floats(allow_infinity=False)
        fields: dict[str, Column] = {
            "Customer.a": np.array(drawn(numbers)), "Customer.b": np.array(drawn(numbers)),
            "Customer.n": np.array(drawn(st.integers(-(2**60), 2**60)), np.int64),
            "Customer.yes": np.array(drawn(st.booleans()), np.bool_),
            "Customer.country": np.array(drawn(st.none() | st.sampled_from(TEXTS)), np.object_),
            "Customer._rate": np.array(drawn(st.sampled_from([0.0, 0.3, 1e-9, math.nan, math.inf]))),
        }  # fmt: skip
        keys = drawn(st.sampled_from([t for t in TEXTS if t]))
        bare = drawn(st.sampled_from(["anna", "é日"]))
        published = micros(T0) - np.array(drawn(st.integers(-(10**6), 10**9)), np.int64)
        time = np.array(drawn(st.integers(0, 4 * 10**15)), np.int64)
        baselines = {"item": "Customer._rate", **({"base": "Customer._rate"} if rows % 2 else {})}
        for texts in (False, True):
            own = Fields(fields | ({} if texts else {"customer": np.array(keys, np.object_)}),
                         {"customer": Spans.of([t.encode() for t in bare])} if texts else {})  # fmt: skip
            made = []
            for kind in (Scorer, ScorerOneByOne):
                one = kind(model(LEARNER), columns, baselines, now=lambda: T0.timestamp() + 0.00005)
                if learnt != "nothing":
                    estimator = LEARNER.clone()
                    for i, x in enumerate(known):
                        estimator.learn_one(x, i % 2 == 0)
                    if learnt == "river":
                        estimator = Shouting(estimator)
                    one.version = versions.Loaded("returns@7", 0.25, estimator)
                assert (one._twin is not None) == (learnt == "a twin")
                at = np.arange(rows)
                orders = Rows(at, Fields(own, own.texts), "orders", 3, at + 10, published)
                out: Outputs = []
                one.process(Batch(time, time, {"orders": orders}), out)
                made.append([(r.topic, r.key, r.value) for r in record_by_record(out)])
            assert made[0] == made[1]

    check()


class Shouting:
    """An estimator that has no twin."""

    def __init__(self, estimator: Any) -> None:
        self.estimator = estimator

    def predict_proba_one(self, x: dict[str, Any]) -> Any:
        louder = {name: value for name, value in x.items() if name != "country"}
        return self.estimator.predict_proba_one(louder | {"b": len(x.get("country", ""))})
