"""docker-compose.yml, .env.example and the Dockerfile, against the specification, the code and the test stack."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest
import typer.main
from headrace.serving.gateway import GRACE, Settings, create
from headrace.streams import metrics
from headrace.streams.address import Address, parse_address
from packaging.specifiers import SpecifierSet
from prometheus_client import CollectorRegistry

from headrace import program
from headrace.command import app as command_line
from headrace.supervisor import STOP_WAIT
from tests import shop
from tests.compose import reading
from tests.compose.reading import CLUSTER, OURS, check_of, filled, option, published, services
from tests.scene import ROOT, free_port
from tests.stack.kafka import SETTINGS, VERSION

SERVICES = services()
NODES = ("kafka", "kafka-2", "kafka-3")
DOCKERFILE = (ROOT / "Dockerfile").read_text()
NOT_ROOT_BUT = {"weaviate"}
"""Its image knows no other user; it runs without any of root's capabilities."""
IMAGE_USER = {*NODES}
"""Their images name a user of their own: apache/kafka runs as appuser."""


def test_it_follows_the_compose_specification() -> None:
    schema = files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json"
    validator = jsonschema.Draft7Validator(json.loads(schema.read_text()))
    assert [f"{'/'.join(map(str, e.path))}: {e.message}" for e in validator.iter_errors(reading.load(filled()))] == []
    assert not validator.is_valid({"services": {"worker": {"helthcheck": {}}}}), "and the schema refuses what is not so"


def test_every_image_is_pinned_to_one_version() -> None:
    named = {name: service["image"] for name, service in SERVICES.items()}
    named |= {f"Dockerfile {n}": image for n, image in enumerate(re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE))}
    for name, image in named.items():
        assert re.fullmatch(r"[a-z0-9./-]+:v?\d+\.\d+(\.\d+)?(-[a-z0-9-]+)?", image), f"{name}: {image}"
    assert len({image for name, image in named.items() if name.startswith("Dockerfile")}) == 1


def test_the_servers_are_of_the_versions_that_tests_run() -> None:
    assert SERVICES["kafka"]["image"] == f"apache/kafka:{VERSION}"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert {SERVICES[name]["image"] for name in OURS} == {f"headrace:{project['project']['version']}"}
    pinned = re.findall(r"setuptools==(\S+)", DOCKERFILE)
    (build,) = project["build-system"]["requires"]
    assert len(pinned) == 1
    assert SpecifierSet(build.removeprefix("setuptools")).contains(pinned[0])


def test_ports_are_open_on_loopback_only_and_each_once() -> None:
    ports = [port for service in SERVICES.values() for port in published(service)]
    assert {host for host, _, _ in ports} == {"127.0.0.1"}
    outer = [port for _, port, _ in ports]
    assert len(set(outer)) == len(outer)


def test_every_variable_is_in_the_example_and_every_one_of_the_example_is_used() -> None:
    used = {name for name, _, _ in reading.variables(reading.raw())}
    used |= {secret["environment"] for secret in reading.raw()["secrets"].values()}
    assert used | {"COMPOSE_PROFILES"} == set(reading.example())


def test_a_default_in_the_file_is_the_one_of_the_example() -> None:
    for name, operator, rest in reading.variables(reading.raw()):
        if operator == "-":
            assert rest == reading.example()[name], name
    assert reading.load(dict.fromkeys(reading.secrets(), "x" * 24)) == reading.load(
        filled(**dict.fromkeys(reading.secrets(), "x" * 24))
    ), "a .env of secrets alone is enough"


@pytest.mark.parametrize("name", sorted(reading.secrets()))
def test_a_secret_that_is_missing_is_told_in_a_sentence(name: str) -> None:
    with pytest.raises(reading.Missing, match=rf"^{name}: .+run make \.env"):
        reading.load(filled(**{name: ""}))


def test_no_secret_stands_in_the_file_or_in_the_example() -> None:
    for service in reading.raw()["services"].values():
        for name, value in service.get("environment", {}).items():
            if re.search(r"PASSWORD|TOKEN|SECRET|ALLOWED_KEYS|AUTH$", name):
                assert re.fullmatch(r"\$\{\w+:\?[^}]+\}", value), f"{name} is {value!r}"
                assert reading.variables(value)[0][0] in reading.secrets()
    assert reading.secrets() == {"HEADRACE_TOKEN", "GRAFANA_PASSWORD", "REDIS_PASSWORD", "WEAVIATE_API_KEY"}


def test_make_fills_the_secrets_in_once_and_keeps_them(tmp_path: Path) -> None:
    for file in ("Makefile", ".env.example"):
        shutil.copy(ROOT / file, tmp_path)
    make = ["make", ".env", f"PYTHON={sys.executable}"]
    done = subprocess.run(make, cwd=tmp_path, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / ".env").read_text()
    made = dict(line.split("=", 1) for line in text.splitlines() if line and not line.startswith("#"))
    assert set(made) == set(reading.example())
    found = {made[name] for name in reading.secrets()}
    assert len(found) == len(reading.secrets()), "each its own"
    assert all(re.fullmatch(r"[\w-]{32}", secret) for secret in found)
    assert all(made[name] == value for name, value in reading.example().items() if name not in reading.secrets())
    assert (tmp_path / ".env").stat().st_mode & 0o077 == 0
    reading.load(made)
    (tmp_path / ".env.example").touch()
    assert subprocess.run(make, cwd=tmp_path, capture_output=True, timeout=30).returncode != 0
    assert (tmp_path / ".env").read_text() == text


def test_git_and_the_image_leave_the_secrets_out() -> None:
    assert ".env" in (ROOT / ".gitignore").read_text().splitlines()
    rules = [r for r in (ROOT / ".dockerignore").read_text().splitlines() if r and not r.startswith("#")]
    assert rules[0] == "*"
    copies = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
    copied = {source for line in copies for source in line.split()}
    assert {r.removeprefix("!") for r in rules[1:] if r.startswith("!")} == copied
    assert all((ROOT / source).exists() for source in copied)


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_watched_bounded_and_cannot_fill_the_disk(name: str) -> None:
    service = SERVICES[name]
    limits = service["deploy"]["resources"]["limits"]
    assert set(limits) == {"cpus", "memory", "pids"}
    assert service["logging"]["options"] == {"max-size": "10m", "max-file": "3"}
    assert reading.seconds(service["stop_grace_period"]) >= 10
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["cap_drop"] == ["ALL"]
    assert "privileged" not in service
    check = service["healthcheck"]
    if name == "replay":
        assert (check, service["restart"]) == ({"disable": True}, "no")
    else:
        assert check["test"][0] in ("CMD", "CMD-SHELL")
        assert reading.seconds(check["timeout"]) < reading.seconds(check["interval"])
        assert check["start_period"]
        assert service["restart"] == ("on-failure:5" if name in OURS else "unless-stopped")


def test_no_service_runs_as_root() -> None:
    (user,) = re.findall(r"^USER (\S+)", DOCKERFILE, re.MULTILINE)
    assert user.split(":")[0] not in ("0", "root")
    for name, service in SERVICES.items():
        if name in OURS:
            assert service["user"] == user
        elif name not in IMAGE_USER | NOT_ROOT_BUT:
            assert str(service["user"]).split(":")[0] not in ("0", "root")


def test_what_is_kept_lies_in_named_volumes_and_every_other_mount_is_there_and_read_only() -> None:
    named = set(reading.raw()["volumes"])
    used = set()
    for service in SERVICES.values():
        for mount in service.get("volumes", ()):
            source, _, mode = mount.split(":", 2) if mount.count(":") > 1 else (*mount.split(":"), "rw")
            if source.startswith("."):
                assert (ROOT / source).exists(), mount
                assert mode == "ro", mount
            else:
                used.add(source)
    assert used == named


def test_what_a_service_waits_for_can_become_so() -> None:
    for service in SERVICES.values():
        for other, how in service.get("depends_on", {}).items():
            assert how == {"condition": "service_healthy"}
            assert "test" in SERVICES[other]["healthcheck"]
            assert "profiles" not in SERVICES[other], "a profile that is off would never start it"


def test_a_laptop_starts_neither_models_nor_a_cluster_nor_the_replay_by_itself() -> None:
    profiles = {name: service["profiles"] for name, service in SERVICES.items() if "profiles" in service}
    assert profiles == {
        "kafka-2": ["cluster"],
        "kafka-3": ["cluster"],
        "triton": ["models"],
        "weaviate": ["models"],
        "replay": ["returns"],
    }


@pytest.mark.parametrize("name", ["worker", "gateway"])
def test_the_commands_are_ones_that_the_command_line_takes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    service = SERVICES[name]
    for variable, value in service["environment"].items():
        monkeypatch.setenv(variable, value)
    called, *arguments = service["command"]
    assert re.findall(r"^ENTRYPOINT (.+)", DOCKERFILE, re.MULTILINE) == ['["headrace"]']
    group = typer.main.get_command(command_line)
    context = group.commands[called].make_context(called, list(arguments))  # type: ignore[attr-defined]
    assert parse_address(context.params["broker"]) == Address("brokers", 9092)
    inside = Path(context.params["program"])
    assert f"{filled()['PROGRAMS']}:/programs:ro" in service["volumes"]
    assert program.load(ROOT / "examples" / inside.relative_to("/programs")).name == "returns"
    if name == "worker":
        assert f"{name}:{context.params['data']}" in service["volumes"]
    else:
        assert context.params["token"] == filled()["HEADRACE_TOKEN"]


def test_the_command_line_refuses_an_option_that_it_does_not_have() -> None:
    group = typer.main.get_command(command_line)
    with pytest.raises(Exception, match="No such option"):
        group.commands["worker"].make_context("worker", ["p.py", "--broker", "a:1", "--metrics-hosts", "0.0.0.0"])  # type: ignore[attr-defined]


def test_the_replay_runs_the_examples_own() -> None:
    python, script = SERVICES["replay"]["entrypoint"]
    assert python == "python"
    assert (ROOT / "examples" / Path(script).relative_to("/programs")).is_file()
    assert "./examples:/programs:ro" in SERVICES["replay"]["volumes"]
    asked = subprocess.run(
        [sys.executable, "examples/returns/replay.py", "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    (which,) = SERVICES["replay"]["command"]
    assert which in re.findall(r"\{(.+?)\}", asked.stdout)[0].split(",")


def test_the_names_in_the_environment_are_ones_that_the_code_reads() -> None:
    read = {
        node.value
        for floor in ("headrace", "serving", "models", "streams")
        for path in (ROOT / floor).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    told = {name for service in OURS for name in SERVICES[service]["environment"]}
    told |= set(re.findall(r"^(?:ENV|   ) (HEADRACE_\w+)=", DOCKERFILE, re.MULTILINE))
    assert "HEADRACE_BROKER" in told
    assert {name for name in told if name not in read} == set()


def test_kafka_is_told_what_the_test_stack_is_told() -> None:
    for node in NODES:
        told = reading.properties(SERVICES[node])
        protocols = dict(pair.split(":") for pair in told.pop("listener.security.protocol.map").split(","))
        wanted = dict(SETTINGS)
        known = dict(pair.split(":") for pair in wanted.pop("listener.security.protocol.map").split(","))
        assert protocols == {**known, "HOST": "PLAINTEXT"}, "one listener more, for programs outside"
        assert {name: told.get(name) for name in wanted} == wanted


@pytest.mark.parametrize(
    ("environment", "nodes", "copies", "in_sync"), [({}, NODES[:1], "1", "1"), (CLUSTER, NODES, "3", "2")]
)
def test_one_node_is_whole_and_three_are_a_cluster(
    environment: dict[str, str], nodes: tuple[str, ...], copies: str, in_sync: str
) -> None:
    found = services(filled(**environment))
    running = set(environment.get("COMPOSE_PROFILES", "").split(","))
    assert {n for n in NODES if running.issuperset(found[n].get("profiles", ()))} == set(nodes)
    told = {name: reading.properties(found[name]) for name in nodes}
    voters = ",".join(f"{p['node.id']}@{name}:9093" for name, p in told.items())
    assert len({p["node.id"] for p in told.values()}) == len(nodes)
    assert len({found[name]["environment"]["CLUSTER_ID"] for name in nodes}) == 1
    for name, p in told.items():
        assert p["controller.quorum.voters"] == voters
        ports = dict(re.findall(r"(\w+)://:(\d+)", p["listeners"]))
        ((_, outer, inner),) = published(found[name])
        assert str(inner) == ports["HOST"]
        assert p["advertised.listeners"] == f"CLIENT://{name}:{ports['CLIENT']},HOST://127.0.0.1:{outer}"
        assert f":{ports['CLIENT']} " in found[name]["healthcheck"]["test"][1]
        assert [m.split(":")[1] for m in found[name]["volumes"]] == [p["log.dirs"]]
        for setting in ("default", "offsets.topic", "transaction.state.log"):
            assert p[f"{setting}.replication.factor"] == copies
        assert p["min.insync.replicas"] == p["transaction.state.log.min.isr"] == in_sync
        assert found[name]["networks"]["default"]["aliases"] == ["brokers"]
    assert found["worker"]["environment"]["HEADRACE_BROKER"] == f"kafka://brokers:{ports['CLIENT']}"


def test_what_three_nodes_need_is_told_in_the_example() -> None:
    told = dict(re.findall(r"(?<=[ ,:])([A-Z_]+)=([^\s;]+?)(?=,? |\.? |\.\s|$)", (ROOT / ".env.example").read_text()))
    assert {name: told.get(name, "").rstrip(".,") for name in CLUSTER} == CLUSTER


def test_a_service_that_is_stopped_has_the_time_that_it_takes() -> None:
    # Twice what the local stack gives its own: a broker over a network is slower to answer.
    assert reading.seconds(SERVICES["worker"]["stop_grace_period"]) >= 2 * STOP_WAIT
    assert reading.seconds(SERVICES["gateway"]["stop_grace_period"]) > 1.5 * GRACE


def test_the_workers_health_check_asks_for_what_the_worker_serves() -> None:
    command = check_of(SERVICES["worker"])
    port = option(SERVICES["worker"]["command"], "--metrics-port")
    assert f"http://127.0.0.1:{port}/metrics" in command[-1]
    here = free_port()
    asked = [sys.executable, *command[1:-1], command[-1].replace(port, str(here))]
    assert subprocess.run(asked, capture_output=True, timeout=30).returncode != 0, "nobody is there"
    metrics.serve(CollectorRegistry(), here)
    assert subprocess.run(asked, capture_output=True, timeout=30).returncode == 0


def test_the_gateways_health_check_asks_for_what_the_gateway_serves_without_a_token() -> None:
    command = check_of(SERVICES["gateway"])
    ((_, _, inner),) = published(SERVICES["gateway"])
    assert option(SERVICES["gateway"]["command"], "--port") == str(inner)
    assert f"http://127.0.0.1:{inner}/health" in command[-1]
    served = create(Settings("shop", Address("127.0.0.1", free_port()), shop.TOPICS))
    assert "/health" in {getattr(route, "path", "") for route in served.routes}
