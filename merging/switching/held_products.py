"""A linear layer's output by the weights of held mixtures: one product for each token, as in a whole model.

A run of neighbouring tokens of one mixture is multiplied by its matrix.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from flexswitch.merging.switching.batch_plan import BatchPlan
from flexswitch.merging.switching.mixtures import Weights


@dataclass(frozen=True, eq=False)
class LinearLayer:
    """A linear layer.

    base: its weight and bias; names: those of them that tasks change, else None; is_transposed: whether the
    weight is (in, out).
    """

    base: tuple[Tensor, Tensor | None]
    names: tuple[str | None, str | None]
    is_transposed: bool

    def under(self, weights: Weights) -> tuple[Tensor, Tensor | None]:
        """Returns the weight, (out, in), and the bias under a mixture; of the base for no weights."""
        (weight, bias), (weight_name, bias_name) = self.base, self.names
        weight = weights.get(weight_name, weight) if weight_name else weight
        bias = weights.get(bias_name, bias) if bias_name else bias
        return weight.t() if self.is_transposed else weight, bias


def held_products(plan: BatchPlan, layer: LinearLayer, tokens: Tensor, per_row: int) -> Tensor:
    """Returns the layer's output, (token, out): by the base's weights for rows whose mixture is not held.

    tokens: (token, in); per_row: the tokens of a row.
    """
    runs = plan.runs(per_row)
    parts = torch.split(tokens, [run.stop - run.start for run in runs])
    products = [
        functional.linear(part, *layer.under(plan.held.get(run.mixture, {})))
        for run, part in zip(runs, parts, strict=True)
    ]
    return products[0] if len(products) == 1 else torch.cat(products)
