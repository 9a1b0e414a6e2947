"""The online learner: learns mature outcomes in one order and publishes versions."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
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


SNAPSHOT_EVERY = 1_000
"""Outcomes between two snapshots at most: a start learns these again, a few seconds for the slowest estimators."""

_SNAPSHOT = b"snapshot"
_TALLY = b"tally"
_OUTCOME = b"outcome"


class Learner:
    """Learns each mature outcome once, in order. Its state is a function of the outcomes' order alone.

    Its rows are a snapshot of the estimator and the outcomes learnt since, which are learnt again at a start. A
    snapshot is taken once these weigh more than it does, or after `SNAPSHOT_EVERY` of them; so what a commit writes
    is in proportion to what was learnt, however large the estimator.

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
        self._fresh: list[Settled] = []
        self._rows: list[bytes] = []
        self._rows_size = 0
        self._snapshot_size = 0

    def load(self, rows: Iterable[tuple[bytes, bytes]]) -> None:
        found = dict(rows)
        if _TALLY not in found:
            return
        tally = msgspec.json.decode(found.pop(_TALLY), type=_Tally)
        if _SNAPSHOT in found:
            snapshot = found.pop(_SNAPSHOT)
            self.estimator = artifacts.load(snapshot)
            self._snapshot_size = len(snapshot)
        self._rows = sorted(found)
        self._rows_size = sum(map(len, found.values()))
        for key in self._rows:
            self._learn(msgspec.json.decode(found[key], type=Settled))
        self.tally = tally
        self._fresh.clear()

    def changes(self) -> list[Change]:
        if not self._fresh:
            return []
        fresh = self._weighed()
        if fresh is None:
            snapshot = artifacts.dump(self.estimator)
            changes: list[Change] = [(_SNAPSHOT, snapshot), *((key, None) for key in self._rows)]
            self._rows, self._rows_size, self._snapshot_size = [], 0, len(snapshot)
        else:
            changes = list(fresh)
            self._rows += [key for key, _ in fresh]
            self._rows_size += sum(len(value) for _, value in fresh)
        self._fresh.clear()
        return [*changes, (_TALLY, msgspec.json.encode(self.tally))]

    def _weighed(self) -> list[tuple[bytes, bytes]] | None:
        """The fresh outcomes as rows; None where a snapshot is due instead."""
        if len(self._rows) + len(self._fresh) > SNAPSHOT_EVERY:
            return None
        first, size = self.tally.learnt - len(self._fresh), self._rows_size
        fresh = []
        for n, settled in enumerate(self._fresh, first):
            value = msgspec.json.encode(settled)
            size += len(value)
            if size > self._snapshot_size:
                return None
            fresh.append((_OUTCOME + n.to_bytes(8, "big"), value))
        return fresh

    def told(self, at: int) -> Iterator[dict[str, Any]]:
        """What has been learnt, in one row: the estimator itself is on the registry."""
        if self.tally.learnt:
            yield {
                "model": self._model.name,
                "estimator": str(self.estimator),
                "fingerprint": artifacts.fingerprint(self.estimator),
                "learnt": self.tally.learnt,
                "positives": self.tally.positives,
                "rate": self.rate,
                "at": when(self.tally.at),
                "snapshot_bytes": self._snapshot_size,
                "since_snapshot": len(self._rows),
            }

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

    def _learn(self, settled: Settled) -> None:
        features: dict[Hashable, Any] = {name: value for name, value in settled.features.items() if value is not None}
        try:
            self.estimator.learn_one(features, settled.outcome)
        except Exception as error:
            raise LearnerError(
                f"the learner of {self._model.name} failed on the outcome of {settled.id}, features {features}: "
                f"{type(error).__name__}: {error}. Mend the learner, then start again: it goes on at this outcome"
            ) from error
        self._fresh.append(settled)
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
