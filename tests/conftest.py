"""Fixtures that several test files share."""

import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.commands import Runner, files_below, write_base, write_finetuned
from support.compressing import TRAIN, Compress
from support.tiny_models import Toy, image_toy, text_toy

from flexswitch.codecs.compiled import NUMPY


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps the user's cache out of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLEXSWITCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _compiled_passes() -> None:
    """Makes small inputs take the compiled passes too, whatever ran before."""
    NUMPY.left = 0


@pytest.fixture(scope="module", params=["compiled", "numpy"])
def passes(request: pytest.FixtureRequest) -> Iterator[None]:
    """Both kinds of passes over entries: those of large inputs and those of small ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NUMPY, "left", math.inf if request.param == "numpy" else 0)
        yield


@pytest.fixture
def flexswitch(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Runner:
    return Runner(monkeypatch, capsys)


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, made the current one, with base.safetensors, red.safetensors and blue.safetensors."""
    monkeypatch.chdir(tmp_path)
    base = write_base(tmp_path / "base.safetensors")
    write_finetuned(tmp_path / "red.safetensors", base, seed=1)
    write_finetuned(tmp_path / "blue.safetensors", base, seed=2)
    return tmp_path


@pytest.fixture
def zoo(models: Path, flexswitch: Runner) -> Path:
    """The folder of `models` with red.fsw, blue.fsw and zoo/ of both."""
    for task in ("red", "blue"):
        command = ("compress", f"{task}.safetensors", "--base", "base.safetensors", "-o", f"{task}.fsw")
        assert flexswitch(*command, "--method", "t-switch").status == 0
    assert flexswitch("pack", "red.fsw", "blue.fsw", "-o", "zoo").status == 0
    return models


@pytest.fixture
def fails(flexswitch: Runner) -> Callable[..., None]:
    """Runs a command that must fail, and checks its status, its one line and that no file changed."""

    def run(folder: Path, status: int, message: str, *arguments: object) -> None:
        before = files_below(folder)
        outcome = flexswitch(*arguments)
        assert (outcome.status, outcome.error) == (status, message)
        assert "Traceback" not in outcome.err
        assert files_below(folder) == before

    return run


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return text_toy(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return image_toy(tmp_path_factory.mktemp("image"))


@pytest.fixture
def compress(flexswitch: Runner, text: Toy, tmp_path: Path) -> Compress:
    return Compress(flexswitch, text, tmp_path)


@pytest.fixture(scope="session")
def trained_file(text: Toy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact trained without an interruption."""
    output = tmp_path_factory.mktemp("trained") / "birds.fsw"
    words = ["compress", text.finetuned["birds"], "--base", text.base, "-o", output, *TRAIN, "-q"]
    words += ["--exemplars", text.data, "--per-task", "12"]
    command = [sys.executable, "-m", "flexswitch.cli", *map(str, words)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return output
