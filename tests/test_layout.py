"""The house stands as design says: imports point one way, names hide nothing, starting is quick."""

import ast
import doctest
import importlib
import subprocess
import sys
import tomllib

import pytest
from support.imports import (
    FOLDERS,
    MODULES,
    ROOT,
    imported_names,
    longest_chain,
    module_graph,
    module_name,
    package_name,
    room_graph,
    room_of,
)

# A room imports rooms of lower floors alone, and none of its own floor.
FLOORS = {
    "api": 10,
    "cli": 10,
    "recipes": 9,
    "merging/commands": 8,
    "merging/evaluation": 7,
    "merging/zoos": 6,
    "merging/switching": 6,
    "merging/flex_switch": 5,
    "merging/shared": 5,
    "merging/routing": 5,
    "merging/exemplar_merges": 5,
    "merging/compression": 4,
    "merging/static": 4,
    "merging/models": 3,
    "merging/task_vectors": 3,
    "merging/checkpoints": 2,
    "merging/methods": 2,
    "codecs/format": 1,
    "codecs": 0,
}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_imports_rooms_of_lower_floors_alone(path):
    room = room_of(path)
    for name in imported_names(path):
        assert name.split(".")[0] not in (*FOLDERS, "click"), f"{path}: imports {name}"
        if name.split(".")[0] == "flexswitch":
            other = "/".join(name.split(".")[1:-1]) or "api"
            assert other == room or FLOORS[other] < FLOORS[room], f"{path}: {room} imports {name}"


def test_every_room_has_a_floor_and_neither_rooms_nor_modules_import_in_a_circle():
    assert set(room_graph()) == set(FLOORS)
    assert longest_chain(room_graph())  # raises CycleError
    assert longest_chain(module_graph())


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_says_what_it_is_and_its_examples_hold(path):
    module = importlib.import_module(module_name(path)) if path.stem != "__main__" else None
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    if module is not None:
        assert doctest.testmod(module).failed == 0


def test_the_rooms_have_no_init_file_so_that_the_standard_codecs_wins():
    assert [
        path for room in ("cli", "codecs", "merging") for path in (ROOT / room).rglob("__init__.py")
    ] == []


def test_every_room_is_packaged():
    tables = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    rooms = {room_of(path) for path in MODULES}
    assert set(tables["packages"]) == {package_name(room) for room in rooms}
    assert tables["package-dir"] == {package_name(room): room for room in rooms}


def test_files_stay_small():
    assert [path for path in MODULES if len(path.read_text(encoding="utf-8").splitlines()) > 300] == []


def compiled_functions(path):
    """Returns a module's compiled functions by name."""
    functions = [
        node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)
    ]
    return {
        function.name: function
        for function in functions
        if any(isinstance(each, ast.Name) and each.id == "compiled" for each in function.decorator_list)
    }


def test_compiled_functions_call_those_of_their_own_file_only():
    """Machine code is kept by the date of its file: a change in another one would not be seen."""
    everywhere = {(path, name) for path in MODULES for name in compiled_functions(path)}
    names = {name for _, name in everywhere}
    assert len(everywhere) > 20
    for path in MODULES:
        for function in compiled_functions(path).values():
            called = {node.id for node in ast.walk(function) if isinstance(node, ast.Name)} & names
            assert {(path, name) for name in called} <= everywhere, (
                f"{path}: {function.name} calls another file's"
            )


def test_starting_the_command_line_loads_nothing_heavy():
    heavy = ("torch", "numpy", "numba", "faiss", "transformers", "pydantic", "huggingface_hub", "yaml")
    code = f"import sys, flexswitch.cli.app; print([name for name in {heavy!r} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout == "[]\n"
