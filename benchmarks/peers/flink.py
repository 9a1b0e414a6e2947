"""Apache Flink for SQL jobs: had, started, given a job, asked, and ended with its `Children`.

    with Children(folder, worker, rest) as children:
        flink = Flink(home(), children)
        flink.start()
        [job] = flink.submit(sql)
        flink.wait(job, 60.0)
        flink.metrics(job)

A job manager beside the broker and one task manager with one slot, alone on the worker's core; on loopback.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from benchmarks.peers.children import LAST, Children, Failed
from benchmarks.peers.homes import environment, packages
from tests.scene import free_port
from tests.stack import maven

VERSION, CONNECTOR = "2.3.0", "4.0.1-2.0"
STARTED_WITHIN, SUBMITTED_WITHIN, ANSWERS_WITHIN = 90.0, 120.0, 10.0
POLL = 0.2
ENDED = ("FINISHED", "CANCELED", "FAILED")

SETTINGS = {
    "state.backend.type": "rocksdb",
    "execution.checkpointing.mode": "EXACTLY_ONCE",
    "execution.checkpointing.incremental": "true",
    # A commit of the outputs comes with a checkpoint: of the time that is measured, some.
    "execution.checkpointing.interval": "5 s",
    "taskmanager.memory.process.size": "3g",
    "parallelism.default": "1",
    # A job that fails should say so, rather than begin again for ever.
    "restart-strategy.type": "none",
    # What is safe in SQL, and fast.
    "pipeline.object-reuse": "true",
}
"""Beside Flink's own defaults."""


def home() -> Path:
    """Flink's folder, with the connector to Kafka; fetched where it is missing. Raises Failed."""
    found = packages(environment(f"flink-{VERSION}", f"apache-flink=={VERSION}")) / "pyflink"
    # Two that the package lacks: the second is what its SQL client is made of.
    for folder, artifact, version in (
        ("lib", "flink-sql-connector-kafka", CONNECTOR),
        ("opt", "flink-sql-gateway", VERSION),
    ):
        jar = f"{artifact}-{version}.jar"
        if not (found / folder / jar).exists():
            shutil.copy(maven.jars(artifact, [f"org.apache.flink:{artifact}:{version}"], jar) / jar, found / folder)
    return found


class Flink:
    """A cluster of one slot. settings: beside SETTINGS."""

    def __init__(self, home: Path, children: Children, settings: Mapping[str, str] | None = None) -> None:
        self._bin = home / "bin"
        self._children = children
        folder, self._port = children.folder, free_port()
        self._settings = {
            **SETTINGS,
            "jobmanager.rpc.port": str(free_port()),
            "rest.port": str(self._port),
            "rest.address": "localhost",
            "io.tmp.dirs": str(folder),
            "execution.checkpointing.dir": (folder / "checkpoints").as_uri(),
            **(settings or {}),
        }
        self._environment = {"FLINK_LOG_DIR": str(folder), "FLINK_PID_DIR": str(folder)}
        self._http = httpx.Client(base_url=f"http://127.0.0.1:{self._port}", timeout=ANSWERS_WITHIN)
        self.worker = 0
        """The task manager's process."""

    def start(self) -> None:
        """Returns once the slot is there. Raises Failed."""
        parts = {"jobmanager": False, "taskmanager": True}
        for name, worker in parts.items():
            command = ["bash", str(self._bin / f"{name}.sh"), "start-foreground", *self._options()]
            self.worker = self._children.start(name, command, worker=worker, environment=self._environment).pid
        until = time.monotonic() + STARTED_WITHIN
        while not self._slots():
            self._children.check()
            if time.monotonic() > until:
                raise Failed(f"Flink has no slot after {STARTED_WITHIN:.0f} s: {self._children.said('taskmanager')}")
            time.sleep(POLL)

    def submit(self, sql: str) -> list[str]:
        """The ids of the jobs that the statements began: one for each INSERT, or statement set. Raises Failed."""
        script = self._children.folder / "job.sql"
        script.write_text(sql)
        command = ["bash", str(self._bin / "sql-client.sh"), *self._options(), "-f", str(script)]
        command += ["-hist", str(script.with_suffix(".history"))]  # else in the user's home
        told = self._children.run("sql-client", command, SUBMITTED_WITHIN, self._environment)
        jobs = re.findall(r"Job ID: ([0-9a-f]{32})", told)
        if not jobs or "[ERROR]" in told:
            error = re.sub(r"\x1b\[[0-9;]*m", "", told).rpartition("[ERROR]")[2].strip()
            raise Failed(f"Flink took no job: {' '.join(error.split())[:LAST]}")
        return jobs

    def state(self, job: str) -> str:
        """As Flink calls it. Raises Failed where the job has."""
        state = str(self._ask(f"/jobs/{job}")["state"])
        if state == "FAILED":
            cause = self._ask(f"/jobs/{job}/exceptions")["exceptionHistory"]["entries"]
            raise Failed(f"the job failed: {cause[0]['stacktrace'][:1500] if cause else 'Flink does not say why'}")
        return state

    def wait(self, job: str, within: float) -> str:
        """How the job ended. Raises Failed where it failed, or did not end within so many seconds."""
        until = time.monotonic() + within
        while (state := self.state(job)) not in ENDED:
            if time.monotonic() > until:
                raise Failed(f"the job is {state} after {within:.0f} s")
            time.sleep(POLL)
        return state

    def metrics(self, job: str) -> dict[str, dict[str, int]]:
        """Of each vertex by its name, what it has read and written: Flink's own `metrics`, as read-records."""
        return {v["name"]: v["metrics"] for v in self._ask(f"/jobs/{job}")["vertices"]}

    def taken(self, job: str) -> int:
        """Records that its sources have given, wherever they are chained with what follows; 0 before it runs."""
        count = 0
        for vertex in self._ask(f"/jobs/{job}")["vertices"]:
            path = f"/jobs/{job}/vertices/{vertex['id']}/metrics"
            given = [m["id"] for m in self._ask(path) if re.fullmatch(r"\d+\.Source_.*\.numRecordsOut", m["id"])]
            if given:
                count += sum(int(m["value"]) for m in self._ask(f"{path}?get={','.join(given)}"))
        return count

    def cancel(self, job: str) -> None:
        self._http.patch(f"/jobs/{job}").raise_for_status()

    def _slots(self) -> int:
        try:
            return int(self._ask("/overview")["slots-available"])
        except httpx.HTTPError:  # it does not serve yet
            return 0

    def _ask(self, path: str) -> Any:  # JSON
        answer = self._http.get(path)
        answer.raise_for_status()
        return answer.json()

    def _options(self) -> list[str]:
        return [part for name, value in self._settings.items() for part in ("-D", f"{name}={value}")]
