"""The window job by Bytewax: BROKER FOLDER INPUT OUTPUT. State by key, snapshots each ten seconds, orjson."""

import sys
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

import bytewax.operators as op
import orjson
from bytewax._bytewax import cli_main
from bytewax.connectors.kafka import KafkaSink, KafkaSinkMessage, KafkaSource
from bytewax.dataflow import Dataflow
from bytewax.operators import StatefulBatchLogic
from bytewax.recovery import RecoveryConfig, init_db_dir

Total = tuple[int, int, float]
"""Window, count, sum."""
WINDOW = 60_000


class Window(StatefulBatchLogic):  # type: ignore[misc]  # it has no types here
    """A user's window, and what it holds."""

    def __init__(self, total: Total | None) -> None:
        self.total = total or (-1, 0, 0.0)

    def on_batch(self, values: list[tuple[int, float]]) -> tuple[Iterable[Any], bool]:
        window, count, total = self.total
        told = []
        for ts, amount in values:
            if ts // WINDOW != window:
                window, count, total = ts // WINDOW, 0, 0.0
            count, total = count + 1, total + amount
            told.append((ts, count, total))
        self.total = window, count, total
        return told, StatefulBatchLogic.RETAIN

    def snapshot(self) -> Total:
        return self.total


def decoded(messages: list[Any]) -> Iterable[Any]:
    for message in messages:
        event = orjson.loads(message.value)
        yield event["user"], (event["ts"], event["amount"])


def encoded(told: list[Any]) -> Iterable[Any]:
    for user, (ts, count, total) in told:
        value = orjson.dumps({"user": user, "ts": ts, "count": count, "sum": total})
        yield KafkaSinkMessage(user.encode(), value)


def main(broker: str, folder: str, source: str, target: str) -> None:
    recovery = Path(folder)
    recovery.mkdir()
    init_db_dir(recovery, 1)
    flow = Dataflow("window")
    messages = op.input("messages", flow, KafkaSource([broker], [source], batch_size=10_000))
    events = op.flat_map_batch("decoded", messages, decoded)
    told = op.stateful_batch("window", events, Window)
    op.output("told", op.flat_map_batch("encoded", told, encoded), KafkaSink([broker], target))
    cli_main(flow, epoch_interval=timedelta(seconds=10), recovery_config=RecoveryConfig(recovery))


if __name__ == "__main__":
    main(*sys.argv[1:])
