"""The online learner: learns mature outcomes in one order and publishes versions."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any

import msgspec
from headrace.models import artifacts, versions
from headrace.models.errors import LearnerError
from headrace.models.model import Model
from headrace.streams.batch import Batch, Change, Outputs, Record
from headrace.streams.durations import micros, when
from headrace.streams.outcomes import Settled


class _Tally(msgspec.Struct):
    """Beside the estimator: outcomes learnt, how many were True, how many at the last version, and their time."""

    learnt: int = 0
    positives: int = 0
    published: int = 0
    at: int = 0


class Learner:
    """Learns each mature outcome once, in order. Its state is a function of the outcomes' order alone.

    Raises LearnerError where the estimator fails.
    """

    def __init__(self, model: Model) -> None:
        assert model.outcome is not None, "a model without an outcome does not learn"
        self.name = f"learner.{model.name}"
        self._model = model
        self._prior = model.outcome.prior
        self._stream = f"mature.{model.name}"
        self.clear()

    def clear(self) -> None:
        self.estimator = self._model.learner.clone()
        self.tally = _Tally()
        self._touched = False

    def load(self, rows: Iterable[tuple[bytes, bytes]]) -> None:
        for key, value in rows:
            if key == b"estimator":
                self.estimator = artifacts.load(value)
            else:
                self.tally = msgspec.json.decode(value, type=_Tally)

    def changes(self) -> list[Change]:
        if not self._touched:
            return []
        self._touched = False
        return [(b"estimator", artifacts.dump(self.estimator)), (b"tally", msgspec.json.encode(self.tally))]

    def process(self, batch: Batch, out: Outputs) -> None:
        rows = batch.streams.get(self._stream)
        if rows is None or not len(rows):
            return
        outcomes, seen = rows.fields["outcome"].tolist(), rows.fields["seen"].tolist()
        for i, settled in enumerate(outcomes):
            self._learn(settled)
            # A version ends at a record of the outcomes, never between outcomes that matured together.
            last = i + 1 == len(outcomes) or seen[i + 1] != seen[i]
            if last and self.tally.learnt - self.tally.published >= self._model.publish_every:
                out.append(self._version(seen[i]))
        self._touched = True

    def _learn(self, settled: Settled) -> None:
        features: dict[Hashable, Any] = {name: value for name, value in settled.features.items() if value is not None}
        try:
            self.estimator.learn_one(features, settled.outcome)
        except Exception as error:
            raise LearnerError(
                f"the learner of {self._model.name} failed on the outcome of {settled.id}, features {features}: "
                f"{type(error).__name__}: {error}. Mend the learner, then start again: it goes on at this outcome"
            ) from error
        self.tally.learnt += 1
        self.tally.positives += settled.outcome
        self.tally.at = micros(settled.matures)

    @property
    def rate(self) -> float:
        """The share of True among the outcomes learnt, begun at the prior as if it had been seen 100 times."""
        return (self.tally.positives + 100 * self._prior) / (self.tally.learnt + 100)

    def _version(self, offset: int) -> Record:
        self.tally.published = self.tally.learnt
        version = versions.Version(
            model=self._model.name,
            version=f"{self._model.name}@{offset}",
            offset=offset,
            at=when(self.tally.at),
            learnt=self.tally.learnt,
            positives=self.tally.positives,
            rate=self.rate,
            fingerprint=artifacts.fingerprint(self.estimator),
            artifact=versions.pack(self.estimator),
        )
        return Record(versions.REGISTRY, self._model.name.encode(), versions.encode(version), 0)
