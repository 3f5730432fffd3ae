"""Puts one task's head and buffers in the place of a module's."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from flexswitch.merging.switching.heads import Head, equal_heads
from flexswitch.merging.switching.own_buffers import Buffers

# Where a tensor is held, its name there, the module's own, each task's, and whether it is a head's.
_Place = tuple[dict[str, Any], str, Tensor | None, Sequence[Tensor | None], bool]


class OwnTensors:
    """The places of the tasks' own tensors in a module. One thread at a time may use it."""

    def __init__(
        self, module: nn.Module, heads: Mapping[str, Sequence[Head]], buffers: Mapping[str, Sequence[Buffers]]
    ) -> None:
        self._places: list[_Place] = []
        for layer, tasks in heads.items():
            held, equal = module.get_submodule(layer)._parameters, equal_heads(tasks)
            self._places.append((held, "weight", held["weight"], [head.weight for head in equal], True))
            self._places.append((held, "bias", held["bias"], [head.bias for head in equal], True))
        for layer, stored in buffers.items():
            owner = module.get_submodule(layer)
            for name in sorted({each for own in stored for each in own}):
                kept: Any = owner._parameters if name in owner._parameters else owner._buffers
                base = kept[name]
                self._places.append((kept, name, base, [own.get(name, base) for own in stored], False))

    def put(self, task: int | None) -> None:
        """Puts the tensors of a task in their places; None for the module's own, -1 for those of no task."""
        for held, name, base, tasks, is_head in self._places:
            if task is None or (task < 0 and not is_head):
                held[name] = base
            else:
                held[name] = tasks[max(task, 0)]
