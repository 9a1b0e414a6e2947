"""An application: the models and feature sets of a program, and the topics they read and write."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, get_args

from headrace import plan
from headrace.streams.errors import DeclarationError
from headrace.streams.topics import Processor, Topic

if TYPE_CHECKING:
    from headrace.models.model import Model
    from headrace.streams.event import Event
    from headrace.streams.features import Features

MAX_PARTITIONS = 1_000
"""More tasks than this in one application are a mistake, not a plan."""

MAX_STANDBY = 3
"""More copies than this cost more than they save: each reads every change."""

Guarantee = Literal["exactly_once", "at_least_once"]

__all__ = ["App", "Guarantee", "Processor", "Topic"]


class App:
    """A program: what `headrace run` runs.

    name:       names the data folder, the consumer groups and the transactional ids
    models:     the models; their feature sets come with them
    features:   further feature sets, of no model
    partitions: of each topic that the application creates
    guarantee:  "exactly_once", or "at_least_once": features and predictions are published ahead of the transaction
                that settles them, for the lowest latency; after a crash some are published again, with the same ids.
                State, outcomes and what is learnt of them stay exactly once
    standby:    copies of each task that other workers keep warm, so that one that dies is followed in a moment; they
                take the disk and the reading of as many tasks more

    Raises DeclarationError where they cannot be laid out.
    """

    def __init__(
        self,
        name: str,
        *,
        models: Sequence[Model] = (),
        features: Sequence[type[Features]] = (),
        partitions: int = 1,
        guarantee: Guarantee = "exactly_once",
        standby: int = 0,
    ) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_-]{0,63}", name):
            raise DeclarationError(f"App: name {name!r} must be lower-case letters, digits, '_' and '-'")
        self.name = name
        self.models = tuple(models)
        self.features = tuple(features)
        self.partitions = partitions
        self.guarantee = guarantee
        self.standby = standby
        if not models and not features:
            raise DeclarationError(f"App {name} does nothing: give it models=[...] or features=[...]")
        if not 1 <= partitions <= MAX_PARTITIONS:
            raise DeclarationError(f"App {name}: partitions={partitions} is not between 1 and {MAX_PARTITIONS}")
        if guarantee not in get_args(Guarantee):
            raise DeclarationError(f"App {name}: guarantee={guarantee!r} is none of {', '.join(get_args(Guarantee))}")
        if not 0 <= standby <= MAX_STANDBY:
            raise DeclarationError(f"App {name}: standby={standby} is not between 0 and {MAX_STANDBY}")
        plan.topics(self)
        for model in self.models:
            plan.check(model)

    @cached_property
    def faust(self) -> Any:  # Faust is untyped
        """A `faust.App` for agents, timers, crontabs and commands of one's own, made at its first use; workers run it
        in a process beside their tasks. It keeps no tables, and its agents take one event at a time.
        """
        from headrace import agents

        return agents.build(self.name)

    @property
    def has_agents(self) -> bool:
        """Whether the program has made use of `faust`; one that has not does not load it."""
        return "faust" in self.__dict__

    @property
    def events(self) -> tuple[type[Event], ...]:
        """The event classes that users publish, each once, in the order of their first use."""
        return plan.events(self)

    def topics(self) -> tuple[Topic, ...]:
        """Every topic of the application, sources first."""
        return plan.topics(self)

    def processors(self) -> tuple[Processor, ...]:
        """Every processor, upstream first."""
        return plan.processors(self)
