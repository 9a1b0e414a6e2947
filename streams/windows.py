"""Windows: which events of an entity an aggregation covers.

A window over time is made of panes, as in Chronon: a pane folds the events of one short span, and a value
folds panes. So an update touches one pane, a value reads few, and the cost does not grow with the events in
the window. The head of a window is exact, its tail is rounded to a pane.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from headrace.streams.durations import DAY, HOUR, MINUTE, SECOND, microseconds, text
from headrace.streams.errors import DeclarationError

MOST_LAST = 10_000
"""Events that a last-N window may hold: each is kept for every entity."""
MOST_PANES = 4_000
"""Panes that one window may have: a value reads them all when the entity has events in each."""
MOST_COPIES = 256
"""Sliding result windows that one event may lie in: it is folded into each."""


@dataclass(frozen=True)
class Sliding:
    """The last `size` microseconds. As-of features round its tail to `pane`; results slide it by `every`."""

    size: int
    pane: int
    every: int | None = None

    def __str__(self) -> str:
        if self.every is not None:
            return f"sliding {text(self.size)} every {text(self.every)}"
        return f"{text(self.size)} in {text(self.pane)}"


@dataclass(frozen=True)
class Tumbling:
    """Windows of `size` microseconds, one after another, aligned with 1970-01-01T00:00Z."""

    size: int

    def __str__(self) -> str:
        return f"tumbling {text(self.size)}"


@dataclass(frozen=True)
class Session:
    """Events with less than `gap` microseconds from each to the next."""

    gap: int

    def __str__(self) -> str:
        return f"session {text(self.gap)}"


@dataclass(frozen=True)
class LastN:
    """The entity's last `n` events; for results, one each time `every` more have come."""

    n: int
    every: int | None = None

    def __str__(self) -> str:
        return f"last {self.n}" + (f" every {self.every}" if self.every else "")


@dataclass(frozen=True)
class AllTime:
    """Every event of the entity so far."""

    text: ClassVar[str] = "all"

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Versions:
    """The row of a table that is valid at the event's time, of the key's last `n` by event time."""

    n: int

    def __str__(self) -> str:
        return f"{self.n} versions"


Window = Sliding | Tumbling | Session | LastN | AllTime | Versions


def sliding(size: str, every: str | None = None, pane: str | None = None) -> Sliding:
    """The last `size`.

    every: for window results, how often a window ends. pane: for as-of features, the rounding of the tail;
    where it is not given, a day for windows of 12 days and more, an hour from 12 hours, 5 minutes from an
    hour, a twelfth or so of shorter ones. `size` is a whole number of panes.
    """
    width = _positive(size)
    step = None if every is None else _positive(every)
    grain = _pane(width) if pane is None else _positive(pane)
    if step is not None and (step > width or -(-width // step) > MOST_COPIES):
        raise DeclarationError(
            f"sliding({size!r}, every={every!r}): `every` may be the size to a {MOST_COPIES}th of it"
        )
    if width % grain or width // grain > MOST_PANES:
        raise DeclarationError(f"sliding({size!r}, pane={pane!r}): the size must be 1 to {MOST_PANES} whole panes")
    return Sliding(width, grain, step)


def tumbling(size: str) -> Tumbling:
    """Windows of one size, side by side. An as-of value covers the current one so far."""
    return Tumbling(_positive(size))


def session(gap: str) -> Session:
    """Events with less than `gap` between them. An as-of value covers the current session so far."""
    return Session(_positive(gap))


def last_n(n: int, every: int | None = None) -> LastN:
    """The entity's last n events, in the order in which they were taken."""
    if not 1 <= n <= MOST_LAST or (every is not None and every < 1):
        raise DeclarationError(f"last_n({n}, every={every}): n is 1 to {MOST_LAST}, and every is at least 1")
    return LastN(n, every)


def window(of: str | Window | None) -> Window:
    """A window as programs write it: "7d" is sliding("7d"), None is all time."""
    if of is None:
        return AllTime()
    if not isinstance(of, str | Window):
        raise DeclarationError(f'{of!r} is no window: write a span such as "7d", or tumbling, session or last_n')
    return sliding(of) if isinstance(of, str) else of


def _positive(span: str) -> int:
    width = microseconds(span)
    if width <= 0:
        raise DeclarationError(f"a window of {span!r} holds nothing: give it a length")
    return width


def _pane(size: int) -> int:
    for least, pane in ((12 * DAY, DAY), (12 * HOUR, HOUR), (HOUR, 5 * MINUTE)):
        if size >= least and size % pane == 0:
            return pane
    if size < 12 * SECOND and size % SECOND == 0:
        return SECOND
    return next(size // n for n in range(12, 0, -1) if size % n == 0)
