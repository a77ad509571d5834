"""The rules of the house, read from the source: who may import whom, and what a room shows to the others."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

import apportion

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

GROUND_FLOOR = frozenset({"quantizer", "network", "allocator"})
MAY_IMPORT = {
    "quantizer": frozenset[str](),
    "network": frozenset[str](),
    "allocator": frozenset[str](),
    "demo": frozenset[str](),
    "sensitivity": GROUND_FLOOR,
    "reconstruct": GROUND_FLOOR,
    "export": GROUND_FLOOR | {"sensitivity", "reconstruct"},
    "cli": GROUND_FLOOR | {"sensitivity", "reconstruct", "export", "demo"},
}
"""Per room, the rooms it may import; every room may import the files beside them (errors, documents)."""
ROOMS = sorted(MAY_IMPORT)
ENTRANCES = {"__init__.py", "__main__.py"}
"""Root files that may import any room; the other root files are below all rooms."""
MOST_LINES = 400


@dataclass(frozen=True)
class Import:
    """One imported name: the absolute dotted path of its module, and what is taken from it, if anything."""

    where: str
    module: str
    name: str | None
    relative: bool

    @property
    def room(self) -> str | None:
        """The room it reaches into, for `from ..room import x` as for `from .. import room`."""
        dotted = self.module if self.name is None else f"{self.module}.{self.name}"
        parts = dotted.split(".")
        return parts[1] if len(parts) > 1 and parts[0] == "apportion" and parts[1] in MAY_IMPORT else None


def imports(file: Path) -> Iterator[Import]:
    """Every import of a package file, those inside functions and type-checking blocks too."""
    package = ["apportion", *file.relative_to(ROOT).parent.parts]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        where = f"{file.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(where, alias.name, None, relative=False)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                yield Import(where, module, alias.name, relative=node.level > 0)


def files_of(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


def root_files() -> list[Path]:
    return sorted(ROOT.glob("*.py"))


def shown_names(room: str) -> list[str]:
    """The literal `__all__` of a room's `__init__.py`."""
    tree = ast.parse((ROOT / room / "__init__.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]:
            names: list[str] = ast.literal_eval(node.value)
            return names
    pytest.fail(f"{room}/__init__.py has no __all__")


def module_of(room: str) -> ModuleType:
    return importlib.import_module(f"apportion.{room}")


def has_own_docstring(thing: object) -> bool:
    """Written, not inherited and not the signature that `dataclass` puts in the place of a missing one."""
    text = vars(thing).get("__doc__") if inspect.isclass(thing) else thing.__doc__
    return bool(text) and not text.startswith(f"{getattr(thing, '__name__', '')}(")


def test_every_folder_with_code_is_a_room_with_a_rule_and_is_packaged() -> None:
    folders = {file.parent.name for file in ROOT.glob("*/__init__.py")}
    packaged = {name.partition(".")[2] for name in PYPROJECT["tool"]["setuptools"]["packages"]} - {""}
    assert folders == packaged == set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_no_room_above_or_beside_it(room: str) -> None:
    allowed = MAY_IMPORT[room] | {room, None}
    assert [found for file in files_of(room) for found in imports(file) if found.room not in allowed] == []


def test_the_files_beside_the_rooms_import_no_room() -> None:
    foundation = [file for file in root_files() if file.name not in ENTRANCES]
    assert foundation
    assert [found for file in foundation for found in imports(file) if found.room] == []


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_takes_from_another_only_what_that_room_shows(room: str) -> None:
    taken = [found for file in files_of(room) for found in imports(file) if found.room and found.room != room]
    inner = [
        found
        for found in taken
        if found.module != f"apportion.{found.room}" or found.name not in shown_names(found.room)
    ]
    assert inner == []


def test_imports_inside_the_package_are_relative() -> None:
    files = [*root_files(), *(file for room in ROOMS for file in files_of(room))]
    absolute = [
        found
        for file in files
        for found in imports(file)
        if not found.relative and found.module.split(".")[0] in {"apportion", *ROOMS}
    ]
    assert absolute == []


def test_the_allocator_and_what_it_stands_on_do_not_import_torch() -> None:
    files = [*files_of("allocator"), *(file for file in root_files() if file.name not in ENTRANCES)]
    heavy = {"torch", "torchvision", "safetensors"}
    assert [found for file in files for found in imports(file) if found.module.split(".")[0] in heavy] == []


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_shows_its_names_sorted_and_once(room: str) -> None:
    names = shown_names(room)

    # Constants, then classes, then functions: the order ruff keeps (RUF022).
    def order(name: str) -> tuple[int, str]:
        return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)

    assert names == sorted(set(names), key=order)


@pytest.mark.parametrize("room", ROOMS)
def test_every_name_a_room_shows_exists_and_says_what_it_is(room: str) -> None:
    module = module_of(room)
    assert [name for name in module.__all__ if not hasattr(module, name)] == []
    things = {name: getattr(module, name) for name in module.__all__}
    described = {
        name: has_own_docstring(thing)
        for name, thing in things.items()
        if inspect.isclass(thing) or inspect.isroutine(thing)
    }
    assert [name for name, good in described.items() if not good] == []


def test_every_public_name_of_the_package_exists_and_has_a_docstring() -> None:
    assert [name for name in apportion.__all__ if not hasattr(apportion, name)] == []
    public = {name: getattr(apportion, name) for name in apportion.__all__ if name != "__version__"}
    assert [name for name, thing in public.items() if not has_own_docstring(thing)] == []


def test_code_project_file_and_changelog_name_one_version() -> None:
    entry = re.search(
        r"^## \[?(?P<version>[^\s\]]+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert entry is not None
    assert apportion.__version__ == PYPROJECT["project"]["version"] == entry["version"]


def test_no_file_is_longer_than_one_idea() -> None:
    files = [*root_files(), *(file for room in [*ROOMS, "tests", "benchmarks"] for file in files_of(room))]
    lengths = {
        str(file.relative_to(ROOT)): len(file.read_text(encoding="utf-8").splitlines()) for file in files
    }
    assert {name: lines for name, lines in lengths.items() if lines > MOST_LINES} == {}
