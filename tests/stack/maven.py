"""Jars from Maven, once a machine, in a cache outside the checkout."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

FETCHED_WITHIN = 900.0
"""Seconds. Some twenty where the registry answers; without a bound, for ever where it does not."""

_POM = """<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>
<groupId>headrace</groupId><artifactId>testbed</artifactId><version>1</version><dependencies>
{dependencies}
</dependencies></project>"""

_DEPENDENCY = "<dependency><groupId>{}</groupId><artifactId>{}</artifactId><version>{}</version></dependency>"


def cache() -> Path:
    """The folder of all that is fetched for tests and benchmarks."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "headrace"


def jars(name: str, coordinates: Sequence[str], told: str) -> Path:
    """The folder of these jars, and of those that they need; fetched where it is missing. Needs mvn on the PATH.

    coordinates: "group:artifact:version", each
    told: what is fetched, for who waits
    """
    pom = _POM.format(dependencies="\n".join(_DEPENDENCY.format(*c.split(":")) for c in coordinates))
    # A folder that was filled for another list of jars would lack some.
    home = cache() / f"{name}-{hashlib.sha256(pom.encode()).hexdigest()[:8]}"
    if not home.exists():
        home.parent.mkdir(parents=True, exist_ok=True)
        print(f"fetching {told}", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(dir=home.parent) as making:
            Path(making, "pom.xml").write_text(pom)
            command = ["mvn", "-q", "-B", "dependency:copy-dependencies", "-DincludeScope=runtime"]
            command.append(f"-DoutputDirectory={making}/lib")
            subprocess.run(command, cwd=making, check=True, timeout=FETCHED_WITHIN)
            with contextlib.suppress(OSError):  # another process was first
                Path(making, "lib").rename(home)
    return home
