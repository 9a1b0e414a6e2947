"""Who asks: SASL as Kafka carries it (KIP-43, KIP-152), PLAIN (RFC 4616) and SCRAM (RFC 5802, RFC 7677).

A connection begins with it, and until it has ended well nothing else is answered than which versions there are.
"""

import asyncio
import base64
import binascii
import hmac
import re
import secrets
import struct
from collections.abc import Awaitable, Callable
from typing import Protocol

from kio.schema.errors import ErrorCode

from .call import Call
from .errors import FrameMalformed, Unauthenticated
from .messages import Envelope, read_envelope, read_request, write_response
from .users import HASHES, Users, salted, verifier_of
from .writers import Fields, Piece

API_VERSIONS, HANDSHAKE, AUTHENTICATE = 18, 17, 36
VERSIONS = {HANDSHAKE: (0, 1), AUTHENTICATE: (0, 2)}
MECHANISMS = ("PLAIN", *HASHES)

FAILED_AFTER = 0.1
"""Seconds until a wrong password is answered: guessing has to be slow. As Kafka's delay after a failed one."""

_LENGTH = struct.Struct(">i")
_FIRST = re.compile(r"([ny],(?:a=([^,]*))?,)(n=([^,]*),r=([^,]+)(?:,.*)?)", re.DOTALL)
_FINAL = re.compile(r"(c=([^,]+),r=([^,]+)(?:,[^p].*)?),p=([^,]+)", re.DOTALL)


class Exchange(Protocol):
    """The server's side of a mechanism."""

    async def step(self, token: bytes) -> tuple[bytes, bool]:
        """The answer to what a client sent, and whether it is the last. :raises Unauthenticated:"""
        ...


class _Plain:
    def __init__(self, users: Users) -> None:
        self._users = users

    async def step(self, token: bytes) -> tuple[bytes, bool]:
        try:
            role, name, password = token.decode().split("\0")
        except ValueError:
            raise Unauthenticated("The message of PLAIN is not a role, a name and a password.") from None
        if role not in ("", name):
            raise Unauthenticated(f"User {name!r} asks to be {role!r}.")
        mechanism = next(iter(HASHES))
        kept = self._users.verifier(name, mechanism)
        # In a thread: it takes milliseconds on purpose, and strangers may ask for it.
        found = await asyncio.to_thread(salted, mechanism, password, kept.salt, kept.iterations)
        given = verifier_of(mechanism, found, kept.salt, kept.iterations)
        if not hmac.compare_digest(given.stored_key, kept.stored_key):
            raise Unauthenticated(f"User {name!r} is not known, or has another password.")
        return b"", True


class _Scram:
    def __init__(self, users: Users, mechanism: str) -> None:
        self._users = users
        self._mechanism = mechanism
        self._hash = HASHES[mechanism]
        self._head = self._bare = self._told = self._name = ""

    async def step(self, token: bytes) -> tuple[bytes, bool]:
        try:
            text = token.decode()
        except UnicodeDecodeError:
            raise Unauthenticated("A message of SCRAM is not UTF-8.") from None
        return self._last(text) if self._told else self._first(text)

    def _first(self, text: str) -> tuple[bytes, bool]:
        match = _FIRST.fullmatch(text)
        if match is None:
            raise Unauthenticated("The first message of SCRAM cannot be read, or wants channel binding.")
        self._head, role, self._bare, name, nonce = match.groups()
        self._name = name.replace("=2C", ",").replace("=3D", "=")
        if role not in (None, "", name):
            raise Unauthenticated(f"User {self._name!r} asks to be {role!r}.")
        self._kept = self._users.verifier(self._name, self._mechanism)
        salt = base64.b64encode(self._kept.salt).decode()
        self._nonce = nonce + secrets.token_urlsafe(24)
        self._told = f"r={self._nonce},s={salt},i={self._kept.iterations}"
        return self._told.encode(), False

    def _last(self, text: str) -> tuple[bytes, bool]:
        match = _FINAL.fullmatch(text)
        if match is None:
            raise Unauthenticated("The last message of SCRAM cannot be read.")
        bare, head, nonce, proof = match.groups()
        signed = f"{self._bare},{self._told},{bare}".encode()
        signature = hmac.digest(self._kept.stored_key, signed, self._hash)
        try:
            given, bound = base64.b64decode(proof, validate=True), base64.b64decode(head, validate=True)
        except binascii.Error:
            raise Unauthenticated("The proof of SCRAM is not in base64.") from None
        key = bytes(a ^ b for a, b in zip(given, signature, strict=False))
        right = len(given) == len(signature) and hmac.compare_digest(self._hash(key).digest(), self._kept.stored_key)
        if not right or nonce != self._nonce or bound != self._head.encode():
            raise Unauthenticated(f"User {self._name!r} is not known, or has another password.")
        told = base64.b64encode(hmac.digest(self._kept.server_key, signed, self._hash)).decode()
        return f"v={told}".encode(), True


async def authenticate(
    users: Users,
    receive: Callable[[], Awaitable[bytes]],
    send: Callable[[list[Piece]], Awaitable[None]],
    versions: Callable[[Envelope, bytes], tuple[list[Piece], bool]],
) -> None:
    """
    The beginning of a connection. `versions` answers ApiVersions, and tells whether it was understood.

    :raises Unauthenticated: the client was told so, where there is a message to tell it with.
    :raises FrameMalformed: what was sent is out of order.
    """
    told_versions = False
    while True:
        frame = await receive()
        envelope = read_envelope(frame)
        if envelope.api_key == API_VERSIONS and not told_versions:
            answer, told_versions = versions(envelope, frame)
            await send(answer)
        elif envelope.api_key == HANDSHAKE:
            break
        else:
            raise FrameMalformed(f"API {envelope.api_key} was asked for before the client had said who it is.")
    _check_version(envelope)
    mechanism = read_request(frame, envelope).mechanism
    known = mechanism in MECHANISMS
    code = ErrorCode.none if known else ErrorCode.unsupported_sasl_mechanism
    await send(_written(envelope, {"error_code": code, "mechanisms": MECHANISMS}))
    if not known:
        raise Unauthenticated(f"The client wants the mechanism {mechanism[:100]!r}, and is offered others.")
    exchange: Exchange = _Plain(users) if mechanism == "PLAIN" else _Scram(users, mechanism)
    await (_bare(exchange, receive, send) if envelope.version == 0 else _wrapped(exchange, receive, send))


async def _wrapped(
    exchange: Exchange, receive: Callable[[], Awaitable[bytes]], send: Callable[[list[Piece]], Awaitable[None]]
) -> None:
    done = False
    while not done:
        frame = await receive()
        envelope = read_envelope(frame)
        if envelope.api_key != AUTHENTICATE:
            raise FrameMalformed(f"API {envelope.api_key} was asked for where the client says who it is.")
        _check_version(envelope)
        try:
            token, done = await exchange.step(read_request(frame, envelope).auth_bytes)
        except Unauthenticated:
            await asyncio.sleep(FAILED_AFTER)
            # Not more than this: a stranger is not told which half was wrong.
            told = {
                "error_code": ErrorCode.sasl_authentication_failed,
                "error_message": "Authentication failed: wrong user name or password.",
                "auth_bytes": b"",
            }
            await send(_written(envelope, told))
            raise
        await send(_written(envelope, {"auth_bytes": token}))


async def _bare(
    exchange: Exchange, receive: Callable[[], Awaitable[bytes]], send: Callable[[list[Piece]], Awaitable[None]]
) -> None:
    """After version 0 of the handshake: tokens without a header, and no way to say what is wrong."""
    done = False
    while not done:
        try:
            token, done = await exchange.step(await receive())
        except Unauthenticated:
            await asyncio.sleep(FAILED_AFTER)
            raise
        await send([_LENGTH.pack(len(token)), token])


def _check_version(envelope: Envelope) -> None:
    oldest, newest = VERSIONS[envelope.api_key]
    if not oldest <= envelope.version <= newest:
        raise FrameMalformed(f"API {envelope.api_key} has no version {envelope.version} here.")


def _written(envelope: Envelope, fields: Fields) -> list[Piece]:
    return write_response(envelope.api_key, envelope.version, envelope.correlation_id, fields)


def too_late(_: Call) -> Fields:
    """The answer of a broker that asks nobody, or has asked already."""
    return {"error_code": ErrorCode.illegal_sasl_state, "auth_bytes": b"", "mechanisms": ()}
