"""Publishing and subscribing."""

from __future__ import annotations

import asyncio
import json
import threading
import warnings
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
from headrace.streams.address import Address
from headrace.streams.admin import ensure_topics
from headrace.streams.errors import DerivedTopic, InvalidEvent, LogUnavailable, StreamsError, UnknownTopic
from headrace.streams.event import Event
from headrace.streams.publisher import Row, encode, partition_of
from headrace.streams.topics import Topic, unknown_topic

import headrace.client
from headrace.client import Message, Published, connect
from headrace.errors import NoBroker
from headrace.lines import to_line
from tests import shop
from tests.scene import DEEP, free_port, fresh, order, order_line, write, write_odd


class Click(Event, topic="clicks", key="user", time="at", codec="msgpack"):
    user: int
    at: datetime


def deep(levels: int) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for _ in range(levels):
        made = {"customer": made}
    return made


def test_an_event_comes_back_as_it_was_published(broker: Address) -> None:
    topic = fresh(broker)
    before = datetime.now(UTC)
    with connect(str(broker)) as connection:
        receipt = connection.publish(topic.name, order_line("17850"))
        [message] = connection.subscribe(topic.name, "earliest", timeout=1)
    assert (message.topic, message.partition, message.offset) == (topic.name, receipt.partition, receipt.offset)
    assert message.key == "17850"
    assert message.decode(shop.OrderLine) == order_line("17850")
    assert message.value["at"] == "2009-12-01T07:45:00Z"
    assert abs((message.timestamp - before).total_seconds()) < 5, "the record's time is when it was published"


def test_a_mapping_is_checked_by_the_contract_of_the_program(broker: Address) -> None:
    with connect(str(broker), app=shop.Shop()) as connection:
        with pytest.raises(InvalidEvent) as e:
            connection.publish("orders", order(quantity="twelve"))
        assert str(e.value) == "topic orders: Expected `int`, got `str` (field quantity)"
        assert e.value.field == "quantity"
        asyncio.run(ensure_topics(broker, [shop.ORDERS]))
        with pytest.raises(InvalidEvent) as e:
            connection.publish("orders", [order(), order(quantity="twelve"), order()])
        assert str(e.value) == "topic orders, event 1: Expected `int`, got `str` (field quantity)"


def test_an_unknown_topic_is_told_with_near_names(broker: Address) -> None:
    topic = fresh(broker)
    with connect(str(broker)) as connection:
        for action in (lambda n: connection.publish(n, b"{}"), lambda n: connection.subscribe(n)):
            with pytest.raises(UnknownTopic, match=f"did you mean .*{topic.name}"):
                action(topic.name + "s")


NAMES = ("orders", "orders.late", "orders.rejected", "returns", "workers", "shop.orders.changelog")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("order", "did you mean orders or returns?"),
        ("orders.lat", "did you mean orders?"),
        ("payments", "there are orders, returns"),
    ],
)
def test_who_publishes_is_told_of_topics_that_one_publishes_to(name: str, told: str) -> None:
    assert str(unknown_topic(name, NAMES, publishing=True)).endswith(told)


def test_who_reads_is_told_of_every_topic() -> None:
    assert "orders.late" in str(unknown_topic("orders.lat", NAMES))


class Tick(Event, topic="ticks", key="name", time="at"):
    name: str
    at: int


@pytest.mark.parametrize(
    ("at", "doubtful"),
    [(1_700_000_000, True), (300_000_000, True), (1_700_000_000_000, False), (0, False), (86_400_000, False)],
)
def test_an_integer_time_that_looks_like_seconds_is_doubted_and_taken(at: int, doubtful: bool) -> None:
    row = encode({"name": "a", "at": at}, Tick)
    assert (f"at={at} looks like seconds, and an integer event time is milliseconds" in row.doubt) is doubtful
    assert encode(Tick(name="a", at=at)) == row


def test_times_in_smaller_units_are_refused_with_the_unit_that_is_taken() -> None:
    with pytest.raises(InvalidEvent, match=r"too far ahead.* \(an integer is taken for milliseconds\)"):
        encode({"name": "a", "at": 1_700_000_000_000_000}, Tick)


def test_a_doubt_is_a_warning_once_for_a_topic(broker: Address) -> None:
    topic = fresh(broker, Topic("ticks", "event", 1, Tick))
    with connect(str(broker)) as connection:
        with pytest.warns(UserWarning, match="looks like seconds") as warned:
            connection.publish(topic.name, (Tick(name="a", at=1_700_000_000) for _ in range(5)))
        assert len(warned) == 1
        assert connection.publish(topic.name, Tick(name="a", at=1_700_000_000)).offset == 5


def test_events_whose_key_is_not_known_are_warned_of_where_a_topic_has_several_partitions(broker: Address) -> None:
    several, one = fresh(broker), fresh(broker, Topic("alone", "event", 1, shop.OrderLine))
    with connect(str(broker)) as connection:
        assert (connection.partitions(several.name), connection.partitions(one.name)) == (2, 1)
        with pytest.warns(UserWarning, match=r"workers reject it.*hr.connect\(app=app\)") as warned:
            connection.publish(several.name, [order(), order()])
        assert len(warned) == 1
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            connection.publish(one.name, order())
            connection.publish(several.name, order_line("17850"))


@pytest.mark.parametrize("name", ["predictions.returns", "outcomes.returns", "orders.rejected", "registry", "workers"])
def test_what_a_program_writes_is_not_published_to(broker: Address, name: str) -> None:
    asyncio.run(ensure_topics(broker, [shop.ORDERS, Topic(name, "metrics", 1)]))
    with connect(str(broker)) as connection:
        for events in (order(), [order()]):
            with pytest.raises(DerivedTopic, match=f"{name} is written by the program.*event topic .*orders"):
                connection.publish(name, events)
        assert list(connection.subscribe(name, "earliest", timeout=0.5)) == []


def test_many_events_are_published_in_the_order_of_their_keys(broker: Address) -> None:
    topic = fresh(broker)
    with connect(str(broker)) as connection:
        sent = connection.publish(topic.name, (order_line(f"c{i % 5}", str(i)) for i in range(5000)))
        got = list(connection.subscribe(topic.name, "earliest", timeout=1))
    assert sent.count == len(got) == 5000
    assert sum(offset + 1 for offset in sent.offsets.values()) == 5000
    for customer in range(5):
        invoices = [int(m.value["invoice"]) for m in got if m.key == f"c{customer}"]
        assert invoices == list(range(customer, 5000, 5))


def test_one_event_and_many_of_a_key_go_to_one_partition(broker: Address) -> None:
    topic = fresh(broker)
    with connect(str(broker)) as connection:
        alone = connection.publish(topic.name, order_line("13085"))
        many = connection.publish(topic.name, [order_line("13085")] * 20)
    assert set(many.offsets) == {alone.partition} == {partition_of(b"13085", 2)}


def test_what_came_before_an_invalid_event_is_published(broker: Address) -> None:
    topic = fresh(broker)
    events: list[Any] = [*(order_line() for _ in range(2500)), 7, order_line()]
    with connect(str(broker)) as connection:
        with pytest.raises(InvalidEvent, match=f"topic {topic.name}, event 2500: int is no event"):
            connection.publish(topic.name, events)
        assert len(list(connection.subscribe(topic.name, "earliest", timeout=1))) == 2500


def test_a_value_beyond_a_megabyte_is_refused_before_it_is_sent() -> None:
    with pytest.raises(InvalidEvent, match="has 2,000,002 bytes"):
        encode(b'"' + b"x" * 2_000_000 + b'"')


def test_an_event_of_another_topic_is_refused() -> None:
    with pytest.raises(InvalidEvent, match="Click belongs to topic clicks, not to orders"):
        encode(Click(user=1, at=datetime.now(UTC)), shop.OrderLine)


def test_an_event_is_encoded_by_the_codec_of_its_contract() -> None:
    at = datetime(2010, 1, 1, tzinfo=UTC)
    row = encode(Click(user=7, at=at))
    assert row.key == b"7"
    assert row == encode({"user": 7, "at": "2010-01-01T00:00:00Z"}, Click) == encode(row.value, Click)
    assert row.value[0] >> 4 == 8, "a map of MessagePack"


def test_without_a_contract_the_named_key_field_is_used() -> None:
    assert encode({"user": 7}, key="user") == Row(b"7", b'{"user":7}')
    with pytest.raises(InvalidEvent, match="lacks the key field user"):
        encode({"name": "x"}, key="user")


def test_what_is_published_after_subscribing_is_seen(broker: Address) -> None:
    topic = fresh(broker)
    with connect(str(broker)) as connection:
        connection.publish(topic.name, order_line(invoice="before"))
        messages = connection.subscribe(topic.name, timeout=1)
        connection.publish(topic.name, order_line(invoice="after"))
        assert [m.value["invoice"] for m in messages] == ["after"]


def test_a_group_goes_on_where_it_left_off(broker: Address) -> None:
    topic = fresh(broker, partitions=1)
    write(broker, topic.name, [Row(b"k", b"%d" % i) for i in range(10)])
    with connect(str(broker)) as connection:
        first = connection.subscribe(topic.name, "earliest", timeout=5, group=f"group-{topic.name}")
        assert [next(first).value for _ in range(10)] == list(range(10))
        first.close()  # type: ignore[attr-defined]  # it is a generator
        write(broker, topic.name, [Row(b"k", b"10")])
        second = connection.subscribe(topic.name, "earliest", timeout=5, group=f"group-{topic.name}")
        assert next(second).value == 10


def test_values_that_are_no_json_come_as_bytes_and_missing_ones_as_none(broker: Address) -> None:
    topic = fresh(broker, partitions=1)
    write(broker, topic.name, [Row(b"k", b"\xff"), Row(b"k", b"[1]")])
    with connect(str(broker)) as connection:
        assert [m.value for m in connection.subscribe(topic.name, "earliest", timeout=1)] == [b"\xff", [1]]


def test_a_subscription_goes_on_after_a_record_nested_too_deep_and_one_beyond_the_calendar(broker: Address) -> None:
    topic = fresh(broker, partitions=1)
    write(broker, topic.name, [Row(b"k", DEEP)])
    write_odd(broker, topic.name, b"1")
    write(broker, topic.name, [Row(b"k", b"2")])
    with connect(str(broker)) as connection:
        got = list(connection.subscribe(topic.name, "earliest", timeout=1))
    assert [m.value for m in got] == [DEEP, 1, 2]
    assert got[1].timestamp == datetime.max.replace(tzinfo=UTC)
    assert [json.loads(to_line(m))["value"] for m in got] == [DEEP.decode(), 1, 2]
    with pytest.raises(InvalidEvent):
        got[0].decode(shop.OrderLine)


def test_a_line_of_output_holds_a_value_of_several_lines_and_of_any_size() -> None:
    long = Message("orders", 0, 1, "k", datetime(2010, 1, 1, tzinfo=UTC), b'{\n"n": ' + b"9" * 30 + b"\r\n}")
    assert to_line(long).count(b"\n") == 1
    assert json.loads(to_line(long))["value"] == {"n": int("9" * 30)}


@pytest.mark.parametrize("item", [DEEP, DEEP.decode(), deep(5_000)])
@pytest.mark.parametrize("event", [None, shop.OrderLine, Click])
def test_an_event_nested_too_deep_is_refused_before_it_is_sent(item: Any, event: type[Event] | None) -> None:
    with pytest.raises(InvalidEvent):
        encode(item, event, "customer")


def test_events_of_several_threads_share_a_connection(broker: Address) -> None:
    topic = fresh(broker)
    with connect(str(broker)) as connection:
        threads = [
            threading.Thread(target=connection.publish, args=(topic.name, [order_line(str(i))] * 300)) for i in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(list(connection.subscribe(topic.name, "earliest", timeout=1))) == 1200


def test_a_closed_connection_says_so(broker: Address) -> None:
    with connect(str(broker)) as connection:
        pass
    with pytest.raises(StreamsError, match="the connection is closed; connect again"):
        connection.topics()


def test_no_broker_at_the_address_is_told() -> None:
    port = free_port()
    with pytest.raises(LogUnavailable, match=f"no broker answers at kafka://127.0.0.1:{port}"):
        connect(f"127.0.0.1:{port}").__enter__()


def test_without_a_broker_it_is_told_how_to_start_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path))
    monkeypatch.delenv("HEADRACE_BROKER", raising=False)
    with pytest.raises(NoBroker, match="headrace run"):
        connect().__enter__()


async def test_the_same_in_asyncio(broker: Address) -> None:
    async def lines() -> AsyncIterator[shop.OrderLine]:
        for i in range(headrace.client.CHUNK + 10):
            yield order_line(invoice=str(i))

    async with connect(str(broker)) as connection:
        topic = await _fresh(broker)
        receipt = await connection.publish(topic, order_line())
        assert receipt.topic == topic
        published = await connection.publish(topic, lines())
        assert isinstance(published, Published)
        assert published.count == headrace.client.CHUNK + 10
        with pytest.raises(InvalidEvent, match=f"topic {topic}: the event"):
            await connection.publish(topic, {"at": object()})
        with pytest.raises(InvalidEvent, match=f"topic {topic}, event 0: the event"):
            await connection.publish(topic, [{"at": object()}])
        count = 0
        async for _ in connection.subscribe(topic, "earliest", timeout=1):
            count += 1
        assert count == headrace.client.CHUNK + 11
        assert topic in await connection.topics()


async def _fresh(broker: Address) -> str:
    return (await asyncio.to_thread(fresh, broker)).name
