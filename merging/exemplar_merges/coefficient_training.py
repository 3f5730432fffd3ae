"""Trains the coefficients of a merge so that the merged model's answers have little entropy.

Source: Yang et al. 2024, "AdaMerging" (arXiv 2310.02575); docs/methods.md §6.10.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from flexswitch.codecs.format.training_file import Arrays
from flexswitch.merging.exemplar_merges.inputs import Learned, MergeInputs
from flexswitch.merging.exemplar_merges.kept_deltas import KeptDeltas
from flexswitch.merging.exemplar_merges.shared_models import SharedModels
from flexswitch.merging.exemplar_merges.task_module import Gradients
from flexswitch.merging.static.task_deltas import Combination, TensorDeltas

Doubles = NDArray[np.float64]
By = Literal["layer", "task"]


@dataclass(frozen=True)
class CoefficientSettings:
    """by: a coefficient for each task and tensor (layer), or for each task. clamp: to 0 … 1."""

    by: By
    start: float
    clamp: bool
    steps: int
    batch: int
    rate: float
    seed: int


class CoefficientTraining:
    """Coefficients λ_kl of tasks and tensors under Adam, from the same start for all."""

    def __init__(
        self, inputs: MergeInputs, models: SharedModels, deltas: KeptDeltas, settings: CoefficientSettings
    ) -> None:
        self._inputs, self._models, self._deltas, self._settings = inputs, models, deltas, settings
        self._names, tasks = inputs.model.names, len(inputs.model.tasks)
        columns = len(self._names) if settings.by == "layer" else 1
        self.values = torch.full((tasks, columns), settings.start, dtype=torch.float64)
        self._adam = torch.optim.Adam([self.values], lr=settings.rate)

    def run(self, stored: Arrays | None = None, further: Arrays | None = None) -> dict[str, Any]:
        """Runs the steps, after those of a stored training; returns the figures for the report.

        further: what is stored beside the state. Where the entropy of held-out answers does not fall, the
        start is kept, with a note.
        """
        self.write_weights()
        before = self._models.entropy()
        step = 0 if stored is None else self.restore(stored)
        file = self._inputs.training
        with self._inputs.steps("entropy of the answers", self._settings.steps) as on_step:
            while step < self._settings.steps:
                self.write_weights()
                loss, gradients = self._models.gradients(step, self._settings.batch, self._settings.seed)
                self.move(gradients)
                step += 1
                on_step(step, f"entropy {loss / len(self._inputs.model.tasks):.4g}")
                if file is not None:
                    file.write(step, lambda: {**self.arrays(), **(further or {})})
        self.write_weights()
        after = self._models.entropy()
        if not after < before:
            self._inputs.note(
                f"the entropy of held-out answers is {after:.4g} after the training and {before:.4g} before: "
                "the start is kept; use more exemplars, or a smaller --set rate"
            )
            self.values.fill_(self._settings.start)
        means = zip(self._inputs.model.tasks, self.coefficients().mean(axis=1).tolist(), strict=True)
        return {
            "held out": dict(self._models.held_out),
            "entropy before": before,
            "entropy after": min(before, after),
            "mean coefficients": dict(means),
        }

    def coefficients(self) -> Doubles:
        """Returns the coefficients that are used, (task, tensor)."""
        values = self.values.clamp(0, 1) if self._settings.clamp else self.values
        found: Doubles = values.expand(-1, len(self._names)).numpy()
        return found

    def combine(self, deltas: TensorDeltas) -> Combination:
        """Returns how a tensor is merged."""
        column = self.coefficients()[:, self._names.index(deltas.name)]
        return self._deltas.combination(deltas.name, column.tolist())

    def learned(self) -> Learned:
        """Runs the training, from its file if there is one; returns the merge and its report."""
        file = self._inputs.training
        figures = self.run(None if file is None else file.read(self.check))
        return Learned(dict.fromkeys(self._names, self.combine), self._inputs.report | figures)

    def write_weights(self) -> None:
        """Sets the models' weights to those of the coefficients."""
        for name, column in zip(self._names, self.coefficients().T.tolist(), strict=True):
            self._deltas.write_sum(name, column, self._models.weights[name])

    def move(self, gradients: Gradients) -> None:
        """Moves the values against their gradient, given that by the models' weights."""
        found = np.stack([self._deltas.products(name, gradients) for name in self._names], axis=1)
        if self._settings.by == "task":
            found = found.sum(axis=1, keepdims=True)
        inside = (self.values >= 0) & (self.values <= 1) if self._settings.clamp else torch.tensor(True)
        self.values.grad = torch.where(inside, torch.from_numpy(found), 0.0)
        self._adam.step()

    def arrays(self) -> dict[str, Any]:
        """Returns the state after at least one step by name."""
        state = self._adam.state[self.values]
        return {
            "step": np.array(int(state["step"])),
            "values": self.values.numpy(),
            "mean": state["exp_avg"].numpy(),
            "square": state["exp_avg_sq"].numpy(),
        }

    def restore(self, stored: Arrays) -> int:
        """Sets the state that `arrays` returned; returns the number of steps done."""
        self.values.copy_(torch.from_numpy(stored["values"]))
        self._adam.state[self.values] = {
            "step": torch.tensor(float(stored["step"])),
            "exp_avg": torch.from_numpy(stored["mean"]),
            "exp_avg_sq": torch.from_numpy(stored["square"]),
        }
        return int(stored["step"])

    def check(self, stored: Arrays) -> None:
        """Raises: ValueError where stored arrays are missing."""
        missing = {"step", "values", "mean", "square"} - set(stored)
        if missing:
            raise ValueError(f"it lacks {', '.join(sorted(missing))}")
