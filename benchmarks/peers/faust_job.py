"""The window job by Faust: BROKER FOLDER INPUT OUTPUT. Its table is in memory, with a changelog: the fastest it has."""

import sys
from typing import Any

import faust

FOREVER = 100 * 365 * 86_400.0
"""Seconds: a table lets go of windows by the wall's clock, and these are of 2023."""


def application(broker: str, folder: str, source: str, target: str) -> Any:
    app = faust.App(
        "window-faust",
        broker=f"aiokafka://{broker}",
        store="memory://",
        datadir=folder,
        web_enabled=False,
        topic_partitions=4,
        topic_replication_factor=1,
        consumer_auto_offset_reset="earliest",
        stream_wait_empty=False,
        broker_commit_interval=1.0,
        processing_guarantee="at_least_once",
    )
    events = app.topic(source, key_serializer="raw", value_serializer="json", partitions=4)
    out = app.topic(target, key_serializer="raw", value_serializer="json", partitions=4)
    totals: Any = app.Table("totals", default=lambda: [0, 0.0], partitions=4).tumbling(60.0, expires=FOREVER)
    table = totals.relative_to(lambda event: event.value["ts"] / 1000)

    async def count(stream: Any) -> None:
        async for event in stream.events():
            value = event.value
            user = value["user"]
            before, total = table[user].value()
            table[user] = now = [before + 1, total + value["amount"]]
            await out.send(key=event.key, value={"user": user, "ts": value["ts"], "count": now[0], "sum": now[1]})

    app.agent(events, concurrency=1)(count)
    return app


if __name__ == "__main__":
    faust.Worker(application(*sys.argv[1:]), loglevel="WARN").execute_from_commandline()
