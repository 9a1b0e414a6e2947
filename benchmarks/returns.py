"""The main job as `make run` does it: orders at full speed, scored, joined with their outcome and learnt from."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.figures import Figure, collected

REPLAY = Path(__file__).parent.parent / "examples" / "returns" / "replay.py"
UNITS = {"events_per_s": "events/s", "p50_ms": "ms", "p99_ms": "ms", "seconds": "s"}
NAMES = {
    "events_per_s": "returns, published to learnt",
    "p50_ms": "p50, publish to prediction at full speed",
    "p99_ms": "p99, publish to prediction at full speed",
    "seconds": "the whole replay",
}


def measure(repeats: int, which: str = "sample") -> list[Figure]:
    """A new log and a new model each time."""
    figures = collected([_once(which) for _ in range(repeats)], UNITS)
    return [Figure(NAMES[f.name], f.unit, f.values) for f in figures]


def _once(which: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        summary = Path(folder) / "summary.json"
        environment = {**os.environ, "HEADRACE_HOME": folder, "HEADRACE_SUMMARY": str(summary)}
        done = subprocess.run([sys.executable, str(REPLAY), which], env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"the replay failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        told = json.loads(summary.read_text())
    return {name: float(told[name]) for name in UNITS}
