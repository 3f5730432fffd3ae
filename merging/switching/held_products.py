"""A linear layer's output by the weights of held mixtures: one product for each token, as in a whole model.

A run of neighbouring tokens of one mixture is multiplied by its matrix. A token of a mixture of tasks that
are held alone takes a product for each: Σ_k s_k (θ + λ τ_k) is θ + λ Σ_k s_k τ_k where the shares s_k add up
to 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from flexswitch.merging.switching.batch_plan import BatchPlan
from flexswitch.merging.switching.held_terms import Run
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
        weight, bias = weights.get(weight_name or "", weight), weights.get(bias_name or "", bias)
        return weight.t() if self.is_transposed else weight, bias


def held_products(plan: BatchPlan, layer: LinearLayer, tokens: Tensor, per_row: int) -> Tensor:
    """Returns the layer's output, (token, out): by the base's weights for rows whose mixture is not held.

    tokens: (token, in); per_row: the tokens of a row.
    """
    out = _products(plan, layer, tokens, plan.runs(per_row))
    sums = plan.sums(per_row)
    if sums is not None:
        for where, shares in sums.first:
            out[where] *= shares.to(out.device, out.dtype)
        positions = sums.tokens.to(out.device)
        others = _products(plan, layer, tokens.index_select(0, positions), sums.runs)
        out.index_add_(0, positions, others.mul_(sums.shares.to(out.device, out.dtype)))
    return out


def _products(plan: BatchPlan, layer: LinearLayer, tokens: Tensor, runs: Sequence[Run]) -> Tensor:
    """Returns the products of runs of tokens with their weights, (token, out)."""
    products = [layer.under(plan.terms.weights(run.number)) for run in runs]
    sizes = [run.stop - run.start for run in runs]
    parts = tokens.split_with_sizes(sizes)
    if len(runs) == 1 or torch.is_autocast_enabled(tokens.device.type):
        found = [functional.linear(part, *own) for part, own in zip(parts, products, strict=True)]
        return found[0] if len(found) == 1 else torch.cat(found)
    out = tokens.new_empty(len(tokens), len(products[0][0]))
    for target, part, (weight, bias) in zip(out.split_with_sizes(sizes), parts, products, strict=True):
        if bias is None:
            torch.mm(part, weight.t(), out=target)
        else:
            torch.addmm(bias, part, weight.t(), out=target)
    return out
