"""Predictions one at a time, by msgspec and river alone: what `Scorer` lays out by columns."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
import numpy as np
from headrace.serving.scorer import Scorer, score
from headrace.streams.batch import Batch, Column, Outputs, Record, Rows
from headrace.streams.durations import when
from headrace.streams.outcomes import Prediction


class ScorerOneByOne(Scorer):
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
