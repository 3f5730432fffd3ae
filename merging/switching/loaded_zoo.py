"""A zoo as it was read, with the engines that answer its batches."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from flexswitch.codecs.errors import InputError, NotByRowsError
from flexswitch.codecs.format.container import Artifact
from flexswitch.merging.switching.batch_plan import BatchPlan
from flexswitch.merging.switching.batch_rows import row_length
from flexswitch.merging.switching.cost_model import CostModel
from flexswitch.merging.switching.engine_check import EngineCheck, Manner, versions_of
from flexswitch.merging.switching.fused_engine import FusedEngine
from flexswitch.merging.switching.grouped_engine import GroupedEngine
from flexswitch.merging.switching.held_weights import HeldWeights
from flexswitch.merging.switching.request import Request
from flexswitch.merging.switching.task_deltas import TaskDeltas
from flexswitch.merging.task_vectors.task_vector import TaskVector

Router = Callable[..., Tensor]  # a batch, and its texts where the caller gives them → (row, task)
Engine = Literal["auto", "fused", "merged", "grouped"]


class LoadedZoo(NamedTuple):
    """A zoo's tasks and engines, which are replaced as a whole, so that no batch sees parts of two."""

    zoo: Mapping[str, Artifact | TaskVector]
    tasks: list[str]
    deltas: TaskDeltas
    fused: FusedEngine
    held: HeldWeights
    grouped: GroupedEngine
    cost_model: CostModel
    has_heads: bool
    router: Router | None
    check: EngineCheck

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
        request: Request,
        plan: BatchPlan,
        grouped: Callable[[], Any],
        steps: int = 0,
    ) -> Any:
        """Returns the answer of an engine to a request.

        grouped: answers by the grouped engine; steps: the passes that follow the batch's, each of one more
        token of every row. Raises: NotByRowsError where an engine is asked for that does not suit the module.
        """
        if not plan.count:
            return request.fused(self.fused, request.batch, plan, False)
        if engine == "grouped":
            return grouped()
        manner = self.check.manner(request, plan, None if engine == "auto" else Manner(False, False))
        if manner is None:
            if engine == "auto":
                return grouped()
            raise NotByRowsError(
                "layers that answer each row under its own mixture do not give what this module gives with "
                "the weights of each: use engine='grouped'"
            )
        plan = plan if manner.skips else plan.without_padding()
        if engine == "merged":
            plan.hold(self.held.get(dict.fromkeys(plan.factors, float("inf"))))
        elif engine == "auto":
            gains = self.cost_model.gains(plan, row_length(request.batch), steps)
            plan.hold(self.held.get(gains.by_mixture), gains.summed)
        versions = versions_of(request.batch)
        try:
            return request.fused(self.fused, request.batch, plan, manner.moves)
        except torch.OutOfMemoryError:
            raise
        except Exception:  # whatever a module raises for the rows of a layer; its own errors come again below
            if engine != "auto" or versions is None or versions_of(request.batch) != versions:
                raise  # the batch may have been changed, and be another one now
            found = grouped()
            self.check.refuse(request, plan)
            return found
