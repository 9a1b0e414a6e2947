"""What the page shows, gathered once for a process, whoever looks.

Flows, workers and their tasks, predictions, quality, alarms, refusals.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from headrace.streams.address import Address
from headrace.streams.codecs import MAX_INTEGER
from headrace.streams.errors import BadSecurity, HeadraceError
from headrace.streams.roster import Crew, Roster, begin
from headrace.streams.subscription import Message, Start, Subscription, headers_of
from headrace.streams.topics import Processor, Topic
from headrace.streams.traffic import Flow, Traffic
from headrace.streams.workers import WORKERS

EVERY = 1.0
"""Seconds between samples: what an eye can follow."""
AGAIN = 2.0
"""Seconds before the log is tried again."""
BATCH = 2000
PREDICTIONS = 100
QUALITY = 4000
"""Records of a model's quality that are held; when there are more, every other old one goes."""
ALARMS = 100
REFUSALS = 50
"""Of each, the last so many are held: a page shows a few tens, and memory stays what it is."""

Record = dict[str, Any]
"""A record's fields as JSON holds them: those that a page can show, text and numbers."""


@dataclass(slots=True)
class Refusal:
    """An event that was rejected or came too late."""

    topic: str
    kind: str
    reason: str
    field: str
    at: str


@dataclass(slots=True)
class Sight:
    """Everything to be seen now."""

    flow: Flow = field(default_factory=Flow)
    trouble: str = "connecting to the log"
    """Why the log cannot be read; empty while it can."""
    predictions: deque[Record] = field(default_factory=lambda: deque(maxlen=PREDICTIONS))
    quality: dict[str, list[Record]] = field(default_factory=lambda: defaultdict(list))
    """By model, in the order published."""
    alarms: deque[Record] = field(default_factory=lambda: deque(maxlen=ALARMS))
    refusals: deque[Refusal] = field(default_factory=lambda: deque(maxlen=REFUSALS))
    counts: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    """Records of each topic that is read whole: those of quality, drift, late and rejected."""
    changes: int = 0
    """Goes up with every record of quality, drift, late and rejected."""


def record_of(message: Message) -> Record | None:
    """The fields of a record, without what is nested or has more digits than a float; None where it has none."""
    if not isinstance(message.value, dict):
        return None
    return {
        name: value
        for name, value in message.value.items()
        if value is None or isinstance(value, str | float) or (isinstance(value, int) and abs(value) <= MAX_INTEGER)
    }


class Board:
    """Reads the log in the background and keeps what is to be seen."""

    def __init__(self, app: str, address: Address, topics: Sequence[Topic], processors: Sequence[Processor]) -> None:
        self.sight = Sight()
        self.topics = tuple(topics)
        self.processors = tuple(processors)
        self._address = address
        self._roster = Roster(app, processors)
        self._seen: dict[tuple[str, int], int] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def crew(self) -> Crew:
        """Who works now."""
        return self._roster.crew(time.time() * 1000)

    def start(self, show: Callable[[Flow], None] = lambda _: None) -> None:
        """Begin to read; `show` gets every flow."""
        take = {
            "metrics": self._take_quality,
            "drift": self._take_alarm,
            "late": self._take_refusal,
            "rejected": self._take_refusal,
        }
        self._tasks = [
            asyncio.create_task(self._watch_flow(show), name="board-flow"),
            asyncio.create_task(self._follow(WORKERS, self._take_worker, begin), name="board-workers"),
        ]
        for topic in self.topics:
            if topic.kind in take:
                following = self._read_whole(topic, take[topic.kind])
                self._tasks.append(asyncio.create_task(following, name=f"board-{topic.name}"))

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()

    async def _watch_flow(self, show: Callable[[Flow], None]) -> None:
        loop = asyncio.get_running_loop()
        traffic = Traffic(self._address, self.topics, self.processors, tail=True)
        while True:
            try:
                await traffic.start()
                while True:
                    begun = loop.time()
                    self._take_flow(await traffic.flow())
                    show(self.sight.flow)
                    await asyncio.sleep(max(0.1, EVERY - (loop.time() - begun)))
            except BadSecurity as error:  # asked again, it would be refused again
                self.sight.trouble = str(error)
                return
            except HeadraceError as error:
                self.sight.trouble = str(error)
            finally:
                await traffic.close()
            await asyncio.sleep(AGAIN)

    def _take_flow(self, flow: Flow) -> None:
        self.sight.flow = flow
        self.sight.trouble = ""
        kinds = {t.name: t.kind for t in self.topics}
        for name, messages in flow.tails.items():
            if kinds.get(name) != "predictions":
                continue
            for message in messages:
                place = (name, message.partition)
                record = record_of(message)
                if message.offset <= self._seen.get(place, -1) or record is None:
                    continue
                self._seen[place] = message.offset
                self.sight.predictions.append({"model": name.partition(".")[2], **record})

    async def _read_whole(self, topic: Topic, take: Callable[[Topic, Message], None]) -> None:
        def counted(message: Message, _: bool) -> None:
            self.sight.counts[topic.name] += 1
            self.sight.changes += 1
            take(topic, message)

        await self._follow(topic.name, counted, lambda: "earliest")

    async def _follow(self, topic: str, take: Callable[[Message, bool], None], start: Callable[[], Start]) -> None:
        """Read a topic and go on; after trouble, from where it was. `take` is told whether a record came just now."""
        positions: dict[int, int] = {}
        while True:
            subscription = Subscription(self._address, topic, positions or start())
            try:
                await subscription.open()
                live = False
                while True:
                    messages = await subscription.batch(EVERY, BATCH)
                    for message in messages:
                        take(message, live)
                    live = live or not messages
                    positions = dict(subscription.next)
                    await asyncio.sleep(0)
            except BadSecurity:
                return
            except HeadraceError:
                pass
            finally:
                with contextlib.suppress(HeadraceError):
                    await subscription.close()
            await asyncio.sleep(AGAIN)

    def _take_worker(self, message: Message, live: bool) -> None:
        self._roster.take(message.key or "", message.data, time.time() * 1000 if live else None)

    def _take_quality(self, topic: Topic, message: Message) -> None:
        record = record_of(message)
        if record is None:
            return
        records = self.sight.quality[str(record.get("model") or topic.name.partition(".")[2])]
        records.append(record)
        if len(records) > QUALITY:
            # Old history gets coarser, the recent half stays as it is.
            records[: QUALITY // 2] = records[: QUALITY // 2 : 2]

    def _take_alarm(self, topic: Topic, message: Message) -> None:
        record = record_of(message)
        if record is not None:
            self.sight.alarms.append({"model": topic.name.partition(".")[2], **record})

    def _take_refusal(self, topic: Topic, message: Message) -> None:
        said = headers_of(message)
        self.sight.refusals.append(
            Refusal(
                topic=said.get("topic") or topic.name.rpartition(".")[0],
                kind=topic.kind,
                reason=said.get("reason", ""),
                field=said.get("field", ""),
                at=f"{message.timestamp:%H:%M:%S}",
            )
        )
