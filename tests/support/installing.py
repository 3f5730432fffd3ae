"""Builds the distribution from a copy of the repository and installs it into virtual environments of its own."""

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILT = ("api", "cli", "codecs", "merging", "recipes", "pyproject.toml", "README.md", "LICENSE")


def copy_sources(target: Path) -> Path:
    """Copies what the build reads, so that nothing is written into the repository."""
    for name in BUILT:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            target.mkdir(exist_ok=True)
            shutil.copy(source, target / name)
    return target


def build(sources: Path, hook: str) -> Path:
    """Returns the wheel that a build hook makes: build_wheel or build_editable."""
    dist = sources / hook
    dist.mkdir()
    code = f"from setuptools import build_meta; build_meta.{hook}({str(dist)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=sources, check=True, capture_output=True)
    (wheel,) = dist.glob("*.whl")
    return wheel


class Environment:
    """A virtual environment that holds one wheel; its dependencies are those of this environment."""

    def __init__(self, path: Path, wheel: Path) -> None:
        venv.create(path, with_pip=False)
        self._bin = path / "bin"
        (packages,) = path.glob("lib/python*/site-packages")
        found = [entry for entry in sys.path if Path(entry).name == "site-packages"]
        (packages / "dependencies.pth").write_text("\n".join(found) + "\n")
        install = ["-m", "pip", "--python", str(self._bin / "python"), "install", "--no-deps", "--no-index"]
        subprocess.run(
            [sys.executable, *install, "--quiet", "--disable-pip-version-check", str(wheel)], check=True
        )

    def run(self, command: str, *arguments: object, cwd: Path, **variables: str) -> str:
        """Returns what a command of the environment prints."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COV"))}
        ended = subprocess.run(
            [self._bin / command, *map(str, arguments)],
            cwd=cwd, env=kept | variables, capture_output=True, text=True,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stderr
        return ended.stdout
