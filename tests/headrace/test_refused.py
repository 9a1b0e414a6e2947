"""Bad input through the log, and a real worker: each value is on the rejected topic, and the events around it go on."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from headrace.streams.address import Address
from headrace.streams.admin import ensure_topics

from tests.headrace import refusing
from tests.scene import ROOT, broker_process
from tests.stack.kafka import kafka

PROGRAM = ROOT / "tests" / "headrace" / "refusing.py"
AT = "2009-12-01T07:45:00Z"
Encode = Callable[[dict[str, Any]], bytes]  # any value an event may wrongly hold


class Bad(NamedTuple):
    """What is published, the field and the reason it must be refused with, and how it is compressed on its way."""

    value: bytes | None
    field: str
    reason: str
    key: bytes | None = b"anna"
    compressed: bool = False


class Record(NamedTuple):
    key: bytes | None
    value: bytes | None
    headers: dict[str, bytes]


def as_json(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode()


def as_msgpack(value: dict[str, Any]) -> bytes:
    return msgspec.msgpack.encode(value | {"at": datetime.fromisoformat(value["at"]) if value.get("at") else None})


def event(**changes: Any) -> dict[str, Any]:  # any JSON, also wrong
    return {"who": "anna", "n": 1, "x": 0.5, "at": AT, **changes}


def without(name: str) -> dict[str, Any]:
    return {k: v for k, v in event().items() if k != name}


def bad(encode: Encode) -> dict[str, Bad]:
    """What breaks the contract in either format."""
    return {
        "wrong type": Bad(encode(event(n="one")), "n", "Expected `int`, got `str`"),
        "missing key": Bad(encode(without("who")), "who", "missing required field `who`"),
        "missing field": Bad(encode(without("x")), "x", "missing required field `x`"),
        "empty key field": Bad(encode(event(who="")), "who", "the key field who is empty", None),
        "beyond 2^53": Bad(encode(event(n=2**53 + 1)), "n", "to take it, declare n as str"),
        "beyond 64 bits": Bad(encode(event(n=2**63)), "n", ""),
        "in 1900": Bad(encode(event(at="1900-01-01T00:00:00Z")), "at", "time 1900-01-01T00:00:00+00:00 is before 1970"),
        "in 2200": Bad(encode(event(at="2200-01-01T00:00:00Z")), "at", "lies too far ahead of when it was published"),
        "unknown field": Bad(encode(event(colour="red")), "colour", "unknown field `colour`"),
        "not UTF-8": Bad(encode(event()).replace(b"anna", b"\xff\xfena"), "", "UTF-8"),
        "empty": Bad(b"", "", "the value is empty"),
        "null": Bad(None, "", "the value is empty"),
        "cut off": Bad(encode(event())[:-3], "", "truncated"),
        "1 MB": Bad(encode(event(who="a" * 1_000_000)), "", "bytes; at most 1,000,000 are taken", None),
        "the most that the topic takes": Bad(b"\xff" * 1_999_900, "", "the value has 1,999,900 bytes"),
        "2 MB, compressed": Bad(b"\xfe" * 2_000_000, "", "the value has 2,000,000 bytes", compressed=True),
        "5 MB, compressed": Bad(b"\xfd" * 5_000_000, "", "the value has 5,000,000 bytes", compressed=True),
        "another key than its field": Bad(encode(event()), "who", "the record's key b'bert' is not its field", b"bert"),
        "a key that is no text": Bad(encode(event()), "who", r"the record's key b'\xff' is not its field", b"\xff"),
    }


TABLE: dict[str, dict[str, Bad]] = {
    "lines": {
        **bad(as_json),
        "wrong JSON": Bad(b'{"who": ', "", "no JSON (Input data was truncated): an event is one JSON object"),
        "no object": Bad(b"[1, 2]", "", "Expected `object`, got `array`: an event is one JSON object"),
        "NaN": Bad(as_json(event(x=math.nan)), "", "invalid"),
        "infinite": Bad(as_json(event(x=math.inf)), "", "invalid"),
        "overflow": Bad(as_json(event()).replace(b"0.5", b"1e999"), "x", "out of range"),
        "a lone surrogate": Bad(as_json(event(who="?")).replace(b"?", rb"\ud800"), "", "surrogate", None),
        "no zone": Bad(as_json(event(at="2009-12-01T07:45:00")), "at", "has no zone; write 2009-12-01T07:45:00Z"),
        "deep": Bad(b'{"who":' + b"[" * 100_000, "who", "Expected `str`, got `array`"),
        "MessagePack": Bad(as_msgpack(event()), "", "invalid"),
    },
    "ticks": {
        **bad(as_msgpack),
        "NaN": Bad(as_msgpack(event(x=math.nan)), "x", "nan is not a finite number"),
        "infinite": Bad(as_msgpack(event(x=-math.inf)), "x", "-inf is not a finite number"),
        "no such code": Bad(b"\xc1", "", "invalid"),
        "a map that promises more": Bad(b"\xdf\xff\xff\xff\xff", "", "truncated"),
        "JSON": Bad(as_json(event()), "", "Expected `object`, got `int`"),
    },
}
ENCODE: dict[str, Encode] = {"lines": as_json, "ticks": as_msgpack}


async def publish(address: Address, topic: str) -> None:
    """Every bad value behind a good event, and one more, as a producer does that knows no contract."""
    plain = AIOKafkaProducer(bootstrap_servers=str(address.bootstrap), max_request_size=50 << 20)
    packed = AIOKafkaProducer(
        bootstrap_servers=str(address.bootstrap), max_request_size=50 << 20, compression_type="gzip"
    )
    await plain.start()
    await packed.start()
    try:
        for wrong in TABLE[topic].values():
            # No key is as good as the field's.
            await plain.send_and_wait(topic, ENCODE[topic](event()), None)
            await (packed if wrong.compressed else plain).send_and_wait(topic, wrong.value, wrong.key)
        await plain.send_and_wait(topic, ENCODE[topic](event()), b"anna")
    finally:
        await plain.stop()
        await packed.stop()


async def read(address: Address, topic: str) -> list[Record]:
    consumer = AIOKafkaConsumer(bootstrap_servers=address.bootstrap, isolation_level="read_committed")
    await consumer.start()
    try:
        partition = TopicPartition(topic, 0)
        consumer.assign([partition])
        end = (await consumer.end_offsets([partition]))[partition]
        consumer.seek(partition, 0)
        found: list[Record] = []
        while await consumer.position(partition) < end:
            for records in (await consumer.getmany(timeout_ms=200)).values():
                found += [Record(r.key, r.value, dict(r.headers)) for r in records]
        return found
    finally:
        await consumer.stop()


@pytest.fixture(scope="module", params=["local", pytest.param("kafka", marks=pytest.mark.stack)])
def refused(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, list[Record]]]:
    """What is on the topics once a worker has taken the whole table; on the local broker, and on Apache Kafka."""
    folder = tmp_path_factory.mktemp("refused")
    with contextlib.ExitStack() as life:
        if request.param == "local":
            address = life.enter_context(broker_process(folder / "broker"))
        else:
            address = life.enter_context(kafka(folder)).address
        asyncio.run(ensure_topics(address, refusing.app.topics()))
        for topic in TABLE:
            asyncio.run(publish(address, topic))
        yield asyncio.run(_taken(address, folder))


async def _taken(address: Address, folder: Path) -> dict[str, list[Record]]:
    where = ["--broker", str(address), "--data", str(folder)]
    command = [sys.executable, "-m", "headrace.worker", str(PROGRAM), *where]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with (folder / "worker.log").open("wb") as log:
        worker = await asyncio.create_subprocess_exec(*command, cwd=ROOT, env=environment, stdout=log, stderr=log)
    found: dict[str, list[Record]] = {}
    try:
        for _ in range(120):
            await asyncio.sleep(0.2)
            assert worker.returncode is None, (folder / "worker.log").read_text()
            for topic, table in TABLE.items():
                found[f"features.{topic.title()}"] = await read(address, f"features.{topic.title()}")
                if len(found[f"features.{topic.title()}"]) > len(table):  # the last good event is taken
                    found[topic] = await read(address, f"{topic}.rejected")
            if found.keys() > TABLE.keys():
                return found
        counts = {topic: len(records) for topic, records in found.items()}
        raise AssertionError(f"{counts}\n{(folder / 'worker.log').read_text()[-3000:]}")
    finally:
        worker.terminate()
        await asyncio.wait_for(worker.wait(), 20)


@pytest.mark.parametrize(("topic", "name"), [(t, n) for t, table in TABLE.items() for n in table])
def test_a_bad_value_is_on_the_rejected_topic_to_the_byte_with_reason_field_and_place(
    refused: dict[str, list[Record]], topic: str, name: str
) -> None:
    place = list(TABLE[topic]).index(name)
    wrong, found = TABLE[topic][name], refused[topic][place]
    assert found.value == wrong.value
    assert found.key == wrong.key
    assert wrong.reason.lower() in found.headers["reason"].decode().lower()
    assert found.headers["reason"]
    assert found.headers["field"].decode() == wrong.field
    where = {"topic": topic.encode(), "partition": b"0", "offset": b"%d" % (2 * place + 1)}
    assert {k: found.headers[k] for k in where} == where


@pytest.mark.parametrize("topic", TABLE)
def test_the_events_around_bad_ones_go_on_each_once(refused: dict[str, list[Record]], topic: str) -> None:
    totals = [json.loads(r.value or b"")["total"] for r in refused[f"features.{topic.title()}"]]
    assert totals == list(range(1, len(TABLE[topic]) + 2))
    assert len(refused[topic]) == len(TABLE[topic])
