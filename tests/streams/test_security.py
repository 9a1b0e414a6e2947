"""Clients of a log that asks who is there, and what is told where they do not fit."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from headrace.streams import address as settings
from headrace.streams.address import Address, client_options, faust_options
from headrace.streams.admin import ensure_topics
from headrace.streams.batch import Record
from headrace.streams.errors import BadAddress, BadSecurity, CannotGoOn, LogUnavailable, StreamsError, WrongCredentials
from headrace.streams.kafka import KafkaLog
from headrace.streams.log import Partition
from headrace.streams.publisher import Publisher, Row
from headrace.streams.subscription import Subscription
from headrace.streams.topics import Topic
from headrace.streams.traffic import describe

from tests import secured
from tests.scene import free_port
from tests.secured import MECHANISMS, PASSWORD, USER, Secured

# Where the other side hangs up in a TLS handshake, asyncio itself leaves the transport to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

_numbers = itertools.count(1)


@pytest.fixture(scope="module", params=["local", pytest.param("apache", marks=pytest.mark.stack)])
def broker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    with getattr(secured, request.param)(tmp_path_factory.mktemp("secured")) as running:
        yield running


async def there_and_back(address: Address) -> list[bytes | None]:
    """What every kind of client of the project does: admin, publisher, transaction, subscription, look-ups."""
    topic = Topic(f"secured-{next(_numbers)}", "event", 1, None, {"retention.ms": "-1"})
    await ensure_topics(address, [topic])
    publisher = Publisher(address)
    await publisher.start()
    await publisher.send(topic.name, [Row(b"k", b"1")])
    await publisher.close()
    log = KafkaLog(address)
    writer = await log.writer(f"owner-{topic.name}")
    await writer.begin("g", {Partition(topic.name, 0): 1})
    await writer.send([Record(topic.name, b"k", b"2", timestamp=1)], 0)
    await writer.commit()
    await writer.close()
    assert await log.committed("g", [Partition(topic.name, 0)]) == {Partition(topic.name, 0): 1}
    await log.close()
    assert (await describe(address))[topic.name] == 1
    found: list[bytes | None] = []
    subscription = Subscription(address, topic.name, "earliest")
    await subscription.open()
    async with asyncio.timeout(20):
        while len(found) < 2:
            found += [m.data for m in await subscription.batch(1.0)]
    await subscription.close()
    return found


@pytest.mark.parametrize("mechanism", MECHANISMS)
async def test_every_client_comes_through_tls_with_each_mechanism(
    broker: Secured, mechanism: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker.tell(monkeypatch, mechanism)
    assert await there_and_back(broker.secure) == [b"1", b"2"]


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_librdkafka_comes_through_tls_with_each_mechanism(broker: Secured, mechanism: str) -> None:
    from confluent_kafka import Consumer, Producer
    from confluent_kafka.admin import AdminClient, NewTopic

    common: dict[str, Any] = {
        "bootstrap.servers": broker.secure.bootstrap,
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": mechanism,
        "sasl.username": USER,
        "sasl.password": PASSWORD,
        "ssl.ca.location": str(broker.certificates.ca),
    }
    topic = f"confluent-{next(_numbers)}"
    admin = AdminClient(common)
    admin.create_topics([NewTopic(topic, 1)])[topic].result(timeout=60)
    producer = Producer(common)
    producer.produce(topic, b"v")
    assert producer.flush(20) == 0
    consumer = Consumer({**common, "group.id": topic, "auto.offset.reset": "earliest"})
    consumer.subscribe([topic])
    message = consumer.poll(30)
    assert message is not None
    assert (message.error(), message.value()) == (None, b"v")
    consumer.close()


async def test_a_faust_client_gets_the_same_settings(broker: Secured, monkeypatch: pytest.MonkeyPatch) -> None:
    import faust

    broker.tell(monkeypatch)
    topic = Topic(f"faust-{next(_numbers)}", "event", 1, None, {})
    await ensure_topics(broker.secure, [topic])
    app = faust.App("secured", **faust_options(broker.secure), store="memory://")
    await app.producer.start()
    sent = await app.producer.send_and_wait(topic.name, b"k", b"v", 0, None, {})
    assert sent.offset == 0
    await app.producer.stop()


async def refused(address: Address) -> StreamsError:
    """What each way into the log says; they say the same."""
    told = []
    for way in (ensure_topics(address, []), Publisher(address).start(), KafkaLog(address).ends([Partition("t", 0)])):
        with pytest.raises(StreamsError) as caught:
            await way
        told.append(caught.value)
    assert len({str(error) for error in told}) == 1, told
    return told[0]


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize(("user", "password"), [(USER, "wrong"), ("nobody", PASSWORD)])
async def test_a_wrong_user_or_password_is_told_and_is_final(
    broker: Secured, mechanism: str, user: str, password: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker.tell(monkeypatch, mechanism, user=user, password=password)
    error = await refused(broker.secure)
    assert isinstance(error, WrongCredentials)
    assert isinstance(error, CannotGoOn)
    assert f"refuses user {user!r} ({mechanism}): check HEADRACE_USER and HEADRACE_PASSWORD" in str(error)
    assert password not in str(error)


async def test_a_server_of_another_authority_is_told(broker: Secured, monkeypatch: pytest.MonkeyPatch) -> None:
    broker.tell(monkeypatch)
    monkeypatch.setenv(settings.TLS_CA, str(broker.certificates.other_ca))
    error = await refused(broker.secure)
    assert isinstance(error, BadSecurity)
    assert "is not trusted" in str(error)
    assert "HEADRACE_TLS_CA" in str(error)


async def test_plain_text_to_a_port_with_tls_is_told(broker: Secured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(settings.USER, raising=False)
    error = await refused(Address("127.0.0.1", broker.secure.port))
    assert isinstance(error, BadSecurity)
    assert f"speaks TLS: write kafka+ssl://127.0.0.1:{broker.secure.port}" in str(error)


async def test_tls_to_a_port_without_it_is_told(broker: Secured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(settings.TLS_CA, str(broker.certificates.ca))
    error = await refused(Address("127.0.0.1", broker.plain.port, tls=True))
    assert isinstance(error, BadSecurity)
    assert f"does not speak TLS: write kafka://127.0.0.1:{broker.plain.port}" in str(error)


async def test_a_broker_that_asks_for_a_user_says_which_mechanisms(
    broker: Secured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(settings.TLS_CA, str(broker.certificates.ca))
    error = await refused(broker.secure)
    assert isinstance(error, BadSecurity)
    assert "asks for a user: set HEADRACE_USER, HEADRACE_PASSWORD" in str(error)
    assert all(mechanism in str(error) for mechanism in MECHANISMS)


async def test_a_user_where_none_is_asked_for_is_told(broker: Secured, monkeypatch: pytest.MonkeyPatch) -> None:
    broker.tell(monkeypatch)
    error = await refused(broker.plain)
    assert isinstance(error, BadSecurity)
    assert "asks for no user on this port" in str(error)


async def test_a_certificate_of_the_client_is_asked_for_and_taken(
    broker: Secured, monkeypatch: pytest.MonkeyPatch
) -> None:
    if broker.mutual is None:
        pytest.skip("the local broker asks for users, not for certificates")
    monkeypatch.setenv(settings.TLS_CA, str(broker.certificates.ca))
    error = await refused(broker.mutual)
    assert isinstance(error, BadSecurity)
    assert "asks for a certificate of the client's: give one by HEADRACE_TLS_CERT" in str(error)
    theirs = secured.certificates(broker.certificates.ca.parent / "theirs")
    monkeypatch.setenv(settings.TLS_CERT, str(theirs.client_cert))
    monkeypatch.setenv(settings.TLS_KEY, str(theirs.client_key))
    assert "refuses the certificate HEADRACE_TLS_CERT=" in str(await refused(broker.mutual))
    monkeypatch.setenv(settings.TLS_CERT, str(broker.certificates.client_cert))
    monkeypatch.setenv(settings.TLS_KEY, str(broker.certificates.client_key))
    assert await there_and_back(broker.mutual) == [b"1", b"2"]


async def test_of_several_servers_one_that_answers_will_do(broker: Secured, monkeypatch: pytest.MonkeyPatch) -> None:
    broker.tell(monkeypatch)
    down = ("127.0.0.1", free_port())
    both = Address(*down, ((broker.secure.host, broker.secure.port),), tls=True)
    assert await there_and_back(both) == [b"1", b"2"]


async def test_more_copies_than_brokers_is_told(broker: Secured, monkeypatch: pytest.MonkeyPatch) -> None:
    topic = Topic(f"copies-{next(_numbers)}", "event", 1, None, {})
    monkeypatch.setenv("HEADRACE_REPLICATION", "3")
    with pytest.raises(StreamsError, match=r"cannot have 3 copies.* has 1 of its brokers up; .*HEADRACE_REPLICATION"):
        await ensure_topics(broker.plain, [topic])
    assert await ensure_topics(broker.plain, [topic], replication=1) == [topic.name]


async def test_a_host_that_is_down_or_unknown_is_told() -> None:
    port = free_port()
    error = await refused(Address("127.0.0.1", port))
    assert isinstance(error, LogUnavailable)
    assert not isinstance(error, CannotGoOn)
    assert f"no broker answers at kafka://127.0.0.1:{port} (nothing listens on port {port})" in str(error)
    error = await refused(Address("no-such-host.invalid", 9092))
    assert isinstance(error, LogUnavailable)
    assert "no host is called 'no-such-host.invalid'" in str(error)


def test_what_is_secret_is_in_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(settings.USER, USER)
    monkeypatch.setenv(settings.PASSWORD, PASSWORD)
    address = Address("127.0.0.1", 9092)
    assert client_options(address)["sasl_plain_password"] == PASSWORD
    assert PASSWORD not in f"{address} {address!r} {KafkaLog!r} {Publisher(address)!r}"
    with pytest.raises(StreamsError) as caught:
        settings.parse_address(f"kafka://{USER}:{PASSWORD}@127.0.0.1:9092")
    assert PASSWORD not in str(caught.value)


@pytest.mark.parametrize(
    ("told", "what"),
    [
        ({settings.USER: "ann"}, "HEADRACE_USER is set and HEADRACE_PASSWORD is not"),
        ({settings.PASSWORD: "x"}, "HEADRACE_PASSWORD is set and HEADRACE_USER is not"),
        ({settings.USER: "ann", settings.PASSWORD: "x", settings.MECHANISM: "GSSAPI"}, "'GSSAPI' is not known here"),
        ({settings.USER: "ann", settings.PASSWORD: "x", settings.MECHANISM: "PLAIN"}, "readable through the network"),
    ],
)
def test_settings_that_cannot_be_are_told(told: dict[str, str], what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(BadSecurity, match=what):
        client_options(Address("broker.example.org", 9092))


@pytest.mark.parametrize(
    ("told", "what"),
    [
        ({settings.TLS_CA: "{folder}/none.pem"}, "is no file"),
        ({settings.TLS_CA: "{folder}/text.pem"}, "holds no certificates in PEM form"),
        ({settings.TLS_KEY: "{folder}/text.pem"}, "HEADRACE_TLS_KEY is set and HEADRACE_TLS_CERT is not"),
        ({settings.TLS_CERT: "{folder}/text.pem"}, "are no certificate and its key"),
    ],
)
def test_files_that_cannot_be_used_are_told(
    told: dict[str, str], what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text.pem").write_text("no certificate")
    for name, value in told.items():
        monkeypatch.setenv(name, value.format(folder=tmp_path))
    with pytest.raises(BadSecurity, match=what):
        client_options(Address("broker.example.org", 9092, tls=True))


@pytest.mark.parametrize(
    ("text", "servers", "tls"),
    [
        ("kafka://a:1", [("a", 1)], False),
        ("a:1,[::1]:2", [("a", 1), ("::1", 2)], False),
        ("kafka+ssl://a:1,b:2/", [("a", 1), ("b", 2)], True),
        ("kafka+ssl://a:1,kafka+ssl://b:2", [("a", 1), ("b", 2)], True),
    ],
)
def test_an_address_names_servers_and_tls(text: str, servers: list[tuple[str, int]], tls: bool) -> None:
    found = settings.parse_address(text)
    assert (list(found.servers), found.tls) == (servers, tls)
    assert settings.parse_address(str(found)) == found


@pytest.mark.parametrize(
    "text", ["", "kafka://", "a", "a:0", "a:99999", "kafka://a:1,kafka+ssl://b:2", "http://a:1", "a:1,", "a:1;b:2"]
)
def test_what_is_no_address_is_told(text: str) -> None:
    with pytest.raises(BadAddress, match="is not the address of a broker: write kafka://host:port"):
        settings.parse_address(text)


def test_too_many_servers_are_told() -> None:
    with pytest.raises(BadAddress, match="at most 64 servers, not 65"):
        settings.parse_address(",".join(["a:1"] * 65))
