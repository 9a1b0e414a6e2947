"""Prequential evaluation: every prediction was made before its outcome was learnt, and is judged when it matures.

The counts behind the ranking metrics are histograms over the logit of the score, so that memory does not grow
with the stream; scores that fall into one bin count as ties.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
import numpy as np
from headrace.models import judgekernels as kernels
from headrace.models.judgekernels import BINS, CLIP
from headrace.models.maturity import MatureRows
from headrace.models.model import Model
from headrace.streams.batch import Batch, Change, Outputs, Record
from headrace.streams.kernels import given
from headrace.streams.outcomecolumns import Outcomes
from headrace.streams.outcomes import Settled
from numpy.typing import NDArray


def roc_auc(positives: NDArray[np.int64], negatives: NDArray[np.int64]) -> float | None:
    """Area under the ROC curve from counts by ascending score; ties count half. None without both classes.

    The probability that a positive outranks a negative (Mann-Whitney U).
    """
    p, n = int(positives.sum()), int(negatives.sum())
    if p == 0 or n == 0:
        return None
    below = np.concatenate(([0], np.cumsum(negatives)[:-1]))
    return float((positives * (below + negatives / 2)).sum() / (p * n))


def average_precision(positives: NDArray[np.int64], negatives: NDArray[np.int64]) -> float | None:
    """Average precision from counts by ascending score: the sum of precision times the step in recall.

    None without positives.
    """
    p = int(positives.sum())
    if p == 0:
        return None
    hits, all_ = np.cumsum(positives[::-1]), np.cumsum((positives + negatives)[::-1])
    precision = hits / np.maximum(all_, 1)
    return float((precision * positives[::-1]).sum() / p)


def exact(scores: NDArray[np.float64], outcomes: NDArray[np.bool_]) -> dict[str, float | None]:
    """The same three metrics without bins. scores, outcomes: length n."""
    if not len(scores):
        return {"roc_auc": None, "average_precision": None, "log_loss": None}
    values, place = np.unique(scores, return_inverse=True)
    positives = np.bincount(place[outcomes], minlength=len(values))
    negatives = np.bincount(place[~outcomes], minlength=len(values))
    clipped = np.clip(scores, CLIP, 1 - CLIP)
    loss = -np.where(outcomes, np.log(clipped), np.log1p(-clipped)).mean()
    return {
        "roc_auc": roc_auc(positives, negatives),
        "average_precision": average_precision(positives, negatives),
        "log_loss": float(loss),
    }


class Quality:
    """The running quality of one score.

    counts: int64[2, BINS], of the outcomes False and True by the score's bin; losses: float64[1], the sum of log losses
    """

    def __init__(self) -> None:
        self.counts = np.zeros((2, BINS), np.int64)
        self.losses = np.zeros(1)

    def add(self, scores: NDArray[np.float64], outcomes: NDArray[np.bool_]) -> None:
        """scores, outcomes: length n; of those that are NaN nothing is said."""
        kernels.judge(given(scores), given(outcomes), self.counts, self.losses)

    def metrics(self) -> dict[str, float | None]:
        count = int(self.counts.sum())
        return {
            "roc_auc": roc_auc(self.counts[1], self.counts[0]),
            "average_precision": average_precision(self.counts[1], self.counts[0]),
            "log_loss": float(self.losses[0]) / count if count else None,
        }

    def pack(self) -> bytes:
        used = np.flatnonzero(self.counts.any(axis=0))
        return msgspec.msgpack.encode((float(self.losses[0]), used.tolist(), self.counts[:, used].tolist()))

    @classmethod
    def unpack(cls, data: bytes) -> Quality:
        quality = cls()
        quality.losses[0], used, counts = msgspec.msgpack.decode(data)
        quality.counts[:, used] = counts
        return quality


class Evaluator:
    """Judges predictions as their outcomes mature, beside the baselines; publishes to `metrics.<model>`.

    Predictions made within the first horizon are left out: nothing could have been learnt by then.
    """

    def __init__(self, model: Model) -> None:
        assert model.outcome is not None, "a model without an outcome is not evaluated"
        self.name = f"evaluate.{model.name}"
        self._model = model
        self._horizon = model.outcome.within
        self._stream = f"mature.{model.name}"
        self.clear()

    def clear(self) -> None:
        self._quality = {prefix: Quality() for prefix in prefixes(self._model)}
        self._first: int | None = None
        self._judged = 0
        self._reported = 0
        self._touched = False

    def load(self, rows: Iterable[tuple[bytes, bytes]]) -> None:
        for key, value in rows:
            if key == b"tally":
                self._first, self._judged, self._reported = msgspec.json.decode(value)
            else:
                self._quality[key.decode()] = Quality.unpack(value)

    def changes(self) -> list[Change]:
        if not self._touched:
            return []
        self._touched = False
        tally = msgspec.json.encode((self._first, self._judged, self._reported))
        return [(b"tally", tally), *((name.encode(), q.pack()) for name, q in self._quality.items())]

    def told(self, at: int) -> Iterator[dict[str, Any]]:
        """The quality so far, in one row."""
        row: dict[str, Any] = {"model": self._model.name, "outcomes": self._judged}
        for prefix, quality in self._quality.items():
            row.update({prefix + name: value for name, value in quality.metrics().items()})
        yield row

    def process(self, batch: Batch, out: Outputs) -> None:
        mature = batch.streams.get(self._stream)
        if not isinstance(mature, MatureRows) or not len(mature):
            return
        outcomes = mature.outcomes
        if self._first is None:
            self._first = int(outcomes.at[0])
        judged = np.flatnonzero(outcomes.at >= self._first + self._horizon)
        scores, truth = self._scores(outcomes), outcomes.outcome
        done = 0
        while done < len(judged):
            end = done + max(1, self._model.publish_every - (self._judged - self._reported))
            rows = judged[done:end]
            for prefix, quality in self._quality.items():
                quality.add(scores[prefix][rows], truth[rows])
            self._judged += len(rows)
            if self._judged - self._reported >= self._model.publish_every:
                out.append(self._report(outcomes.settled(int(rows[-1]))))
            done = end
        self._touched = True

    def _scores(self, outcomes: Outcomes) -> dict[str, NDArray[np.float64]]:
        """The model's scores and the baselines' by prefix, each float64[n], NaN where there is none."""
        found = {prefix: np.full(len(outcomes), np.nan) for prefix in self._quality} | {"": outcomes.score.copy()}
        for name, column in zip(outcomes.columns.baselines, outcomes.baselines.T, strict=True):
            found[f"{name}_"][:] = column
        for row in np.flatnonzero(outcomes.odd).tolist():
            for name, score in outcomes.settled(row).baselines.items():
                found[f"{name}_"][row] = score
        return found

    def _report(self, settled: Settled) -> Record:
        self._reported = self._judged
        report: dict[str, object] = {
            "model": self._model.name,
            "at": settled.matures,
            "version": settled.version,
            "outcomes": self._judged,
        }
        for prefix, quality in self._quality.items():
            report.update({prefix + name: value for name, value in quality.metrics().items()})
        return Record(f"metrics.{self._model.name}", self._model.name.encode(), msgspec.json.encode(report), 0)


def prefixes(model: Model) -> list[str]:
    """Before the names of metrics: nothing for the model's, `<baseline>_` for a baseline's."""
    return ["", "base_", *(f"{name}_" for name in model.baselines)]
