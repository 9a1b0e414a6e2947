"""The house's floor plan: imports go one way, every package is shipped, and what is sans-IO stays so."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = ("streams", "models", "serving", "agents_rt", "headrace")
"""From the ground up: a package imports its own floor and those below it."""

SANS_IO = (
    "headrace.streams.task",
    "headrace.streams.outcomes",
    "headrace.streams.features",
    "headrace.models.maturity",
    "headrace.models.learner",
    "headrace.models.evaluation",
    "headrace.models.drift",
    "headrace.serving.scorer",
)
"""The task, and the operators that it runs (those of features come with their module)."""

IO = {"asyncio", "aiokafka", "socket", "time", "threading", "subprocess", "httpx", "uvloop"}
"""What would let an operator wait, reach the log, or read a clock that is not injected."""


def modules() -> dict[str, Path]:
    """Every module of the library by its import name."""
    found = {}
    for floor in FLOORS:
        for path in sorted((ROOT / floor).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            found[".".join(parts if floor == "headrace" else ("headrace", *parts))] = path
    return found


MODULES = modules()


def imports(name: str) -> Iterator[str]:
    """The modules that a module imports, those for types alone left out."""
    path = MODULES[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    hidden: set[int] = set()
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            hidden.update(id(inner) for statement in node.body for inner in ast.walk(statement))
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield full if full in MODULES else base


def floor(module: str) -> int:
    second = module.split(".")[1] if "." in module else ""
    return FLOORS.index(second) if second in FLOORS[:-1] else len(FLOORS) - 1


@pytest.mark.parametrize("name", MODULES)
def test_no_import_goes_up(name: str) -> None:
    upward = [i for i in imports(name) if i.split(".")[0] == "headrace" and floor(i) > floor(name)]
    assert not upward, f"{name} imports {', '.join(upward)}, which stands above it"


@pytest.mark.parametrize("name", SANS_IO)
def test_an_operator_reaches_no_log_no_loop_and_no_clock(name: str) -> None:
    seen, left = {name}, [name]
    while left:
        here = left.pop()
        for imported in imports(here):
            assert imported.split(".")[0] not in IO, f"{name} reaches {imported} by {here}"
            if imported in MODULES and imported not in seen:
                seen.add(imported)
                left.append(imported)


def test_every_package_is_shipped() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    there = {n for n, path in MODULES.items() if path.name == "__init__.py"}
    assert set(declared["packages"]) == there
    folders = {n: n.removeprefix("headrace.").replace(".", "/") for n in there}
    assert declared["package-dir"] == folders


def test_every_dependency_is_pinned_within_its_bounds() -> None:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins: dict[str, str] = {}
    for file in ("requirements.txt", "requirements-test.txt"):
        for line in (ROOT / file).read_text().splitlines():
            if "==" in line:
                name, _, version = line.partition("==")
                pins[canonicalize_name(name)] = version
    wanted = [*project["dependencies"], *(d for extra in project["optional-dependencies"].values() for d in extra)]
    for text in wanted:
        requirement = Requirement(text)
        pin = pins.get(canonicalize_name(requirement.name))
        assert pin is not None, f"{requirement.name} has no pin"
        assert requirement.specifier.contains(pin), f"{requirement} does not admit its pin {pin}"
        assert {s.operator for s in requirement.specifier} >= {">=", "<"}, f"{requirement} lacks a floor or a ceiling"
