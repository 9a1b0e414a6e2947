"""docker-compose.yml as Compose reads it, and what is in it in the terms of the code."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from tests.scene import ROOT

Tree = dict[str, Any]
"""YAML's: mappings, lists, strings, numbers."""

FILE = ROOT / "docker-compose.yml"
OURS = ("worker", "gateway", "replay")
"""The services that run this project's image."""

_VARIABLE = re.compile(r"\$(?:\$|\{(\w+)(?::(-|\?)([^}]*))?\})")
_UNITS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


class Missing(Exception):
    """A variable that must be set is not; with the sentence of the file."""


def example() -> dict[str, str]:
    """The variables of .env.example as they stand there."""
    lines = (ROOT / ".env.example").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def secrets() -> set[str]:
    """Those that .env.example leaves to be filled in."""
    return {name for name, value in example().items() if not value and not name.startswith("COMPOSE_")}


def filled(**more: str) -> dict[str, str]:
    """.env as a user has it."""
    return {**example(), **{name: f"{name}-of-a-test".lower().replace("_", "-") for name in secrets()}, **more}


CLUSTER = {
    "COMPOSE_PROFILES": "cluster",
    "KAFKA_COPIES": "3",
    "KAFKA_IN_SYNC": "2",
    "KAFKA_VOTERS": "1@kafka:9093,2@kafka-2:9093,3@kafka-3:9093",
}
"""What .env.example says to set for three nodes."""


def raw() -> Tree:
    found: Tree = yaml.safe_load(FILE.read_text())
    return found


def load(environment: Mapping[str, str]) -> Tree:
    """The file with its variables replaced. Raises Missing."""
    found: Tree = _replaced(raw(), environment)
    return found


def services(environment: Mapping[str, str] | None = None) -> dict[str, Tree]:
    found: dict[str, Tree] = load(environment or filled())["services"]
    return found


def variables(tree: object) -> list[tuple[str, str, str]]:
    """(name, operator, what follows it) of each variable in a tree."""
    if isinstance(tree, dict):
        return [found for value in tree.values() for found in variables(value)]
    if isinstance(tree, list):
        return [found for value in tree for found in variables(value)]
    return [m.groups(default="") for m in _VARIABLE.finditer(str(tree)) if m[1]]  # type: ignore[misc]


def _replaced(tree: object, environment: Mapping[str, str]) -> Any:  # the tree's own kinds
    def value(found: re.Match[str]) -> str:
        name, operator, rest = found.groups()
        if name is None:
            return "$"
        set_to = environment.get(name, "")
        if not set_to and operator == "?":
            raise Missing(f"{name}: {rest}")
        return set_to or (rest if operator == "-" else "")

    if isinstance(tree, dict):
        return {name: _replaced(inner, environment) for name, inner in tree.items()}
    if isinstance(tree, list):
        return [_replaced(inner, environment) for inner in tree]
    return _VARIABLE.sub(value, tree) if isinstance(tree, str) else tree


def seconds(duration: str) -> float:
    """Of Compose's durations, as 1m30s."""
    parts = re.findall(r"(\d+)(ms|[smh])", duration)
    assert "".join(n + u for n, u in parts) == duration, duration
    return sum(int(n) * _UNITS[unit] for n, unit in parts)


def published(service: Tree) -> list[tuple[str, int, int]]:
    """(address, port on this machine, port in the container) of each port."""
    found = []
    for text in service.get("ports", ()):
        host, outer, inner = re.fullmatch(r"(?:(.+):)?(\d+):(\d+)", text).groups()  # type: ignore[union-attr]
        found.append((host or "0.0.0.0", int(outer), int(inner)))
    return found


def properties(service: Tree) -> dict[str, str]:
    """The server.properties that the image of Kafka makes of its environment."""
    own = {"KAFKA_HEAP_OPTS"}  # for the start script
    return {
        name.removeprefix("KAFKA_").replace("_", ".").lower(): str(value)
        for name, value in service["environment"].items()
        if name.startswith("KAFKA_") and name not in own
    }


def check_of(service: Tree) -> list[str]:
    """The command of a health check, as a container runs it."""
    kind, *command = service["healthcheck"]["test"]
    return list(command) if kind == "CMD" else ["sh", "-c", command[0]]


def option(command: list[str], name: str) -> str:
    return command[command.index(name) + 1]
