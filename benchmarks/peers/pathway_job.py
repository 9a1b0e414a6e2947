"""The window job by Pathway: BROKER FOLDER INPUT OUTPUT.

It computes by small batches and tells of the last value in each. The nearest that tells of every event is a reducer
that keeps what a batch has added to its window, and a stream of its changes, taken apart again.
"""

import sys
from typing import Any

import pathway as pw

State = tuple[int, float, tuple[tuple[int, int, float], ...]]
"""Count, sum, and what the last batch had to tell: time, count and sum as of each event."""


class Event(pw.Schema):  # type: ignore[misc]  # it has no types here
    user: str
    ts: int
    amount: float


@pw.reducers.stateful_many  # type: ignore[untyped-decorator]
def totals(state: State | None, rows: list[tuple[list[Any], int]]) -> State:
    count, total, _ = state or (0, 0.0, ())
    told = []
    for ts, amount in sorted(row for row, _ in rows):
        count, total = count + 1, total + amount
        told.append((ts, count, total))
    return count, total, tuple(told)


@pw.udf(return_type=list[tuple[int, int, float]])  # type: ignore[untyped-decorator]
def of_batch(state: State) -> list[tuple[int, int, float]]:
    return list(state[2])


def main(broker: str, folder: str, source: str, target: str) -> None:
    settings = {"bootstrap.servers": broker, "group.id": "window-pathway", "auto.offset.reset": "earliest"}
    events = pw.io.kafka.read(
        settings,
        source,
        schema=Event,
        format="json",
        autocommit_duration_ms=1_500,
        # Without a bound it reads the topic ahead to its end, and has the core for that.
        max_backlog_size=200_000,
    )
    events = events.with_columns(window=events.ts // 60_000)
    windows = events.groupby(events.user, events.window).reduce(events.user, state=totals(events.ts, events.amount))
    changes = windows.to_stream("put").filter(pw.this.put)
    each = changes.select(changes.user, told=of_batch(changes.state)).flatten(pw.this.told)
    told = each.select(each.user, ts=each.told[0], count=each.told[1], sum=each.told[2])
    pw.io.kafka.write(told, {"bootstrap.servers": broker}, target, format="json", key=told.user, sort_by=[told.ts])
    # Snapshots of what was read: those of the operators' state want a licence.
    kept = pw.persistence.Config(pw.persistence.Backend.filesystem(folder), snapshot_interval_ms=5_000)
    pw.run(monitoring_level=pw.MonitoringLevel.NONE, persistence_config=kept)


if __name__ == "__main__":
    main(*sys.argv[1:])
