"""`compress --method flexswitch` on a tiny model, for the tests of what comes of it."""

from pathlib import Path

from support.commands import Outcome, Runner, files_below
from support.tiny_models import Toy

TRAIN = ("--method", "flexswitch", "--target-size", "4KB", "--set", "steps=6", "--set", "min_exemplars=8")


class Compress:
    """Compresses the task birds into a folder of its own."""

    def __init__(self, flexswitch: Runner, toy: Toy, folder: Path) -> None:
        self._flexswitch = flexswitch
        self._toy = toy
        self.output = folder / "birds.fsw"

    def __call__(self, *more: object, settings: tuple[str, ...] = TRAIN) -> Outcome:
        inputs = ("compress", self._toy.finetuned["birds"], "--base", self._toy.base, "-o", self.output)
        return self._flexswitch(*inputs, *settings, *more)

    def train(self, *more: object) -> Outcome:
        return self("--exemplars", self._toy.data, "--per-task", 12, *more)

    @property
    def source(self) -> Path:
        """The fine-tuned checkpoint."""
        return self._toy.finetuned["birds"]

    def left(self) -> list[str]:
        return files_below(self.output.parent)
