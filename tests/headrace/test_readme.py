"""The README says what is so: its pipeline runs, its commands and files exist."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest
from headrace.streams.address import Address
from typer.testing import CliRunner

from headrace import program
from headrace.client import connect
from headrace.command import app as command
from headrace.stack import Stack
from tests.scene import order

ROOT = Path(__file__).parent.parent.parent
PAGES = ("README.md", "CONTRIBUTING.md", "examples/returns/README.md")
README = (ROOT / "README.md").read_text()
PIPELINE = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[0]


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    file = tmp_path / "shop.py"
    file.write_text(PIPELINE)
    return file


async def test_its_pipeline_predicts(shop: Path, tmp_path: Path) -> None:
    async with (
        Stack(shop, data=tmp_path / "data") as stack,
        connect(str(stack.broker), program.load(shop)) as connection,
    ):
        await connection.publish("orders", order())
        made = [m async for m in connection.subscribe("predictions.returns", "earliest", timeout=10)]
        async with httpx.AsyncClient(base_url=stack.gateway, trust_env=False) as gateway:
            ready = await gateway.get("/ready")
            seen = (await gateway.get("/workers")).json()
    assert (ready.status_code, ready.json()["status"]) == (200, "ok")
    assert [w["state"] for w in seen["workers"]] == ["running"]
    tasks = [(t["processor"], t["state"]) for t in seen["tasks"]]
    assert tasks == [("orders", "running"), ("learn.returns", "running")]
    assert [(m.key, m.value["score"], m.value["version"]) for m in made] == [("13085", 0.02, "returns@0")]


def test_its_topics_are_those_of_its_pipeline(shop: Path) -> None:
    told = re.findall(r"`([a-z]+(?:\.[A-Za-z]+)?)`", README.partition("## The topics of a pipeline")[2].split("##")[0])
    there = {t.name for t in program.load(shop).topics()}
    assert {t for t in told if "." in t or t in ("orders", "returns", "registry")} <= there


@pytest.mark.parametrize("page", PAGES)
def test_its_commands_exist(page: str) -> None:
    text = (ROOT / page).read_text()
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for target in re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE):
        assert target in targets, f"{page} names make {target}"
    for name, rest in re.findall(r"(?:^|`|bin/)headrace ([a-z][a-z-]*)([^`\n#]*)", text, re.MULTILINE):
        helped = CliRunner().invoke(command, [name, "--help"])
        assert helped.exit_code == 0, f"{page} names headrace {name}"
        for option in re.findall(r"--[a-z-]+", rest):
            assert option in helped.output, f"{page} names headrace {name} {option}"


@pytest.mark.parametrize("page", PAGES)
def test_what_it_links_to_is_there(page: str) -> None:
    here = ROOT / page
    for link in re.findall(r"\]\(([^)#]+)\)", here.read_text()):
        assert "://" in link or (here.parent / link).exists(), f"{page} links to {link}"


def test_the_files_that_contributing_names_exist() -> None:
    for name in re.findall(r"`((?:[a-z_]+/)+(?:[a-z_]+\.py)?)`", (ROOT / "CONTRIBUTING.md").read_text()):
        assert (ROOT / name).exists(), name


def test_the_broker_address_is_read_as_the_readme_writes_it() -> None:
    from headrace.streams.address import parse_address

    assert parse_address("kafka://host:9092") == Address("host", 9092)
