"""A module under the average of some tasks, by which a router may compute features."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from flexswitch.merging.switching.batch_plan import batch_plan
from flexswitch.merging.switching.batch_rows import row_count
from flexswitch.merging.switching.engine_check import EngineCheck
from flexswitch.merging.switching.fused_engine import FusedEngine
from flexswitch.merging.switching.grouped_engine import GroupedEngine
from flexswitch.merging.switching.padding import token_mask
from flexswitch.merging.switching.request import feature_request
from flexswitch.merging.switching.task_deltas import TaskDeltas


@dataclass(frozen=True, eq=False)
class AveragedModule:
    """Calls the module under the average of some tasks."""

    tasks: list[str]
    deltas: TaskDeltas
    fused: FusedEngine
    grouped: GroupedEngine
    check: EngineCheck

    def __call__(self, batch: Any, names: list[str], call: Callable[[nn.Module], Tensor]) -> Tensor:
        count = row_count(batch)
        shares = np.zeros((count, len(self.tasks)), np.float32)
        shares[:, [self.tasks.index(name) for name in names]] = 1 / len(names)
        mask = token_mask(batch, self.fused.module)
        plan = batch_plan(shares, self.deltas, None, mask)
        manner = self.check.manner(feature_request(batch, call), plan)
        if manner is None:
            found: Tensor = self.grouped.under(plan.factors[0], None, call)
        else:
            found = self.fused.call(plan if manner.skips else plan.without_padding(), call)
        return found
