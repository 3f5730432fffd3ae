"""A task vector to be compressed to a size: its deltas, what it can keep of them, and how much that takes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from flexswitch.codecs.format.records import ArtifactHeader, TrainingRecord
from flexswitch.codecs.threads import ParallelMap
from flexswitch.merging.flex_switch.artifact_size import ArtifactSizer
from flexswitch.merging.flex_switch.delta_rows import DeltaRows, Quantisation, read_delta_rows
from flexswitch.merging.flex_switch.fit_to_size import fit_to_size, meets_target
from flexswitch.merging.flex_switch.initialisation import scale_at
from flexswitch.merging.flex_switch.rate_distortion import RateDistortionTable, rate_distortion_table
from flexswitch.merging.flex_switch.size_estimate import forecast
from flexswitch.merging.task_vectors.task_vector import TaskVector


@dataclass(frozen=True, eq=False)
class CompressionTask:
    """A task vector to be compressed. bits: (candidate,). effort: how its blocks are stored."""

    vector: TaskVector
    header: ArtifactHeader
    units: list[DeltaRows]
    choices: list[RateDistortionTable]
    bits: NDArray[np.int64]
    effort: str
    each: ParallelMap

    def packer(self, learning: TrainingRecord | None = None) -> ArtifactSizer:
        """Returns what packs the artifact, with that record in it."""
        header = self.header.model_copy(update={"training": learning})
        return ArtifactSizer(self.vector, header, self.units, self.effort, self.each)

    def payload_bits(self, target: int) -> float:
        """Returns what is left for the units in an artifact of so many bytes."""
        return 8.0 * (target - self.packer().empty_size())

    def fit(
        self, hardened: Sequence[Quantisation], packer: ArtifactSizer, target: int
    ) -> tuple[list[Quantisation], int]:
        """Returns what is kept at a size in bytes, and that size; the widths of levels stay."""
        ahead = forecast(self.units, self.choices, hardened)
        return fit_to_size(hardened, packer.size, ahead, packer.empty_size(), target)

    def fill(
        self, hardened: Sequence[Quantisation], packer: ArtifactSizer, target: int
    ) -> tuple[list[Quantisation], int]:
        """Returns what is kept at a size, and that size; in wider levels where those given do not fill it.

        Each unit then takes the next bit-width, with its best scale at the threshold it has, as many times
        larger as the one it had is than its own best.
        """
        fitted, found = self.fit(hardened, packer, target)
        for width in self.bits.tolist()[1:]:
            everything = [replace(kept, thresholds=np.zeros_like(kept.thresholds)) for kept in fitted]
            if meets_target(found, target) or packer.size(everything) >= target:
                break
            hardened = [
                kept if kept.bits >= width else widened(choices, kept, width)
                for choices, kept in zip(self.choices, hardened, strict=True)
            ]
            fitted, found = self.fit(hardened, packer, target)
        return fitted, found


def read_compression_task(
    vector: TaskVector, header: ArtifactHeader, bits: NDArray[np.int64], effort: str, each: ParallelMap
) -> CompressionTask:
    """Returns a problem, its deltas read and its choices of density and bit-width counted."""
    units = [unit for unit in (read_delta_rows(vector, name) for name in vector.tensors) if unit is not None]
    choices = each(lambda number: rate_distortion_table(units[number].delta, bits), len(units))
    return CompressionTask(vector, header, units, choices, bits, effort, each)


def widened(choices: RateDistortionTable, kept: Quantisation, width: int) -> Quantisation:
    """Returns the same entries in levels of another width, the scale as much above the best as it was."""
    threshold = float(np.median(kept.thresholds))
    growth = kept.scale / scale_at(choices, threshold, kept.bits)
    return replace(kept, bits=width, scale=float(np.float32(growth * scale_at(choices, threshold, width))))
