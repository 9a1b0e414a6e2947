"""Headrace: event-driven machine learning.

    import headrace as hr

declares events, features, models and outcomes, and `hr.connect()` publishes and subscribes.
"""

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
