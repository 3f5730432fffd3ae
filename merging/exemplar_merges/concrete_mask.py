"""A mask over the entries of a model that all tasks share, sampled from a concrete distribution and trained.

Source: Tang et al. 2023, "Concrete Subspace Learning" (arXiv 2312.06173), section 3; docs/methods.md §6.11.
"""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flexswitch.codecs.draws import seeded_generator
from flexswitch.codecs.format.training_file import Arrays
from flexswitch.codecs.sums import Doubles

Final = Literal["sample", "mean"]

_STATE = ("logits", "mean", "square")
_LEAST_MEAN = 1e-30


class ConcreteMask:
    """One logit for each entry, all 0 at first, under Adam.

    A mask is σ((logit + log U − log(1 − U)) / temperature) with uniform U, over its mean in the tensor. What
    is drawn depends on the seed, the step and the tensor's name alone.
    """

    def __init__(self, entries: Mapping[str, int], temperature: float, rate: float, seed: int) -> None:
        self._temperature, self._seed = temperature, seed
        self._logits = {name: torch.zeros(count) for name, count in entries.items()}
        self._adam = torch.optim.Adam(self._logits.values(), lr=rate)

    def sampled(self, name: str, step: int) -> Tensor:
        """Returns a tensor's mask in a step, flat float32 of mean 1."""
        return _rescaled(self._shares(name, step))

    def final(self, name: str, kind: Final) -> Tensor:
        """Returns a tensor's mask after the training: one more sample, or σ(logit / temperature)."""
        return _rescaled(self._shares(name, None if kind == "mean" else -1))

    def set_slopes(self, name: str, step: int, by_mask: Tensor) -> None:
        """Sets the gradient of a tensor's logits, given that by its mask, flat."""
        shares, slopes = self._shares(name, step), by_mask.numpy().astype(np.float64)
        mean = max(float(shares.mean()), _LEAST_MEAN)
        by_share = slopes / mean - float((slopes * shares).sum()) / (len(shares) * mean**2)
        found = by_share * shares * (1 - shares) / self._temperature
        self._logits[name].grad = torch.from_numpy(found.astype(np.float32))

    def move(self) -> None:
        """Moves the logits against their gradients; those without one stay."""
        self._adam.step()

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Returns the state of the training by name."""
        found: dict[str, NDArray[Any]] = {}
        for name, logits in self._logits.items():
            state = self._adam.state[logits]
            moments = (state["exp_avg"], state["exp_avg_sq"]) if state else (torch.zeros(0), torch.zeros(0))
            parts = zip(_STATE, (logits, *moments), strict=True)
            found |= {f"{part}/{name}": values.numpy() for part, values in parts}
        return found

    def restore(self, stored: Arrays, steps: int) -> None:
        """Sets the state that `arrays` returned after so many steps."""
        for name, logits in self._logits.items():
            logits.copy_(torch.from_numpy(stored[f"logits/{name}"]))
            mean, square = (torch.from_numpy(stored[f"{part}/{name}"]) for part in _STATE[1:])
            if len(mean) == len(logits):
                self._adam.state[logits] = {
                    "step": torch.tensor(float(steps)), "exp_avg": mean, "exp_avg_sq": square,
                }  # fmt: skip

    def check(self, stored: Arrays) -> None:
        """Raises: ValueError where stored arrays are missing."""
        missing = {f"{part}/{name}" for part in _STATE for name in self._logits} - set(stored)
        if missing:
            raise ValueError(f"it lacks {', '.join(sorted(missing)[:3])}")

    def _shares(self, name: str, step: int | None) -> Doubles:
        """Returns the mask before it is divided by its mean, without noise for no step, (entry,)."""
        logits = self._logits[name].numpy().astype(np.float64)
        if step is not None:
            generator = np.random.Generator(seeded_generator(self._seed, f"step {step}", name))
            uniform = generator.random(len(logits))
            with np.errstate(divide="ignore"):
                logits = logits + np.log(uniform) - np.log1p(-uniform)
        with np.errstate(over="ignore"):
            found: Doubles = 1 / (1 + np.exp(-logits / self._temperature))
        return found


def _rescaled(shares: Doubles) -> Tensor:
    return torch.from_numpy((shares / max(float(shares.mean()), _LEAST_MEAN)).astype(np.float32))
