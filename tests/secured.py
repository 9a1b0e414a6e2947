"""Brokers that ask who is there: the local one and Apache Kafka, each with TLS and users, and what goes with them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from headrace.streams import address as settings
from headrace.streams.address import Address
from headrace.streams.broker import users

from tests.scene import free_port
from tests.stack.kafka import kafka

USER, PASSWORD = "ann", "a pass=word, of 'ann'"
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")


@dataclass(frozen=True)
class Certificates:
    """Files in PEM form: an authority, a server's pair and a client's by it, and an authority that signed neither."""

    ca: Path
    cert: Path
    key: Path
    client_cert: Path
    client_key: Path
    other_ca: Path


def certificates(folder: Path) -> Certificates:
    folder.mkdir(parents=True, exist_ok=True)
    ours, theirs = trustme.CA(), trustme.CA()
    found = Certificates(*(folder / f"{n}.pem" for n in ("ca", "cert", "key", "client-cert", "client-key", "other")))
    ours.cert_pem.write_to_path(found.ca)
    theirs.cert_pem.write_to_path(found.other_ca)
    for pair, cert, key in (
        (ours.issue_cert("127.0.0.1", "localhost"), found.cert, found.key),
        (ours.issue_cert("ann@example.org"), found.client_cert, found.client_key),
    ):
        cert.write_bytes(b"".join(blob.bytes() for blob in pair.cert_chain_pems))
        # As Kafka's stores want it.
        loaded = serialization.load_pem_private_key(pair.private_key_pem.bytes(), None)
        form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        key.write_bytes(loaded.private_bytes(*form))
    return found


@dataclass(frozen=True)
class Secured:
    """A broker's ports: with TLS and users, with TLS and certificates of clients (Kafka alone), with neither."""

    secure: Address
    plain: Address
    certificates: Certificates
    mutual: Address | None = None

    def tell(
        self, patch: pytest.MonkeyPatch, mechanism: str = "SCRAM-SHA-512", *, user: str = USER, password: str = PASSWORD
    ) -> None:
        """Set the environment of a client."""
        patch.setenv(settings.USER, user)
        patch.setenv(settings.PASSWORD, password)
        patch.setenv(settings.MECHANISM, mechanism)
        patch.setenv(settings.TLS_CA, str(self.certificates.ca))


@contextlib.contextmanager
def local(folder: Path) -> Iterator[Secured]:
    """The local broker as processes: one asks for TLS and users, the other for nothing."""
    files = certificates(folder / "certificates")
    users.set_password(folder / "users.json", USER, PASSWORD)
    secure, plain = Address("127.0.0.1", free_port(), tls=True), Address("127.0.0.1", free_port())
    asking = ["--tls-cert", str(files.cert), "--tls-key", str(files.key), "--users", str(folder / "users.json")]
    with process(folder / "secure", secure, asking), process(folder / "plain", plain):
        yield Secured(secure, plain, files)


@contextlib.contextmanager
def process(folder: Path, address: Address, more: Sequence[str] = ()) -> Iterator[None]:
    """A local broker that serves."""
    command = [sys.executable, "-m", "headrace.streams.broker", "--data", str(folder), "--port", str(address.port)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HEADRACE_")}
    running = subprocess.Popen([*command, *more], stdout=subprocess.PIPE, env=environment)
    try:
        assert running.stdout is not None
        assert b"ready" in running.stdout.readline()
        yield
    finally:
        running.terminate()
        running.communicate()


@contextlib.contextmanager
def apache(folder: Path) -> Iterator[Secured]:
    """Apache Kafka with a listener of each kind."""
    files = certificates(folder / "certificates")
    secure, mutual = free_port(), free_port()
    store = folder / "certificates" / "server.pem"
    store.write_bytes(files.key.read_bytes() + files.cert.read_bytes())
    names = {"CLIENT": "{client}", "SECURE": str(secure), "MUTUAL": str(mutual)}
    listeners = ",".join(f"{name}://127.0.0.1:{port}" for name, port in names.items())
    login = "org.apache.kafka.common.security"
    chosen = {
        "listeners": f"{listeners},CONTROLLER://127.0.0.1:{{controller}}",
        "advertised.listeners": listeners,
        "listener.security.protocol.map": "CLIENT:PLAINTEXT,CONTROLLER:PLAINTEXT,SECURE:SASL_SSL,MUTUAL:SSL",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(store),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(files.ca),
        "listener.name.mutual.ssl.client.auth": "required",
        "listener.name.secure.sasl.enabled.mechanisms": ",".join(MECHANISMS),
        "listener.name.secure.plain.sasl.jaas.config": (
            f'{login}.plain.PlainLoginModule required user_{USER}="{PASSWORD}";'
        ),
        "listener.name.secure.scram-sha-256.sasl.jaas.config": f"{login}.scram.ScramLoginModule required;",
        "listener.name.secure.scram-sha-512.sasl.jaas.config": f"{login}.scram.ScramLoginModule required;",
    }
    with kafka(folder, 1, **chosen) as cluster:
        _add_user(cluster.bootstrap)
        yield Secured(
            Address("127.0.0.1", secure, tls=True), cluster.address, files, Address("127.0.0.1", mutual, tls=True)
        )


def _add_user(bootstrap: str) -> None:
    from confluent_kafka.admin import (
        AdminClient,
        ScramCredentialInfo,
        ScramMechanism,
        UserScramCredentialUpsertion,
    )

    admin = AdminClient({"bootstrap.servers": bootstrap})
    for mechanism in (ScramMechanism.SCRAM_SHA_256, ScramMechanism.SCRAM_SHA_512):
        info = ScramCredentialInfo(mechanism, users.ITERATIONS)
        wanted = UserScramCredentialUpsertion(USER, info, PASSWORD.encode())
        for done in admin.alter_user_scram_credentials([wanted]).values():
            done.result(timeout=30)
