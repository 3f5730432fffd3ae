"""Steps that train a mask over the merged task vectors, so that the answers have little entropy.

Source: Tang et al. 2023, "Concrete Subspace Learning" (arXiv 2312.06173); docs/methods.md §6.11.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from flexswitch.codecs.format.training_file import Arrays
from flexswitch.codecs.sums import Doubles
from flexswitch.merging.exemplar_merges.coefficient_training import CoefficientTraining
from flexswitch.merging.exemplar_merges.concrete_mask import ConcreteMask, Final
from flexswitch.merging.exemplar_merges.inputs import Learned, MergeInputs
from flexswitch.merging.exemplar_merges.kept_deltas import KeptDeltas
from flexswitch.merging.exemplar_merges.shared_models import SharedModels
from flexswitch.merging.static.task_deltas import Block

Masks = dict[str, Tensor]  # tensor → mask, flat


class MaskedMerge:
    """The models of all tasks on θ + m ⊙ Σ_k λ_k τ_k, with a mask m that is trained.

    start: λ before any training.
    """

    def __init__(
        self, inputs: MergeInputs, start: float, temperature: float, rate: float, batch: int, seed: int
    ) -> None:
        self.inputs, self._names = inputs, inputs.model.names
        self.models = SharedModels(inputs)
        self.deltas = KeptDeltas(inputs.model, lambda name, block: block.deltas)
        entries = {name: inputs.model.tensor(name).entries for name in self._names}
        self.mask = ConcreteMask(entries, temperature, rate, seed)
        self.start = np.full((len(inputs.model.tasks), len(self._names)), start)
        self._batch, self._seed = batch, seed

    def run(
        self, steps: int, done: int, one_step: Callable[[int], float], inner: Callable[[], Arrays]
    ) -> None:
        """Runs the remaining steps of the mask. one_step: returns the loss; inner: what is stored beside."""
        file, step = self.inputs.training, done
        with self.inputs.steps("mask", steps) as on_step:
            while step < steps:
                loss = one_step(step)
                step += 1
                on_step(step, f"entropy {loss / len(self.inputs.model.tasks):.4g}")
                if file is not None:
                    file.write(step, lambda: self.arrays(step) | dict(inner()))  # noqa: B023

    def mask_step(self, step: int, coefficients: Doubles, batch: int) -> float:
        """Moves the mask in one step at these λ, (task, tensor); returns the loss before."""
        self._write(coefficients, step)
        loss, gradients = self.models.gradients(batch, self._batch, self._seed)
        for column, name in zip(coefficients.T.tolist(), self._names, strict=True):
            if name in gradients:
                slopes = gradients[name].reshape(-1).cpu() * self.deltas.summed(name, column)
                self.mask.set_slopes(name, step, slopes)
        self.mask.move()
        return loss

    def coefficient_step(self, step: int, inner: CoefficientTraining, batch: int) -> Doubles:
        """Returns λ after one step from the start, under the mask of a step of its own."""
        inner.values.fill_(float(self.start.flat[0]))
        self._write(inner.coefficients(), step)
        _, gradients = self.models.gradients(batch, self._batch, self._seed)
        masked = {
            name: gradient.reshape(-1).cpu() * self.mask.sampled(name, step)
            for name, gradient in gradients.items()
        }
        inner.move(masked)
        return inner.coefficients().copy()

    def entropy(self, masks: Masks | None) -> float:
        """Returns the entropy of held-out answers at the first λ, without a mask for None."""
        for column, name in zip(self.start.T.tolist(), self._names, strict=True):
            mask = None if masks is None else masks[name]
            self.deltas.write_sum(name, column, self.models.weights[name], mask)
        return self.models.entropy()

    def final_masks(self, kind: Final) -> Masks:
        """Returns the mask after the training."""
        return {name: self.mask.final(name, kind) for name in self._names}

    def masked_deltas(self, masks: Masks) -> KeptDeltas:
        """Returns the task vectors under a mask."""

        def keep(name: str, block: Block) -> Tensor:
            return block.deltas * masks[name][block.start : block.start + len(block.base)]

        return KeptDeltas(self.inputs.model, keep)

    def learned(self, deltas: KeptDeltas, coefficients: Doubles, figures: dict[str, Any]) -> Learned:
        """Returns the merge of task vectors at some λ, (task, tensor), and its report."""
        columns = dict(zip(self._names, coefficients.T.tolist(), strict=True))
        ways = dict.fromkeys(self._names, lambda found: deltas.combination(found.name, columns[found.name]))
        report = {"held out": dict(self.models.held_out), **figures}
        return Learned(ways, self.inputs.report | report)

    def note_kept(self, before: float, after: float) -> None:
        """Notes that the training did not lower the entropy."""
        self.inputs.note(
            f"the entropy of held-out answers is {after:.4g} under the mask and {before:.4g} without: no "
            "mask is used; use more exemplars or steps"
        )

    def arrays(self, step: int) -> dict[str, Any]:
        """Returns the state of the mask after so many steps by name."""
        return {"mask step": np.array(step), **self.mask.arrays()}

    def restored(self, stored: Arrays | None) -> int:
        """Returns the number of steps done, after the mask is set to a stored one."""
        if stored is None:
            return 0
        done = int(stored["mask step"])
        self.mask.restore(stored, done)
        return done

    def check(self, stored: Arrays) -> None:
        """Raises: ValueError where stored arrays are missing."""
        self.mask.check(stored)
        if "mask step" not in stored:
            raise ValueError("it lacks the number of steps")

    def _write(self, coefficients: Doubles, step: int) -> None:
        for column, name in zip(coefficients.T.tolist(), self._names, strict=True):
            self.deltas.write_sum(name, column, self.models.weights[name], self.mask.sampled(name, step))
