"""RegMean: linear layers that answer each task's inputs as the task's own layer does, by least squares.

Source: Jin et al. 2023, "Dataless Knowledge Fusion by Merging Weights" (arXiv 2212.09849);
docs/methods.md §6.9.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial as bind
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from flexswitch.codecs.errors import InputError
from flexswitch.codecs.threads import one_torch_thread
from flexswitch.merging.exemplar_merges.input_products import LinearLayer, input_products, linear_layers
from flexswitch.merging.exemplar_merges.inputs import Learned, MergeInputs
from flexswitch.merging.exemplar_merges.task_module import TaskModule
from flexswitch.merging.static.average import average
from flexswitch.merging.static.merge import Combine
from flexswitch.merging.static.task_deltas import Combination

_LEAST = 1e-30  # added to the squares of inputs that are all 0
_COPIES = 4  # float64 matrices of a layer's inputs that are held at a time


def regmean(
    inputs: MergeInputs,
    *,
    shrinkage: Annotated[
        float, Field(ge=0, le=1, description="Factor of the products of two different inputs of a layer.")
    ] = 0.9,
    ridge: Annotated[
        float,
        Field(
            gt=0,
            description="Added to the squares, as a share of their mean; where a task has no inputs the "
            "layer comes near the average.",
        ),
    ] = 1e-6,
) -> Learned:
    """Returns the layers of least Σ_k w_k ‖X_k (W − W_k)ᵀ‖² for inputs X_k of the tasks, and other means."""
    groups = list(_groups(linear_layers(TaskModule(inputs, 0)), inputs.model.memory))
    merged: dict[str, Tensor] = {}
    count = sum(map(len, inputs.examples.values()))
    with inputs.steps("inputs of linear layers", len(groups) * count) as on_step:
        for number, group in enumerate(groups):
            report = bind(_report, on_step, number * count)
            merged |= _merged_group(inputs, group, bind(_shrunk, shrinkage=shrinkage, ridge=ridge), report)
    ways: dict[str, Combine] = dict.fromkeys(inputs.model.names, average)
    ways |= dict.fromkeys(merged, lambda deltas: _stored(merged[deltas.name]))
    figures = {"linear layers": len(merged), "averaged tensors": len(ways) - len(merged)}
    return Learned(ways, inputs.report | figures)


def _merged_group(
    inputs: MergeInputs,
    group: Sequence[LinearLayer],
    shrunk: Callable[[Tensor], Tensor],
    on_examples: Callable[[int, str], None],
) -> dict[str, Tensor]:
    """Returns the deltas of some layers, flat float32, by tensor. Raises: InputError."""
    squares: dict[str, Tensor] = {}
    products: dict[str, Tensor] = {}
    done = 0
    for task, name in enumerate(inputs.model.tasks):
        examples = inputs.examples[name]
        found = input_products(inputs, TaskModule(inputs, task), examples, group)
        for layer in group:
            own = inputs.weights[task] * shrunk(found.pop(layer.name))
            delta = layer.by_input(inputs.model.tensor(layer.name).whole(task).to(torch.float64))
            with one_torch_thread():
                weighted = own @ delta
            squares[layer.name] = squares[layer.name] + own if task else own
            products[layer.name] = products[layer.name] + weighted if task else weighted
        done += len(examples)
        on_examples(done, name)
    with one_torch_thread():
        return {layer.name: _solved(layer, squares[layer.name], products[layer.name]) for layer in group}


def _shrunk(squares: Tensor, shrinkage: float, ridge: float) -> Tensor:
    """Returns a task's input products, those off the diagonal shrunk and the diagonal enlarged."""
    diagonal = squares.diagonal()
    enlarged = diagonal + torch.clamp(ridge * diagonal.mean(), min=_LEAST)
    return shrinkage * (squares - torch.diag(diagonal)) + torch.diag(enlarged)


def _solved(layer: LinearLayer, squares: Tensor, products: Tensor) -> Tensor:
    """Returns (Σ_k G_k)⁻¹ Σ_k G_k τ_kᵀ as the layer's delta, float32 and flat."""
    factor, failed = torch.linalg.cholesky_ex(squares)
    if failed or not torch.isfinite(products).all():
        raise InputError(
            f"the inputs of the layer '{layer.name}' are not finite, or depend on each other so that no "
            "solution is exact; give more exemplars, or a larger --set ridge"
        )
    return layer.by_input(torch.cholesky_solve(products, factor)).to(torch.float32).reshape(-1)


def _stored(merged: Tensor) -> Combination:
    """Returns the combination whose blocks are parts of a delta."""
    return Combination(lambda block: merged[block.start : block.start + len(block.base)])


def _report(on_step: Callable[[int, str], None], before: int, done: int, task: str) -> None:
    on_step(before + done, task)


def _groups(layers: Sequence[LinearLayer], memory: int) -> Iterator[list[LinearLayer]]:
    """Yields the layers in groups whose matrices fit into the memory, each of one layer at least."""
    group: list[LinearLayer] = []
    used = 0
    for layer in layers:
        needed = 8 * layer.width**2 * _COPIES
        if group and used + needed > memory:
            yield group
            group, used = [], 0
        group.append(layer)
        used += needed
    if group:
        yield group
