"""Fisher merging: each entry is the mean of the tasks', weighted by how much it matters to their answers.

Source: Matena and Raffel 2022, "Merging Models with Fisher-Weighted Averaging" (arXiv 2111.09832);
docs/methods.md §6.7.
"""

import math
from collections.abc import Callable
from functools import partial as bind
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from flexswitch.codecs.sums import square_sum
from flexswitch.merging.exemplar_merges.fisher_information import Expectation, fisher_information
from flexswitch.merging.exemplar_merges.inputs import Learned, MergeInputs
from flexswitch.merging.exemplar_merges.task_module import Gradients, TaskModule
from flexswitch.merging.static.task_deltas import Block, Combination, TensorDeltas

Floor = Annotated[float, Field(gt=0, description="What is added to each entry's Fisher information.")]


def fisher(
    inputs: MergeInputs,
    *,
    expectation: Annotated[
        Expectation,
        Field(
            description="exact: the mean of each example's squared gradients; batch-sum: squares of sums "
            "over 32 examples and all classes, as other code does."
        ),
    ] = "exact",
    normalize: Annotated[bool, Field(description="Divide each task's information by its norm.")] = False,
    floor: Floor = 1e-6,
) -> Learned:
    """Returns Σ_k w_k F_k θ_k / Σ_k w_k F_k, entry by entry, F_k being the task's Fisher information."""
    average = WeightedAverage()
    total = sum(map(len, inputs.examples.values()))
    with inputs.steps("Fisher information", total) as on_step:
        done = 0
        for task, name in enumerate(inputs.model.tasks):
            examples = inputs.examples[name]
            module = TaskModule(inputs, task)
            report = bind(_report, on_step, done, name)
            information = fisher_information(inputs, module, examples, expectation, report)
            norm = math.sqrt(sum(square_sum(each.cpu().numpy().reshape(-1)) for each in information.values()))
            factor = 1.0 if not normalize else (1 / norm if norm > 0 else 0.0)
            average.add(inputs, task, information, inputs.weights[task] * factor, floor)
            done += len(examples)
    return Learned(dict.fromkeys(inputs.model.names, average.combine), inputs.report)


class WeightedAverage:
    """Σ_k c_k τ_k / Σ_k c_k with a factor c_k for each entry, summed task by task in float32."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._factors: dict[str, Tensor] = {}

    def add(
        self, inputs: MergeInputs, task: int, information: Gradients, factor: float, floor: float
    ) -> None:
        """Adds a task's deltas, each entry times factor · (information + floor)."""
        for name in inputs.model.names:
            deltas = inputs.model.tensor(name)
            known = information.get(name)
            flat = torch.zeros(deltas.entries) if known is None else known.cpu().reshape(-1)
            factors = (flat.to(torch.float64) + floor) * factor
            sums = self._sums.setdefault(name, torch.zeros(deltas.entries))
            total = self._factors.setdefault(name, torch.zeros(deltas.entries))
            total += factors.to(torch.float32)
            start = 0
            for block in deltas.task_blocks(task):
                part = slice(start, start + len(block))
                sums[part] += (factors[part] * torch.from_numpy(block)).to(torch.float32)
                start += len(block)

    def combine(self, deltas: TensorDeltas) -> Combination:
        """Returns the weighted average of a tensor's deltas, 0 where all factors are 0."""
        sums, factors = self._sums[deltas.name], self._factors[deltas.name]

        def combine(block: Block) -> Tensor:
            part = slice(block.start, block.start + len(block.base))
            divisors = factors[part]
            return torch.where(divisors > 0, sums[part] / torch.where(divisors > 0, divisors, 1.0), 0.0)

        return Combination(combine)


def _report(on_step: Callable[[int, str], None], before: int, task: str, done: int) -> None:
    on_step(before + done, task)
