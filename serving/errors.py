"""The errors of serving."""

from headrace.streams.errors import CannotGoOn, HeadraceError


class ServingError(HeadraceError):
    """Serving cannot start as asked."""


class ScoringError(CannotGoOn, ServingError):
    """A model failed on an event. The message names the event, the version and what the model was given."""


class Refused(ServingError):
    """A request that is answered with an error: its status, a sentence, and what else helps the caller."""

    def __init__(self, status: int, reason: str, *, headers: dict[str, str] | None = None, **details: object) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.headers = headers or {}
        self.details = details
