"""The products of the inputs of linear layers, which are what a least-squares fit needs to know of examples.

Source: Jin et al. 2023 (arXiv 2212.09849), section 3; docs/methods.md §6.9.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import local
from typing import Any

import torch
from torch import Tensor, nn

from flexswitch.merging.exemplar_merges.inputs import MergeInputs
from flexswitch.merging.exemplar_merges.task_module import TaskModule
from flexswitch.merging.models.examples import Batch, Examples

_BATCH = 32


@dataclass(frozen=True)
class LinearLayer:
    """A merged matrix that is applied to vectors.

    width: of its inputs. is_transposed: whether it is stored as (input, output).
    """

    name: str
    width: int
    is_transposed: bool

    def by_input(self, matrix: Tensor) -> Tensor:
        """Returns a matrix of the layer's shape as (input, output), and one of that form as it is stored."""
        return matrix if self.is_transposed else matrix.T


def linear_layers(module: TaskModule) -> list[LinearLayer]:
    """Returns the merged matrices of linear layers, in name order, without those that other layers share."""
    owners: dict[int, list[nn.Module]] = {}
    for each in module.module.modules():
        for parameter in each.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(each)
    found = []
    for name, parameter in module.parameters.items():
        (owner, *others) = owners[id(parameter)]
        # transformers' Conv1D, as in GPT-2, is a linear layer that is stored (input, output).
        is_transposed = type(owner).__name__ == "Conv1D" and hasattr(owner, "nf")
        if not others and parameter.dim() == 2 and (isinstance(owner, nn.Linear) or is_transposed):
            found.append(LinearLayer(name, parameter.shape[0 if is_transposed else 1], is_transposed))
    return found


def input_products(
    inputs: MergeInputs, module: TaskModule, examples: Examples, layers: Sequence[LinearLayer]
) -> dict[str, Tensor]:
    """Returns XᵀX over its number of rows for the inputs X (row, input) of each layer, float64, by tensor.

    A row is a token, those that pad a text left out, or whatever else the layer is applied to.
    """
    running = _Running(module, layers)
    rows = examples.by_length(torch.arange(len(examples)).numpy())
    parts = [rows[start : start + _BATCH] for start in range(0, len(rows), _BATCH)]
    totals = {layer.name: torch.zeros(layer.width, layer.width, dtype=torch.float64) for layer in layers}
    counts = dict.fromkeys(totals, 0)

    def work(number: int) -> dict[str, tuple[Tensor, int]]:
        return running.run(module.batch(examples, parts[number].tolist()))

    cost = sum(8 * layer.width**2 for layer in layers)
    for found in inputs.in_order(work, len(parts), cost):
        for name, (products, count) in found.items():
            totals[name] += products
            counts[name] += count
    running.stop()
    return {name: total / max(1, counts[name]) for name, total in totals.items()}


class _Running:
    """A model whose layers note the products of their inputs, on several threads at the same time."""

    def __init__(self, module: TaskModule, layers: Sequence[LinearLayer]) -> None:
        self._module, self._here = module, local()
        names = {id(module.parameters[layer.name]): layer.name for layer in layers}
        self._handles = [
            each.register_forward_pre_hook(self._noting(names[id(each.weight)]))
            for each in module.module.modules()
            if id(getattr(each, "weight", None)) in names
        ]

    def run(self, batch: Batch) -> dict[str, tuple[Tensor, int]]:
        """Returns for each layer the products of its inputs, and the number of rows."""
        self._here.found, self._here.mask = {}, batch.get("attention_mask")
        with torch.inference_mode():
            self._module.answers(batch)
        found: dict[str, tuple[Tensor, int]] = self._here.found
        return found

    def stop(self) -> None:
        """Removes the hooks."""
        for handle in self._handles:
            handle.remove()

    def _noting(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def note(layer: nn.Module, arguments: tuple[Any, ...]) -> None:
            values: Tensor = arguments[0]
            mask = self._here.mask
            if mask is not None and values.dim() == 3 and values.shape[:2] == mask.shape:
                values = values[mask != 0]
            rows = values.reshape(-1, values.shape[-1]).to("cpu", torch.float64)
            before, count = self._here.found.get(name, (0.0, 0))
            self._here.found[name] = (before + rows.T @ rows, count + len(rows))

        return note
