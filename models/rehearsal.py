"""A learner tried out when it is declared, so that one that cannot learn fails then, not at its first outcome."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from typing import Any

from headrace.models import artifacts
from headrace.models.errors import ArtifactError
from headrace.models.model import Model
from headrace.streams.errors import DeclarationError
from headrace.streams.event import Kind
from river import base, compose


def rehearse(model: Model, kinds: Mapping[str, Kind]) -> None:
    """Learn and predict made-up events, store the learner and read it again.

    kinds: the features as the model sees them, and what they are
    Raises DeclarationError where the learner is no classifier with probabilities, has random parts without a seed,
    cannot take these features, or cannot be stored.
    """
    learner = model.learner
    said = f"Model {model.name}: its learner {_named(learner)}"
    if not isinstance(_last(learner), base.Classifier):
        raise DeclarationError(f"{said} is no classifier, and outcomes are True or False; end it in one of river's")
    for part in _unseeded(learner, _named(learner)):
        raise DeclarationError(
            f"{said} is random and {part} has no seed: the same outcomes must give the same model; write seed=1"
        )
    events: list[dict[Hashable, Any]] = [{name: _made_up(kind, n) for name, kind in kinds.items()} for n in range(3)]
    try:
        estimator = learner.clone()
        for event, outcome in zip(events, (False, True, False), strict=True):
            estimator.learn_one(dict(event), outcome)
        answer: Any = estimator.predict_proba_one(dict(events[0]))
    except NotImplementedError as error:
        raise DeclarationError(f"{said} tells no probabilities; take a classifier with predict_proba_one") from error
    except Exception as error:
        texts = [name for name, kind in kinds.items() if kind == "str"]
        hint = f" ({', '.join(texts)} is text: encode it, with preprocessing.OneHotEncoder)" if texts else ""
        raise DeclarationError(f"{said} cannot learn these features{hint}: {type(error).__name__}: {error}") from error
    if not isinstance(answer, Mapping):
        raise DeclarationError(f"{said} answers {answer!r}, not a probability for each outcome")
    try:
        again = artifacts.load(artifacts.dump(estimator))
        same = artifacts.fingerprint(again) == artifacts.fingerprint(estimator)
    except ArtifactError as error:
        raise DeclarationError(f"{said} cannot be stored: {error}") from error
    if not same:
        raise DeclarationError(f"{said} is another after it was stored and read; take one that is not")


def _made_up(kind: Kind, n: int) -> float | str:
    return f"text {n % 2}" if kind == "str" else float(n % 2)


def _named(learner: object) -> str:
    if isinstance(learner, compose.Pipeline):
        return " | ".join(map(_named, learner.steps.values()))
    return type(learner).__name__


def _last(learner: object) -> object:
    while isinstance(learner, compose.Pipeline):
        learner = list(learner.steps.values())[-1]
    return learner


def _unseeded(part: object, name: str = "") -> Iterator[str]:
    """The parts within this one that take a seed and were given none: an estimator, or parameters as river has them."""
    if isinstance(part, base.Base):
        yield from _unseeded(part._get_params(), type(part).__name__)
    elif isinstance(part, dict):
        if "seed" in part and part["seed"] is None:
            yield name
        for key, value in part.items():
            yield from _unseeded(value, str(key))
    elif isinstance(part, list | tuple):
        for value in part:
            yield from _unseeded(value, part[0].__name__ if isinstance(part[0], type) else name)
