"""The fused engine: one pass for the whole batch, the tasks' parts added layer by layer."""

from collections.abc import Callable, Mapping, Sequence
from threading import Lock
from typing import Any

from torch import Tensor, nn

from flexswitch.codecs.errors import InputError
from flexswitch.merging.models.replica import replica
from flexswitch.merging.switching.batch_first import layer_of_other_order, unlike_rows
from flexswitch.merging.switching.batch_plan import ActivePlan, BatchPlan
from flexswitch.merging.switching.fused_layers import SwitchedLayer, is_linear, is_turned, switched_forward
from flexswitch.merging.switching.heads import Head, install_heads
from flexswitch.merging.switching.unpadded_tensor import whole


class FusedEngine:
    """A module that answers each row of a batch under its own weights; the base's are never changed.

    products: the units that inputs are multiplied by, and the base's tensors; turned: those of them whose
    layers multiply by the transpose. Serves several threads at a time.
    """

    def __init__(
        self, module: nn.Module, names: Mapping[str, str], heads: Mapping[str, Sequence[Head]]
    ) -> None:
        """names: unit → the module's name for it; heads: a layer's name → its heads, one a task."""
        self._plans, self._source = ActivePlan(), module
        self._lock, self._is_looked_at = Lock(), False
        self._misfit: str | None = None
        self.module = replica(module)
        state = self.module.state_dict(keep_vars=True)
        unit_of = {
            id(state[inside]): unit for unit, inside in names.items()
        }  # a tied tensor has several names
        switches = [
            SwitchedLayer(name, owner, _units(owner, unit_of), self._plans)
            for name, owner in self.module.named_modules()
            if any(id(tensor) in unit_of for tensor in _tensors(owner, recurse=False).values())
        ]
        self._layers = [switch.name for switch in switches]
        matrices = [switch for switch in switches if is_linear(switch.module) and "weight" in switch.units]
        self.products = {switch.units["weight"]: switch.module.weight for switch in matrices}
        self.turned = {switch.units["weight"] for switch in matrices if is_turned(switch.module)}
        for switch in switches:
            switch.module.forward = switched_forward(switch)
        install_heads(self.module, heads, self._plans)

    def misfit(self, batch: Any) -> str | None:
        """Returns the name of a layer that is not given the rows of a batch first, None where all are.

        The first batch with two unlike rows tells; until then nothing is known to be amiss.
        """
        with self._lock:
            if not self._is_looked_at and (rows := unlike_rows(batch)) is not None:
                self._misfit = layer_of_other_order(self._source, self._layers, batch, rows)
                self._is_looked_at = True
            return self._misfit

    def answer(self, batch: Any, plan: BatchPlan) -> Any:
        """Returns the module's output for a batch, each row under its weights and head."""
        self._check(batch)
        with self._plans.following(plan if plan.count else None):
            return whole(self.module(batch) if isinstance(batch, Tensor) else self.module(**batch))

    def follow(self, batch: Any, plan: BatchPlan, call: Callable[[nn.Module], Tensor]) -> Tensor:
        """Returns what a call gives on the module for a batch, each row under its weights."""
        self._check(batch)
        with self._plans.following(plan):
            found: Tensor = whole(call(self.module))
            return found

    def generate(self, batch: Mapping[str, Tensor], plan: BatchPlan, **options: Any) -> Any:
        """Returns what the module's own `generate` does, each sequence under its row's weights throughout."""
        self._check(batch)
        module: Any = self.module
        with self._plans.following(plan):
            return whole(module.generate(**batch, **options))

    def _check(self, batch: Any) -> None:
        misfit = self.misfit(batch)
        if misfit is not None:
            raise InputError(
                f"the module '{misfit}' is not given the rows of a batch first, so they can't be told apart "
                "there: use engine='grouped'"
            )


def _units(owner: nn.Module, unit_of: Mapping[int, str]) -> dict[str, str]:
    """Returns the unit of each tensor in a module and below it that has one."""
    tensors = _tensors(owner, recurse=True)
    return {name: unit_of[id(tensor)] for name, tensor in tensors.items() if id(tensor) in unit_of}


def _tensors(owner: nn.Module, recurse: bool) -> dict[str, Tensor]:
    return {
        **dict(owner.named_parameters(recurse=recurse, remove_duplicate=False)),
        **dict(owner.named_buffers(recurse=recurse, remove_duplicate=False)),
    }
