"""Compiled twins of river's linear models: the same bits over columns, some hundred times as fast."""

from __future__ import annotations

import math
import pickle
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from headrace.models import artifacts
from headrace.models import linearkernels as kernels
from headrace.models.errors import ArtifactError
from headrace.streams.kernels import given
from numpy.typing import NDArray
from river import compose, linear_model, optim, preprocessing

EXACT = 2**53
"""Larger integers are no float64."""

_LOSSES: dict[type, tuple[int, tuple[str, ...]]] = {
    optim.losses.Log: (kernels.LOG, ("weight_pos", "weight_neg")),
    optim.losses.Hinge: (kernels.HINGE, ("threshold",)),
    optim.losses.BinaryFocalLoss: (kernels.FOCAL, ("gamma", "beta")),
}
_RATES: dict[type, tuple[int, tuple[str, ...]]] = {
    optim.schedulers.Constant: (kernels.CONSTANT, ("learning_rate",)),
    optim.schedulers.InverseScaling: (kernels.INVERSE_SCALING, ("learning_rate", "power")),
    optim.schedulers.Optimal: (kernels.OPTIMAL, ("alpha", "t0")),
}
_OPTIMIZERS: dict[type, tuple[int, tuple[str, ...], tuple[str, ...]]] = {
    optim.SGD: (kernels.SGD, (), ()),
    optim.AdaGrad: (kernels.ADA_GRAD, ("eps",), ("g2",)),
    optim.Adam: (kernels.ADAM, ("beta_1", "beta_2", "eps"), ("m", "v")),
    optim.RMSProp: (kernels.RMS_PROP, ("rho", "eps"), ("g2",)),
    optim.Momentum: (kernels.MOMENTUM, ("rho",), ("s",)),
    optim.NesterovMomentum: (kernels.NESTEROV, ("rho",), ("s",)),
    optim.AdaDelta: (kernels.ADA_DELTA, ("rho", "eps"), ("g2", "s2")),
    optim.FTRLProximal: (kernels.FTRL, ("alpha", "beta", "l1", "l2"), ("z", "n")),
}
"""Of each kind its number, its parameters, and what it keeps by feature."""

_MODELS = (linear_model.LogisticRegression, linear_model.Perceptron)
_PIPELINE = {*vars(compose.Pipeline()), "_last_step_params"}


class _Unknown(Exception):
    """Something that the kernels do not do as river does it."""


class Twin:
    """A linear model of river's as arrays, in the state in which it was given.

    names: the features, in the order in which they are shown to river

    It learns and predicts rows as a river.compose.Pipeline does one at a time, in order.
    """

    def __init__(self, names: Sequence[str], model: Any) -> None:
        """Raises _Unknown where the model or its state is not covered."""
        self.names = tuple(names)
        self._options = _options(model)
        self._cells, self._held = _read(_Parts.of(model), self.names)
        if not kernels.sound_linear(self._options, self._cells, self._held):
            raise _Unknown
        self._room = np.zeros(len(self.names))
        self._model = artifacts.dump(model)  # last: what is not covered may be large
        self._moved = False
        self._written: Any = None

    def predict_many(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """The probability of True, float64[n]. x: float64[n, features], NaN where one is missing."""
        assert x.shape[1:] == (len(self.names),), "a column for each feature"
        out = np.empty(len(x))
        with np.errstate(all="ignore"):  # only plain Python tells
            kernels.predict_linear(given(x), self._options, self._cells, self._held, self._room, out)
        return out

    def learn_many(self, x: NDArray[np.float64], y: NDArray[np.bool_]) -> bool:
        """Learn rows one at a time, in order. x: float64[n, features], NaN where one is missing; y: bool[n].

        False: nothing was learnt, since numbers grow beyond float64 here: river alone knows where it raises an error.
        """
        assert x.shape == (len(y), len(self.names)), "a column for each feature, and an outcome for each row"
        before = self._cells.copy(), self._held.copy()
        try:
            with np.errstate(all="ignore"):
                kernels.learn_linear(given(x), given(y), self._options, self._cells, self._held, self._room)
            fine = bool(kernels.sound_linear(self._options, self._cells, self._held))
        except ArithmeticError:  # plain Python raises where compiled code gives infinity
            fine = False
        if fine:
            self._moved |= len(x) > 0
        else:
            self._cells, self._held = before
        return fine

    def river(self) -> Any:
        """The estimator as river has it, in this state; a new one each time."""
        return pickle.loads(self.dump())

    def dump(self) -> bytes:
        """That estimator, as `artifacts.dump` makes it bytes."""
        if not self._moved:
            return self._model
        if self._written is None:
            self._written = pickle.loads(self._model)
            # Makes what river makes when it first learns. All numbers are written over.
            self._written.learn_one({}, False)
        _write(_Parts.of(self._written), self.names, self._cells, self._held)
        return artifacts.dump(self._written)


def twin(estimator: Any, names: Sequence[str]) -> Twin | None:
    """The compiled twin of an estimator, in its state; None where river itself must be used.

    names: the features that it is shown, in their order; one that is missing is left out

    Covered are LogisticRegression and Perceptron, alone or in a Pipeline behind StandardScaler, MinMaxScaler or
    MaxAbsScaler without a window; SGD, AdaGrad, Adam, RMSProp, Momentum, NesterovMomentum, AdaDelta and FTRLProximal
    with river's three schedulers; the losses Log, Hinge and BinaryFocalLoss; and whatever else they are given but
    random weights. None for anything else: subclasses, mini-batch state, numbers that are not finite, and whatever this
    machine's river learns otherwise than its twin does.
    """
    try:
        found = Twin(names, estimator)
        return found if _alike(type(estimator), found._options.tobytes(), estimator) else None
    except (_Unknown, ArtifactError):
        return None


TRIALS = 24
"""Rows that an estimator and its twin learn side by side before the twin is trusted."""

KINDS = 256
"""Kinds of estimators about which it is known whether they agreed; more, and all are tried anew."""

_agreed: dict[tuple[type, bytes], bool] = {}


def _alike(kind: type, options: bytes, estimator: Any) -> bool:
    """Whether river, as it is installed here, learns made-up rows as the twin does; tried once in a process."""
    key = kind, options
    if key not in _agreed:
        if len(_agreed) >= KINDS:
            _agreed.clear()
        _agreed[key] = _tried(estimator.clone())
    return _agreed[key]


def _tried(model: Any) -> bool:
    names = ("a", "b", "c")
    made = Twin(names, model)
    chance = np.random.default_rng(0)
    x = chance.normal(0.5, 2.0, (TRIALS, len(names)))
    x[chance.random(x.shape) < 0.2] = np.nan
    y = chance.random(TRIALS) < 0.4
    if not made.learn_many(x, y):
        return False
    for row, outcome in zip(x.tolist(), y.tolist(), strict=True):
        model.learn_one({n: v for n, v in zip(names, row, strict=True) if not math.isnan(v)}, outcome)
    return artifacts.fingerprint(made.river()) == artifacts.fingerprint(model)


@dataclass(slots=True)
class _Parts:
    """A river model taken apart: its scaler, if there is one, and its linear model."""

    scaler: Any
    model: Any

    @classmethod
    def of(cls, estimator: Any) -> _Parts:
        if type(estimator) in _MODELS:
            return cls(None, estimator)
        if type(estimator) is not compose.Pipeline or not vars(estimator).keys() <= _PIPELINE:
            raise _Unknown
        steps = list(estimator.steps.values())
        if not 1 <= len(steps) <= 2 or type(steps[-1]) not in _MODELS:
            raise _Unknown
        return cls(steps[0] if len(steps) == 2 else None, steps[-1])

    def mappings(self) -> list[tuple[int, MutableMapping[str, Any] | None, str]]:
        """(row of cells, what river keeps by feature, the attribute that a value of it has its number in)."""
        model, scaler = self.model, self.scaler
        found: list[tuple[int, Any, str]] = [(kernels.WEIGHT, model._weights, "")]
        if isinstance(scaler, preprocessing.StandardScaler):
            found += [(kernels.COUNT, scaler.counts, ""), (kernels.MEAN, scaler.means, "")]
            found += [(kernels.VARIANCE, scaler.vars, "")] if scaler.with_std else []
        elif isinstance(scaler, preprocessing.MinMaxScaler):
            found += [(kernels.LOW, scaler.min, "min"), (kernels.HIGH, scaler.max, "max")]
        elif isinstance(scaler, preprocessing.MaxAbsScaler):
            found += [(kernels.LARGEST, scaler.abs_max, "abs_max")]
        _, _, kept = _OPTIMIZERS[type(model.optimizer)]
        found += [
            (row, getattr(model.optimizer, name), "")
            for row, name in zip((kernels.FIRST, kernels.SECOND), kept, strict=False)
        ]
        return [*found, (kernels.PAID, model.cum_l1, "")] if model.l1 else found


def _options(estimator: Any) -> NDArray[np.float64]:
    parts = _Parts.of(estimator)
    model, scaler = parts.model, parts.scaler
    expected = vars(linear_model.LogisticRegression(l1=1.0 if model.l1 else 0.0)).keys()
    if vars(model).keys() != expected or model._y_name is not None:
        raise _Unknown
    options = np.zeros(kernels.OPTIONS)

    def put(first: int, part: Any, names: Sequence[str]) -> None:
        options[first : first + len(names)] = [_number(getattr(part, name)) for name in names]

    def rate(first: int, scheduler: Any) -> None:
        kind, names = _known(_RATES, scheduler)
        options[first] = kind
        put(first + 1, scheduler, names)

    options[kernels.SCALER] = _scaler(scaler)
    options[kernels.LOSS], weights = _known(_LOSSES, model.loss)
    put(kernels.LOSS_A, model.loss, weights)
    optimizer = model.optimizer
    options[kernels.OPTIMIZER], settings, kept = _known(_OPTIMIZERS, optimizer)
    if not vars(optimizer).keys() <= {*settings, *kept, "lr", "n_iterations"}:
        raise _Unknown
    put(kernels.A, optimizer, settings)
    if getattr(optimizer, "eps", 1.0) <= 0.0:  # river divides by it also for features that are missing
        raise _Unknown
    if isinstance(optimizer, optim.FTRLProximal):
        if model.l1:  # river asks it for a learning rate, which it has not
            raise _Unknown
    else:
        rate(kernels.RATE, optimizer.lr)
    rate(kernels.INTERCEPT_RATE, model.intercept_lr)
    if type(model.initializer) not in (optim.initializers.Zeros, optim.initializers.Constant):
        raise _Unknown
    put(kernels.INITIAL, model.initializer, ["value"])
    put(kernels.L1, model, ["l1"])
    put(kernels.L2, model, ["l2"])
    put(kernels.CLIP, model, ["clip_gradient"])
    options[[kernels.HALF, kernels.TWO, kernels.INVERSE]] = 0.5, 2.0, -1.0
    options.flags.writeable = False
    return options


def _scaler(scaler: Any) -> int:
    if scaler is None:
        return kernels.AS_IT_IS
    if getattr(scaler, "window_size", 0) is not None:
        raise _Unknown
    if type(scaler) is preprocessing.StandardScaler and type(scaler.with_std) is bool:
        return kernels.STANDARD if scaler.with_std else kernels.CENTRED
    if type(scaler) is preprocessing.MinMaxScaler:
        return kernels.MIN_MAX
    if type(scaler) is preprocessing.MaxAbsScaler:
        return kernels.MAX_ABS
    raise _Unknown


def _known(kinds: Mapping[type, Any], part: Any) -> Any:
    """What is known of a part, by its very class."""
    if type(part) not in kinds:
        raise _Unknown
    return kinds[type(part)]


def _number(value: object) -> float:
    if type(value) not in (int, float) or not abs(value) < (EXACT if type(value) is int else math.inf):  # type: ignore[arg-type]
        raise _Unknown
    return float(value)  # type: ignore[arg-type]


def _read(parts: _Parts, names: Sequence[str]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The cells and what is held once."""
    model = parts.model
    if len(set(names)) != len(names):
        raise _Unknown
    cells = np.zeros((kernels.ROWS, len(names)))
    cells[kernels.LOW], cells[kernels.HIGH], cells[kernels.PLACE] = math.inf, -math.inf, -1.0
    place = {name: f for f, name in enumerate(names)}
    seen = list(model._weights)
    if not set(seen) <= place.keys():
        raise _Unknown
    columns = [place[name] for name in seen]
    cells[kernels.PLACE, columns] = np.arange(len(seen))
    for row, mapping, inner in parts.mappings():
        kept = {} if mapping is None else dict(mapping.items())
        if list(kept) != seen or isinstance(mapping, np.ndarray):
            raise _Unknown
        cells[row, columns] = [_number(getattr(v, inner) if inner else v) for v in kept.values()]
    held = np.zeros(kernels.HELD)
    held[kernels.INTERCEPT] = _number(model.intercept)
    held[kernels.STEPS] = _number(model.optimizer.n_iterations)
    held[kernels.OWED] = _number(model.max_cum_l1) if model.l1 else 0.0
    held[kernels.SEEN] = len(seen)
    return cells, held


def _write(parts: _Parts, names: Sequence[str], cells: NDArray[np.float64], held: NDArray[np.float64]) -> None:
    """Write the numbers where river keeps them, features in the order in which they were first seen."""
    model = parts.model
    order = np.argsort(cells[kernels.PLACE], kind="stable")[len(names) - int(held[kernels.SEEN]) :]
    seen = [names[f] for f in order.tolist()]
    for row, mapping, inner in parts.mappings():
        assert mapping is not None
        values = cells[row, order].astype(np.int64 if row == kernels.COUNT else np.float64).tolist()
        if inner:
            for name, value in zip(seen, values, strict=True):
                setattr(mapping[name], inner, value)
        elif isinstance(mapping, dict):
            dict.update(mapping, zip(seen, values, strict=True))  # that of a Counter would add
        else:
            mapping.update(dict(zip(seen, values, strict=True)))
    model.intercept = float(held[kernels.INTERCEPT])
    model.optimizer.n_iterations = int(held[kernels.STEPS])
    if model.l1:
        model.max_cum_l1 = float(held[kernels.OWED])
