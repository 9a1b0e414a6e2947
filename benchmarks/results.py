"""What a benchmark found, kept in `benchmarks/results/NAME.json` beside the machine and the versions it is of."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"

OURS = ("aiokafka", "numba", "numpy", "rocksdict", "river", "uvloop")


def versions(**more: str) -> dict[str, str]:
    """Of what Headrace stands on, and of what else was measured."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in OURS}, **more}


def keep(name: str, machine: str, versions: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write them under the name; see `write`."""
    write(RESULTS / f"{name}.json", machine, versions, rows)


def write(path: Path, machine: str, versions: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write `machine`, `versions` and `rows`: an object for each engine or point, with its `name` and its figures."""
    path.parent.mkdir(parents=True, exist_ok=True)
    told = {"machine": machine, "versions": dict(versions), "rows": [dict(row) for row in rows]}
    path.write_text(json.dumps(told, indent=1) + "\n")
