"""Versions of a model on the `registry` topic."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
from headrace.models import artifacts

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
    """A version ready to score."""

    name: str
    rate: float
    estimator: Any


def encode(version: Version) -> bytes:
    return msgspec.json.encode(version)


def decode(value: bytes) -> Version:
    return msgspec.json.decode(value, type=Version)


def load(version: Version) -> Loaded:
    """Raises ArtifactError where the artifact must not or cannot be read."""
    estimator = artifacts.load(base64.b64decode(version.artifact))
    return Loaded(version.version, version.rate, estimator)


def pack(estimator: Any) -> str:
    return base64.b64encode(artifacts.dump(estimator)).decode()
