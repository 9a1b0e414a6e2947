"""Headrace: event-driven machine learning.

    import headrace as hr

declares events, features, models and outcomes, and `hr.connect()` publishes and subscribes.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headrace.app import App
    from headrace.client import connect
    from headrace.models import drift
    from headrace.models.model import Model
    from headrace.streams.aggregations import (
        count,
        decayed,
        distinct,
        first,
        last,
        max,
        mean,
        min,
        quantile,
        since_last,
        sum,
        variance,
    )
    from headrace.streams.errors import HeadraceError
    from headrace.streams.event import Event
    from headrace.streams.expressions import (
        Expression,
        clip,
        col,
        day_of_month,
        day_of_week,
        exp,
        fill,
        hour_of_day,
        is_missing,
        length,
        log,
        log1p,
        maximum,
        minimum,
        month,
        seconds_between,
        sqrt,
        where,
    )
    from headrace.streams.features import Features
    from headrace.streams.joins import lookup
    from headrace.streams.outcomes import Outcome
    from headrace.streams.windows import last_n, session, sliding, tumbling

__all__ = [
    "App",
    "Event",
    "Expression",
    "Features",
    "HeadraceError",
    "Model",
    "Outcome",
    "clip",
    "col",
    "connect",
    "count",
    "day_of_month",
    "day_of_week",
    "decayed",
    "distinct",
    "drift",
    "exp",
    "fill",
    "first",
    "hour_of_day",
    "is_missing",
    "last",
    "last_n",
    "length",
    "log",
    "log1p",
    "lookup",
    "max",
    "maximum",
    "mean",
    "min",
    "minimum",
    "month",
    "quantile",
    "seconds_between",
    "session",
    "since_last",
    "sliding",
    "sqrt",
    "sum",
    "tumbling",
    "variance",
    "where",
]

# Each name is imported when it is first used: the broker's process imports this package, and needs none of them. With
# all of them it would take 195 MB and not 50, and start that much later.
_HOMES = {
    "headrace.app": "App",
    "headrace.client": "connect",
    "headrace.models.drift": "drift",
    "headrace.models.model": "Model",
    "headrace.streams.aggregations": "count decayed distinct first last max mean min quantile since_last sum variance",
    "headrace.streams.errors": "HeadraceError",
    "headrace.streams.event": "Event",
    "headrace.streams.expressions": (
        "Expression clip col day_of_month day_of_week exp fill hour_of_day is_missing length log log1p maximum minimum "
        "month seconds_between sqrt where"
    ),
    "headrace.streams.features": "Features",
    "headrace.streams.joins": "lookup",
    "headrace.streams.outcomes": "Outcome",
    "headrace.streams.windows": "last_n session sliding tumbling",
}
_HOME = {name: module for module, names in _HOMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:  # what the names stand for
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = import_module(_HOME[name])
    found = globals()[name] = home if name == "drift" else getattr(home, name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
