"""The window job by Quix Streams: BROKER FOLDER INPUT OUTPUT. Exactly once, with a commit each five seconds."""

import sys
from typing import Any

from quixstreams import Application
from quixstreams.dataframe.windows import Count, Sum


def timed(value: Any, headers: Any, timestamp: float, kind: Any) -> int:
    return int(value["ts"])


def told(window: Any, key: str, timestamp: int, headers: Any) -> dict[str, Any]:
    # The time is the window's start: it keeps none of the event's.
    return {"user": key, "ts": window["start"], "count": window["count"], "sum": window["sum"]}


def main(broker: str, folder: str, source: str, target: str) -> None:
    app = Application(
        broker,
        consumer_group="window-quix",
        auto_offset_reset="earliest",
        processing_guarantee="exactly-once",
        state_dir=folder,
        producer_extra_config={"linger.ms": 50, "batch.size": 262_144},
        loglevel="WARNING",
    )
    events = app.topic(source, key_deserializer="str", value_deserializer="json", timestamp_extractor=timed)
    out = app.topic(target, key_serializer="str", value_serializer="json")
    windows = app.dataframe(events).tumbling_window(60_000).agg(count=Count(), sum=Sum("amount"))
    windows.current().apply(told, metadata=True).to_topic(out)
    app.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
