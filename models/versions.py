"""Versions of a model on the `registry` topic."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
from headrace.models import artifacts
from headrace.models.errors import ArtifactError
from headrace.streams.codecs import NO_JSON

REGISTRY = "registry"


class Version(msgspec.Struct, frozen=True):
    """A version, as it stands on the registry.

    version:     `<model>@<offset>`: the outcomes before this offset of `outcomes.<model>` have been seen
    at:          the event time up to which outcomes were learnt
    learnt:      how many outcomes; positives: how many of them were True
    rate:        the share of True so far, begun at the prior
    fingerprint: equal for equal states
    artifact:    the pickled estimator, base64
    """

    model: str
    version: str
    offset: int
    at: datetime
    learnt: int
    positives: int
    rate: float
    fingerprint: str
    artifact: str


@dataclass(slots=True, frozen=True)
class Loaded:
    """A version ready to score. estimator None: nothing is learnt yet."""

    name: str
    rate: float
    estimator: Any


def encode(version: Version) -> bytes:
    return msgspec.json.encode(version)


def decode(value: bytes) -> Version:
    """Raises ArtifactError where the record is no version."""
    try:
        return msgspec.json.decode(value, type=Version)
    except NO_JSON as error:
        raise ArtifactError(
            f"a record of the {REGISTRY} topic is no version of a model ({error}): {value[:80]!r}"
        ) from error


def load(version: Version) -> Loaded:
    """Raises ArtifactError where the artifact must not or cannot be read."""
    try:
        estimator = artifacts.load(base64.b64decode(version.artifact, validate=True))
    except (ArtifactError, ValueError) as error:
        raise ArtifactError(f"{version.version}: {error}") from error
    return Loaded(version.version, version.rate, estimator)


def pack(estimator: Any) -> str:
    return base64.b64encode(artifacts.dump(estimator)).decode()
