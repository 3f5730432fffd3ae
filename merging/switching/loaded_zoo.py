"""A zoo as it was read, with the engines that answer its batches."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from torch import Tensor

from flexswitch.codecs.errors import InputError, NotByRowsError
from flexswitch.codecs.format.container import Artifact
from flexswitch.merging.switching.batch_plan import BatchPlan
from flexswitch.merging.switching.batch_rows import row_length
from flexswitch.merging.switching.cost_model import CostModel
from flexswitch.merging.switching.fused_engine import FusedEngine
from flexswitch.merging.switching.grouped_engine import GroupedEngine
from flexswitch.merging.switching.held_weights import HeldWeights
from flexswitch.merging.switching.task_deltas import TaskDeltas
from flexswitch.merging.task_vectors.task_vector import TaskVector

Router = Callable[..., Tensor]  # a batch, and its texts where the caller gives them → (row, task)
Engine = Literal["auto", "fused", "merged", "grouped"]


class LoadedZoo(NamedTuple):
    """It is replaced as a whole, so that no batch sees parts of two."""

    zoo: Mapping[str, Artifact | TaskVector]
    tasks: list[str]
    deltas: TaskDeltas
    fused: FusedEngine
    held: HeldWeights
    grouped: GroupedEngine
    cost_model: CostModel
    has_heads: bool
    router: Router | None

    def weights(self, batch: Any, texts: Sequence[str] | None) -> Tensor:
        """Returns the router's weights for a batch, (row, task). Raises: InputError where there is none."""
        if self.router is None:
            raise InputError(
                "there are no weights: give weights= or a router, or wrap the module with a zoo that has an "
                "index (`flexswitch index`)"
            )
        return self.router(batch) if texts is None else self.router(batch, texts)

    def answered(
        self,
        engine: Engine,
        batch: Any,
        plan: BatchPlan,
        call: Callable[[FusedEngine | GroupedEngine], Any],
        steps: int = 0,
    ) -> Any:
        """Returns the result of a call of the engine that answers a batch.

        steps: the passes that follow the batch's, each of one more token of every row.
        """
        try:
            return call(self._chosen(engine, batch, plan, steps))
        except NotByRowsError:  # such as the first generation after passes without a cache
            if engine != "auto":
                raise
            return call(self.grouped)

    def _chosen(self, engine: Engine, batch: Any, plan: BatchPlan, steps: int) -> FusedEngine | GroupedEngine:
        """Returns the engine for a batch; the plan then holds the weights of some mixtures."""
        if not plan.count or engine == "fused":
            return self.fused
        if engine == "merged":
            plan.hold(self.held.get(dict.fromkeys(plan.factors, float("inf"))))
            return self.fused
        if engine == "grouped" or not self.fused.answers(batch, plan):
            return self.grouped
        gains = self.cost_model.gains(plan, row_length(batch), steps)
        plan.hold(self.held.get(gains.by_mixture), gains.summed)
        return self.fused
