"""The declaration of a model: what it predicts, from what, and how it learns."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from headrace.streams.errors import DeclarationError

if TYPE_CHECKING:
    from headrace.models.drift import Watch
    from headrace.streams.event import Event
    from headrace.streams.expressions import Expression
    from headrace.streams.features import Features
    from headrace.streams.outcomes import Outcome
    from river import base, compose


class Model:
    """A model over a topic's events; its predictions go to `predictions.<name>`.

    on:            the event that is scored, once each
    features:      the feature sets whose public features the model sees
    learner:       any river classifier that tells probabilities, or a pipeline that ends in one, its random parts
                   seeded; it is copied, never changed
    outcome:       where the truth comes from; without it the model is never evaluated and never learns
    baselines:     features that are probabilities themselves, judged beside the model by name; a private one will do
    watch:         drift detectors; alarms go to `drift.<name>`
    publish_every: a version is published after this many outcomes learnt

    Raises DeclarationError where that cannot be.
    """

    def __init__(
        self,
        name: str,
        *,
        on: type[Event],
        features: Sequence[type[Features]],
        learner: base.Classifier | compose.Pipeline,
        outcome: Outcome | None = None,
        baselines: Mapping[str, Expression] | None = None,
        watch: Sequence[Watch] = (),
        publish_every: int = 500,
    ) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_-]{0,63}", name):
            raise DeclarationError(f"Model: name {name!r} must be lower-case letters, digits, '_' and '-'")
        if isinstance(features, type):
            raise DeclarationError(f"Model {name}: write features=[{features.__name__}]")
        if not features:
            raise DeclarationError(f"Model {name}: features is empty; name at least one hr.Features class")
        if publish_every < 1:
            raise DeclarationError(f"Model {name}: publish_every={publish_every} must be at least 1")
        keys = [w.key for w in watch]
        for one in watch:
            if keys.count(one.key) > 1:
                raise DeclarationError(f"Model {name}: {one.key} is watched twice; once is enough")
            if one.moment == "outcome" and outcome is None:
                raise DeclarationError(
                    f"Model {name}: {one.kind}({one.on!r}) watches outcomes, and the model has none: give it outcome="
                )
        self.name = name
        self.on = on
        self.features = tuple(features)
        self.learner = learner
        self.outcome = outcome
        self.baselines = dict(baselines or {})
        self.watch = tuple(watch)
        self.publish_every = publish_every
        if outcome is not None:
            outcome.bind(on)
