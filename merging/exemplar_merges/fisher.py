"""Fisher merging: each entry is the mean of the tasks', weighted by how much it matters to their answers.

Source: Matena and Raffel 2022, "Merging Models with Fisher-Weighted Averaging" (arXiv 2111.09832);
docs/methods.md §6.7.
"""

import math
from collections.abc import Callable
from functools import partial as bind
from typing import Annotated

from pydantic import Field

from flexswitch.codecs.errors import UsageError
from flexswitch.codecs.sums import square_sum
from flexswitch.merging.exemplar_merges.fisher_information import Expectation, fisher_information
from flexswitch.merging.exemplar_merges.inputs import Learned, MergeInputs
from flexswitch.merging.exemplar_merges.task_module import TaskModule
from flexswitch.merging.exemplar_merges.weighted_average import WeightedAverage

Floor = Annotated[float, Field(gt=0, description="What is added to each entry's Fisher information.")]


def fisher(
    inputs: MergeInputs,
    *,
    expectation: Annotated[
        Expectation,
        Field(
            description="exact: the mean of each example's squared gradients; sampled: those of an answer "
            "that is drawn, for language models; batch-sum: squares of sums over 32 examples and all "
            "classes, as other code does."
        ),
    ] = "exact",
    normalize: Annotated[bool, Field(description="Divide each task's information by its norm.")] = False,
    floor: Floor = 1e-6,
    seed: Annotated[int, Field(ge=0, description="Seed of the answers that are drawn.")] = 0,
) -> Learned:
    """Returns Σ_k w_k F_k θ_k / Σ_k w_k F_k, entry by entry, F_k being the task's Fisher information."""
    average = WeightedAverage(inputs.model)
    total = sum(map(len, inputs.examples.values()))
    with inputs.steps("Fisher information", total) as on_step:
        done = 0
        for task, name in enumerate(inputs.model.tasks):
            examples = inputs.examples[name]
            module = TaskModule(inputs, task)
            if module.gives_tokens and expectation != "sampled":
                raise UsageError(
                    f"setting expectation={expectation} of fisher: the answers of task '{name}' are tokens, "
                    "too many for it; give --set expectation=sampled"
                )
            report = bind(_report, on_step, done, name)
            information = fisher_information(inputs, module, examples, expectation, report, seed)
            norm = math.sqrt(sum(square_sum(each.cpu().numpy().reshape(-1)) for each in information.values()))
            factor = 1.0 if not normalize else (1 / norm if norm > 0 else 0.0)
            average.add(task, information, floor, inputs.weights[task] * factor)
            done += len(examples)
    return Learned(dict.fromkeys(inputs.model.names, average.combine), inputs.report)


def _report(on_step: Callable[[int, str], None], before: int, task: str, done: int) -> None:
    on_step(before + done, task)
