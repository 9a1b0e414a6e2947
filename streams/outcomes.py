"""The outcome join: what really became of an event, and when that was known."""

from __future__ import annotations

from collections.abc import Sequence

from headrace.streams.durations import microseconds
from headrace.streams.errors import DeclarationError
from headrace.streams.event import Event, fields


class Outcome:
    """How an event's outcome is found.

    event:     the event that brings the outcome (a return)
    of:        the event whose outcome it is (an order line); a model gives its own `on` where this is left out
    match:     fields equal in both; the most recent open event is matched first
    within:    the horizon: an event without a match by then has the outcome `otherwise`
    prior:     the share of True outcomes expected before the first one is seen; what a model answers until then
    quantity:  a field counted in both: a match takes back that much, what is left goes on to the next open event

    Raises DeclarationError where a field does not exist in both events or the prior is not between 0 and 1.
    """

    def __init__(
        self,
        event: type[Event],
        *,
        match: Sequence[str],
        within: str,
        prior: float,
        otherwise: bool = False,
        of: type[Event] | None = None,
        quantity: str | None = None,
    ) -> None:
        self.event = event
        self.match = tuple(match)
        self.within = microseconds(within)
        self.otherwise = otherwise
        self.prior = prior
        self.quantity = quantity
        self.of = of
        if not 0.0 < prior < 1.0:
            raise DeclarationError(f"Outcome: prior={prior} is not a share between 0 and 1, such as 0.02")
        if not self.match:
            raise DeclarationError('Outcome: match names no field; write match=["customer", "item"]')
        self._check(event)
        if of is not None:
            self._check(of)

    def bind(self, of: type[Event]) -> None:
        """Say whose outcome it is, where the declaration left it to the model."""
        if self.of is not None and self.of is not of:
            raise DeclarationError(
                f"Outcome of {self.of.__name__} cannot be the outcome of a model on {of.__name__}"
            )
        self._check(of)
        self.of = of

    def _check(self, event: type[Event]) -> None:
        known = {f.name: f.kind for f in fields(event)}
        wanted = [*self.match, *([self.quantity] if self.quantity else [])]
        for name in wanted:
            if name not in known:
                raise DeclarationError(f"Outcome: {event.__name__} has no field {name!r} ({', '.join(known)})")
        if self.quantity and known[self.quantity] not in ("int", "float"):
            raise DeclarationError(f"Outcome: quantity={self.quantity!r} is not a number in {event.__name__}")
