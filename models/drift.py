"""Drift: river's detectors on a model's features, predictions and errors; alarms go to `drift.<model>`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
from headrace.models import artifacts
from headrace.models.evaluation import log_loss
from headrace.models.model import Model
from headrace.streams.batch import Batch, Change, Outputs, Record
from headrace.streams.durations import micros, when
from headrace.streams.errors import DeclarationError
from headrace.streams.outcomes import Prediction, Settled
from river import drift as river_drift
from river.drift import binary

ERRORS: dict[str, Callable[[float, bool], float]] = {
    "log_loss": log_loss,
    "brier": lambda score, outcome: (score - outcome) ** 2,
    "error": lambda score, outcome: float((score >= 0.5) != outcome),
    "outcome": lambda score, outcome: float(outcome),
}
"""What can be watched once an outcome is mature."""


@dataclass(frozen=True, slots=True)
class Watch:
    """A detector on one number of a model: an error of `ERRORS`, "score", or a feature's name.

    Errors are seen when outcomes mature, scores and features when the prediction is made.
    """

    on: str
    kind: str
    make: Callable[[], Any]
    binary: bool = False

    @property
    def key(self) -> str:
        return f"{self.kind}({self.on})"

    @property
    def moment(self) -> Literal["outcome", "prediction"]:
        return "outcome" if self.on in ERRORS else "prediction"


def _watch(on: str, kind: str, make: Callable[[], Any], *, is_binary: bool = False) -> Watch:
    if is_binary and on not in ("error", "outcome"):
        raise DeclarationError(f'{kind} watches a stream of 0 and 1: write {kind}("error"), not {kind}({on!r})')
    try:
        make()
    except Exception as error:
        raise DeclarationError(f"{kind}({on!r}): {error}") from error
    return Watch(on, kind, make, is_binary)


def ADWIN(on: str, *, delta: float = 0.002, clock: int = 32, grace_period: int = 10) -> Watch:
    """Adaptive windowing: a change of the mean. delta bounds the false alarms (Bifet and Gavaldà, 2007)."""
    return _watch(
        on,
        "ADWIN",
        lambda: river_drift.ADWIN(delta=delta, clock=clock, grace_period=grace_period),  # type: ignore[no-untyped-call]
    )


def PageHinkley(
    on: str, *, min_instances: int = 30, delta: float = 0.005, threshold: float = 50.0, mode: str = "both"
) -> Watch:
    """A drift of the mean away from its running value by the Page-Hinkley test (Page, 1954)."""
    return _watch(
        on,
        "PageHinkley",
        lambda: river_drift.PageHinkley(min_instances=min_instances, delta=delta, threshold=threshold, mode=mode),
    )


def KSWIN(on: str, *, alpha: float = 0.005, window_size: int = 100, stat_size: int = 30, seed: int = 0) -> Watch:
    """A change of distribution between a window and its newest part, by Kolmogorov-Smirnov (Raab et al., 2020)."""
    return _watch(
        on,
        "KSWIN",
        lambda: river_drift.KSWIN(alpha=alpha, window_size=window_size, stat_size=stat_size, seed=seed),
    )


def DDM(on: str = "error", *, warm_start: int = 30, drift_threshold: float = 3.0) -> Watch:
    """An error rate above its best by standard deviations (Gama et al., 2004)."""
    return _watch(on, "DDM", lambda: binary.DDM(warm_start=warm_start, drift_threshold=drift_threshold), is_binary=True)


def EDDM(on: str = "error", *, warm_start: int = 30, beta: float = 0.9) -> Watch:
    """A shrinking distance between errors (Baena-García et al., 2006)."""
    return _watch(on, "EDDM", lambda: binary.EDDM(warm_start=warm_start, beta=beta), is_binary=True)


def HDDM_A(on: str = "error", *, drift_confidence: float = 0.001, two_sided: bool = False) -> Watch:
    """A change of the error's average, by Hoeffding's bound (Frías-Blanco et al., 2015)."""
    return _watch(
        on,
        "HDDM_A",
        lambda: binary.HDDMA(drift_confidence=drift_confidence, two_sided_test=two_sided),  # type: ignore[no-untyped-call]
        is_binary=True,
    )


def HDDM_W(
    on: str = "error", *, drift_confidence: float = 0.001, lambda_val: float = 0.05, two_sided: bool = False
) -> Watch:
    """A change of the error's weighted average, by McDiarmid's bound (Frías-Blanco et al., 2015)."""
    return _watch(
        on,
        "HDDM_W",
        lambda: binary.HDDMW(  # type: ignore[no-untyped-call]
            drift_confidence=drift_confidence, lambda_val=lambda_val, two_sided_test=two_sided
        ),
        is_binary=True,
    )


class DriftMonitor:
    """Feeds detectors one value at a time, in order, and publishes an alarm when one fires."""

    def __init__(self, model: Model, moment: Literal["outcome", "prediction"]) -> None:
        self.name = f"drift.{model.name}.{moment}"
        self._model = model.name
        self._moment = moment
        self._watches = [w for w in model.watch if w.moment == moment]
        self._stream = f"mature.{model.name}" if moment == "outcome" else model.on.contract.topic
        self.clear()

    def clear(self) -> None:
        self._detectors = {w.key: w.make() for w in self._watches}
        self._touched = False

    def load(self, rows: Iterable[tuple[bytes, bytes]]) -> None:
        for key, value in rows:
            if key.decode() in self._detectors:
                self._detectors[key.decode()] = artifacts.load(value)

    def changes(self) -> list[Change]:
        if not self._touched:
            return []
        self._touched = False
        return [(key.encode(), artifacts.dump(detector)) for key, detector in self._detectors.items()]

    def process(self, batch: Batch, out: Outputs) -> None:
        rows = batch.streams.get(self._stream)
        if rows is None or not len(rows) or not self._watches:
            return
        self._touched = True
        if self._moment == "outcome":
            for settled in rows.fields["outcome"].tolist():
                self._see(self._of_outcome(settled), micros(settled.matures), settled.id, out)
        else:
            column = rows.fields[f"prediction.{self._model}"].tolist()
            for value in column:
                made = msgspec.json.decode(value, type=Prediction)
                self._see(self._of_prediction(made), micros(made.at), made.id, out)

    def _of_outcome(self, settled: Settled) -> dict[str, float | None]:
        return {w.key: ERRORS[w.on](settled.score, settled.outcome) for w in self._watches}

    def _of_prediction(self, made: Prediction) -> dict[str, float | None]:
        found: dict[str, float | None] = {}
        for watch in self._watches:
            value = made.score if watch.on == "score" else made.features.get(watch.on)
            found[watch.key] = float(value) if isinstance(value, int | float) else None
        return found

    def _see(self, values: dict[str, float | None], at: int, event: str, out: Outputs) -> None:
        for watch in self._watches:
            value, detector = values[watch.key], self._detectors[watch.key]
            if value is None:
                continue
            detector.update(bool(value) if watch.binary else value)
            if detector.drift_detected:
                out.append(self._alarm(watch, value, at, event))

    def _alarm(self, watch: Watch, value: float, at: int, event: str) -> Record:
        alarm = {
            "model": self._model,
            "at": when(at),
            "detector": watch.kind,
            "on": watch.on,
            "value": value,
            "event": event,
            "message": f"{watch.kind} saw {watch.on} of {self._model} change at {when(at):%Y-%m-%d %H:%M}",
        }
        return Record(f"drift.{self._model}", watch.key.encode(), msgspec.json.encode(alarm), 0)
