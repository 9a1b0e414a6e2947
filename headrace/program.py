"""A program: the Python file that declares an application."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType

from headrace.app import App
from headrace.errors import ProgramError
from headrace.streams.errors import HeadraceError


def load(program: str | Path) -> App:
    """The application of a program: a path (`shop.py`, `shop.py:app`) or a module (`shop`, `shop:app`).

    Its folder joins `sys.path`, so that it can import its neighbours. Raises ProgramError where there is no such
    file or name, where it fails, and where it declares no application, or several without saying which.
    """
    text = str(program)
    where, _, name = text.partition(":") if not Path(text).exists() else (text, "", "")
    module = _from_file(Path(where)) if where.endswith(".py") or "/" in where else _from_module(where)
    if name:
        found = getattr(module, name, None)
        if not isinstance(found, App):
            what = "does not exist" if found is None else f"is {type(found).__name__}, not an hr.App"
            raise ProgramError(f"{where}: {name} {what}")
        return found
    apps = {id(v): (n, v) for n, v in vars(module).items() if isinstance(v, App) and not n.startswith("_")}
    if not apps:
        raise ProgramError(f'{where} declares no application: add app = hr.App("name", models=[...])')
    if len(apps) > 1:
        names = [n for n, _ in apps.values()]
        raise ProgramError(
            f"{where} declares {len(apps)} applications ({', '.join(names)}): name one, as {where}:{names[0]}"
        )
    return next(iter(apps.values()))[1]


def _from_file(path: Path) -> ModuleType:
    if path.is_dir():
        raise ProgramError(f"{path} is a folder: name the Python file in it that declares the application")
    if not path.is_file():
        raise ProgramError(f"there is no file {path}: name the Python file that declares the application")
    path = path.resolve()
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    for module in list(sys.modules.values()):
        if getattr(module, "__file__", None) == str(path):
            return module
    name = path.stem if path.stem.isidentifier() and path.stem not in sys.modules else f"headrace_program_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ProgramError(f"{path} is no Python file: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        raise _failure(str(path), error) from error
    return module


def _from_module(name: str) -> ModuleType:
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        return importlib.import_module(name)
    except BaseException as error:
        raise _failure(name, error) from error


def _failure(where: str, error: BaseException) -> BaseException:
    """The failure of a program as a sentence; an interrupt stays what it is."""
    if isinstance(error, KeyboardInterrupt):
        return error
    if isinstance(error, SyntaxError):
        return ProgramError(f"{error.filename or where}, line {error.lineno}: {error.msg}")
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == where]
    place = f"{where}, line {lines[-1]}" if lines else where
    if isinstance(error, HeadraceError):
        return ProgramError(f"{place}: {error}")
    if isinstance(error, ModuleNotFoundError):
        return ProgramError(f"{place}: there is no module {error.name!r}; install it or check the name")
    return ProgramError(f"{place}: {type(error).__name__}: {error}{_meant(error)}")


def _meant(error: BaseException) -> str:
    """The name that was meant, as Python itself tells it in a traceback."""
    if not isinstance(error, AttributeError) or error.obj is None or not error.name:
        return ""
    near = difflib.get_close_matches(error.name, [n for n in dir(error.obj) if not n.startswith("_")], n=1)
    return f". Did you mean {near[0]!r}?" if near else ""
