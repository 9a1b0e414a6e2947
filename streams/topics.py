"""Topics and processors: what a program reads and writes, as plain descriptions that every package may hold."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from headrace.streams.errors import DerivedTopic, UnknownTopic

if TYPE_CHECKING:
    from headrace.streams.event import Event

WORKERS = "workers"
"""Where every worker tells of itself; see `workers`."""

Kind = Literal[
    "event",
    "rejected",
    "late",
    "features",
    "predictions",
    "outcomes",
    "metrics",
    "drift",
    "registry",
    "changelog",
    "workers",
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
    """A processor of an application: the topics it reads (with the group that holds its offsets) and writes.

    partitions: how many tasks it is
    """

    name: str
    group: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    partitions: int = 1


NEAR_NAMES = 3
"""More suggestions than this read as noise."""


OURS = re.compile(r"(features|predictions|outcomes|metrics|drift)\..*|.*\.(late|rejected|changelog|hurries)|__.*")


def derived(name: str) -> bool:
    """Whether a program writes the topic, and nobody publishes to it; by its name, where only names are known."""
    return OURS.fullmatch(name) is not None or name in ("registry", WORKERS)


def derived_topic(name: str, known: Iterable[str]) -> DerivedTopic:
    """The error for publishing to a topic that a program writes, with those that are published to."""
    events = ", ".join(sorted(n for n in known if not derived(n))[:10]) or "none"
    return DerivedTopic(
        f"topic {name} is written by the program, not by publishers: publish to an event topic ({events})"
    )


def unknown_topic(name: str, known: Iterable[str], *, publishing: bool = False) -> UnknownTopic:
    """The error for a name that is no topic, with the names it may have been meant to be.

    publishing: to a topic that a program writes nobody means to publish
    """
    names = sorted(set(known))
    if publishing:
        names = [n for n in names if not derived(n)] or names
    near = difflib.get_close_matches(name, names, n=NEAR_NAMES, cutoff=0.5)
    near += [n for n in names if name and name in n and n not in near][: NEAR_NAMES - len(near)]
    if near:
        hint = f"did you mean {' or '.join(near)}?"
    elif names:
        hint = f"there are {', '.join(names[:10])}{', ...' if len(names) > 10 else ''}"
    else:
        hint = "the log has no topics yet; `headrace run pipeline.py` creates those of a program"
    return UnknownTopic(f"topic {name!r} does not exist: {hint}")
