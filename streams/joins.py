"""Joins: fields of a table's rows beside the events of a stream.

A table is a stream whose rows replace one another: the latest row of a key is what holds. `lookup` is an
aggregation like any other, so the set's `by` names the key, and both the stream and the table have it:

    class Item(Features, of=OrderLine, by="item"):
        category = lookup(Product, "category")             # as the table stands when the order line is taken
        listed   = lookup(Price, "amount", history=16)     # the price that held at the order line's event
        time
"""

from __future__ import annotations

from headrace.streams.aggregations import Aggregate, Source
from headrace.streams.errors import DeclarationError
from headrace.streams.expressions import Col
from headrace.streams.windows import MOST_LAST, AllTime, Versions


def lookup(table: Source, field: str, *, history: int | None = None) -> Aggregate:
    """A field of the table's row of the same key; missing where there is none. A number, bool, time or text.

    Without history, the row of the latest event time that has been taken. history: the rows that each key
    keeps, by event time; the value is that of the row valid at the event's own time, the latest not after it,
    and missing where that one is no longer kept. Rows of one time replace one another. A field that is
    missing in a row leaves the older value in force without history, and is missing with it.
    """
    if history is not None and not 1 <= history <= MOST_LAST:
        raise DeclarationError(f"lookup(..., history={history}): a key may keep 1 to {MOST_LAST} rows")
    return Aggregate("last", Col(field), AllTime() if history is None else Versions(history), table, None)
