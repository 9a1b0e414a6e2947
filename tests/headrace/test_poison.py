"""An event on which the program itself fails: the stack ends with a sentence, and does not try again for ever."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from headrace.streams.batch import Batch, Change, Outputs
from headrace.streams.errors import OperatorError
from headrace.streams.inputs import Input, Source
from headrace.streams.jsoncodec import codec
from headrace.streams.log import Fetched, Partition
from headrace.streams.store import MemoryStore
from headrace.streams.task import Task

from headrace.client import connect
from headrace.errors import StackError
from headrace.stack import Stack
from tests.headrace import poison
from tests.scene import ROOT
from tests.stack.kafka import kafka

AT = datetime(2010, 1, 1, tzinfo=UTC)


def order(customer: str, quantity: int | None, hour: int) -> poison.Order:
    return poison.Order(customer, quantity, AT + timedelta(hours=hour))


@pytest.fixture(params=["local", pytest.param("kafka", marks=pytest.mark.stack)])
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str | None]:
    """The broker of a stack: one of its own, and Apache Kafka."""
    if request.param == "local":
        yield None
        return
    with kafka(tmp_path / "kafka") as cluster:
        yield str(cluster.address)


async def test_a_learner_that_fails_ends_the_stack_with_the_event_and_what_to_do(
    broker: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    told: list[str] = []
    program = ROOT / "tests" / "headrace" / "poison.py"
    async with Stack(program, data=tmp_path / "data", broker=broker, tell=told.append) as stack:
        # The second order is a negative once the third shows that an hour has passed.
        events = [order("a", 1, 0), order("b", None, 1), order("c", 1, 3), order("d", 1, 5)]
        await asyncio.to_thread(_publish, str(stack.broker), events)
        with pytest.raises(StackError) as error:
            await asyncio.wait_for(stack.wait(), 60)
    sentence = (
        r"the learner of returns failed on the outcome of orders-0-1, features \{\}: "
        r"KeyError: 'quantity'. Mend the learner, then start again: it goes on at this outcome"
    )
    assert re.search(sentence, str(error.value))
    assert "the worker cannot go on" in str(error.value)
    assert [said.partition(":")[0] for said in told] == ["starting poison"], "it was not started again"


def _publish(broker: str, events: Iterable[poison.Order]) -> None:
    with connect(broker) as connection:
        for event in events:
            connection.publish("orders", event)


class Fails:
    name = "fails"

    def process(self, batch: Batch, out: Outputs) -> None:
        raise KeyError("price")

    def changes(self) -> list[Change]:
        return []

    def load(self, rows: Iterable[tuple[bytes, bytes]]) -> None:
        pass

    def clear(self) -> None:
        pass


def test_an_operator_that_fails_is_told_with_the_events_of_its_batch() -> None:
    source = Input(Source("orders", codec(poison.Order)), Partition("orders", 3))
    task = Task("orders", 3, [source], [Fails()], MemoryStore(), Partition("changes", 3))
    task.resume()
    one = codec(poison.Order)
    values: list[bytes | None] = [one.encode(order("a", n, n)) for n in range(2)]
    published = np.full(2, int(AT.timestamp() * 1000))
    task.feed(Fetched(source.partition, np.array([7, 8]), published, [None, None], values, 9, 9))
    says = r"fails of task orders failed on one of the events orders-3-7 to 8: KeyError: 'price'. Mend the program"
    with pytest.raises(OperatorError, match=says):
        task.work(10)
