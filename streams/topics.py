"""Topics and processors: what a program reads and writes, as plain descriptions that every package may hold."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, cast, get_args

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


_OURS = re.compile(
    rf"(features|predictions|outcomes|metrics|drift)\..*|.*\.(late|rejected|changelog|hurries)|registry|{WORKERS}|__.*"
)


def kind_of(name: str) -> Kind:
    """The kind of a topic where only its name is known: "event" where it is none that a program writes.

    >>> kind_of("orders"), kind_of("orders.late"), kind_of("predictions.returns"), kind_of("shop.orders.hurries")
    ('event', 'late', 'predictions', 'changelog')
    """
    found = _OURS.fullmatch(name)
    if found is None:
        return "event"
    kind = found[1] or found[2] or name
    return cast(Kind, kind) if kind in get_args(Kind) else "changelog"



def derived_topic(name: str, known: Iterable[str]) -> DerivedTopic:
    """The error for publishing to a topic that a program writes, with those that are published to."""
    events = ", ".join(sorted(n for n in known if kind_of(n) == "event")[:10]) or "none"
    return DerivedTopic(
        f"topic {name} is written by the program, not by publishers: publish to an event topic ({events})"
    )


def unknown_topic(name: str, known: Iterable[str], *, publishing: bool = False) -> UnknownTopic:
    """The error for a name that is no topic, with the names it may have been meant to be.

    publishing: to a topic that a program writes nobody means to publish
    """
    names = sorted(set(known))
    if publishing:
        names = [n for n in names if kind_of(n) == "event"] or names
    near = difflib.get_close_matches(name, names, n=NEAR_NAMES, cutoff=0.5)
    near += [n for n in names if name and name in n and n not in near][: NEAR_NAMES - len(near)]
    if near:
        hint = f"did you mean {' or '.join(near)}?"
    elif names:
        hint = f"there are {', '.join(names[:10])}{', ...' if len(names) > 10 else ''}"
    else:
        hint = "the log has no topics yet; `headrace run pipeline.py` creates those of a program"
    return UnknownTopic(f"topic {name!r} does not exist: {hint}")
