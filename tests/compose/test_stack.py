"""The services of docker-compose.yml as plain processes, without Docker: their own commands, environment, settings."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from headrace.streams.address import Address

from tests.compose.reading import check_of, filled, properties, services
from tests.compose.test_watching import QUERIES, RULES
from tests.scene import ROOT, eventually, free_port
from tests.stack.kafka import kafka

pytestmark = [pytest.mark.stack, pytest.mark.timeout(900)]

SERVICES = services()
OF_A_NODE = {
    "node.id",
    "listeners",
    "advertised.listeners",
    "listener.security.protocol.map",
    "controller.quorum.voters",
    "log.dirs",
}
"""Settings of Kafka that name the hosts and folders of containers."""
ELSEWHERE = "127.0.0.2"
"""Loopback, and not where metrics are served by default."""
MAY_BE_EMPTY = ("headrace_task_restored / (headrace_task_to_restore > 0)",)
"""No task restored anything in a first run."""


@contextlib.contextmanager
def process(command: Sequence[str], environment: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as out:
        started = subprocess.Popen(
            command, cwd=log.parent, env={**os.environ, "PYTHONPATH": str(ROOT), **environment}, stdout=out, stderr=out
        )
    try:
        yield started
    finally:
        started.terminate()
        try:
            started.wait(30)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()


@dataclass(frozen=True, slots=True)
class Scene:
    folder: Path
    broker: Address
    worker: subprocess.Popen[bytes]
    gateway: str
    token: dict[str, str]
    prometheus: str
    checks: dict[str, list[str]]

    def healthy(self, name: str) -> bool:
        return subprocess.run(self.checks[name], capture_output=True, timeout=60).returncode == 0

    def ask(self, query: str) -> list[dict[str, Any]]:
        answer = httpx.get(f"{self.prometheus}/api/v1/query", params={"query": query}, trust_env=False, timeout=30)
        assert answer.status_code == 200, f"{query}: {answer.text}"
        found: list[dict[str, Any]] = answer.json()["data"]["result"]
        return found


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("compose")
    settings = {k.replace(".", "_"): v for k, v in properties(SERVICES["kafka"]).items() if k not in OF_A_NODE}
    metrics, page, asking = free_port(), free_port(), free_port()
    here = {"/programs": str(ROOT / "examples"), "/data": str(folder / "data")}

    def localised(command: Sequence[str], more: Mapping[str, str]) -> list[str]:
        told = {**here, **more}
        return [next((v + c.removeprefix(k) for k, v in told.items() if c.startswith(k)), c) for c in command]

    def headrace(name: str, more: Mapping[str, str]) -> list[str]:
        return [sys.executable, "-m", "headrace.command", *localised(SERVICES[name]["command"], more)]

    def check(name: str, *changes: tuple[str, str]) -> list[str]:
        asked = check_of(SERVICES[name])
        for old, new in changes:
            assert old in asked[-1]
            asked[-1] = asked[-1].replace(old, new)
        return [sys.executable, *asked[1:]]

    with contextlib.ExitStack() as running:
        (folder / "kafka").mkdir()
        cluster = running.enter_context(kafka(folder / "kafka", nodes=1, **settings))
        known = {"HEADRACE_BROKER": str(cluster.address)}
        worker = running.enter_context(
            process(
                headrace("worker", {"0.0.0.0": ELSEWHERE, "9464": str(metrics)}),
                {**SERVICES["worker"]["environment"], **known},
                folder / "worker.log",
            )
        )
        running.enter_context(
            process(
                headrace("gateway", {"0.0.0.0": "127.0.0.1", "8080": str(page)}),
                {**SERVICES["gateway"]["environment"], **known},
                folder / "gateway.log",
            )
        )
        running.enter_context(_prometheus(folder, f"{ELSEWHERE}:{metrics}", f"127.0.0.1:{page}", asking))
        made = Scene(
            folder,
            cluster.address,
            worker,
            f"http://127.0.0.1:{page}",
            {"Authorization": f"Bearer {filled()['HEADRACE_TOKEN']}"},
            f"http://127.0.0.1:{asking}",
            {
                "worker": check("worker", ("127.0.0.1:9464", f"{ELSEWHERE}:{metrics}")),
                "gateway": check("gateway", ("127.0.0.1:8080", f"127.0.0.1:{page}")),
            },
        )
        for name in ("worker", "gateway"):
            eventually(partial(made.healthy, name), 180)
        yield made


@contextlib.contextmanager
def _prometheus(folder: Path, worker: str, gateway: str, port: int) -> Iterator[None]:
    """Prometheus with the file of the stack, whose targets are here."""
    config = yaml.safe_load((ROOT / "compose" / "prometheus.yml").read_text())
    config["global"] |= {"scrape_interval": "1s", "evaluation_interval": "1s"}
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    del jobs["worker"]["dns_sd_configs"]
    jobs["worker"]["static_configs"] = [{"targets": [worker]}]
    jobs["gateway"]["static_configs"] = [{"targets": [gateway]}]
    jobs["gateway"]["authorization"]["credentials_file"] = str(folder / "token")
    (folder / "token").write_text(filled()["HEADRACE_TOKEN"])
    shutil.copy(ROOT / "compose" / "alerts.yml", folder)
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    subprocess.run(["promtool", "check", "config", str(folder / "prometheus.yml")], check=True, capture_output=True)
    command = [
        argument.replace("=/etc/prometheus/", f"={folder}/").replace("=/prometheus", f"={folder}/tsdb")
        for argument in SERVICES["prometheus"]["command"]
    ]
    with process(["prometheus", *command, f"--web.listen-address=127.0.0.1:{port}"], {}, folder / "prometheus.log"):
        path = check_of(SERVICES["prometheus"])[-1].partition("127.0.0.1:9090")[2]

        def ready() -> bool:
            with contextlib.suppress(httpx.HTTPError):
                return httpx.head(f"http://127.0.0.1:{port}{path}", trust_env=False).status_code == 200
            return False

        eventually(ready, 60)
        yield


def test_the_main_job_runs_on_the_workers_that_are_there(scene: Scene) -> None:
    summary = scene.folder / "summary.json"
    _, script = SERVICES["replay"]["entrypoint"]
    job = str(ROOT / "examples" / Path(script).relative_to("/programs"))
    environment = {
        **os.environ,
        **SERVICES["replay"]["environment"],
        "HEADRACE_BROKER": str(scene.broker),
        "HEADRACE_SUMMARY": str(summary),
        "HEADRACE_HOME": str(scene.folder / "none"),
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, job, *SERVICES["replay"]["command"]]
    for published in (145_784, 0):  # the second time all of it is there already
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stdout + done.stderr
        found = json.loads(summary.read_text())
        counts = {name: found[name] for name in ("predicted", "outcomes", "late", "rejected")}
        assert counts == {"predicted": 106_835, "outcomes": 76_322, "late": 0, "rejected": 35_967}
        assert (found["events_per_s"] > 0) == bool(published)
    assert not (scene.folder / "none").exists(), "nothing was started here"
    assert scene.healthy("worker")
    assert scene.healthy("gateway")


def test_every_panel_shows_something_and_no_alert_is_broken(scene: Scene) -> None:
    line = {"invoice": "1", "customer": "13085", "item": "85048", "description": "LIGHTS", "quantity": 12}
    line |= {"price": 6.95, "country": "France", "at": "2010-04-01T09:30:00Z"}
    waiting = [query for query in QUERIES if not any(part in query for part in MAY_BE_EMPTY)]

    def shown() -> bool:
        # Again and again: rates are told of what came between two scrapes.
        published = httpx.post(
            f"{scene.gateway}/topics/orders", json=line, headers=scene.token, trust_env=False, timeout=30
        )
        assert published.status_code == 202, published.text
        waiting[:] = [query for query in waiting if not scene.ask(query)]
        return not waiting

    with contextlib.suppress(AssertionError):
        eventually(shown, 60)
    assert waiting == [], "these have shown nothing within a minute"
    for query in QUERIES:
        scene.ask(query)
    for found in scene.ask("headrace_task_rows"):
        assert float(found["value"][1]) > 0
    groups = httpx.get(f"{scene.prometheus}/api/v1/rules", trust_env=False).json()["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert {rule["name"] for rule in rules} == {rule["alert"] for rule in RULES}
    assert [(rule["name"], rule["lastError"]) for rule in rules if rule["health"] != "ok"] == []


def test_a_worker_that_is_gone_is_seen(scene: Scene) -> None:
    (rule,) = [rule for rule in RULES if rule["alert"] == "NoWorker"]
    eventually(lambda: scene.ask(rule["expr"]) == [])
    scene.worker.kill()
    scene.worker.wait()
    eventually(lambda: bool(scene.ask(rule["expr"])))
    assert not scene.healthy("worker")
    (stat,) = [query for query in QUERIES if query.startswith('count(up{job="worker"} == 1) or')]
    assert [found["value"][1] for found in scene.ask(stat)] == ["0"]


def test_the_alerts_fire_where_they_should(tmp_path: Path) -> None:
    shutil.copy(ROOT / "compose" / "alerts.yml", tmp_path)
    shutil.copy(ROOT / "tests" / "compose" / "alerts_test.yml", tmp_path)
    done = subprocess.run(
        ["promtool", "test", "rules", "alerts_test.yml"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    syntax = ["promtool", "check", "config", "--syntax-only", str(ROOT / "compose" / "prometheus.yml")]
    assert subprocess.run(syntax, capture_output=True).returncode == 0


def test_redis_takes_its_command_its_password_and_its_check(tmp_path: Path) -> None:
    port = str(free_port())
    shell, flag, told = SERVICES["redis"]["command"]
    command = told.replace("/tmp/redis.conf", f"{tmp_path}/redis.conf").replace("/data", str(tmp_path))
    asked = check_of(SERVICES["redis"])
    asked[-1] = asked[-1].replace("redis-cli", f"redis-cli -p {port}")
    environment = SERVICES["redis"]["environment"]

    def healthy(**more: str) -> bool:
        return subprocess.run(asked, env={**os.environ, **environment, **more}, capture_output=True).returncode == 0

    assert not healthy()
    log = tmp_path / "redis.log"
    with process([shell, flag, f"{command} --bind 127.0.0.1 --port {port}"], environment, log) as server:
        eventually(healthy)
        assert not healthy(REDISCLI_AUTH="another")
        arguments = Path(f"/proc/{server.pid}/cmdline").read_bytes()
        assert arguments.startswith(b"redis-server"), "the shell is gone, so that it gets the signal to stop"
        assert environment["REDISCLI_AUTH"].encode() not in arguments
    assert server.returncode == 0
    assert "bye bye" in log.read_text()
