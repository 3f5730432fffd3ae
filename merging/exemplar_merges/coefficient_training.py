"""Trains the coefficients of a merge so that the merged model's answers have little entropy.

Source: Yang et al. 2024, "AdaMerging" (arXiv 2310.02575); docs/methods.md §6.10.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from flexswitch.codecs.format.training_file import Arrays
from flexswitch.merging.exemplar_merges.inputs import Learned, MergeInputs
from flexswitch.merging.exemplar_merges.kept_deltas import KeptDeltas
from flexswitch.merging.exemplar_merges.shared_models import SharedModels
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
        self.values.grad = torch.zeros_like(self.values)

    def run(self) -> dict[str, Any]:
        """Runs the steps, from where a stored training stopped; returns the figures for the report.

        Where the entropy of held-out answers does not fall, the start is kept, with a note.
        """
        self.write_weights()
        before, step = self._models.entropy(), self._restored()
        with self._inputs.steps("entropy of the answers", self._settings.steps) as on_step:
            while step < self._settings.steps:
                loss = self._step(step)
                step += 1
                on_step(step, f"entropy {loss / len(self._inputs.model.tasks):.4g}")
                if self._inputs.training is not None:
                    self._inputs.training.write(step, lambda: self._arrays(step))  # noqa: B023
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
        """Runs the training; returns the merge and its report."""
        figures = self.run()
        return Learned(dict.fromkeys(self._names, self.combine), self._inputs.report | figures)

    def write_weights(self) -> None:
        """Sets the models' weights to those of the coefficients."""
        for name, column in zip(self._names, self.coefficients().T.tolist(), strict=True):
            self._deltas.write_sum(name, column, self._models.weights[name])

    def slopes(self, gradients: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Returns the gradient by the values, given that by the models' weights."""
        found = np.stack([self._deltas.products(name, dict(gradients)) for name in self._names], axis=1)
        if self._settings.by == "task":
            found = found.sum(axis=1, keepdims=True)
        inside = (self.values >= 0) & (self.values <= 1) if self._settings.clamp else torch.tensor(True)
        return torch.where(inside, torch.from_numpy(found), 0.0)

    def _step(self, step: int) -> float:
        if step:
            self.write_weights()
        loss, gradients = self._models.gradients(step, self._settings.batch, self._settings.seed)
        self.values.grad = self.slopes(gradients)
        self._adam.step()
        return loss

    def _arrays(self, step: int) -> Arrays:
        state = self._adam.state[self.values]
        return {
            "step": np.array(step),
            "values": self.values.numpy(),
            "mean": state["exp_avg"].numpy(),
            "square": state["exp_avg_sq"].numpy(),
        }

    def _restored(self) -> int:
        """Returns the number of steps done, after the state of a stored training is set."""
        file = self._inputs.training
        stored = None if file is None else file.read(self._check)
        if stored is None:
            return 0
        self.values.copy_(torch.from_numpy(stored["values"]))
        self._adam.state[self.values] = {
            "step": torch.tensor(float(stored["step"])),
            "exp_avg": torch.from_numpy(stored["mean"]),
            "exp_avg_sq": torch.from_numpy(stored["square"]),
        }
        self.write_weights()
        return int(stored["step"])

    def _check(self, stored: Arrays) -> None:
        missing = {"step", "values", "mean", "square"} - set(stored)
        if missing:
            raise ValueError(f"it lacks {', '.join(sorted(missing))}")
