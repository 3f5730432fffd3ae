"""The suites of pairs: where their models are, how they are run, and what their outputs are."""

import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "flex_switch"))

from measure import Setup  # in the folder added above


class Kind(NamedTuple):
    """What a suite's models are. adapter: None if they are not run. settings: FlexSwitch's own."""

    title: str
    adapter: str | None
    outputs: Literal["classes", "energies", "none"]
    settings: tuple[str, ...] = ()


KINDS = {
    "text8": Kind("MiniLM-L6 on text tasks", "hf-encoder", "classes", ("augmentations=5",)),
    "digits": Kind("a vision transformer on six tasks over digits", "hf-image-classification", "classes"),
    "ani": Kind("ANI-1x to ANI-1ccx, eight members", "python:ani:Ani", "energies"),
    "chgnet": Kind("CHGNet 0.3.0 to r2SCAN", None, "none"),
}


@dataclass(frozen=True)
class Suite:
    """A suite, with the folder of all suites, the data of the text tasks, and where results are kept."""

    name: str
    models: Path
    data: Path
    cache: Path
    jobs: int

    @property
    def kind(self) -> Kind:
        return KINDS[self.name]

    @cached_property
    def setup(self) -> Setup:
        models = self.models / self.name
        data = self.data if self.name == "text8" else models / "data"
        return Setup(data, models, self.cache, self.jobs, self.kind.adapter)

    @cached_property
    def tasks(self) -> list[str]:
        """The fine-tuned models."""
        found = sorted(path.parent.name for path in self.setup.models.glob("*/model.safetensors"))
        return [name for name in found if name != "base" and not name.endswith(".partial")]
