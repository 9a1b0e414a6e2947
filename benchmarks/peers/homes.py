"""Where the engines live: each in a Python environment of its own, in the cache outside the checkout."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import venv
from pathlib import Path

from benchmarks.peers.children import Failed
from tests.stack.maven import cache

INSTALLED_WITHIN = 1800.0
"""Seconds. Flink, the largest, is 844 MB."""
_WHOLE = "installed"
"""A file that is written last: without it an environment lacks something, and is made again."""


def environment(name: str, *requirements: str) -> Path:
    """The folder of an environment with these; made where it is missing. Raises Failed."""
    key = hashlib.sha256("\n".join((sys.version, *requirements)).encode()).hexdigest()[:8]
    home = cache() / f"{name}-{key}"
    if not (home / _WHOLE).exists():
        print(f"installing {' '.join(requirements)} (once on this machine)", file=sys.stderr, flush=True)
        shutil.rmtree(home, ignore_errors=True)
        venv.create(home, with_pip=True)
        install = [str(python(home)), "-m", "pip", "install", "-q", "--disable-pip-version-check", *requirements]
        try:
            done = subprocess.run(install, capture_output=True, text=True, timeout=INSTALLED_WITHIN, check=False)
        except subprocess.TimeoutExpired:
            raise Failed(f"pip did not end within {INSTALLED_WITHIN:.0f} s") from None
        if done.returncode:
            raise Failed(f"pip: {(done.stderr.strip() or 'it said nothing').splitlines()[-1]}")
        (home / _WHOLE).touch()
    return home


def python(home: Path) -> Path:
    return home / "bin" / "python"


def packages(home: Path) -> Path:
    """Where an environment has its packages."""
    [found] = home.glob("lib/python*/site-packages")
    return found
