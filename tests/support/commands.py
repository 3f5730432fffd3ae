"""Runs the command line in this process, and makes the small checkpoints that its tests use."""

import signal
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from safetensors.numpy import save_file

from flexswitch.cli.main import main
from flexswitch.codecs.format.zoo_writer import LOCK_FILE

SHAPES = {"embed.weight": (40, 16), "layer.weight": (24, 16), "layer.bias": (24,)}


class Outcome(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The last line on stderr, without its label."""
        return self.err.strip().splitlines()[-1].removeprefix("flexswitch: error: ")


class Runner:
    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys
        monkeypatch.delenv("COLUMNS", raising=False)  # workers of pytest-xdist have one

    def __call__(self, *arguments: object) -> Outcome:
        self._monkeypatch.setattr(sys, "argv", ["flexswitch", *map(str, arguments)])
        before = signal.getsignal(signal.SIGTERM)
        try:
            main()
            status = 0
        except SystemExit as stop:
            status = int(stop.code or 0)
        finally:
            signal.signal(signal.SIGTERM, before)
        captured = self._capsys.readouterr()
        return Outcome(status, captured.out, captured.err)


def write_base(path: Path, seed: int = 0) -> dict[str, np.ndarray]:
    """Writes a base of three tensors and returns it."""
    generator = np.random.default_rng(seed)
    state = {name: generator.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    save_file(state, path)
    return state


def write_finetuned(path: Path, base: dict[str, np.ndarray], seed: int = 1) -> dict[str, np.ndarray]:
    """Writes a fine-tuned checkpoint with a head of its own and returns it."""
    generator = np.random.default_rng(seed)
    state = {
        name: weights + 0.01 * generator.normal(size=weights.shape).astype(np.float32)
        for name, weights in base.items()
    }
    state["head.weight"] = generator.normal(size=(3, 24)).astype(np.float32)
    save_file(state, path)
    return state


def files_below(folder: Path) -> list[str]:
    """Returns every file and folder below, hidden ones too, but the lock of a zoo."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.name != LOCK_FILE)
