"""Typed events: the contract of a topic, declared as a class."""

from __future__ import annotations

import types
import typing
from datetime import datetime
from typing import Any, ClassVar, Literal

import msgspec
from headrace.streams.durations import microseconds
from headrace.streams.errors import DeclarationError

OLDEST = 0
"""1970-01-01: an earlier event time is a broken clock, not history."""
NEWEST = 4_102_444_800_000_000
"""2100-01-01: one event from far ahead would push the watermark past everything that follows."""


class Contract(msgspec.Struct, frozen=True):
    """What an event class declares of its topic.

    key:              the field that partitions the topic
    time:             the field that holds the event time: a `datetime` with a zone, or an int of milliseconds
    out_of_orderness: microseconds that the watermark stays behind the greatest event time seen
    lateness:         microseconds behind the watermark that an event may still be and correct its windows
    ahead:            microseconds that an event time may lie after the time it was published
    unknown:          what happens to a field that is not declared
    codec:            how values are written: "json" or "msgpack"
    """

    topic: str
    key: str
    time: str
    out_of_orderness: int
    lateness: int
    ahead: int
    unknown: Literal["reject", "ignore"]
    codec: str


class _EventMeta(msgspec.StructMeta):
    def __new__(
        mcls,
        name: str,
        bases: tuple[type, ...],
        namespace: dict[str, Any],
        *,
        topic: str | None = None,
        key: str | None = None,
        time: str | None = None,
        out_of_orderness: str = "0s",
        lateness: str = "0s",
        ahead: str = "1d",
        unknown: Literal["reject", "ignore"] = "reject",
        codec: str = "json",
        **options: Any,
    ) -> type:
        options.setdefault("frozen", True)
        options.setdefault("gc", False)
        options.setdefault("forbid_unknown_fields", unknown == "reject")
        cls = super().__new__(mcls, name, bases, namespace, **options)
        if not bases or bases == (msgspec.Struct,):
            return cls
        if topic is None or key is None or time is None:
            missing = [n for n, v in (("topic", topic), ("key", key), ("time", time)) if v is None]
            raise DeclarationError(
                f"event {name} lacks {', '.join(missing)}: write class {name}(hr.Event, "
                f'topic="...", key="<field>", time="<field>")'
            )
        _check_topic(name, topic)
        if unknown not in ("reject", "ignore"):
            raise DeclarationError(f'event {name}: unknown={unknown!r} is neither "reject" nor "ignore"')
        for role, chosen in (("key", key), ("time", time)):
            if chosen not in cls.__struct_fields__:
                known = ", ".join(cls.__struct_fields__)
                raise DeclarationError(f"event {name}: {role}={chosen!r} is not one of its fields ({known})")
        cls.contract = Contract(  # type: ignore[attr-defined]
            topic=topic,
            key=key,
            time=time,
            out_of_orderness=microseconds(out_of_orderness),
            lateness=microseconds(lateness),
            ahead=microseconds(ahead),
            unknown=unknown,
            codec=codec,
        )
        return cls


class Event(msgspec.Struct, metaclass=_EventMeta):
    """The base of typed events; see `Contract` for the class arguments.

    >>> class Click(Event, topic="clicks", key="user", time="at"):
    ...     user: str
    ...     at: datetime
    >>> Click.contract.topic
    'clicks'
    """

    contract: ClassVar[Contract]


def _check_topic(event: str, topic: str) -> None:
    plain = topic.replace("-", "").replace("_", "").replace(".", "")
    if not (0 < len(topic) <= 200 and plain.isascii() and plain.isalnum()):
        raise DeclarationError(f"event {event}: topic {topic!r} may have 1 to 200 letters, digits, '.', '_' and '-'")


Kind = Literal["int", "float", "bool", "str", "time", "object"]


class Field(msgspec.Struct, frozen=True):
    """A field as a column: its name, its kind, and whether it may be missing."""

    name: str
    kind: Kind
    optional: bool


_KINDS: dict[Any, Kind] = {int: "int", float: "float", bool: "bool", str: "str", datetime: "time"}


def fields(event: type[Event]) -> tuple[Field, ...]:
    """The fields of an event class as columns.

    Raises DeclarationError where the key is neither text nor an int, or the time neither a datetime nor an int.
    """
    hints = typing.get_type_hints(event)
    found = []
    for name in event.__struct_fields__:
        hint, optional = hints[name], False
        if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
            plain = [a for a in typing.get_args(hint) if a is not type(None)]
            optional = len(plain) < len(typing.get_args(hint))
            hint = plain[0] if len(plain) == 1 else object
        found.append(Field(name, _KINDS.get(hint, "object"), optional))
    _check_roles(event, {f.name: f for f in found})
    return tuple(found)


def _check_roles(event: type[Event], known: dict[str, Field]) -> None:
    """The types of key and time. They are known here at the earliest: hints may name what is declared later."""
    key, time = known[event.contract.key], known[event.contract.time]
    if key.kind not in ("str", "int"):
        raise DeclarationError(f"event {event.__name__}: key={key.name!r} is {key.kind}; a key is a str or an int")
    if time.kind not in ("time", "int") or time.optional:
        what = f"{time.kind} or missing" if time.optional else time.kind
        raise DeclarationError(
            f"event {event.__name__}: time={time.name!r} is {what}; "
            f"an event time is a datetime, or an int of milliseconds, and never missing"
        )
