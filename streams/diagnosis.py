"""Why the log cannot be reached, in a sentence that says what to do.

Kafka clients try every server and then say that none would do. So where one could not start, the servers are asked
again, one by one, and what comes back is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import struct

from aiokafka import errors
from aiokafka.conn import create_conn
from aiokafka.protocol.metadata import MetadataRequest
from headrace.streams.address import (
    MECHANISM,
    PASSWORD,
    TLS_CA,
    TLS_CERT,
    TLS_KEY,
    USER,
    Address,
    host_and_port,
    security_options,
)
from headrace.streams.errors import BadSecurity, LogUnavailable, StreamsError, WrongCredentials

ASK_WITHIN = 5.0
"""Seconds for one server. A host behind a wall that swallows packets would hold up the sentence for minutes."""
SERVERS = 3
"""Servers asked; the sentence is wanted now, and what is wrong with three is wrong with the others."""

_HANDSHAKE, _UNSUPPORTED_MECHANISM = 17, 33


def unreachable(address: Address, why: str = "") -> LogUnavailable:
    """The error for a broker that does not answer."""
    return LogUnavailable(
        f"no broker answers at {address}{f' ({why})' if why else ''}: start the local one with `headrace run "
        f"pipeline.py`, or give the address of yours (HEADRACE_BROKER=kafka://host:port)"
    )


async def diagnose(address: Address) -> StreamsError:
    """Why clients of the log cannot start: BadSecurity or WrongCredentials where trying again is in vain, else
    LogUnavailable."""
    found: StreamsError | None = None
    for host, port in address.servers[:SERVERS]:
        why = await _ask(address, host, port)
        if isinstance(why, BadSecurity):
            return why
        found = found or why
    return found or unreachable(address)


async def _ask(address: Address, host: str, port: int) -> StreamsError:
    server = host_and_port(host, port)
    try:
        security = security_options(address)
    except BadSecurity as error:
        return error
    user, mechanism = security.get("sasl_plain_username"), security.get("sasl_mechanism")
    try:
        connection = await create_conn(host, port, request_timeout_ms=int(ASK_WITHIN * 1000), **security)
        try:
            await connection.send(MetadataRequest([]))
        finally:
            connection.close()
    except socket.gaierror as error:
        return LogUnavailable(
            f"no host is called {host!r} ({error.strerror}): check the address {address}, and that this machine knows "
            f"the name"
        )
    except ConnectionRefusedError:
        return unreachable(address, f"nothing listens on port {port}")
    except ssl.SSLCertVerificationError as error:
        return BadSecurity(
            f"the certificate of {server} is not trusted ({error.verify_message}): give the certificate of the "
            f"authority that signed it by {TLS_CA}, and write the host as the certificate names it"
        )
    except (errors.SaslAuthenticationFailed, errors.AuthenticationFailedError):
        return WrongCredentials(
            f"the broker at {server} refuses user {user!r} ({mechanism}): check {USER} and {PASSWORD}, and whether the "
            f"broker has this user for {mechanism}"
        )
    except errors.UnsupportedSaslMechanismError:
        taken = await _mechanisms(address, host, port) or ["others"]
        return BadSecurity(
            f"the broker at {server} does not take {mechanism}, it takes {', '.join(taken)}: set {MECHANISM} to one of "
            f"these"
        )
    except errors.IllegalSaslStateError:
        return BadSecurity(
            f"the broker at {server} asks for no user on this port, and {USER} is set: unset {USER} and {PASSWORD}, or "
            f"give the port that asks for a user"
        )
    except (errors.KafkaError, OSError, EOFError, TimeoutError) as error:
        return await _look_closer(address, host, port, error, with_user=user is not None)
    return LogUnavailable(f"the broker at {server} answers now and did not a moment ago: try again")


async def _look_closer(address: Address, host: str, port: int, error: Exception, *, with_user: bool) -> StreamsError:
    """The server took the connection, or did not, and gave no reason."""
    server = host_and_port(host, port)
    if address.tls:
        if await _answers_plainly(host, port):
            return BadSecurity(f"{server} does not speak TLS: write kafka://{server}, or give the port that does")
        if await _wants_certificate(address, host, port):
            if given := os.environ.get(TLS_CERT):
                return BadSecurity(
                    f"{server} refuses the certificate {TLS_CERT}={given!r}: give one that the broker trusts"
                )
            return BadSecurity(
                f"{server} asks for a certificate of the client's: give one by {TLS_CERT} and its key by {TLS_KEY}"
            )
    elif await _speaks_tls(host, port):
        return BadSecurity(f"{server} speaks TLS: write kafka+ssl://{server}, or give a port without it")
    if not with_user and (taken := await _mechanisms(address, host, port)):
        return BadSecurity(
            f"the broker at {server} asks for a user: set {USER}, {PASSWORD} and {MECHANISM} (it takes "
            f"{', '.join(taken)})"
        )
    if isinstance(error, TimeoutError):
        return unreachable(address, f"{server} is silent")
    return unreachable(address, f"{server}: {error}" if str(error) else server)


async def _mechanisms(address: Address, host: str, port: int) -> list[str]:
    """The mechanisms of a broker that asks for a user; none where it does not."""
    context = security_options(address).get("ssl_context")
    try:
        answer = await _exchange(host, port, context, _HANDSHAKE, 1, b"\x00\x01?")
        error, count = struct.unpack_from(">hi", answer)
        at, found = 6, []
        for _ in range(count if error == _UNSUPPORTED_MECHANISM else 0):
            (size,) = struct.unpack_from(">h", answer, at)
            found.append(answer[at + 2 : at + 2 + size].decode())
            at += 2 + size
        return found
    except (OSError, EOFError, TimeoutError, struct.error, UnicodeDecodeError):
        return []


async def _answers_plainly(host: str, port: int) -> bool:
    with contextlib.suppress(OSError, EOFError, TimeoutError):
        return bool(await _exchange(host, port, None, 18, 0, b""))
    return False


async def _exchange(host: str, port: int, context: ssl.SSLContext | None, api: int, version: int, body: bytes) -> bytes:
    """One request and its answer, by hand."""
    async with asyncio.timeout(ASK_WITHIN):
        reader, writer = await asyncio.open_connection(host, port, ssl=context)
        try:
            request = struct.pack(">hhih", api, version, 1, -1) + body
            writer.write(struct.pack(">i", len(request)) + request)
            size, number = struct.unpack(">ii", await reader.readexactly(8))
            if not 4 < size < 1 << 20 or number != 1:  # no Kafka: an alert of TLS, a page
                raise EOFError
            return await reader.readexactly(size - 4)
        finally:
            writer.close()


async def _speaks_tls(host: str, port: int) -> bool:
    """Whether a TLS handshake goes through; nothing is sent that matters, so nothing is checked."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        async with asyncio.timeout(ASK_WITHIN):
            _, writer = await asyncio.open_connection(host, port, ssl=context)
            writer.close()
    except ssl.SSLError as error:
        return "CERTIFICATE" in (error.reason or "")  # it wants one of ours, and speaks TLS to say so
    except (OSError, TimeoutError):
        return False
    return True


async def _wants_certificate(address: Address, host: str, port: int) -> bool:
    """TLS 1.3 tells a client after the handshake, with the first bytes it reads."""
    context = security_options(address)["ssl_context"]
    try:
        async with asyncio.timeout(ASK_WITHIN):
            reader, writer = await asyncio.open_connection(host, port, ssl=context)
            try:
                writer.write(b"\0\0\0\0")
                await reader.read(1)
            finally:
                writer.close()
    except ssl.SSLError as error:
        # Servers differ in the alert they send: certificate required, bad certificate, handshake failure.
        return any(said in (error.reason or "") for said in ("CERTIFICATE", "HANDSHAKE_FAILURE", "UNKNOWN_CA"))
    except (OSError, TimeoutError):
        return False
    return False
