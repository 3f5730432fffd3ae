"""The diagonal of the Fisher information of a classifier or a language model, from unlabelled examples.

Source: Matena and Raffel 2022 (arXiv 2111.09832), section 3; docs/methods.md §6.7.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from flexswitch.codecs.draws import seeded_generator
from flexswitch.codecs.errors import InputError
from flexswitch.merging.exemplar_merges.inputs import MergeInputs
from flexswitch.merging.exemplar_merges.task_module import Gradients, TaskModule
from flexswitch.merging.models.examples import Examples

Expectation = Literal["exact", "sampled", "batch-sum"]

_BATCH = 32


def fisher_information(
    inputs: MergeInputs,
    module: TaskModule,
    examples: Examples,
    expectation: Expectation,
    on_example: Callable[[int], None],
    seed: int = 0,
) -> Gradients:
    """Returns the mean over examples of Σ_y p(y|x) (∂ log p(y|x) / ∂θ)², float32, by tensor.

    sampled: of one answer y that is drawn by its probability, or of one for each next token of a text.
    batch-sum: the squares of gradients that are summed over 32 examples and all classes before. Tensors that
    the outputs do not depend on are left out. on_example: called with the number of examples done.
    Raises: InputError where the information is not finite.
    """
    module.with_gradients()
    size = _BATCH if expectation == "batch-sum" else 1
    starts = range(0, len(examples), size)

    def work(number: int) -> Gradients:
        rows = range(starts[number], min(starts[number] + size, len(examples)))
        batch = module.batch(examples, rows)
        if expectation == "sampled":
            draws = np.random.Generator(seeded_generator(seed, module.task, f"example {number}"))
            return _squares(module.gradients(module.log_chance(batch, draws)))
        of_rows = _expected_squares if expectation == "exact" else _squared_sum
        return of_rows(module, module.logits(batch))

    totals: Gradients = {}
    for number, squares in enumerate(inputs.in_order(work, len(starts), 2 * inputs.gradient_bytes)):
        for name, each in squares.items():
            totals[name] = totals[name].add_(each) if name in totals else each.to(torch.float64)
        on_example(min((number + 1) * size, len(examples)))
    found = {name: (total / len(examples)).to(torch.float32) for name, total in totals.items()}
    for name, each in found.items():
        if not torch.isfinite(each).all():
            raise InputError(
                f"tensor '{name}': the squared gradients of task '{module.task}' are beyond float32; its "
                "weights or exemplars are huge"
            )
    return found


def _expected_squares(module: TaskModule, logits: Tensor) -> Gradients:
    """Returns Σ_y p(y) (∂ log p(y) / ∂θ)² of one example; logits: (1, class)."""
    found: Gradients = {}
    logarithms = logits.log_softmax(-1)[0]
    for place, logarithm in enumerate(logarithms):
        share = float(logarithm.detach().exp())
        for name, gradient in module.gradients(logarithm, place + 1 < len(logarithms)).items():
            square = gradient.square_().mul_(share)
            found[name] = found[name].add_(square) if name in found else square
    return found


def _squared_sum(module: TaskModule, logits: Tensor) -> Gradients:
    """Returns (∂/∂θ Σ_x Σ_y √p(y|x) log p(y|x))², the weights √p held fixed."""
    logarithms = logits.log_softmax(-1)
    total = (logarithms.detach().exp().sqrt() * logarithms).sum()
    return _squares(module.gradients(total))


def _squares(gradients: Gradients) -> Gradients:
    return {name: gradient.square_() for name, gradient in gradients.items()}
