"""The end of a training: fits the size, refits scales, and records the quality of the result."""

from collections.abc import Sequence
from dataclasses import dataclass

from flexswitch.codecs.errors import TargetSizeError
from flexswitch.codecs.format.quality_records import TrainingRecord
from flexswitch.merging.flex_switch.compression_task import CompressionTask
from flexswitch.merging.flex_switch.delta_rows import Quantisation
from flexswitch.merging.flex_switch.fit_to_size import meets_target
from flexswitch.merging.flex_switch.gated_model import GatedModel, Loss
from flexswitch.merging.flex_switch.scale_refit import RATES, refit_scales
from flexswitch.merging.flex_switch.training_data import TrainingData
from flexswitch.merging.flex_switch.training_record import quality
from flexswitch.merging.flex_switch.training_step import hard_gates, set_gates
from flexswitch.merging.models.examples import batch_rows

_RECORD_TRIES = 8  # tries to meet the target with the final record in the artifact
_SPARE = 16  # bytes to aim below the excess


@dataclass(frozen=True)
class TrainingSettings:
    """How to train. target: bytes of the artifact, or None to weigh it by `multiplier`, in loss per bit."""

    target: int | None
    multiplier: float
    steps: int
    by_rows: bool
    uniform: bool
    batch: int
    shards: int
    refit_steps: int
    seed: int


@dataclass(frozen=True, eq=False)
class TrainingRun:
    """One training. The weights of `model` are those of the quantisation that was evaluated last."""

    task: CompressionTask
    data: TrainingData
    model: GatedModel
    settings: TrainingSettings

    def batches(self, step: int) -> Sequence[Loss]:
        """Returns the losses of the parts of a step's batch."""
        rows = batch_rows(step, self.settings.batch, len(self.data.training_set), self.settings.seed)
        return self.data.losses(rows, self.settings.shards)

    def loss(self, quantised: Sequence[Quantisation]) -> float:
        """Returns the loss of a quantisation on the exemplars."""
        set_gates(self.model, hard_gates(self.task.tensors, quantised), self.task.parallel_map)
        return self.data.loss(self.task.parallel_map)

    def finished(
        self, quantised: list[Quantisation], record: TrainingRecord
    ) -> tuple[float, list[Quantisation], TrainingRecord]:
        """Returns the loss, the quantisation fitted to the size with refitted scales, and its record."""
        task, target = self.task, self.settings.target
        if target is not None:
            quantised = task.fill(quantised, task.sizer(record), target)[0]
        return self.recorded(quantised, record)

    def recorded(
        self, quantised: list[Quantisation], record: TrainingRecord
    ) -> tuple[float, list[Quantisation], TrainingRecord]:
        """Returns the loss, a quantisation of the right size with refitted scales, and its record."""
        found, after = self._with_record(self._refitted(quantised), record)
        return self.data.loss(self.task.parallel_map), found, after

    def _refitted(self, quantised: list[Quantisation]) -> list[Quantisation]:
        """Returns it with scales refitted at the first rate that lowers the loss, or unchanged."""
        steps, before = self.settings.refit_steps, self.loss(quantised)
        for rate in RATES if steps else ():
            found = refit_scales(
                self.task.tensors,
                quantised,
                self.model,
                lambda step: self.batches(self.settings.steps + step),
                steps,
                rate,
                self.task.parallel_map,
            )
            if self.loss(found) < before:
                return found
        return quantised

    def _with_record(
        self, quantised: list[Quantisation], record: TrainingRecord
    ) -> tuple[list[Quantisation], TrainingRecord]:
        """Returns the quantisation with its record, which meet the size together; the model holds it.

        The quality in the record and refitted scales may have grown the file by some bytes, as may the
        levels of more than one bit, which depend on the scale.
        """
        task, target = self.task, self.settings.target
        aim = target or 0
        for tried in range(_RECORD_TRIES):
            set_gates(self.model, hard_gates(task.tensors, quantised), task.parallel_map)
            final = record.model_copy(update={"after": quality(self.data, task.parallel_map)})
            sizer = task.sizer(final)
            found = 0 if target is None else sizer.size(quantised)
            if target is None or (found <= target and (tried or meets_target(found, target))):
                return quantised, final
            aim -= max(0, found - target + _SPARE)
            if aim <= sizer.empty_size():
                break
            quantised = task.fit(quantised, sizer, aim)[0]
        raise TargetSizeError(
            f"{task.vector.source}: no thresholds bring the artifact to {target:,} bytes; ask for more"
        )
