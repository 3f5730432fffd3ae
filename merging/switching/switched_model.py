"""A model whose every sample answers under its own mixture of tasks.

Source: methods, §3; Qi et al. 2025 (arXiv 2412.00054), Auto-Switch.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from flexswitch.codecs.container import Artifact
from flexswitch.codecs.errors import InputError
from flexswitch.merging.loading import names_inside
from flexswitch.merging.switching.mixture import Mixture
from flexswitch.merging.task_vector import ArtifactVector, TaskVector

Router = Callable[[Any], Tensor]


class SwitchedModel(nn.Module):
    """Wraps a module that holds the base's weights; rows of equal weights are answered together.

    Row i of the output equals the forward pass of θ + λ Σ_k w_k(x_i) τ̂_k on row i alone, within the
    dtype's tolerance, whatever else is in the batch. tasks names the columns of the weights.
    """

    def __init__(
        self,
        module: nn.Module,
        zoo: Mapping[str, Artifact | TaskVector],
        router: Router | None = None,
        lambda_: float = 1.0,
    ) -> None:
        super().__init__()
        self.module = module
        self.tasks = list(zoo)
        self._router = router
        vectors: list[TaskVector] = [
            ArtifactVector(task) if isinstance(task, Artifact) else task for task in zoo.values()
        ]
        shapes = {name: info.shape for vector in vectors for name, info in sorted(vector.units.items())}
        own = module.state_dict()
        self._names = names_inside(module, list(shapes))
        for name, shape in shapes.items():
            if name not in self._names:
                raise InputError(f"the module has no parameter '{name}', which the zoo's tasks change")
            if own[self._names[name]].shape != shape:
                raise InputError(
                    f"the module's parameter '{self._names[name]}' has the shape "
                    f"{list(own[self._names[name]].shape)}, the zoo's tasks change one of shape {list(shape)}"
                )
        base = {name: own[own_name] for name, own_name in self._names.items()}
        self._dtypes = {name: tensor.dtype for name, tensor in base.items()}
        self._mixture = Mixture(base, vectors, lambda_)

    def forward(self, batch: Any, weights: Tensor | None = None) -> Any:
        """Returns the module's output; `weights` (sample, task) overrides the router's.

        batch: a tensor, or a dict of tensors that become keyword arguments; the first dimension is over
        samples, in the output too. Raises: InputError without weights and router, or on weights of
        another shape.
        """
        if weights is None:
            if self._router is None:
                raise InputError(
                    "nothing chooses the tasks: give weights=, or a router when wrapping the module"
                )
            weights = self._router(batch)
        count = len(batch if isinstance(batch, Tensor) else next(iter(batch.values())))
        if weights.shape != (count, len(self.tasks)):
            raise InputError(
                f"the weights have the shape {list(weights.shape)}, expected (sample, task) = "
                f"{[count, len(self.tasks)]}"
            )
        if not count:
            return self._answer(batch, [0.0] * len(self.tasks))
        shares, group_of = torch.unique(weights, dim=0, return_inverse=True)  # (group, task), (sample,)
        outputs = []
        rows = [torch.nonzero(group_of == group).view(-1) for group in range(len(shares))]
        for share, members in zip(shares, rows, strict=True):
            outputs.append(self._answer(_take(batch, members), share.tolist()))
        return _join(outputs, torch.argsort(torch.cat(rows)))

    def _answer(self, batch: Any, shares: Sequence[float]) -> Any:
        mixed = self._mixture.weights(shares)
        state = {self._names[name]: tensor.to(self._dtypes[name]) for name, tensor in mixed.items()}
        if isinstance(batch, Tensor):
            return functional_call(self.module, state, (batch,))
        return functional_call(self.module, state, (), dict(batch))


def _take(batch: Any, rows: Tensor) -> Any:
    if isinstance(batch, Tensor):
        return batch[rows]
    return {name: tensor[rows] for name, tensor in batch.items()}


def _join(outputs: list[Any], order: Tensor) -> Any:
    """Returns the groups' outputs as one, rows in the batch's order; tuples and mappings by their parts."""
    first = outputs[0]
    if first is None:
        return None
    if isinstance(first, Tensor):
        return torch.cat(outputs)[order]
    if isinstance(first, tuple):
        return tuple(_join(list(parts), order) for parts in zip(*outputs, strict=True))
    return type(first)(**{name: _join([output[name] for output in outputs], order) for name in first})
