"""Stored models come back as they were, and nothing but models comes back."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from headrace.models import artifacts, drift
from headrace.models.errors import ArtifactError
from river import drift as river_drift

DETECTORS = [
    drift.ADWIN("error"), drift.PageHinkley("error"), drift.KSWIN("error"), drift.DDM(), drift.EDDM(), drift.HDDM_A(),
    drift.HDDM_W(),
]  # fmt: skip


@pytest.mark.parametrize("watch", DETECTORS, ids=lambda watch: watch.kind)
def test_a_detector_that_was_stored_goes_on_as_if_it_had_not_been(watch: drift.Watch) -> None:
    numbers = [(i * 7 % 5 == 0) + (i > 300) * (i % 2) for i in range(600)]
    kept, stored = watch.make(), watch.make()
    alarms: list[tuple[bool, bool]] = []
    for number in numbers:
        value = bool(number) if watch.binary else float(number)
        stored = artifacts.load(artifacts.dump(stored))
        kept.update(value)
        stored.update(value)
        alarms.append((kept.drift_detected, stored.drift_detected))
    assert all(mine == theirs for mine, theirs in alarms)
    assert artifacts.fingerprint(kept) == artifacts.fingerprint(stored)


class Asks:
    """Pickled, it asks for an attribute of something when it is read."""

    def __init__(self, owner: object, name: str) -> None:
        self.asked = (owner, name)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, self.asked


@pytest.mark.parametrize(
    ("owner", "name"),
    [("text", "format"), ([], "append"), (river_drift.PageHinkley(), "__class__"), (river_drift.PageHinkley(), "mode")],
)
def test_a_stored_model_may_name_methods_of_detectors_and_of_nothing_else(owner: object, name: str) -> None:
    with pytest.raises(ArtifactError, match="not read"):
        artifacts.load(pickle.dumps(Asks(owner, name)))
