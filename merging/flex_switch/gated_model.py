"""The model whose weights pass their gates, once for each shard of a batch.

All replicas share one storage of weights, so these are written once a step. A replica's gradients are
turned into the few sums that are learned from as soon as autograd has them, and dropped: no more than one
tensor's gradient is held a shard, and of the graph nothing an entry of the delta.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from flexswitch.codecs.threads import ParallelMap
from flexswitch.merging.flex_switch.delta_rows import DeltaRows
from flexswitch.merging.flex_switch.gated_tensor import GatedTensor, GateGradients, Gates, gated_weights
from flexswitch.merging.models.replica import replica

Loss = Callable[[nn.Module], Tensor]  # the loss of some examples, a scalar


class GatedModel:
    """A model and its units; the gates that were set last are those that slopes are by.

    weights: of each unit, None where the model lacks it.
    """

    def __init__(
        self, model: nn.Module, tensors: Sequence[DeltaRows], names: Mapping[str, str], shards: int
    ) -> None:
        """Takes a model that holds the base's weights; names: unit → the model's name, where it has it."""
        self.model = model.requires_grad_(False)
        state = model.state_dict(keep_vars=True)
        weights = [state[names[tensor.name]] if tensor.name in names else None for tensor in tensors]
        self.weights: list[GatedTensor | None] = [
            None if weight is None else gated_weights(tensor, weight)
            for tensor, weight in zip(tensors, weights, strict=True)
        ]
        self.gates: list[Gates] = []
        learned = {
            number: weight for number, weight in enumerate(weights) if isinstance(weight, nn.Parameter)
        }
        self._replicas = [_Replica(self, model, learned) for _ in range(shards)]

    def backward_all(
        self, losses: Sequence[Loss], parallel_map: ParallelMap
    ) -> list[tuple[float, list[GateGradients | None]]]:
        """Runs shards forward and back; returns each one's loss, and by unit the slopes, None without any."""
        return parallel_map(lambda shard: self._replicas[shard].backward(losses[shard]), len(losses))


class _Replica:
    """The model again: every tensor shared, the units' as leaves of this replica's own graph."""

    def __init__(self, gated: GatedModel, model: nn.Module, learned: Mapping[int, nn.Parameter]) -> None:
        self._gated = gated
        self._model = replica(model)
        leaves = {id(weight): nn.Parameter(weight.data) for weight in learned.values()}
        for module in list(self._model.modules()):
            for name, parameter in list(module.named_parameters(recurse=False)):
                if id(parameter) in leaves:
                    setattr(module, name, leaves[id(parameter)])
        for number, weight in learned.items():
            hook = self._reducer(number)
            leaves[id(weight)].register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
        _make_embeddings_sparse(self._model)
        self._slopes: list[GateGradients | None] = []

    def backward(self, loss: Loss) -> tuple[float, list[GateGradients | None]]:
        self._slopes = [None] * len(self._gated.weights)
        with torch.enable_grad():
            found = loss(self._model)
            found.backward()  # type: ignore[no-untyped-call]
        return float(found.detach()), self._slopes

    def _reducer(self, number: int) -> Callable[[Tensor], None]:
        def reduce(leaf: Tensor) -> None:
            gradient, leaf.grad = leaf.grad, None
            weights = self._gated.weights[number]
            if gradient is not None and weights is not None:
                self._slopes[number] = weights.reduce(self._gated.gates[number], gradient)

        return reduce


def _make_embeddings_sparse(model: nn.Module) -> None:
    """Lets tables of embeddings that nothing else uses have gradients of the rows in the batch alone."""
    uses = Counter(id(weight) for module in model.modules() for weight in module.parameters(recurse=False))
    for module in model.modules():
        if isinstance(module, nn.Embedding) and uses[id(module.weight)] == 1:
            module.sparse = True
