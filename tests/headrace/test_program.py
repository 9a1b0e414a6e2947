"""Loading a program: what is found, and what is told where nothing is."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.errors import ProgramError
from headrace.program import load

MAKES = "from tests.shop import Shop\n"


def program(folder: Path, text: str, name: str = "mine.py") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_the_application_of_a_file_is_found(tmp_path: Path) -> None:
    assert load(program(tmp_path, MAKES + "anything = Shop()\n", "found.py")).name == "shop"


def test_an_application_that_has_two_names_is_one(tmp_path: Path) -> None:
    assert load(program(tmp_path, MAKES + "app = shop = Shop()\n", "twice.py")).name == "shop"


def test_a_file_that_is_loaded_again_is_the_same_program(tmp_path: Path) -> None:
    path = program(tmp_path, MAKES + "app = Shop()\n", "again.py")
    assert load(path) is load(str(path))


def test_a_program_may_import_its_neighbours(tmp_path: Path) -> None:
    program(tmp_path, MAKES + "made = Shop()\n", "neighbour_of_main.py")
    assert load(program(tmp_path, "from neighbour_of_main import made as app\n", "main_program.py")).name == "shop"


def test_one_of_several_applications_can_be_named(tmp_path: Path) -> None:
    path = program(tmp_path, MAKES + "one = Shop()\ntwo = Shop()\n", "several.py")
    with pytest.raises(ProgramError, match=r"declares 2 applications \(one, two\): name one, as .*several\.py:one"):
        load(path)
    assert load(f"{path}:two").name == "shop"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x = (\n", r"bad\.py, line 1: '\(' was never closed"),
        ("a = 1\nb = a.c\n", r"bad\.py, line 2: AttributeError: 'int' object has no attribute 'c'"),
        (
            "import headrace as hr\nhr.drift.KSWN('log_loss')\n",
            r"bad\.py, line 2: AttributeError: .* has no attribute 'KSWN'\. Did you mean 'KSWIN'\?",
        ),
        ("import headrace as hr\nhr.countt('1h')\n", r"Did you mean 'count'\?"),
        ("import nothing_of_that_name\n", r"bad\.py, line 1: there is no module 'nothing_of_that_name'"),
        ("x = 1\n", r"bad\.py declares no application: add app = hr\.App"),
        ("raise SystemExit(3)\n", r"bad\.py, line 1: SystemExit: 3"),
    ],
)
def test_what_is_wrong_with_a_program_is_told(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(ProgramError, match=told):
        load(program(tmp_path, text, "bad.py"))


def test_an_error_of_a_declaration_is_told_with_its_line(tmp_path: Path) -> None:
    text = "from headrace.streams.event import Event\nclass Click(Event, topic='clicks'):\n    user: str\n"
    with pytest.raises(ProgramError, match=r"line 2: event Click lacks key, time"):
        load(program(tmp_path, text, "click.py"))


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("missing.py", "there is no file missing.py"),
        ("tests", r"declares no application"),
        ("tests/", "is a folder"),
        ("tests.shop:nothing", "nothing does not exist"),
        ("tests.shop:ORDERS", "is Topic, not an hr.App"),
        ("no_such_module", "no module 'no_such_module'"),
    ],
)
def test_a_name_that_is_no_program_is_told(name: str, told: str) -> None:
    with pytest.raises(ProgramError, match=told):
        load(name)
