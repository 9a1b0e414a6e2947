"""The embedded scorer: a model in the process of its task."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from headrace.models import versions
from headrace.models.model import Model
from headrace.serving.errors import ScoringError
from headrace.streams.batch import Batch, Change, Column, Outputs, Record, Rows
from headrace.streams.durations import when
from headrace.streams.log import Fetched
from headrace.streams.outcomes import Prediction


class Scorer:
    """Scores each event of a model once, with the newest version that the registry has shown it.

    The prediction names the version and carries the features that made it. It is stateless: what it follows is on
    the registry.

    columns:   the features' names as the batch has them (`Set.name`) and as the model sees them
    baselines: a name and a column each, of probabilities; where one is missing, the base rate stands in
    now:       seconds since 1970, for the latency that a prediction tells
    """

    def __init__(
        self,
        model: Model,
        columns: Sequence[tuple[str, str]],
        baselines: Mapping[str, str],
        now: Callable[[], float],
    ) -> None:
        self.name = f"score.{model.name}"
        self.column = f"prediction.{model.name}"
        self._model = model.name
        self._topic = f"predictions.{model.name}"
        self._main = model.on.contract.topic
        self._key = model.on.contract.key
        self._columns = [column for column, _ in columns]
        self._names = [name for _, name in columns]
        self._baselines = dict(baselines)
        self._now = now
        self._prior = model.outcome.prior if model.outcome else 0.5
        self.version = self._first = versions.Loaded(f"{model.name}@0", self._prior, None)

    def follow(self, fetched: Fetched) -> None:
        """Take the newest version of this model among registry records; after a reset there is none."""
        mine = [v for k, v in zip(fetched.keys, fetched.values, strict=True) if k == self._model.encode()]
        if mine:
            newest = mine[-1]
            self.version = self._first if newest is None else versions.load(versions.decode(newest))

    def clear(self) -> None:
        pass

    def load(self, rows: Iterable[tuple[bytes, bytes]]) -> None:
        pass

    def changes(self) -> list[Change]:
        return []

    def process(self, batch: Batch, out: Outputs) -> None:
        rows = batch.streams.get(self._main)
        if rows is None or not len(rows):
            return
        times = batch.time[rows.at].tolist()
        published = rows.published.tolist()
        keys = rows.fields[self._key].tolist()
        baselines = self._judged_beside(rows)
        now = self._now()
        values = []
        for i, features in enumerate(self._features(rows)):
            event = rows.event_id(i)
            prediction = Prediction(
                id=event,
                key=str(keys[i]),
                at=when(times[i]),
                score=score(self.version, features, self._prior, event),
                baselines=baselines[i],
                version=self.version.name,
                route="embedded",
                latency_ms=round(max(0.0, now * 1e3 - published[i] / 1e3), 1),
                features=features,
            )
            value = msgspec.json.encode(prediction)
            values.append(value)
            out.append(Record(self._topic, prediction.key.encode(), value))
        column = np.empty(len(values), np.object_)
        column[:] = values
        rows.fields[self.column] = column

    def _judged_beside(self, rows: Rows) -> list[dict[str, float]]:
        """Each row's baselines by name."""
        rate = self.version.rate
        columns = [np.asarray(rows.fields[c], np.float64) for c in self._baselines.values()]
        filled = [np.where(np.isfinite(c), c, rate).tolist() for c in columns]
        names = list(self._baselines)
        return [{"base": rate, **dict(zip(names, row, strict=True))} for row in zip(*filled, strict=True)] or [
            {"base": rate} for _ in range(len(rows))
        ]

    def _features(self, rows: Rows) -> Iterable[dict[str, float | str | None]]:
        """Each row's features by name; None where missing."""
        columns = [_listed(rows.fields[c]) for c in self._columns]
        for values in zip(*columns, strict=True):
            yield {
                name: None if value is None or value != value else value
                for name, value in zip(self._names, values, strict=True)
            }


def _listed(column: Column) -> list[Any]:
    """Numbers as floats, as the outcome will carry them: what is learnt is what was scored."""
    listed: list[Any] = (column if column.dtype == np.object_ else column.astype(np.float64)).tolist()
    return listed


def score(version: versions.Loaded, features: Mapping[str, float | str | None], prior: float, event: str = "") -> float:
    """The probability of True; the prior before the first version, or where the model has no finite answer.

    features: missing ones (None) are not shown to the model
    Raises ScoringError where the model fails.
    """
    if version.estimator is None:
        return prior
    known = {name: value for name, value in features.items() if value is not None}
    try:
        answer = version.estimator.predict_proba_one(known).get(True)
    except Exception as error:
        raise ScoringError(
            f"{version.name} cannot score event {event or '(unnamed)'} with {known}: {type(error).__name__}: {error}. "
            f"Mend the model, then start again: it goes on at this event"
        ) from error
    return min(max(float(answer), 0.0), 1.0) if answer is not None and math.isfinite(answer) else prior
