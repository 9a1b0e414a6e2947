"""The Dockerfile's steps as plain commands in a clean folder, and a worker started from what they made."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from headrace.models import judgekernels, linearkernels
from headrace.streams import jsonkernels, recordbatches
from headrace.streams.kernels import KERNELS

from tests.compose.reading import services
from tests.compose.test_stack import process
from tests.scene import ROOT, broker_process, eventually, free_port

pytestmark = [pytest.mark.stack, pytest.mark.timeout(1200)]

FOLDERS = ("/src", "/opt/headrace", "/var/lib/headrace", "/data")
"""Of the image; here they lie under another root."""


def steps() -> list[tuple[str, str]]:
    """(instruction, arguments) of the Dockerfile."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in joined.splitlines() if line]


@dataclass
class Image:
    """What the steps have made so far."""

    root: Path
    environment: dict[str, str] = field(default_factory=dict)
    work: Path = Path("/")

    def inside(self, text: str) -> str:
        """With the image's folders under the root."""
        return re.sub(rf"(?<![\w/.])({'|'.join(FOLDERS)})(?=[/\s:]|$)", lambda m: f"{self.root}{m[1]}", text)

    def run(self, command: list[str], **more: str) -> subprocess.CompletedProcess[str]:
        outside = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
        cache = {"PIP_CACHE_DIR": str(Path.home() / ".cache" / "pip")}
        path = {"PATH": f"{sys.base_prefix}/bin:/usr/local/bin:/usr/bin:/bin"}
        return subprocess.run(
            command,
            cwd=self.work,
            env={**cache, **outside, **path, **self.environment, **more},
            capture_output=True,
            text=True,
        )

    def step(self, instruction: str, rest: str) -> None:
        if instruction == "FROM":
            self.environment, self.work = {}, self.root
        elif instruction == "WORKDIR":
            self.work = Path(self.inside(rest))
            self.work.mkdir(parents=True, exist_ok=True)
        elif instruction == "ENV":
            told = dict(pair.split("=", 1) for pair in rest.split())
            self.environment |= {name: self.inside(value) for name, value in told.items()}
        elif instruction == "COPY" and not rest.startswith("--from"):
            *sources, target = rest.split()
            for source in sources:
                if (ROOT / source).is_dir():
                    shutil.copytree(ROOT / source, self.work / target, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    shutil.copy(ROOT / source, self.work / target)
        elif instruction == "RUN":
            # pip's cache is this machine's; the image would only carry one along.
            command = self.inside(rest).replace(" --no-cache-dir", "")
            if os.geteuid() != 0:
                command = re.sub(r"-[og] \d+ ", "", command)
            done = self.run(["sh", "-c", command])
            assert done.returncode == 0, f"{rest}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        else:
            # Its stages share this root, so copying from one to the other is done.
            assert instruction in ("COPY", "USER", "ENTRYPOINT", "CMD"), instruction


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    # A short path: the first lines of scripts name the interpreter, and they have a bound.
    with tempfile.TemporaryDirectory(prefix="image-") as root:
        made = Image(Path(root))
        for instruction, rest in steps():
            made.step(instruction, rest)
        shutil.rmtree(made.root / "src")  # the image has no sources but the installed ones
        yield made


def test_the_image_has_what_requirements_name_and_no_compiler(image: Image) -> None:
    listed = json.loads(image.run(["python", "-m", "pip", "list", "--format", "json"]).stdout)
    there = {one["name"].lower().replace("_", "-"): one["version"] for one in listed}
    pins = dict(line.split("==") for line in (ROOT / "requirements.txt").read_text().splitlines() if "==" in line)
    assert {n: there.get(n.lower().replace("_", "-")) for n in pins} == pins
    assert set(there) - {n.lower().replace("_", "-") for n in pins} == {"headrace", "pip", "setuptools"}
    assert not re.search(r"apt-get|\bgcc\b|build-essential", (ROOT / "Dockerfile").read_text())
    assert image.run(["headrace", "--help"]).returncode == 0


def test_its_worker_predicts_with_the_kernels_that_it_brought(image: Image, tmp_path: Path) -> None:
    kernels = Path(image.environment["NUMBA_CACHE_DIR"])
    compiled = {path.name: path.stat().st_mtime_ns for path in kernels.rglob("*.nbc")}
    assert len(compiled) == len(KERNELS)
    models = {linearkernels.learn_linear, judgekernels.judge}
    assert {jsonkernels.decode, *recordbatches.KERNELS, *models} <= set(KERNELS)
    port = str(free_port())
    changed = {"0.0.0.0": "127.0.0.1", "9464": port, "/data": str(tmp_path / "data")}
    (entry,) = [json.loads(rest) for instruction, rest in steps() if instruction == "ENTRYPOINT"]
    command = [changed.get(c, c) for c in [*entry, *services()["worker"]["command"]]]
    command = [c.replace("/programs", str(ROOT / "examples")) for c in command]
    executable = shutil.which(command[0], path=image.environment["PATH"])
    assert executable == f"{image.root}/opt/headrace/bin/headrace"
    with broker_process(tmp_path / "broker") as broker:
        environment = {**image.environment, "HEADRACE_BROKER": str(broker), "PYTHONPATH": ""}
        with process([executable, *command[1:]], environment, tmp_path / "worker.log") as worker:
            served = f"http://127.0.0.1:{port}/metrics"

            def answers() -> bool:
                assert worker.poll() is None, (tmp_path / "worker.log").read_text()
                try:
                    return httpx.get(served, trust_env=False).status_code == 200
                except httpx.HTTPError:
                    return False

            eventually(answers, 120)
            line = {"invoice": "1", "customer": "13085", "item": "85048", "description": "LIGHTS", "quantity": 12}
            line |= {"price": 6.95, "country": "France", "at": "2010-04-01T09:30:00Z"}
            (tmp_path / "lines.ndjson").write_text(json.dumps(line) + "\n")
            at = ["--broker", str(broker)]
            sent = image.run(
                ["headrace", "publish", "orders", str(tmp_path / "lines.ndjson"), "--key", "customer", *at]
            )
            assert sent.returncode == 0, sent.stderr
            asked = ["headrace", "subscribe", "predictions.returns", "--from", "earliest", "--max", "1"]
            predicted = json.loads(image.run([*asked, "--timeout", "60", *at]).stdout)
            assert predicted["key"] == "13085"
        assert worker.returncode == 0
    assert "compiling" not in (tmp_path / "worker.log").read_text()
    assert {path.name: path.stat().st_mtime_ns for path in kernels.rglob("*.nbc")} == compiled, "none anew"
