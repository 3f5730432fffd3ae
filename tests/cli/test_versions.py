"""`--version` names what a report of a bug needs, and imports none of it."""

import platform
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version

import pytest
import yaml
from support.commands import Runner
from support.imports import ROOT

from flexswitch.cli import versions

CODE = """
import sys
from flexswitch.cli.main import main
sys.argv = ["flexswitch", "--version"]
try:
    main()
finally:
    print(sorted({"torch", "numpy", "numba", "faiss", "transformers"} & set(sys.modules)))
"""


def test_the_version_comes_first_and_every_package_has_a_line(flexswitch: Runner) -> None:
    outcome = flexswitch("--version")
    first, python, system, *packages = outcome.out.splitlines()
    assert (outcome.status, first) == (0, f"flexswitch {version('flexswitch')}")
    assert python == f"python {platform.python_version()} ({platform.python_implementation()})"
    assert system.startswith("platform ")
    expected = (
        "numpy",
        "numba",
        "torch",
        "safetensors",
        "zstandard",
        "faiss",
        "huggingface_hub",
        "transformers",
    )
    assert [line.split()[0].partition("-")[0] for line in packages] == list(expected)
    assert f"torch {version('torch')}" in packages


def test_nothing_is_imported_for_it() -> None:
    found = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1] == "[]"


def test_what_is_missing_and_two_packages_of_one_module_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"flexswitch": "0.1.0", "faiss-cpu": "1.9.0", "faiss-gpu-cu12": "1.14.1"}

    def found(name: str) -> str:
        if name in installed:
            return installed[name]
        raise PackageNotFoundError(name)

    monkeypatch.setattr(versions, "version", found)
    lines = list(versions.version_lines())
    assert "faiss-cpu 1.9.0, faiss-gpu-cu12 1.14.1" in lines
    assert "transformers is not installed" in lines


def test_the_papers_of_the_project_name_the_same_version(flexswitch: Runner) -> None:
    now = version("flexswitch")
    assert f"\nversion: {now}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\n## [{now}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    report = (ROOT / ".github" / "ISSUE_TEMPLATE" / "bug_report.yml").read_text(encoding="utf-8")
    assert "flexswitch --version" in report
    assert flexswitch("--version").status == 0


def test_the_hooks_before_a_commit_are_those_of_make_lint() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0][
        "hooks"
    ]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    lint = re.findall(r"^\t\$\(BIN\)/(ruff .*) \.$", makefile, re.MULTILINE)
    assert [hook["entry"].removesuffix(" --force-exclude") for hook in hooks] == lint
