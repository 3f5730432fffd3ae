"""Scales are refitted at the end: at the first rate that lowers the loss, or they are left as they are."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from support.checkpoints import job, memory_pair
from support.deltas import normal
from support.places import whole
from torch import Tensor, nn

from flexswitch.codecs.format.quality_records import QualityRecord, TrainingRecord
from flexswitch.codecs.threads import ParallelMap, parallel_map
from flexswitch.merging.flex_switch.compression_task import read_compression_task
from flexswitch.merging.flex_switch.delta_rows import Quantisation
from flexswitch.merging.flex_switch.finalisation import TrainingRun, TrainingSettings
from flexswitch.merging.flex_switch.gated_model import GatedModel, Loss
from flexswitch.merging.flex_switch.scale_refit import RATES

QUALITY = QualityRecord(divergence=1.0, agreement=1.0)
RECORD = TrainingRecord(exemplars=1, exemplars_sha256="ef" * 32, held_out=0, before=QUALITY, after=QUALITY)


class OneTensor(nn.Module):
    """A model whose output is its one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(40, 30))

    def forward(self) -> Tensor:
        return self.w


class ScaleData:
    """Training data whose batches ask for a larger scale, and whose loss is the distance to a scale.

    best: logarithm of the scale of least loss.
    """

    def __init__(self, model: nn.Module, delta: Tensor, best: float) -> None:
        self._model, self._signs, self._best = model, delta.sign(), best
        self.training_set = self.exemplars = range(1)
        self.held_out = None

    def losses(self, rows: Sequence[int], shards: int) -> list[Loss]:
        return [lambda model: -(model() * self._signs).sum()]

    def loss(self, each: ParallelMap) -> float:
        weights = self._model.get_parameter("w").detach().double()
        return abs(float(weights[weights != 0].abs().mean().log()) - self._best)

    def divergence(self, targets: object, each: ParallelMap) -> tuple[float, float]:
        return self.loss(each), 1.0


@pytest.mark.parametrize("helps", [None, *range(len(RATES))])
def test_scales_are_refitted_at_the_first_rate_that_lowers_the_loss(helps: int | None) -> None:
    delta = torch.from_numpy(normal((40, 30)))
    vector = memory_pair({"w": torch.zeros(40, 30)}, {"w": delta})
    scale = 0.8
    # One step moves the scale by the rate; that is nearer to the best where it is less than twice as far.
    distance = -1.0 if helps is None else 0.6 * RATES[helps]
    with parallel_map(1) as each:
        task = read_compression_task(vector, job().header(vector), np.array([1]), "small", each)
        model = OneTensor()
        gated = GatedModel(model, task.tensors, whole(model, {"w": "w"}), 1)
        data = ScaleData(model, delta, float(np.log(np.float32(scale))) + distance)
        settings = TrainingSettings(
            target=None, multiplier=0.0, steps=1, by_rows=False, uniform=False, batch=1, shards=1, refit_steps=1, seed=0
        )  # fmt: skip
        run = TrainingRun(task, data, gated, settings)  # type: ignore[arg-type]
        kept = Quantisation(np.full(40, 0.5, np.float32), 1, float(np.float32(scale)))
        loss, (found,), record = run.finished([kept], RECORD)
    expected = scale * (1.0 if helps is None else np.exp(RATES[helps]))
    assert found.scale == pytest.approx(expected, rel=2e-6)
    assert (found.scale == kept.scale) == (helps is None)
    assert loss == pytest.approx(record.after.divergence, rel=1e-3)
    assert loss == pytest.approx(1.0 if helps is None else 0.4 * RATES[helps], rel=0.01)
