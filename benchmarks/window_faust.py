"""The window job by Faust: `python -m benchmarks.window_faust BROKER FOLDER EVENTS`; see window."""

from __future__ import annotations

import asyncio
import sys
import warnings
from datetime import datetime
from typing import Any

from benchmarks.window import THEIRS, Clock

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import faust


def application(broker: str, folder: str, clock: Clock, done: asyncio.Event) -> Any:
    app = faust.App(
        "window-faust",
        broker=f"aiokafka://{broker}",
        store="memory://",
        datadir=folder,
        web_enabled=False,
        topic_partitions=1,
        topic_replication_factor=1,
        stream_wait_empty=False,
        broker_commit_interval=1.0,
        processing_guarantee="at_least_once",
    )
    trades = app.topic("trades", key_serializer="raw", value_serializer="json", partitions=1)
    out = app.topic(THEIRS, key_serializer="raw", value_serializer="json", partitions=1)
    totals: Any = app.Table("totals", default=lambda: [0, 0], partitions=1).tumbling(60.0, expires=86_400.0)
    table = totals.relative_to(lambda event: datetime.fromisoformat(event.value["at"]).timestamp())

    async def count(stream: Any) -> None:
        seen = 0
        async for event in stream.events():
            trade = event.value
            symbol = trade["symbol"]
            trades_so_far, volume = table[symbol].value()
            now = [trades_so_far + 1, volume + trade["quantity"]]
            table[symbol] = now
            told = {"id": f"trades-0-{event.message.offset}", "symbol": symbol, "trades": now[0], "volume": now[1]}
            await out.send(key=event.key, value={**told, "at": trade["at"]})
            seen += 1
            clock.seen(seen)
            if seen == clock.events:
                await app.producer.flush()
                done.set()
                return

    app.agent(trades, concurrency=1)(count)
    return app


async def main(broker: str, folder: str, events: int) -> None:
    clock, done = Clock(events), asyncio.Event()
    async with application(broker, folder, clock, done):
        await done.wait()
        print(clock.told(), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
