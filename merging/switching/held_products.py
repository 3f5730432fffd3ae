"""A linear layer's output by the weights of held mixtures: one product for each token, as in a whole model.

A run of neighbouring tokens of one mixture is multiplied by its matrix.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from flexswitch.merging.switching.batch_plan import BatchPlan
from flexswitch.merging.switching.mixtures import Weights


@dataclass(frozen=True, eq=False)
class LinearLayer:
    """A linear layer.

    module: holds the base's weight and bias; weight, bias: the names of those that tasks change, else None;
    is_transposed: whether the weight is (in, out).
    """

    module: Any
    weight: str | None
    bias: str | None
    is_transposed: bool

    def under(self, weights: Weights) -> tuple[Tensor, Tensor | None]:
        """Returns the weight, (out, in), and the bias under a mixture; of the base for no weights."""
        weight, bias = self.module.weight, self.module.bias
        weight = weights.get(self.weight, weight) if self.weight else weight
        bias = weights.get(self.bias, bias) if self.bias else bias
        return weight.t() if self.is_transposed else weight, bias


def held_products(plan: BatchPlan, layer: LinearLayer, tokens: Tensor, per_row: int) -> Tensor:
    """Returns the layer's output, (token, out): by the base's weights for rows whose mixture is not held.

    tokens: (token, in); per_row: the tokens of a row.
    """
    products = [
        functional.linear(tokens[run.start : run.stop], *layer.under(plan.held.get(run.mixture, {})))
        for run in plan.runs(per_row)
    ]
    return products[0] if len(products) == 1 else torch.cat(products)
