"""The embedded scorer: a model in the process of its task."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from headrace.models import linear, versions
from headrace.models.model import Model
from headrace.serving.errors import ScoringError
from headrace.streams.batch import Batch, Block, Change, Column, Outputs, Rows
from headrace.streams.expressions import Type
from headrace.streams.jsonrows import encoded_texts, event_ids, floats, printed, record_keys
from headrace.streams.log import Fetched
from headrace.streams.spans import Spans, quoted, woven
from numpy.typing import NDArray


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
        self.scores = f"score.{model.name}"
        self._model = model.name
        self._topic = f"predictions.{model.name}"
        self._main = model.on.contract.topic
        self._key = model.on.contract.key
        self._columns = [column for column, _ in columns]
        self._names = [name for _, name in columns]
        # One may take the place of the base rate.
        self._baselines = {name: baselines[name] for name in dict.fromkeys(["base", *baselines]) if name in baselines}
        self._now = now
        self._prior = model.outcome.prior if model.outcome else 0.5
        self.version = self._first = versions.Loaded(f"{model.name}@0", self._prior, None)

    @property
    def version(self) -> versions.Loaded:
        """The version that scores."""
        return self._version

    @version.setter
    def version(self, version: versions.Loaded) -> None:
        self._version = version
        self._twin = None if version.estimator is None else linear.twin(version.estimator, self._names)
        rate = [] if "base" in self._baselines else [b'"base":' + msgspec.json.encode(version.rate)]
        beside = b",".join([*rate, *(b"%b:\0" % _text(name) for name in self._baselines)])
        seen = b",".join(b"%b:\0" % _text(name) for name in self._names)
        # A zero byte stands for each value: JSON has none.
        row = (
            b'{"id":\0,"key":\0,"at":\0,"score":\0,"baselines":{%b},"version":%b,"route":"embedded",'
            b'"latency_ms":\0,"features":{%b}}'
        )
        self._literals = (row % (beside, _text(version.name), seen)).split(b"\0")

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
        seen = [rows.fields[column] for column in self._columns]
        scores = self._scores(rows, seen)
        rate = self.version.rate
        beside = [np.asarray(rows.fields[column], np.float64) for column in self._baselines.values()]
        values = woven(
            self._literals,
            [
                event_ids(rows).whole(),
                self._keys(rows),
                printed(batch.time[rows.at], Type("time", False)),
                floats(scores),
                *(floats(np.where(np.isfinite(column), column, rate)) for column in beside),
                floats(self._latency(rows)),
                *(_json(column, rows.encoded.get(name)) for column, name in zip(seen, self._columns, strict=True)),
            ],
        )
        out.append(Block(self._topic, record_keys(rows, self._key), values))
        rows.encoded[self.column] = values
        rows.fields[self.scores] = scores

    def _keys(self, rows: Rows) -> Spans:
        """The keys of the predictions, as JSON."""
        texts = rows.texts(self._key)
        if texts is not None:
            return quoted(texts)
        return Spans.of([_text(str(key)) for key in rows.fields[self._key].tolist()])

    def _latency(self, rows: Rows) -> NDArray[np.float64]:
        """Milliseconds from the publication of each event, to a tenth."""
        passed = np.maximum(0.0, self._now() * 1e3 - rows.published / 1e3)
        tenths = passed * 10
        rounded: NDArray[np.float64] = np.rint(tenths) / 10
        # Where it lies in the middle, the decimal digits decide.
        for i in np.flatnonzero(np.abs(tenths - np.floor(tenths) - 0.5) < _NEAR):
            rounded[i] = round(float(passed[i]), 1)
        return rounded

    def _scores(self, rows: Rows, seen: Sequence[Column]) -> NDArray[np.float64]:
        if self.version.estimator is None:
            return np.full(len(rows), self._prior)
        if self._twin is not None and all(column.dtype != np.object_ for column in seen):
            answers = self._twin.predict_many(np.stack(seen, axis=1).astype(np.float64))
            return np.where(np.isfinite(answers), np.clip(answers, 0.0, 1.0), self._prior)
        listed = [_listed(column) for column in seen]
        found = []
        for i, values in enumerate(zip(*listed, strict=True)):
            features = dict(zip(self._names, values, strict=True))
            found.append(score(self.version, features, self._prior, rows.event_id(i)))
        return np.array(found, np.float64)


_NEAR = 1e-3
"""Tenths of a millisecond: by more no two ways of rounding differ."""


def _listed(column: Column) -> list[Any]:
    """Numbers as floats, as the outcome will carry them: what is learnt is what was scored. None where missing."""
    listed: list[Any] = (column if column.dtype == np.object_ else column.astype(np.float64)).tolist()
    return [None if value is None or value != value else value for value in listed]


def _json(column: Column, texts: Spans | None) -> Spans:
    """texts: the column as its feature set has printed it, where it did."""
    return encoded_texts(column) if column.dtype == np.object_ else floats(column.astype(np.float64), texts)


def _text(text: str) -> bytes:
    return msgspec.json.encode(text)


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
