"""The errors of the data plane. Each says what was wrong, with the value, and what to do."""


class HeadraceError(Exception):
    """The root of every error that Headrace raises on purpose."""


class DeclarationError(HeadraceError):
    """A program declares something that cannot be. Mend the program; nothing has been touched."""


class StreamsError(HeadraceError):
    """The data plane cannot go on as asked."""


class InvalidEvent(StreamsError):
    """One value breaks its contract. The event goes to `<topic>.rejected`; the events around it go on.

    `field` is the path of the offending field (`quantity`), or an empty string where the value as a whole is wrong.
    """

    def __init__(self, reason: str, field: str = "") -> None:
        super().__init__(f"{reason} (field {field})" if field else reason)
        self.reason = reason
        self.field = field


class UnknownTopic(StreamsError):
    """A topic that neither the program nor the log knows. Check the spelling; `headrace topics` lists them."""


class DerivedTopic(StreamsError):
    """A topic that a program writes: what others published there would be taken for the program's own."""


class BadAddress(StreamsError):
    """The address of a broker cannot be read. Write `kafka://host:port`, or `kafka+ssl://host:port` for TLS."""


class MalformedBatch(StreamsError):
    """Bytes that the log gave for a record batch cannot be read. The message says of which, and what is wrong."""


class CannotGoOn(HeadraceError):
    """Starting again would fail in the same way at the same event. Mend what the message names, then start again: the
    task goes on from there, and nothing is lost."""


class BadSetting(CannotGoOn, StreamsError):
    """A setting of the environment has a value that it does not take. The message names those that it does."""


class LogUnavailable(StreamsError):
    """The log did not answer within its bound. It is safe to try again."""


class TopicMismatch(CannotGoOn, StreamsError):
    """A topic of the log is not as the program declares it. The message says what differs."""


class BadSecurity(CannotGoOn, StreamsError):
    """TLS or user are set as the broker does not take them, or cannot be used. The message names the setting."""


class WrongCredentials(BadSecurity):
    """The broker refuses the user. Asking again would be refused again, and may lock the account."""


class TopicGone(CannotGoOn, StreamsError):
    """A topic of the program was deleted while it ran. It is not made again by itself: what was in it is lost."""


class OperatorError(CannotGoOn, StreamsError):
    """An operator failed on an event. The message names the operator and the event, or the events of its batch."""


class RecordTooLarge(CannotGoOn, StreamsError):
    """The log takes no record of this size, however often it is asked. Raise the topic's `max.message.bytes`."""


class ProgramChanged(CannotGoOn, StreamsError):
    """State was made by other declarations than the program has now. The message says how to go on."""


class LogLost(CannotGoOn, StreamsError):
    """The log lacks what this task has read of it or written to it: a topic was deleted, or data of a broker lost."""


class Fenced(StreamsError):
    """A newer owner of this task has taken over. This one must stop; nothing of it will be committed."""


class TransactionUnknown(StreamsError):
    """The outcome of a commit is unknown. The task starts again from what the log says was committed."""


class GroupRefused(CannotGoOn, StreamsError):
    """The log does not let this user join the workers' group. The message says what to allow."""


class StateError(StreamsError):
    """State on disk cannot be used or written. The message says whether to free it, or room, or to rebuild it."""
