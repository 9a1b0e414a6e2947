"""An application: the models and feature sets of a program, and the topics they read and write."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from headrace.streams.errors import DeclarationError

if TYPE_CHECKING:
    from headrace.models.model import Model
    from headrace.streams.event import Event
    from headrace.streams.features import Features

Kind = Literal[
    "event", "rejected", "late", "features", "predictions", "outcomes", "metrics", "drift", "registry", "changelog"
]


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic of an application. `event` is the contract of a topic that users publish to, else None."""

    name: str
    kind: Kind
    partitions: int
    event: type[Event] | None = None
    configs: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Processor:
    """A processor of an application: the topics it reads (with the group that holds its offsets) and writes."""

    name: str
    group: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class App:
    """A program: what `headrace run` runs.

    name:       names the data folder, the consumer groups and the transactional ids
    models:     the models; their feature sets come with them
    features:   further feature sets, of no model
    partitions: of each topic that the application creates
    """

    def __init__(
        self,
        name: str,
        *,
        models: Sequence[Model] = (),
        features: Sequence[type[Features]] = (),
        partitions: int = 1,
    ) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_-]{0,63}", name):
            raise DeclarationError(f"App: name {name!r} must be lower-case letters, digits, '_' and '-'")
        self.name = name
        self.models = tuple(models)
        self.features = tuple(features)
        self.partitions = partitions

    @property
    def events(self) -> tuple[type[Event], ...]:
        """The event classes that users publish, each once, in the order of their first use."""
        raise NotImplementedError

    def topics(self) -> tuple[Topic, ...]:
        """Every topic of the application, sources first."""
        raise NotImplementedError

    def processors(self) -> tuple[Processor, ...]:
        """Every processor, upstream first."""
        raise NotImplementedError
