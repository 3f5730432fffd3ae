"""The adapter of the ANI networks: `python:ani:Ani`, an ensemble that gives energies of molecules.

Source: Smith et al. 2018 (arXiv 1801.09319, ANI-1x) and 2019 (ANI-1ccx); the weights of torchani 2.0.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from molecules import ELEMENTS
from torch import Tensor, nn

from flexswitch.merging.models.outputs import OutputKind

MEMBERS, WIDTH = 8, 384  # networks of an ensemble; numbers that describe an atom's surroundings
LAYERS = {"H": (160, 128, 96), "C": (144, 112, 96), "N": (128, 112, 96), "O": (128, 112, 96)}
KCAL_PER_MOL = 627.5095  # of a hartree


def network(element: str) -> nn.Sequential:
    """Returns the network of an element's atoms, whose layers stand at 0, 2, 4 and 6."""
    widths = (WIDTH, *LAYERS[element], 1)
    parts: list[nn.Module] = []
    for before, after in pairwise(widths):
        parts += [nn.Linear(before, after), nn.CELU(alpha=0.1)]
    return nn.Sequential(*parts[:-1])


class Ensemble(nn.Module):
    """Eight members, each with a network for every element: `members.0.H.0.weight`."""

    def __init__(self) -> None:
        super().__init__()
        each = [nn.ModuleDict({element: network(element) for element in ELEMENTS}) for _ in range(MEMBERS)]
        self.members = nn.ModuleList(each)

    def forward(self, elements: Tensor, surroundings: Tensor) -> Tensor:
        """Returns the mean energy over the members in kcal/mol, without the atoms' own, (molecule, 1).

        elements: (molecule, atom), -1 for none. surroundings: (molecule, atom, 384).
        """
        energies = surroundings.new_zeros(elements.shape)
        for number, element in enumerate(ELEMENTS):
            of_these = elements == number
            atoms = surroundings[of_these]  # (atom, 384)
            found = torch.stack([member[element](atoms) for member in self.members]).mean(0)  # type: ignore[operator, index, union-attr]  # a ModuleDict
            energies = energies.masked_scatter(of_these, found)
        return KCAL_PER_MOL * energies.sum(1, keepdim=True)


class Ani:
    """Runs the ensemble. An example is (atom, 1 + 384): its element, -1 for none, and surroundings."""

    neighbours = 5
    kind: OutputKind = "values"

    def __init__(self, base: Any) -> None:
        self.base = base

    def model(self, config: Mapping[str, Any], extras: Mapping[str, Any]) -> nn.Module:
        """Returns the ensemble before its weights are loaded."""
        return Ensemble()

    def parameter_name(self, finetuned_name: str) -> str:
        """Returns the name itself."""
        return finetuned_name

    def batch(self, inputs: Any) -> dict[str, Tensor]:
        """Returns elements and surroundings."""
        atoms = torch.from_numpy(np.asarray(inputs, np.float32))
        return {"elements": atoms[..., 0].long(), "surroundings": atoms[..., 1:]}

    def logits(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Returns energies, (molecule, 1)."""
        energies: Tensor = model(batch["elements"], batch["surroundings"])
        return energies
