"""`import flexswitch` gives the public names, loads nothing until they are used, and hides nothing."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import flexswitch

NAMES = {
    "open_checkpoint", "extract", "compress", "open_artifact", "pack", "open_zoo", "index", "restore",
    "merge", "add_task", "SwitchedModel", "FlexswitchError",
}  # fmt: skip
ROOT = Path(__file__).resolve().parents[2]


def printed(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_the_public_names_are_those_promised_and_no_others() -> None:
    assert set(flexswitch.__all__) == NAMES
    code = "from flexswitch import *; print(sorted(name for name in dir() if name[0] != '_'))"
    assert printed(code) == f"{sorted(NAMES)}\n"


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_public_name_is_the_function_or_class_of_that_name_and_has_a_docstring(name: str) -> None:
    value = getattr(flexswitch, name)
    assert value.__name__ == name
    assert value.__doc__


def test_a_public_name_is_listed_before_it_is_loaded() -> None:
    assert printed("import flexswitch; print('SwitchedModel' in dir(flexswitch))") == "True\n"


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'flexswitch' has no attribute 'nothing'"):
        _ = flexswitch.nothing  # type: ignore[attr-defined]


def test_the_version_is_that_of_the_distribution() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert flexswitch.__version__ == project["version"]


def test_importing_the_package_loads_no_module_of_its_own_and_nothing_heavy() -> None:
    code = (
        "import sys; before = set(sys.modules); import flexswitch; print(sorted(set(sys.modules) - before))"
    )
    loaded = printed(code)
    assert "flexswitch." not in loaded
    assert not any(heavy in loaded for heavy in ("torch", "numpy", "typer", "pydantic", "importlib.metadata"))


def test_the_error_is_raised_by_what_the_functions_refuse(tmp_path: Path) -> None:
    with pytest.raises(flexswitch.FlexswitchError, match="not a zoo"):
        flexswitch.open_zoo(tmp_path)
