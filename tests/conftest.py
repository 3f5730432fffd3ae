"""Fixtures that several test files share."""

from pathlib import Path

import pytest
from commands import Runner, write_base, write_finetuned


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
