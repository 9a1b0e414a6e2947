"""Streams out: where they start, how they resume, and what ends them."""

from __future__ import annotations

import base64
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
import websockets.exceptions
from headrace.serving import feed as feeds
from headrace.serving import gateway as gateways
from headrace.serving.errors import Refused
from headrace.serving.feed import envelope, parse_id
from headrace.serving.gateway import Settings
from headrace.streams.address import Address
from headrace.streams.publisher import Row
from headrace.streams.subscription import Message
from headrace.streams.topics import Topic
from websockets.sync.client import connect

from tests.scene import DEEP, FAR, eventually, fresh, gateway_thread, url_of, write, write_odd

TOKEN = "correct-horse-battery"


def rows(first: int, last: int, size: int = 0) -> list[Row]:
    return [
        Row(f"k{i}".encode(), json.dumps({"n": i, "x": os.urandom(size // 2).hex()}).encode())
        for i in range(first, last)
    ]


@contextmanager
def stream(client: httpx.Client, topic: Topic, **how: Any) -> Iterator[Iterator[dict[str, Any]]]:
    """The events of a stream, each as its fields; comments come as {"comment": ...}."""
    with client.stream("GET", f"/topics/{topic.name}", timeout=10, **how) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield _events(answer.iter_lines())


def _events(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    event: dict[str, Any] = {}
    for line in lines:
        name, _, value = line.partition(": ")
        if not line:
            if event:
                yield event
            event = {}
        elif line.startswith(":"):
            event["comment"] = line[1:].strip()
        else:
            event[name] = json.loads(value) if name == "data" else value


def take(events: Iterator[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while len(found) < count:
        event = next(events)
        if "data" in event:
            found.append(event)
    return found


def test_a_stream_from_earliest_has_every_record(client: httpx.Client, broker: Address, orders: Topic) -> None:
    write(broker, orders.name, rows(0, 300))
    with stream(client, orders, params={"from": "earliest"}) as events:
        got = take(events, 300)
    assert {e["data"]["value"]["n"] for e in got} == set(range(300))
    assert {e["data"]["key"] for e in got} == {f"k{i}" for i in range(300)}


def test_a_stream_has_what_is_published_after_it_began(client: httpx.Client, broker: Address, orders: Topic) -> None:
    write(broker, orders.name, rows(0, 5))
    with stream(client, orders) as events:
        assert next(events) == {"retry": "1000"}
        write(broker, orders.name, rows(5, 6))
        assert take(events, 1)[0]["data"]["value"]["n"] == 5


def test_a_stream_may_start_at_a_time(client: httpx.Client, broker: Address, orders: Topic) -> None:
    write(broker, orders.name, rows(0, 5))
    time.sleep(0.05)
    between = datetime.now(UTC).isoformat()
    time.sleep(0.05)
    write(broker, orders.name, rows(5, 8))
    with stream(client, orders, params={"from": between}) as events:
        assert {e["data"]["value"]["n"] for e in take(events, 3)} == {5, 6, 7}


def test_a_stream_resumes_after_the_last_id_in_every_partition(
    client: httpx.Client, broker: Address, orders: Topic
) -> None:
    write(broker, orders.name, rows(0, 100))
    with stream(client, orders, params={"from": "earliest"}) as events:
        first = take(events, 60)
    with stream(client, orders, headers={"Last-Event-ID": first[-1]["id"]}) as events:
        second = take(events, 40)
    assert sorted(e["data"]["value"]["n"] for e in first + second) == list(range(100))
    assert {e["data"]["partition"] for e in first + second} == {0, 1}


@pytest.mark.parametrize("last", ["x", "0:1:2", "0:-1", "0:1,", "9" * 300])
def test_an_id_that_is_none_is_refused(client: httpx.Client, orders: Topic, last: str) -> None:
    answer = client.get(f"/topics/{orders.name}", headers={"Last-Event-ID": last})
    assert answer.status_code == 400
    assert "looks like 0:12,1:40" in answer.json()["reason"]
    with pytest.raises(Refused):
        parse_id(last)


def test_a_place_to_start_that_is_none_is_refused(client: httpx.Client, orders: Topic) -> None:
    answer = client.get(f"/topics/{orders.name}", params={"from": "yesterday"})
    assert answer.status_code == 400
    assert "write earliest, latest, or a time" in answer.json()["reason"]


def test_an_unknown_topic_has_no_stream(client: httpx.Client) -> None:
    assert client.get("/topics/nothing").status_code == 404


def test_a_silent_stream_has_heartbeats(client: httpx.Client, orders: Topic, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "HEARTBEAT", 0.1)
    with stream(client, orders) as events:
        next(events)
        assert next(events) == {"comment": "alive"}


def message(data: bytes | None) -> Message:
    return Message("orders", 1, 4, "k", datetime(2010, 1, 1, tzinfo=UTC), data, {"reason": b"why"})


def test_a_value_of_several_lines_is_sent_on_one() -> None:
    _, sent = envelope(message(b'{\n "text": "a\\nb"\r\n}'), {1: 5})
    assert b"\n" not in sent
    assert json.loads(sent)["value"] == {"text": "a\nb"}


def test_a_value_that_is_no_json_is_sent_as_base64_with_its_headers() -> None:
    at, sent = envelope(message(b"\xff\x00"), {0: 3, 1: 5})
    told = json.loads(sent)
    assert at == told["id"] == "0:3,1:5"
    assert told["bytes"] == "/wA="
    assert told["headers"] == {"reason": "why"}
    assert told["timestamp"] == "2010-01-01T00:00:00Z"


def test_a_value_nested_beyond_any_use_is_sent_as_base64() -> None:
    assert base64.b64decode(json.loads(envelope(message(DEEP), {1: 5})[1])["bytes"]) == DEEP


def test_a_stream_goes_on_after_a_record_nested_too_deep_and_one_beyond_the_calendar(
    client: httpx.Client, settings: Settings, broker: Address
) -> None:
    predictions = settings.topics[1]
    write(broker, predictions.name, [Row(b"k", DEEP)])
    write_odd(broker, predictions.name, b"1")
    write_odd(broker, predictions.name, b"2", timestamp_ms=-FAR)
    write(broker, predictions.name, rows(0, 1))
    with stream(client, predictions, params={"from": "earliest"}) as events:
        got = [e["data"] for e in take(events, 4)]
    with websocket(settings, predictions.name, "?from=earliest") as socket_:
        assert [json.loads(socket_.recv(5)) for _ in range(4)] == got
    assert base64.b64decode(got[0]["bytes"]) == DEEP
    assert [r["value"] for r in got[1:3]] == [1, 2]
    assert [r["timestamp"] for r in got[1:3]] == ["9999-12-31T23:59:59.999999Z", "0001-01-01T00:00:00Z"]
    assert got[3]["value"]["n"] == 0


def test_a_stream_from_before_1970_has_everything(client: httpx.Client, broker: Address, orders: Topic) -> None:
    write(broker, orders.name, rows(0, 3))
    with stream(client, orders, params={"from": "1960-01-01"}) as events:
        assert {e["data"]["value"]["n"] for e in take(events, 3)} == {0, 1, 2}


def test_more_streams_than_there_are_places_for_are_refused(
    client: httpx.Client, orders: Topic, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateways, "MAX_SUBSCRIBERS", 1)
    with stream(client, orders):
        answer = client.get(f"/topics/{orders.name}")
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "1"


def test_a_client_that_goes_gives_its_place_back(settings: Settings, orders: Topic) -> None:
    with gateway_thread(settings) as app, httpx.Client(base_url=url_of(settings), trust_env=False) as client:
        with stream(client, orders):
            eventually(lambda: app.state.gateway.subscribers == 1)
        eventually(lambda: app.state.gateway.subscribers == 0)


def test_a_client_that_takes_nothing_is_ended_and_others_go_on(
    settings: Settings, broker: Address, orders: Topic
) -> None:
    write(broker, orders.name, rows(0, 400, size=50_000))
    with gateway_thread(settings) as app, httpx.Client(base_url=url_of(settings), trust_env=False) as client:
        with socket.create_connection(("127.0.0.1", settings.port)) as stalled:
            stalled.sendall(
                f"GET /topics/{orders.name}?from=earliest HTTP/1.1\r\nHost: 127.0.0.1:{settings.port}\r\n\r\n".encode()
            )
            eventually(lambda: app.state.gateway.subscribers == 1)
            eventually(lambda: app.state.gateway.subscribers == 0)
            stalled.settimeout(10)
            while stalled.recv(1 << 20):
                pass  # what was on its way; then the end
        assert "headrace_gateway_slow_total 1.0" in client.get("/metrics").text
        with stream(client, orders, params={"from": "earliest"}) as events:
            assert len(take(events, 400)) == 400


def test_a_gateway_that_stops_tells_its_streams(settings: Settings, orders: Topic) -> None:
    with (
        gateway_thread(settings) as app,
        httpx.Client(base_url=url_of(settings), trust_env=False) as client,
        stream(client, orders) as events,
    ):
        next(events)
        app.state.stop()
        assert next(events) == {"event": "end", "data": {"reason": "the gateway is stopping"}}


def websocket(settings: Settings, topic: str, query: str = "", **how: Any) -> Any:
    return connect(f"ws://127.0.0.1:{settings.port}/topics/{topic}{query}", proxy=None, **how)


def test_a_websocket_has_the_same_records(
    client: httpx.Client, settings: Settings, broker: Address, orders: Topic
) -> None:
    write(broker, orders.name, rows(0, 20))
    with websocket(settings, orders.name, "?from=earliest") as socket_:
        got = [json.loads(socket_.recv(5)) for _ in range(20)]
    assert {r["value"]["n"] for r in got} == set(range(20))
    with websocket(settings, orders.name, f"?last_event_id={got[11]['id']}") as socket_:
        rest = [json.loads(socket_.recv(5)) for _ in range(8)]
    assert {r["value"]["n"] for r in got[:12] + rest} == set(range(20))


def test_a_websocket_to_an_unknown_topic_is_refused_before_it_opens(client: httpx.Client, settings: Settings) -> None:
    with pytest.raises(websockets.exceptions.InvalidStatus) as refusal:
        websocket(settings, "nothing")
    assert refusal.value.response.status_code == 404
    assert b"does not exist" in (refusal.value.response.body or b"")


def test_a_websocket_from_a_page_elsewhere_is_refused(client: httpx.Client, settings: Settings, orders: Topic) -> None:
    with pytest.raises(websockets.exceptions.InvalidStatus) as refusal:
        websocket(settings, orders.name, origin="http://evil.example")
    assert refusal.value.response.status_code == 403


def test_a_websocket_brings_its_token_as_header_query_or_subprotocol(
    settings: Settings, broker: Address, orders: Topic
) -> None:
    from dataclasses import replace

    guarded = replace(settings, token=TOKEN)
    write(broker, orders.name, rows(0, 1))
    with gateway_thread(guarded):
        for query, how in (
            ("", {"additional_headers": {"Authorization": f"Bearer {TOKEN}"}}),
            (f"&token={TOKEN}", {}),
            ("", {"subprotocols": ["headrace", TOKEN]}),
        ):
            with websocket(guarded, orders.name, f"?from=earliest{query}", **how) as socket_:
                assert json.loads(socket_.recv(5))["value"]["n"] == 0
        with pytest.raises(websockets.exceptions.InvalidStatus) as refusal:
            websocket(guarded, orders.name, "?token=wrong")
        assert refusal.value.response.status_code == 401


def consume(socket_: Any) -> None:
    while True:
        socket_.recv(5)


def test_a_websocket_that_takes_nothing_is_closed_as_too_slow(settings: Settings, broker: Address) -> None:
    topic = fresh(broker)
    write(broker, topic.name, rows(0, 400, size=50_000))
    wide = Settings("shop", broker, (topic,), port=settings.port, stall=0.5)
    with gateway_thread(wide) as app, websocket(wide, topic.name, "?from=earliest", max_queue=1) as slow:
        eventually(lambda: app.state.gateway.subscribers == 1)
        eventually(lambda: app.state.gateway.subscribers == 0)
        with pytest.raises(websockets.exceptions.ConnectionClosed):
            consume(slow)
