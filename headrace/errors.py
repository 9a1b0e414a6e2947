"""The errors of the front door."""

from headrace.streams.errors import HeadraceError


class FrontError(HeadraceError):
    """A command or a connection cannot do what was asked."""


class ProgramError(FrontError):
    """A program cannot be loaded. The message says which line or name to mend."""


class NoBroker(FrontError):
    """Nothing says where the broker is. Start the local stack, or name a broker."""


class StackError(FrontError):
    """The local stack cannot start or go on. The message holds the last lines of the process that failed."""
