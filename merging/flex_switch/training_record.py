"""Training records: how far the model is from the fine-tuned one, before and after training."""

from collections.abc import Sequence

import numpy as np

from flexswitch.codecs.format.quality_records import QualityRecord, TrainingRecord, four_digits
from flexswitch.codecs.threads import ParallelMap
from flexswitch.merging.compression.plan import Progress
from flexswitch.merging.flex_switch.training_data import TrainingData

_CURVE_POINTS = 20


def quality(data: TrainingData, parallel_map: ParallelMap) -> QualityRecord:
    """Returns how the model's current weights compare with the fine-tuned model."""
    trained = data.divergence(data.exemplars, parallel_map)
    held_out = data.divergence(data.held_out, parallel_map) if data.held_out is not None else (None, None)
    return QualityRecord(
        divergence=four_digits(trained[0]),
        agreement=four_digits(trained[1]),
        held_out_divergence=None if held_out[0] is None else four_digits(held_out[0]),
        held_out_agreement=None if held_out[1] is None else four_digits(held_out[1]),
    )


def training_record(
    data: TrainingData,
    before: QualityRecord,
    after: QualityRecord,
    history: Sequence[Progress],
    parameters: int,
) -> TrainingRecord:
    """Returns the record of a training. Its curve holds means over successive ranges of steps."""
    ranges = np.array_split(np.arange(len(history)), min(_CURVE_POINTS, max(1, len(history))))
    curve = [
        (
            history[part[-1]].step,
            four_digits(float(np.mean([history[step].loss for step in part]))),
            four_digits(float(np.mean([history[step].bits for step in part])) / parameters),
        )
        for part in ranges
        if len(part)
    ]
    return TrainingRecord(
        exemplars=len(data.exemplars),
        exemplars_sha256=data.digest,
        held_out=0 if data.held_out is None else len(data.held_out),
        before=before,
        after=after,
        curve=curve,
    )
