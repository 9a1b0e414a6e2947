"""Where the log is, `kafka://host:port`, and the settings of the environment that tell who asks.

What is secret comes by the environment only, and is read when a client is made: an address may be printed, logged,
written to a file and put on a command line.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.streams.errors import BadAddress, BadSecurity

if TYPE_CHECKING:
    from faust.types.auth import CredentialsT

USER = "HEADRACE_USER"
PASSWORD = "HEADRACE_PASSWORD"
MECHANISM = "HEADRACE_SASL"
TLS_CA = "HEADRACE_TLS_CA"
TLS_CERT = "HEADRACE_TLS_CERT"
TLS_KEY = "HEADRACE_TLS_KEY"
SETTINGS = (USER, PASSWORD, MECHANISM, TLS_CA, TLS_CERT, TLS_KEY)

MECHANISMS = ("SCRAM-SHA-512", "SCRAM-SHA-256", "PLAIN")
"""The first is taken where none is named: it never sends the password."""

SERVERS = 64
"""Of one address. More is a slip of the pen, and every client would try them one by one."""

_SCHEMES = {"kafka://": False, "kafka+ssl://": True}
_SERVER = re.compile(r"(?:\[([0-9a-fA-F:.]+)\]|([A-Za-z0-9._-]+)):(\d{1,5})")


@dataclass(frozen=True, slots=True)
class Address:
    """The address of a broker, or of several of one cluster: a client needs one that answers.

    own: of a broker that a local stack started for itself. It asks for no user, so what the environment says is meant
         for another broker
    """

    host: str
    port: int
    others: tuple[tuple[str, int], ...] = ()
    tls: bool = False
    own: bool = False

    @property
    def servers(self) -> tuple[tuple[str, int], ...]:
        return (self.host, self.port), *self.others

    @property
    def bootstrap(self) -> str:
        """As Kafka clients take it."""
        return ",".join(host_and_port(host, port) for host, port in self.servers)

    def __str__(self) -> str:
        return f"kafka{'+ssl' if self.tls else ''}://{self.bootstrap}"


def host_and_port(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_address(text: str) -> Address:
    """The address in `kafka://host:port`, `kafka+ssl://host:port` (TLS) or `host:port`; servers with commas between.

    >>> str(parse_address("localhost:9092"))
    'kafka://localhost:9092'
    >>> str(parse_address("kafka+ssl://one:9093,two:9093"))
    'kafka+ssl://one:9093,two:9093'

    Raises BadAddress where the text is no such thing.
    """
    if "@" in text:  # not repeated: what stands before it may be a password
        raise BadAddress(
            f"an address holds no user name and no password: write kafka://host:port, and give them by {USER} and "
            f"{PASSWORD}"
        )
    found: list[tuple[str, int]] = []
    kinds: set[str] = set()
    for part in text.strip().removesuffix("/").split(","):
        scheme = next((s for s in _SCHEMES if part.strip().startswith(s)), "")
        # Only the first has to say it; some providers say it before each.
        kinds.add(scheme or (next(iter(kinds)) if kinds else "kafka://"))
        match = _SERVER.fullmatch(part.strip().removeprefix(scheme))
        if match is None or not 0 < int(match[3]) < 65536 or len(kinds) > 1:
            raise BadAddress(
                f"{text!r} is not the address of a broker: write kafka://host:port, as kafka://localhost:9092, "
                f"kafka://one:9092,two:9092 for several servers, or kafka+ssl://host:port for TLS"
            )
        found.append((match[1] or match[2], int(match[3])))
    if len(found) > SERVERS:
        raise BadAddress(f"an address names at most {SERVERS} servers, not {len(found)}: a few of a cluster will do")
    return Address(*found[0], tuple(found[1:]), _SCHEMES[kinds.pop()])


def client_options(address: Address) -> dict[str, Any]:
    """The keyword options that every aiokafka client needs to reach the log: servers, TLS, who asks.

    The values are aiokafka's, of several types. Raises BadSecurity where the environment's settings cannot be used.
    """
    return {"bootstrap_servers": address.bootstrap, **security_options(address)}


def security_options(address: Address) -> dict[str, Any]:
    """As `client_options`, without the servers."""
    if address.own:
        return {"security_protocol": "PLAINTEXT"}
    environment = os.environ
    user = _user(address, environment)
    told: dict[str, Any] = {"security_protocol": f"{'SASL_' if user else ''}{'SSL' if address.tls else 'PLAINTEXT'}"}
    if address.tls:
        told["ssl_context"] = _tls(environment)
    if user:
        name, password, mechanism = user
        told |= {"sasl_mechanism": mechanism, "sasl_plain_username": name, "sasl_plain_password": password}
    return told


def faust_options(address: Address) -> dict[str, Any]:
    """`broker` and `broker_credentials` for a Faust app, from the same settings. Raises BadSecurity."""
    from faust.auth import SASLCredentials, SSLCredentials

    told = security_options(address)
    credentials: CredentialsT | None = None
    if "sasl_mechanism" in told:
        credentials = SASLCredentials(
            username=told["sasl_plain_username"],
            password=told["sasl_plain_password"],
            mechanism=told["sasl_mechanism"],
            ssl_context=told.get("ssl_context"),
        )
    elif address.tls:
        credentials = SSLCredentials(told["ssl_context"])
    servers = [f"kafka://{host_and_port(host, port)}" for host, port in address.servers]
    return {"broker": servers, "broker_credentials": credentials}


def _user(address: Address, environment: Mapping[str, str]) -> tuple[str, str, str] | None:
    name, password = environment.get(USER, ""), environment.get(PASSWORD, "")
    mechanism = environment.get(MECHANISM) or MECHANISMS[0]
    if not name and not password:
        return None
    if not name or not password:
        missing, given = (USER, PASSWORD) if not name else (PASSWORD, USER)
        raise BadSecurity(f"{given} is set and {missing} is not: set both, or neither")
    if mechanism not in MECHANISMS:
        raise BadSecurity(f"{MECHANISM}={mechanism!r} is not known here: set it to one of {', '.join(MECHANISMS)}")
    if mechanism == "PLAIN" and not address.tls and not all(_of_this_machine(host) for host, _ in address.servers):
        raise BadSecurity(
            f"PLAIN would send the password of {name!r} readable through the network to {address}: take TLS "
            f"(kafka+ssl://...), or a mechanism that does not send it ({MECHANISM}={MECHANISMS[0]})"
        )
    return name, password, mechanism


def _of_this_machine(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


def _tls(environment: Mapping[str, str]) -> ssl.SSLContext:
    files = {name: environment.get(name, "") for name in (TLS_CA, TLS_CERT, TLS_KEY)}
    for name, file in files.items():
        if file and not Path(file).is_file():
            raise BadSecurity(f"{name}={file!r} is no file: give the path of a file in PEM form")
    if files[TLS_KEY] and not files[TLS_CERT]:
        raise BadSecurity(f"{TLS_KEY} is set and {TLS_CERT} is not: a key goes with its certificate")
    changed = tuple(Path(file).stat().st_mtime_ns if file else 0 for file in files.values())
    return _context(files[TLS_CA], files[TLS_CERT], files[TLS_KEY], changed)


@lru_cache(maxsize=8)
def _context(ca: str, cert: str, key: str, changed: tuple[int, ...]) -> ssl.SSLContext:
    """`changed`: a certificate that was renewed is read again."""
    try:
        context = ssl.create_default_context(cafile=ca or None)
    except (ssl.SSLError, OSError) as error:
        raise BadSecurity(f"{TLS_CA}={ca!r} holds no certificates in PEM form ({error})") from error
    if cert:
        load_pair(context, cert, key or None, TLS_CERT, TLS_KEY)
    return context


def load_pair(context: ssl.SSLContext, cert: str, key: str | None, cert_name: str, key_name: str) -> None:
    """Load a certificate and its key; the names are those of the settings, for what is told. Raises BadSecurity."""

    def ask() -> str:
        raise BadSecurity(f"the key of {key_name}={key or cert!r} is encrypted: give a file that holds it in the clear")

    try:
        context.load_cert_chain(cert, key, ask)
    except (ssl.SSLError, OSError) as error:
        raise BadSecurity(
            f"{cert_name}={cert!r} and {key_name}={key or cert!r} are no certificate and its key in PEM form ({error})"
        ) from error
