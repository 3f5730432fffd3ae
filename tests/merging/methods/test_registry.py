"""The registry of methods: every record loads, and names that are not registered are refused."""

import subprocess
import sys

import pytest
from support.checkpoints import message

from flexswitch.codecs.errors import UsageError
from flexswitch.merging.methods.registry import METHODS, Method, get_method, method_names
from flexswitch.merging.methods.settings import describe_settings


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_every_method_loads_and_describes_its_settings(method: Method) -> None:
    assert method.load().__doc__
    assert method.source
    for setting in describe_settings(method):
        assert setting.meaning.endswith("."), setting.name
        assert setting.expected, setting.name


def test_names_are_unique() -> None:
    assert len({(method.name, method.kind) for method in METHODS}) == len(METHODS)


@pytest.mark.parametrize(
    ("name", "kind", "nearest"), [("tswitch", "compression", "t-switch"), ("task_arithmetic", "merge", "task-arithmetic")]
)  # fmt: skip
def test_an_unknown_method_is_refused_with_the_nearest(name: str, kind: str, nearest: str) -> None:
    found = message(UsageError, lambda: get_method(name, kind))  # type: ignore[arg-type]
    assert found.startswith(f"no {kind} method is named '{name}'; did you mean '{nearest}'?")


def test_methods_are_listed_by_kind_and_need() -> None:
    assert method_names("merge")[:3] == ["average", "linear", "task-arithmetic"]
    assert method_names("compression", "exemplars") == ["flexswitch"]


def test_the_registry_itself_imports_no_method() -> None:
    code = (
        "import sys, flexswitch.merging.methods.registry\n"
        "print([name for name in ('torch', 'numpy', 'pydantic') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout == "[]\n"
