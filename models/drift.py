"""Drift: river's detectors on a model's features, predictions and errors; alarms go to `drift.<model>`.

Detectors take what they see for independent. Events seldom are: the lines of one invoice come together and are
returned together, and a detector that sees each of them takes every large invoice for a change. `mean_of` lets it
see the means of so many values in turn; choose it longer than what comes together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import numpy as np
from headrace.models import artifacts, kstest
from headrace.models import judgekernels as kernels
from headrace.models.maturity import MatureRows
from headrace.models.model import Model
from headrace.streams.batch import Batch, Change, Outputs, Record
from headrace.streams.durations import micros, when
from headrace.streams.errors import DeclarationError
from headrace.streams.kernels import given
from numpy.typing import NDArray
from river import drift as river_drift
from river.drift import binary

ERRORS = {
    "log_loss": kernels.LOG_LOSS,
    "brier": kernels.BRIER,
    "error": kernels.ERROR,
    "outcome": kernels.OUTCOME,
}
"""What can be watched once an outcome is mature."""


@dataclass(frozen=True, slots=True)
class Watch:
    """A detector on one number of a model: an error of `ERRORS`, "score", or a feature's name.

    Errors are seen when outcomes mature, scores and features when the prediction is made; missing values never.

    settings: the detector's parameters, as they would be written
    mean_of:  the detector sees the mean of this many values in turn
    """

    on: str
    kind: str
    settings: str
    make: Callable[[], Any]
    binary: bool = False
    mean_of: int = 1

    @property
    def key(self) -> str:
        return f"{self.kind}({self.on!r}, {self.settings})"

    @property
    def moment(self) -> Literal["outcome", "prediction"]:
        return "outcome" if self.on in ERRORS else "prediction"


def _watch(
    on: str, kind: str, detector: Callable[..., Any], settings: dict[str, object], mean_of: int | None = None
) -> Watch:
    """mean_of None: a detector of a stream of 0 and 1."""
    binary = mean_of is None
    if binary and on not in ("error", "outcome"):
        raise DeclarationError(f'{kind} watches a stream of 0 and 1: write {kind}("error"), not {kind}({on!r})')
    if mean_of is not None and mean_of < 1:
        raise DeclarationError(f"{kind}({on!r}): mean_of={mean_of} must be at least 1")
    try:
        detector(**settings)
    except Exception as error:
        raise DeclarationError(f"{kind}({on!r}): {error}") from error
    said = settings if binary else {**settings, "mean_of": mean_of}
    text = ", ".join(f"{name}={value!r}" for name, value in said.items())
    return Watch(on, kind, text, lambda: detector(**settings), binary, mean_of or 1)


def ADWIN(on: str, *, delta: float = 0.002, clock: int = 32, grace_period: int = 10, mean_of: int = 1) -> Watch:
    """Adaptive windowing: a change of the mean, up or down (Bifet and Gavaldà, SIAM SDM 2007).

    delta: the probability of a false alarm at a test; clock: a test every so many values; grace_period: none before
    so many values. Its bound is for values between 0 and 1: of a mean of a few hundredths it sees even a doubling late.
    """
    settings: dict[str, object] = {"delta": delta, "clock": clock, "grace_period": grace_period}
    return _watch(on, "ADWIN", river_drift.ADWIN, settings, mean_of)


def PageHinkley(
    on: str,
    *,
    min_instances: int = 30,
    delta: float = 0.005,
    threshold: float = 50.0,
    mode: str = "both",
    mean_of: int = 1,
) -> Watch:
    """A drift of the mean away from its running value by the Page-Hinkley test (Page, Biometrika 41, 1954).

    delta: the change that is let pass; threshold: the sum of what exceeds it at which the alarm comes. Both are in
    the unit of what is watched: of values with standard deviation s, a sum passes the threshold by chance between two
    returns to its extreme with probability about exp(-2 delta threshold / s^2). mode: "up", "down" or "both".
    """
    settings: dict[str, object] = {"min_instances": min_instances, "delta": delta, "threshold": threshold, "mode": mode}
    return _watch(on, "PageHinkley", river_drift.PageHinkley, settings, mean_of)


def KSWIN(
    on: str, *, alpha: float = 0.005, window_size: int = 100, stat_size: int = 30, seed: int = 0, mean_of: int = 1
) -> Watch:
    """A change of distribution between a window and its newest part, by Kolmogorov-Smirnov (Raab et al., 2020).

    alpha: the probability of a false alarm at each value.
    """
    settings: dict[str, object] = {"alpha": alpha, "window_size": window_size, "stat_size": stat_size, "seed": seed}
    return _watch(on, "KSWIN", river_drift.KSWIN, settings, mean_of)


def DDM(on: str = "error", *, warm_start: int = 30, drift_threshold: float = 3.0) -> Watch:
    """An error rate above its lowest so far by standard deviations (Gama, Medas, Castillo, Rodrigues, 2004).

    Errors must not be rare: after warm_start values without one, the first error is an alarm.
    """
    return _watch(on, "DDM", binary.DDM, {"warm_start": warm_start, "drift_threshold": drift_threshold})


def EDDM(on: str = "error", *, warm_start: int = 30, beta: float = 0.9) -> Watch:
    """A distance between errors that shrinks below beta of its greatest (Baena-García et al., 2006).

    It promises no rate of false alarms: beta is a ratio, not a probability.
    """
    return _watch(on, "EDDM", binary.EDDM, {"warm_start": warm_start, "beta": beta})


def HDDM_A(on: str = "error", *, drift_confidence: float = 0.001, two_sided: bool = False) -> Watch:
    """A rise of the error's average, by Hoeffding's bound (Frías-Blanco et al., IEEE TKDE 27, 2015).

    drift_confidence: the probability of a false alarm at each value. two_sided: a fall too.
    """
    return _watch(on, "HDDM_A", binary.HDDMA, {"drift_confidence": drift_confidence, "two_sided_test": two_sided})


def HDDM_W(
    on: str = "error", *, drift_confidence: float = 0.001, lambda_val: float = 0.05, two_sided: bool = False
) -> Watch:
    """A rise of the error's weighted average, by McDiarmid's bound (Frías-Blanco et al., IEEE TKDE 27, 2015).

    drift_confidence: the probability of a false alarm at each value. lambda_val: the weight of the newest value; more
    reacts faster to large changes. two_sided: a fall too.
    """
    settings: dict[str, object] = {
        "drift_confidence": drift_confidence, "lambda_val": lambda_val, "two_sided_test": two_sided
    }  # fmt: skip
    return _watch(on, "HDDM_W", binary.HDDMW, settings)


class _Watched:
    """A watch at work: its detector, and the values that the next mean is of."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.detector = watch.make()
        self.held = np.zeros(2)
        self.moved = self.counted = False

    @property
    def mean(self) -> tuple[float, int]:
        """(total, count) of the values that the next mean is of."""
        return float(self.held[kernels.TOTAL]), int(self.held[kernels.COUNT])

    def see(self, values: NDArray[np.float64]) -> Iterator[tuple[int, float]]:
        """Take values in order: the place of each at which an alarm came, and what the detector was shown then."""
        shown, rows = np.empty(len(values)), np.empty(len(values), np.int64)
        count = kernels.means(given(values), self.watch.mean_of, self.held, shown, rows)
        self.counted |= len(values) > 0
        for row, value in zip(rows[:count].tolist(), shown[:count].tolist(), strict=True):
            if type(self.detector) is river_drift.KSWIN:
                kstest.update(self.detector, value)
            else:
                self.detector.update(bool(value) if self.watch.binary else value)
            self.moved = True
            if self.detector.drift_detected:
                yield row, value


class DriftMonitor:
    """Feeds detectors one value at a time, in order, and publishes an alarm when one fires.

    The detector starts anew after its alarm. Memory is the detectors' own: logarithmic in the stream for ADWIN, a
    window for KSWIN, constant for the others.

    columns: of what is seen at the prediction, the column of the batch by what is watched
    """

    def __init__(
        self, model: Model, moment: Literal["outcome", "prediction"], columns: Mapping[str, str] | None = None
    ) -> None:
        self.name = f"drift.{model.name}.{moment}"
        self._model = model.name
        self._moment = moment
        self._watches = [w for w in model.watch if w.moment == moment]
        self._columns = dict(columns or {})
        self._stream = f"mature.{model.name}" if moment == "outcome" else model.on.contract.topic
        self.clear()

    def clear(self) -> None:
        self._watched = {w.key: _Watched(w) for w in self._watches}

    def load(self, rows: Iterable[tuple[bytes, bytes]]) -> None:
        for row, value in rows:
            kind, _, key = row.decode().partition(" ")
            if kind == "detector":
                self._watched[key].detector = artifacts.load(value)
            else:
                self._watched[key].held[:] = msgspec.msgpack.decode(value)

    def changes(self) -> list[Change]:
        changes: list[Change] = []
        for key, watched in self._watched.items():
            if watched.moved:
                changes.append((f"detector {key}".encode(), artifacts.dump(watched.detector)))
            if watched.counted and watched.watch.mean_of > 1:
                changes.append((f"mean {key}".encode(), msgspec.msgpack.encode(watched.mean)))
            watched.moved = watched.counted = False
        return changes

    def told(self, at: int) -> Iterator[dict[str, Any]]:
        """Each detector, and how far the mean is that it sees next."""
        for key, watched in self._watched.items():
            total, count = watched.mean
            yield {"detector": key, "values": count, "total": total}

    def process(self, batch: Batch, out: Outputs) -> None:
        rows = batch.streams.get(self._stream)
        if rows is None or not len(rows) or not self._watches:
            return
        alarms: list[tuple[int, int, float]] = []
        if isinstance(rows, MatureRows):
            outcomes = rows.outcomes
            for n, watched in enumerate(self._watched.values()):
                errors = np.empty(len(outcomes))
                kind = ERRORS[watched.watch.on]
                kernels.errors(kind, given(outcomes.score), given(outcomes.outcome), 2.0, errors)
                alarms += [(row, n, value) for row, value in watched.see(errors)]
            for row, n, value in sorted(alarms):
                settled = outcomes.settled(row)
                out.append(self._alarm(self._watches[n], value, micros(settled.matures), settled.id))
        else:
            for n, watched in enumerate(self._watched.values()):
                values = rows.fields[self._columns[watched.watch.on]].astype(np.float64)
                there = np.flatnonzero(np.isfinite(values))  # in the prediction others are null
                alarms += [(int(there[at]), n, value) for at, value in watched.see(values[there])]
            for row, n, value in sorted(alarms):
                at = int(batch.time[rows.at[row]])
                out.append(self._alarm(self._watches[n], value, at, rows.event_id(row)))

    def _alarm(self, watch: Watch, value: float, at: int, event: str) -> Record:
        alarm = {
            "model": self._model,
            "at": when(at),
            "detector": watch.kind,
            "on": watch.on,
            "settings": watch.settings,
            "value": value,
            "event": event,
            "message": f"{watch.kind} saw {watch.on} of {self._model} change at {when(at):%Y-%m-%d %H:%M}",
        }
        return Record(f"drift.{self._model}", watch.key.encode(), msgspec.json.encode(alarm), 0)
