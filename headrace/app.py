"""An application: the models and feature sets of a program, and the topics they read and write."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from headrace.streams.errors import DeclarationError
from headrace.streams.topics import Processor, Topic

if TYPE_CHECKING:
    from headrace.models.model import Model
    from headrace.streams.event import Event
    from headrace.streams.features import Features

__all__ = ["App", "Processor", "Topic"]


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
