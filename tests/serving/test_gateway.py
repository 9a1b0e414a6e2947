"""Events in: what is taken, what is refused, and how that is told."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from headrace.serving import gateway as gateways
from headrace.serving import intake
from headrace.serving.gateway import Settings
from headrace.serving.intake import MAX_BODY, MAX_EVENTS
from headrace.streams.address import Address
from headrace.streams.event import Event
from headrace.streams.subscription import Message, Subscription
from headrace.streams.topics import Topic

from tests import shop
from tests.scene import eventually, free_port, gateway_thread, order, url_of

NDJSON = {"Content-Type": "application/x-ndjson"}


def read(broker: Address, topic: Topic, wanted: int) -> list[Message]:
    """All that a topic holds."""

    async def main() -> list[Message]:
        subscription = Subscription(broker, topic.name, "earliest")
        await subscription.open()
        found: list[Message] = []
        try:
            while got := await subscription.batch(2.0 if len(found) < wanted else 0.3):
                found += got
        finally:
            await subscription.close()
        return found

    return asyncio.run(main())


def lines(*events: Any) -> bytes:
    return b"".join(e + b"\n" if isinstance(e, bytes) else json.dumps(e).encode() + b"\n" for e in events)


def test_an_event_is_in_the_log_under_its_key_when_it_is_answered(
    client: httpx.Client, broker: Address, orders: Topic
) -> None:
    answer = client.post(f"/topics/{orders.name}", json=order("17850"))
    assert answer.status_code == 202
    [message] = read(broker, orders, 1)
    assert answer.json() == {
        "published": 1,
        "receipts": [{"partition": message.partition, "offset": message.offset}],
    }
    assert message.key == "17850"
    assert message.value == order("17850")


def test_many_events_get_their_receipts_in_the_order_given(
    client: httpx.Client, broker: Address, orders: Topic
) -> None:
    events = [order(f"c{i % 7}", invoice=str(i)) for i in range(500)]
    answer = client.post(f"/topics/{orders.name}", content=lines(*events), headers=NDJSON)
    assert answer.status_code == 202
    places = {(m.partition, m.offset): m.value["invoice"] for m in read(broker, orders, 500)}
    assert [places[r["partition"], r["offset"]] for r in answer.json()["receipts"]] == [e["invoice"] for e in events]


def test_where_one_event_is_bad_none_is_published_and_all_bad_lines_are_told(
    client: httpx.Client, broker: Address, orders: Topic
) -> None:
    body = lines(order(), order(quantity="twelve"), b"", order(), b"{")
    answer = client.post(f"/topics/{orders.name}", content=body, headers=NDJSON)
    assert answer.status_code == 422
    told = answer.json()
    assert (told["line"], told["field"], told["published"]) == (2, "quantity", 0)
    assert [e["line"] for e in told["errors"]] == [2, 5]
    assert read(broker, orders, 0) == []


BAD: dict[str, tuple[bytes, int, str]] = {
    "wrong JSON": (b'{"invoice": ', 422, ""),
    "no object": (b"[1, 2]", 422, ""),
    "wrong type": (json.dumps(order(quantity="12")).encode(), 422, "quantity"),
    "missing key": (json.dumps({k: v for k, v in order().items() if k != "customer"}).encode(), 422, "customer"),
    "empty key": (json.dumps(order("")).encode(), 422, "customer"),
    "null key": (json.dumps(order(customer=None)).encode(), 422, "customer"),
    "NaN": (json.dumps(order(price=float("nan"))).encode(), 422, ""),
    "infinite": (json.dumps(order(price=float("inf"))).encode(), 422, ""),
    "overflow": (json.dumps(order()).replace("6.95", "1e999").encode(), 422, "price"),
    "beyond 2^53": (json.dumps(order(quantity=2**53 + 1)).encode(), 422, "quantity"),
    "empty": (b"", 422, ""),
    "2 MB": (json.dumps(order(item="x" * 2_000_000)).encode(), 422, ""),
    "in 1900": (json.dumps(order(at="1900-01-01T00:00:00Z")).encode(), 422, "at"),
    "in 2200": (json.dumps(order(at="2200-01-01T00:00:00Z")).encode(), 422, "at"),
    "no zone": (json.dumps(order(at="2010-01-01T00:00:00")).encode(), 422, "at"),
    "not UTF-8": (json.dumps(order()).encode().replace(b"85048", b"\xff\xfe"), 422, ""),
    "unknown field": (json.dumps(order(colour="red")).encode(), 422, "colour"),
    "deep": (b"[" * 100_000, 422, ""),
}


@pytest.fixture(scope="module")
def matrix(broker: Address) -> Iterator[tuple[httpx.Client, str]]:
    """One gateway for all bad input: what one breaks, the next would find."""
    from tests.scene import eventually, fresh

    topic = fresh(broker)
    settings = Settings("shop", broker, (topic,), port=free_port())
    with gateway_thread(settings) as app, httpx.Client(base_url=url_of(settings), trust_env=False) as made:
        eventually(lambda: bool(app.state.gateway.connected))
        yield made, topic.name


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_with_reason_and_field_and_the_next_event_goes_on(
    matrix: tuple[httpx.Client, str], name: str
) -> None:
    client, topic = matrix
    body, status, field = BAD[name]
    answer = client.post(f"/topics/{topic}", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status
    told = answer.json()
    assert told["reason"]
    assert told["field"] == field
    assert client.post(f"/topics/{topic}", json=order()).status_code == 202


def test_an_unknown_topic_is_told_with_near_names(client: httpx.Client, orders: Topic) -> None:
    answer = client.post(f"/topics/{orders.name.replace('e', '')}", json=order())
    assert answer.status_code == 404
    assert f"did you mean {orders.name}" in answer.json()["reason"]


def test_a_doubt_is_told_beside_the_receipts(broker: Address) -> None:
    class Tick(Event, topic="ticks", key="name", time="at"):
        name: str
        at: int

    from tests.scene import eventually, fresh

    topic = fresh(broker, Topic("ticks", "event", 1, Tick))
    settings = Settings("shop", broker, (topic,), port=free_port())
    with gateway_thread(settings) as app, httpx.Client(base_url=url_of(settings), trust_env=False) as client:
        eventually(lambda: bool(app.state.gateway.connected))
        body = lines({"name": "a", "at": 1_700_000_000}, {"name": "a", "at": 1_700_000_000_000})
        told = client.post(f"/topics/{topic.name}", content=body, headers=NDJSON).json()
    assert (told["published"], told["doubtful"]) == (2, 1)
    assert "at=1700000000 looks like seconds" in told["warning"]


def test_a_topic_that_the_program_writes_takes_no_events(client: httpx.Client, settings: Settings) -> None:
    answer = client.post(f"/topics/{settings.topics[1].name}", json={})
    assert answer.status_code == 405
    assert answer.headers["allow"] == "GET"
    assert "is written by the program" in answer.json()["reason"]


def test_another_content_type_is_refused(client: httpx.Client, orders: Topic) -> None:
    answer = client.post(f"/topics/{orders.name}", content=b"a,b", headers={"Content-Type": "text/csv"})
    assert answer.status_code == 415


def test_a_large_body_is_refused_by_its_announcement(client: httpx.Client, orders: Topic) -> None:
    answer = client.post(f"/topics/{orders.name}", content=b" " * (MAX_BODY + 1), headers=NDJSON)
    assert answer.status_code == 413
    assert str(MAX_BODY) in answer.json()["reason"]


def test_a_large_body_that_announces_nothing_is_refused_too(client: httpx.Client, orders: Topic) -> None:
    pieces = (b" " * 65536 for _ in range(MAX_BODY // 65536 + 2))
    assert client.post(f"/topics/{orders.name}", content=pieces, headers=NDJSON).status_code == 413


@pytest.mark.parametrize("head", [b"Content-Length: 100\r\n\r\n{", b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"])
def test_a_body_that_never_ends_is_answered_and_gives_its_place_back(
    client: httpx.Client, settings: Settings, orders: Topic, monkeypatch: pytest.MonkeyPatch, head: bytes
) -> None:
    monkeypatch.setattr(intake, "BODY_WAIT", 0.6)
    monkeypatch.setattr(gateways, "MAX_POSTS", 1)
    begin = f"POST /topics/{orders.name} HTTP/1.1\r\nHost: 127.0.0.1:{settings.port}\r\n".encode()
    with socket.create_connection(("127.0.0.1", settings.port), 10) as endless:
        endless.sendall(begin + head)
        answer = b"".join(iter(lambda: endless.recv(65536), b""))  # to the end of the connection
    assert answer.startswith(b"HTTP/1.1 408")
    reason = "the body did not end within 1 s (1 of 100 bytes came), and nothing is published: send it whole, or fewer"
    assert reason.replace(" of 100" if b"chunked" in head else "?", "") in answer.decode()
    assert client.post(f"/topics/{orders.name}", json=order()).status_code == 202


def test_a_sender_that_goes_within_its_body_is_no_failure_of_the_gateway(
    client: httpx.Client, settings: Settings, orders: Topic, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(gateways, "MAX_POSTS", 1)
    head = f"POST /topics/{orders.name} HTTP/1.1\r\nHost: 127.0.0.1:{settings.port}\r\nContent-Length: 100\r\n\r\n{{"
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", settings.port), 10) as going:
            going.sendall(head.encode())
            time.sleep(0.1)
    eventually(lambda: client.post(f"/topics/{orders.name}", json=order()).status_code == 202)
    assert "ClientDisconnect" not in caplog.text


def test_too_many_events_at_a_time_are_refused(client: httpx.Client, orders: Topic) -> None:
    answer = client.post(f"/topics/{orders.name}", content=b"{}\n" * (MAX_EVENTS + 1), headers=NDJSON)
    assert answer.status_code == 413


def test_too_many_requests_are_told_when_to_come_back(
    client: httpx.Client, orders: Topic, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateways, "MAX_POSTS", 0)
    answer = client.post(f"/topics/{orders.name}", json=order())
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"


def test_a_place_is_free_again_after_a_refused_event(
    client: httpx.Client, orders: Topic, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateways, "MAX_POSTS", 1)
    for _ in range(3):
        assert client.post(f"/topics/{orders.name}", content=b"?").status_code == 422
    assert client.post(f"/topics/{orders.name}", json=order()).status_code == 202


@pytest.mark.parametrize(
    ("method", "path", "status", "told"),
    [
        ("DELETE", "/topics/orders", 405, "DELETE is not taken at /topics/orders"),
        ("POST", "/health", 405, "POST is not taken at /health"),
        ("GET", "/topic/orders", 404, "there is nothing at /topic/orders"),
        ("POST", "/topics/orders/1", 404, "there is nothing at /topics/orders/1"),
    ],
)
def test_what_is_nowhere_is_told_in_json(
    client: httpx.Client, method: str, path: str, status: int, told: str
) -> None:
    answer = client.request(method, path)
    assert answer.status_code == status
    assert answer.json()["reason"].startswith(told)
    assert ("allow" in answer.headers) == (status == 405)


def test_health_tells_that_the_log_answers(client: httpx.Client, broker: Address) -> None:
    answer = client.get("/health")
    assert answer.status_code == 200
    assert answer.json()["broker"] == str(broker)


def test_without_a_log_health_and_publishing_answer_503() -> None:
    settings = Settings("shop", Address("127.0.0.1", free_port()), (shop.ORDERS,), port=free_port())
    with gateway_thread(settings), httpx.Client(base_url=url_of(settings), trust_env=False) as client:
        health = client.get("/health")
        assert health.status_code == 503
        assert "no broker answers" in health.json()["reason"]
        published = client.post("/topics/orders", json=order())
        assert published.status_code == 503
        assert published.headers["retry-after"] == "1"


def test_health_tells_which_topics_the_log_lacks(broker: Address) -> None:
    missing = Topic("never-made", "event", 1, shop.OrderLine)
    settings = Settings("shop", broker, (missing,), port=free_port())
    with gateway_thread(settings) as app, httpx.Client(base_url=url_of(settings), trust_env=False) as client:
        from tests.scene import eventually

        eventually(lambda: bool(app.state.gateway.connected))
        answer = client.get("/health")
        assert answer.status_code == 503
        assert "lacks topics of the program: never-made" in answer.json()["reason"]
        assert client.post("/topics/never-made", json=order()).status_code == 404


def test_topics_are_listed_with_the_schemas_of_their_events(client: httpx.Client, orders: Topic) -> None:
    first, second = client.get("/topics").json()
    assert (first["name"], first["kind"], first["key"]) == (orders.name, "event", "customer")
    assert first["schema"]["$defs"]["OrderLine"]["properties"]["quantity"] == {"type": "integer"}
    assert second["schema"] is None


def test_the_openapi_document_names_the_events(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    body = document["paths"]["/topics/{topic}"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body == {"oneOf": [{"$ref": "#/components/schemas/OrderLine"}]}
    assert document["components"]["schemas"]["OrderLine"]["required"][0] == "invoice"


def test_metrics_count_what_was_published_and_refused(client: httpx.Client, orders: Topic) -> None:
    client.post(f"/topics/{orders.name}", content=lines(order(), order()), headers=NDJSON)
    client.post(f"/topics/{orders.name}", content=b"?")
    text = client.get("/metrics").text
    assert f'headrace_gateway_published_total{{topic="{orders.name}"}} 2.0' in text
    assert f'headrace_gateway_rejected_total{{topic="{orders.name}"}} 1.0' in text
