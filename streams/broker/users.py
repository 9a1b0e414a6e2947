"""Who may use a broker that others can reach: names with salted verifiers, in a file that holds no password.

`python -m headrace.streams.broker.users FILE NAME` adds a user or gives a new password, which it reads from
HEADRACE_PASSWORD, else from the terminal. The broker sees changes of the file at the next connection.
"""

import argparse
import getpass
import hashlib
import hmac
import os
import secrets
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from .errors import BrokerError, UsersUnreadable

PASSWORD = "HEADRACE_PASSWORD"
ITERATIONS = 8_192
"""Kafka's clients refuse fewer than 4,096. Every client computes them at every connection."""
_SALT_BYTES = 24
_NAME_BYTES, _PASSWORD_BYTES = 256, 1_024
HASHES: dict[str, Callable[..., "hashlib._Hash"]] = {"SCRAM-SHA-256": hashlib.sha256, "SCRAM-SHA-512": hashlib.sha512}


class Verifier(msgspec.Struct, frozen=True):
    """What RFC 5802 lets a server keep: it proves that a client knows the password, and is not the password."""

    salt: bytes
    iterations: int
    stored_key: bytes
    server_key: bytes


class _File(msgspec.Struct, frozen=True):
    users: dict[str, dict[str, Verifier]]


def salted(mechanism: str, password: str, salt: bytes, iterations: int) -> bytes:
    return hashlib.pbkdf2_hmac(HASHES[mechanism]().name, password.encode(), salt, iterations)


def make_verifier(mechanism: str, password: str) -> Verifier:
    salt = secrets.token_bytes(_SALT_BYTES)
    return verifier_of(mechanism, salted(mechanism, password, salt, ITERATIONS), salt, ITERATIONS)


def verifier_of(mechanism: str, salted_password: bytes, salt: bytes, iterations: int) -> Verifier:
    made = HASHES[mechanism]
    client_key = hmac.digest(salted_password, b"Client Key", made)
    return Verifier(salt, iterations, made(client_key).digest(), hmac.digest(salted_password, b"Server Key", made))


class Users:
    """The users of a file. It is read again when it has changed; where it then cannot be read, nobody new comes in."""

    def __init__(self, file: Path) -> None:
        """:raises UsersUnreadable:"""
        self._file = file
        self._seen: tuple[int, int] = (0, 0)
        self._users: dict[str, dict[str, Verifier]] = {}
        # So that a name that is none gets an answer like any other, and the same each time.
        self._pepper = secrets.token_bytes(32)
        self._read()
        if not self._users:
            raise UsersUnreadable(
                f"The file {file} names no user: add one with `python -m headrace.streams.broker.users {file} NAME`."
            )

    def verifier(self, name: str, mechanism: str) -> Verifier:
        """Of the user; for others, one that no password fits. :raises UsersUnreadable:"""
        self._read()
        found = self._users.get(name, {}).get(mechanism)
        if found is not None:
            return found
        size = HASHES[mechanism]().digest_size
        salt = hmac.digest(self._pepper, name.encode(), "sha256")[:_SALT_BYTES]
        return Verifier(salt, ITERATIONS, secrets.token_bytes(size), secrets.token_bytes(size))

    def _read(self) -> None:
        try:
            stat = self._file.stat()
            if (stat.st_mtime_ns, stat.st_size) != self._seen:
                self._users = _load(self._file)
                self._seen = stat.st_mtime_ns, stat.st_size
        except OSError as error:
            raise UsersUnreadable(f"The file of users {self._file} cannot be read: {error.strerror}.") from error


def _load(file: Path) -> dict[str, dict[str, Verifier]]:
    try:
        return msgspec.json.decode(file.read_bytes(), type=_File).users
    except msgspec.MsgspecError as error:
        raise UsersUnreadable(f"The file {file} is no file of users: {error}.") from error


def _save(file: Path, users: dict[str, dict[str, Verifier]]) -> None:
    """Whole or not at all, and readable by its owner alone."""
    part = file.with_name(f".{file.name}.{os.getpid()}")
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out:
        out.write(msgspec.json.format(msgspec.json.encode(_File(users)), indent=2))
        out.flush()
        os.fsync(out.fileno())
    part.replace(file)


def set_password(file: Path, name: str, password: str) -> None:
    """Add a user, or give them a new password. :raises UsersUnreadable: :raises BrokerError:"""
    if not name or len(name.encode()) > _NAME_BYTES or not name.isprintable():
        raise BrokerError(f"{name!r} is no name of a user: 1 to {_NAME_BYTES} printable characters are taken.")
    if not password or len(password.encode()) > _PASSWORD_BYTES or "\0" in password:
        raise BrokerError(f"A password has 1 to {_PASSWORD_BYTES} characters, and none of them is NUL.")
    users = _load(file) if file.exists() else {}
    users[name] = {mechanism: make_verifier(mechanism, password) for mechanism in HASHES}
    _save(file, users)


def remove(file: Path, name: str) -> None:
    """:raises BrokerError: where there is no such user."""
    users = _load(file) if file.exists() else {}
    if users.pop(name, None) is None:
        raise BrokerError(f"{file} has no user {name!r}; it has {', '.join(sorted(users)) or 'none'}.")
    _save(file, users)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m headrace.streams.broker.users",
        description=f"Add a user of the local broker. The password is read from {PASSWORD}, else from the terminal.",
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("name")
    parser.add_argument("--remove", action="store_true")
    chosen = parser.parse_args(arguments)
    try:
        if chosen.remove:
            remove(chosen.file, chosen.name)
            print(f"user {chosen.name} is gone from {chosen.file}")
        else:
            given = os.environ.get(PASSWORD)
            set_password(chosen.file, chosen.name, given or getpass.getpass(f"password of {chosen.name}: "))
            print(f"user {chosen.name} stands in {chosen.file}")
    except (BrokerError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
