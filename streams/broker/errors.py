"""What can go wrong with the local broker: errors for its owner, refusals for its clients."""

from kio.schema.errors import ErrorCode


class BrokerError(Exception):
    """The root of the broker's errors."""


class AddressRefused(BrokerError):
    """The broker cannot listen there, or anyone would reach it without TLS. The message says what to give."""


class FolderInUse(BrokerError):
    """Another broker holds the data folder; stop it, or give this one a folder of its own."""


class FolderUnreadable(BrokerError):
    """The data folder holds something this broker cannot read; check the path and the version."""


class UsersUnreadable(BrokerError):
    """The file of users cannot be read, or names nobody; make it with `python -m headrace.streams.broker.users`."""


class StoreFailed(BrokerError):
    """The store could not be written or read; nothing was acknowledged. The message says what to do."""


class StoreDamaged(StoreFailed):
    """Something stored cannot be read; everything else is served. Put the folder back from a copy."""


class Unauthenticated(BrokerError):
    """A client could not show who it is; its connection is closed."""


class FrameMalformed(BrokerError):
    """A client sent bytes that are not a request; its connection is closed."""


class Unanswerable(BrokerError):
    """A produce request that wants no answer was refused; as in Kafka, its connection is closed instead."""


class BrokenOff(BrokerError):
    """An answer was begun and cannot be ended; its connection is closed, and the client asks again."""


class Refusal(Exception):
    """A request, or one partition of it, that is answered with a protocol error code."""

    def __init__(self, code: ErrorCode, message: str = "") -> None:
        super().__init__(message or code.name)
        self.code = code
        self.message = message or None
