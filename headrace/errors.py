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


class DataError(HeadraceError):
    """A data set cannot be had, or is not what it should be."""


class VerifyError(HeadraceError):
    """What was recomputed differs from what was published, or could not be recomputed."""


class ResetError(FrontError):
    """A reset cannot begin or go on. The message says what stands in its way; run it again once that is gone."""


class ExportError(FrontError):
    """State cannot be exported as asked."""


class ProfileError(FrontError):
    """There is nothing to measure."""
