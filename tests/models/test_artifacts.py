"""Stored models: what is river's is read, all else is refused before it can run."""

from __future__ import annotations

import builtins
import functools
import io
import os
import pickle
import random
import subprocess
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from headrace.models import artifacts
from headrace.models.errors import ArtifactError
from river import compose, linear_model, naive_bayes

from tests.models.estimators import NUMBERS, TEXTS
from tests.models.outcomes import stream


@pytest.mark.parametrize("name", NUMBERS | TEXTS)
def test_every_family_of_river_is_read_as_it_was_stored(name: str) -> None:
    estimator = (NUMBERS | TEXTS)[name]()
    features: list[dict[Hashable, Any]] = [
        {k: v for k, v in s.features.items() if v is not None} for s in stream(2, 60, name in TEXTS)
    ]
    for n, x in enumerate(features):
        estimator.learn_one(dict(x), n % 3 == 0)
    again = artifacts.load(artifacts.dump(estimator))
    assert artifacts.fingerprint(again) == artifacts.fingerprint(estimator)
    assert again.predict_proba_one(features[0]) == estimator.predict_proba_one(features[0])


class Call:
    """Pickles as the call of a function."""

    def __init__(self, function: Callable[..., object], *args: object) -> None:
        self.function = function
        self.args = args

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.function, self.args


def named(module: str, name: str, *args: object) -> bytes:
    """A pickle that calls what a module's dotted name leads to, as protocol 4 allows."""
    out = io.BytesIO()
    out.write(pickle.PROTO + b"\x04")
    for text in (module, name):
        out.write(pickle.SHORT_BINUNICODE + bytes([len(text)]) + text.encode())
    out.write(pickle.STACK_GLOBAL + pickle.dumps(args, 4)[2:-1] + pickle.REDUCE + pickle.STOP)
    return out.getvalue()


MARK = "touched"
ATTACKS: dict[str, bytes] = {
    "os.system": pickle.dumps(Call(os.system, f"touch {MARK}")),
    "subprocess": pickle.dumps(Call(subprocess.Popen, ["touch", MARK])),
    "eval": pickle.dumps(Call(eval, f"open({MARK!r}, 'w')")),
    "exec": pickle.dumps(Call(exec, f"open({MARK!r}, 'w')")),
    "open": pickle.dumps(Call(open, MARK, "w")),
    "import": pickle.dumps(Call(builtins.__import__, "os")),
    "getattr of a module": pickle.dumps(Call(getattr, Call(builtins.__import__, "os"), "system")),
    "getattr of a type": pickle.dumps(Call(getattr, int, "__subclasses__")),
    "getattr of a function's globals": pickle.dumps(
        Call(getattr, naive_bayes.GaussianNB._make_gaussian, "__globals__")
    ),
    "getattr of an estimator's class": pickle.dumps(Call(getattr, linear_model.LogisticRegression(), "__class__")),
    "getattr of an estimator's dunder": pickle.dumps(Call(getattr, linear_model.LogisticRegression(), "__reduce_ex__")),
    "partial": pickle.dumps(functools.partial(os.system, f"touch {MARK}")),
    "through river to os": named("river.base.base", "inspect.os.system", f"touch {MARK}"),
    "through river to a class": named("river.base.base", "inspect.importlib.machinery.SourceFileLoader", "x", MARK),
    "through river to a method": named("river.compose.pipeline", "inspect.Signature.from_callable", 1),
    "through river's numbers to numpy": named("river.utils.math", "np.load", MARK),
    "a class that river imports": named("river.stats.base", "TypeVar", "T"),
    "a class of the standard library in river": named("river.compose.pipeline", "io.FileIO", MARK, "w"),
    "a function of river": named("river.utils.pretty", "print_table", [], []),
    "a data set of river": named("river.datasets.phishing", "Phishing"),
    "a reader of river": named("river.stream.iter_csv", "DictReader", "/etc/passwd", None, None),
    "a test of river": named("river.checks.common", "check_repr", 1),
    "headrace": named("headrace.models.artifacts", "io.open", MARK, "w"),
    "a lookalike": named("riverside", "x"),
    "river itself": named("river", "base.base.inspect.os.system", f"touch {MARK}"),
    "numpy's loader": named("numpy", "load", MARK),
    "a bit generator by name": named("numpy.random", "default_rng", 1),
    "old names of builtins": b"c__builtin__\neval\n(S'1'\ntR.",
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_is_not_on_the_allow_list_is_refused_and_never_run(
    attack: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArtifactError, match="not on the allow-list"):
        artifacts.load(ATTACKS[attack])
    assert list(tmp_path.iterdir()) == []


BROKEN = [b"", b"\x80", b"not a pickle", pickle.dumps(linear_model.Perceptron())[:-9]]
UNKNOWN = [b"\x80\x02\x82\x01.", b"\x80\x02X\x01\x00\x00\x00aQ."]
"""An extension code and a persistent id, which no model of ours has."""


@pytest.mark.parametrize(
    "data", [*UNKNOWN, b"", b"\x80", b"not a pickle", pickle.dumps(linear_model.Perceptron())[:-9]]
)
def test_what_is_no_pickle_or_cut_off_is_told(data: bytes) -> None:
    with pytest.raises(ArtifactError, match="cannot be read"):
        artifacts.load(data)


def doubled(x: dict[str, float]) -> dict[str, float]:
    return {name: 2 * value for name, value in x.items()}


def test_a_function_of_the_users_own_is_stored_by_name_and_so_not_read() -> None:
    learner = compose.FuncTransformer(doubled) | linear_model.LogisticRegression()
    with pytest.raises(ArtifactError, match=r"doubled, which is not on the allow-list"):
        artifacts.load(artifacts.dump(learner))


def test_a_lambda_cannot_be_stored() -> None:
    learner = compose.FuncTransformer(lambda x: x) | linear_model.LogisticRegression()
    with pytest.raises(ArtifactError, match="the model Pipeline cannot be stored"):
        artifacts.dump(learner)


def test_a_model_too_large_for_a_record_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "MAX_ARTIFACT_BYTES", 100)
    with pytest.raises(ArtifactError, match="at most 100 are stored"):
        artifacts.dump(linear_model.LogisticRegression())


def text(value: str) -> str:
    """An equal text that is another object."""
    return "".join(list(value))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["ab", "ab"], [text("ab"), text("ab")]),
        ({"x", "yy", "zzz"}, {"zzz", "yy", "x"}),
        ([np.float64(1.0)], [np.float64(1.0)]),
        ({"a": (1, "b")}, {text("a"): (1, text("b"))}),
        ([random.Random(1)], [random.Random(1)]),
    ],
)
def test_equal_states_have_one_fingerprint_whatever_objects_they_share(one: object, other: object) -> None:
    assert artifacts.fingerprint(one) == artifacts.fingerprint(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([1], [2]),
        ([1], [1.0]),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ({1, 2}, {1, 3}),
        ([frozenset("a")], [{"a"}]),
        ([0.1 + 0.2], [0.3]),
        ([random.Random(1)], [random.Random(2)]),
        ((lambda x: [x, x])([]), [[], []]),
    ],
)
def test_states_that_differ_have_different_fingerprints(one: object, other: object) -> None:
    assert artifacts.fingerprint(one) != artifacts.fingerprint(other)


def test_a_state_that_holds_itself_has_a_fingerprint() -> None:
    def ring(value: int) -> list[object]:
        made: list[object] = [value]
        made.append({"again": made})
        return made

    assert artifacts.fingerprint(ring(1)) == artifacts.fingerprint(ring(1))
    assert artifacts.fingerprint(ring(1)) != artifacts.fingerprint(ring(2))
