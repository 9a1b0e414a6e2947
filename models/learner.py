"""The online learner: learns mature outcomes in one order and publishes versions."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from typing import Any

import msgspec
import numpy as np
from headrace.models import artifacts, versions
from headrace.models.errors import LearnerError
from headrace.models.linear import Twin, twin
from headrace.models.maturity import MatureRows
from headrace.models.model import Model
from headrace.streams.batch import Batch, Changes, Outputs, Record, Touched
from headrace.streams.durations import micros, when
from headrace.streams.outcomecolumns import OutcomeColumns, Outcomes
from headrace.streams.outcomes import Settled
from headrace.streams.spans import Spans


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

    A linear model learns by its compiled twin (`linear.twin`), every other one as river has it; either way its state is
    river's. Its rows are a snapshot of the estimator and the outcomes learnt since, which are learnt again at a start.
    A snapshot is taken once these weigh more than it does, or after `SNAPSHOT_EVERY` of them; so what a commit writes
    is in proportion to what was learnt, however large the estimator.

    columns: how outcomes are read at a start; without, one by one

    Raises LearnerError where the estimator fails.
    """

    def __init__(self, model: Model, columns: OutcomeColumns | None = None) -> None:
        assert model.outcome is not None, "a model without an outcome does not learn"
        self.name = f"learner.{model.name}"
        self._model = model
        self._prior = model.outcome.prior
        self._stream = f"mature.{model.name}"
        self._columns = columns or OutcomeColumns()
        self.clear()

    def clear(self) -> None:
        self._river: Any = self._model.learner.clone()
        self._twin: Twin | None = None
        self.tally = _Tally()
        self._fresh: list[Spans] = []
        self._rows: list[bytes] = []
        self._rows_size = 0
        self._snapshot_size = 0

    @property
    def estimator(self) -> Any:
        """As river has it. A new one each time where its twin learns."""
        return self._river if self._twin is None else self._twin.river()

    def load(self, rows: Iterable[tuple[bytes, bytes]]) -> None:
        found = dict(rows)
        if _TALLY not in found:
            return
        tally = msgspec.json.decode(found.pop(_TALLY), type=_Tally)
        if _SNAPSHOT in found:
            snapshot = found.pop(_SNAPSHOT)
            self._river, self._twin = artifacts.load(snapshot), None
            self._snapshot_size = len(snapshot)
        self._rows = sorted(found)
        self._rows_size = sum(map(len, found.values()))
        self._learn(self._columns.read(Spans.of([found[key] for key in self._rows])))
        self.tally = tally

    def changes(self) -> Changes:
        if not self._fresh:
            return []
        count, size = sum(map(len, self._fresh)), sum(part.size for part in self._fresh)
        first = self.tally.learnt - count
        if len(self._rows) + count > SNAPSHOT_EVERY or self._rows_size + size > self._snapshot_size:
            snapshot = artifacts.dump(self._river) if self._twin is None else self._twin.dump()
            changes: Changes = [(_SNAPSHOT, snapshot), *((key, None) for key in self._rows)]
            self._rows, self._rows_size, self._snapshot_size = [], 0, len(snapshot)
        else:
            keys = [_OUTCOME + n.to_bytes(8, "big") for n in range(first, first + count)]
            changes = [Touched(Spans.of(keys), Spans.joined(self._fresh))]
            self._rows += keys
            self._rows_size += size
        self._fresh.clear()
        return [*changes, (_TALLY, msgspec.json.encode(self.tally))]

    def told(self, at: int) -> Iterator[dict[str, Any]]:
        """What has been learnt, in one row: the estimator itself is on the registry."""
        if self.tally.learnt:
            estimator = self.estimator
            yield {
                "model": self._model.name,
                "estimator": str(estimator),
                "fingerprint": artifacts.fingerprint(estimator),
                "learnt": self.tally.learnt,
                "positives": self.tally.positives,
                "rate": self.rate,
                "at": when(self.tally.at),
                "snapshot_bytes": self._snapshot_size,
                "since_snapshot": len(self._rows),
            }

    def process(self, batch: Batch, out: Outputs) -> None:
        rows = batch.streams.get(self._stream)
        if not isinstance(rows, MatureRows) or not len(rows):
            return
        outcomes, seen = rows.outcomes, rows.seen
        # A version ends at a record of the outcomes, never between outcomes that matured together.
        ends = np.flatnonzero(np.append(seen[1:] != seen[:-1], True)) + 1
        done = 0
        while done < len(outcomes):
            due = done + max(1, self._model.publish_every - (self.tally.learnt - self.tally.published))
            place = int(np.searchsorted(ends, due))
            end = int(ends[place]) if place < len(ends) else len(outcomes)
            self._learn(outcomes[done:end])
            if place < len(ends):
                out.append(self._version(int(seen[end - 1])))
            done = end
        self._fresh.append(outcomes.values)

    def _learn(self, outcomes: Outcomes) -> None:
        """Learn outcomes in order: by the twin where there is one, by river what the columns do not tell."""
        done = 0
        for odd in [*np.flatnonzero(outcomes.odd).tolist(), len(outcomes)]:
            self._learn_columns(outcomes[done:odd])
            self._learn_each(outcomes[odd : odd + 1])
            done = odd + 1

    def _learn_columns(self, outcomes: Outcomes) -> None:
        if not len(outcomes):
            return
        found = self._twin_for(outcomes.columns)
        if found is None or not found.learn_many(outcomes.features, outcomes.outcome):
            self._learn_each(outcomes)
            return
        self.tally.learnt += len(outcomes)
        self.tally.positives += int(outcomes.outcome.sum())
        self.tally.at = int(outcomes.matures[-1])

    def _twin_for(self, columns: OutcomeColumns) -> Twin | None:
        if self._twin is None and not columns.texts:
            self._twin = twin(self._river, columns.names)
        return self._twin if self._twin is not None and self._twin.names == columns.names else None

    def _learn_each(self, outcomes: Outcomes) -> None:
        if len(outcomes):
            self._river, self._twin = self.estimator, None
        for row in range(len(outcomes)):
            self._learn_one(outcomes.settled(row))

    def _learn_one(self, settled: Settled) -> None:
        features: dict[Hashable, Any] = {name: value for name, value in settled.features.items() if value is not None}
        try:
            self._river.learn_one(features, settled.outcome)
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
        estimator = self.estimator
        version = versions.Version(
            model=self._model.name,
            version=f"{self._model.name}@{offset}",
            offset=offset,
            at=when(self.tally.at),
            learnt=self.tally.learnt,
            positives=self.tally.positives,
            rate=self.rate,
            fingerprint=artifacts.fingerprint(estimator),
            artifact=versions.pack(estimator),
        )
        return Record(versions.REGISTRY, self._model.name.encode(), versions.encode(version), 0)
