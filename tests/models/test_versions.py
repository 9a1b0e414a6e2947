"""Versions on the registry: what was learnt is what is read, and what is none is told."""

from __future__ import annotations

import base64
import os
import pickle

import msgspec
import pytest
from headrace.models import artifacts, versions
from headrace.models.errors import ArtifactError
from headrace.models.learner import Learner
from headrace.models.versions import Version
from river import linear_model, preprocessing

from tests.models.outcomes import model, run, stream


def published() -> tuple[Learner, list[Version]]:
    learner = Learner(model(preprocessing.StandardScaler() | linear_model.LogisticRegression(), publish_every=100))
    records = run(learner, stream(1, 200))
    assert [(r.topic, r.key) for r in records] == [("registry", b"returns")] * 2
    return learner, [versions.decode(r.value or b"") for r in records]


def test_a_version_is_the_model_as_it_was_learnt() -> None:
    learner, (first, second) = published()
    loaded = versions.load(second)
    assert (loaded.name, loaded.rate) == (second.version, second.rate) == ("returns@200", learner.rate)
    assert artifacts.fingerprint(loaded.estimator) == second.fingerprint == artifacts.fingerprint(learner.estimator)
    assert first.fingerprint != second.fingerprint


def test_a_version_survives_the_registry() -> None:
    _, (version, _) = published()
    assert versions.decode(versions.encode(version)) == version


@pytest.mark.parametrize(
    "value",
    [b"", b"{}", b"not json", b'{"model": 1}', b"\xff", b'{"model": "\xff"}', b'{"more": ' + b"[" * 100_000],
    ids=lambda value: repr(value[:20]),
)
def test_a_record_that_is_no_version_is_told(value: bytes) -> None:
    with pytest.raises(ArtifactError, match="registry topic is no version"):
        versions.decode(value)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("true",)


@pytest.mark.parametrize(
    ("artifact", "told"),
    [
        ("not base64!", "returns@100: "),
        (base64.b64encode(b"no pickle").decode(), "returns@100: the stored model cannot be read"),
        (base64.b64encode(pickle.dumps(Evil())).decode(), r"returns@100: the stored model names (posix|nt)\.system"),
    ],
)
def test_a_version_that_cannot_be_read_is_named(artifact: str, told: str) -> None:
    _, (version, _) = published()
    with pytest.raises(ArtifactError, match=told):
        versions.load(msgspec.structs.replace(version, artifact=artifact))
