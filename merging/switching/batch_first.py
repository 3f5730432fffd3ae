"""Whether the layers of a module see the rows of a batch first, as the fused engine takes them to.

A module may put tokens before rows, and where the counts happen to fit nothing would tell: so two rows are
answered, and again the other way round. What a layer is given then has to be the same in the other order.
"""

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn

from flexswitch.merging.models.replica import replica
from flexswitch.merging.switching.batch_rows import take_rows

_SAME = {torch.float64: 1e-6, torch.float32: 1e-3}  # of the largest magnitude; else:
_SAME_IN_HALF = 3e-2


def unlike_rows(batch: Any) -> tuple[int, int] | None:
    """Returns two rows of a batch that differ, None where all are equal."""
    count = _row_count(batch)
    values = [batch] if isinstance(batch, Tensor) else list(batch.values())
    tensors = [each for each in values if isinstance(each, Tensor) and each.dim() and len(each) == count]
    for row in range(1, count):
        if any(not torch.equal(each[0], each[row]) for each in tensors):
            return 0, row
    return None


def layer_of_other_order(
    module: nn.Module, names: Collection[str], batch: Any, rows: tuple[int, int]
) -> str | None:
    """Returns the first of some layers that is given something else than rows first, None where none is.

    names: the layers, as the module names them; rows: two of the batch that differ.
    """
    straight, turned = (
        _given(module, names, take_rows(batch, torch.tensor(order), _row_count(batch)))
        for order in (rows, rows[::-1])
    )
    for (name, one), (_, other) in zip(straight, turned, strict=True):
        if not _is_turned(one, other):
            return name
    return None


def _given(module: nn.Module, names: Collection[str], batch: Any) -> list[tuple[str, Tensor]]:
    """Returns what the layers are given, in the order of the calls: of each call the longest tensors."""
    own, found = replica(module).eval(), list[tuple[str, Tensor]]()
    for each in own.modules():
        if isinstance(each, nn.Embedding | nn.EmbeddingBag):
            each.max_norm = None  # with one it would change the weights, which are the module's own

    def noted(name: str) -> Callable[..., None]:
        def note(_: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
            tensors = [
                each for each in (*inputs, *options.values()) if isinstance(each, Tensor) and each.dim()
            ]
            longest = max((len(each) for each in tensors), default=1)
            found.extend((name, each.clone()) for each in tensors if len(each) == longest > 1)

        return note

    for name in names:
        own.get_submodule(name).register_forward_pre_hook(noted(name), with_kwargs=True)
    own(batch) if isinstance(batch, Tensor) else own(**batch)
    return found


def _is_turned(one: Tensor, other: Tensor) -> bool:
    """Returns whether the halves of one are those of the other, the other way round."""
    if one.shape != other.shape or len(one) % 2:
        return False
    turned = torch.cat([other[len(other) // 2 :], other[: len(other) // 2]])
    if not one.is_floating_point():
        return torch.equal(one, turned)
    apart, size = (one - turned).abs(), one.abs().max() if one.numel() else 0.0
    return not bool(
        (apart > _SAME.get(one.dtype, _SAME_IN_HALF) * size).any()
    )  # of what is nan nothing is told


def _row_count(batch: Any) -> int:
    return len(batch if isinstance(batch, Tensor) else next(iter(batch.values())))
