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
from flexswitch.merging.flex_switch.size_estimate import size_estimate
from flexswitch.merging.task_vectors.task_vector import TaskVector


@dataclass(frozen=True, eq=False)
class CompressionTask:
    """A task vector to be compressed. bits: (candidate,). effort: how its blocks are stored."""

    vector: TaskVector
    header: ArtifactHeader
    tensors: list[DeltaRows]
    tables: list[RateDistortionTable]
    bits: NDArray[np.int64]
    effort: str
    parallel_map: ParallelMap

    def sizer(self, learning: TrainingRecord | None = None) -> ArtifactSizer:
        """Returns what packs the artifact, with that record in it."""
        header = self.header.model_copy(update={"training": learning})
        return ArtifactSizer(self.vector, header, self.tensors, self.effort, self.parallel_map)

    def payload_bits(self, target: int) -> float:
        """Returns what is left for the units in an artifact of so many bytes."""
        return 8.0 * (target - self.sizer().empty_size())

    def fit(
        self, quantised: Sequence[Quantisation], sizer: ArtifactSizer, target: int
    ) -> tuple[list[Quantisation], int]:
        """Returns what is kept at a size in bytes, and that size; the widths of levels stay."""
        ahead = size_estimate(self.tensors, self.tables, quantised)
        return fit_to_size(quantised, sizer.size, ahead, sizer.empty_size(), target)

    def fill(
        self, quantised: Sequence[Quantisation], sizer: ArtifactSizer, target: int
    ) -> tuple[list[Quantisation], int]:
        """Returns what is kept at a size, and that size; in wider levels where those given do not fill it.

        Each unit then takes the next bit-width, with its best scale at the threshold it has, as many times
        larger as the one it had is than its own best.
        """
        fitted, found = self.fit(quantised, sizer, target)
        for width in self.bits.tolist()[1:]:
            everything = [replace(kept, thresholds=np.zeros_like(kept.thresholds)) for kept in fitted]
            if meets_target(found, target) or sizer.size(everything) >= target:
                break
            quantised = [
                kept if kept.bits >= width else widened(table, kept, width)
                for table, kept in zip(self.tables, quantised, strict=True)
            ]
            fitted, found = self.fit(quantised, sizer, target)
        return fitted, found


def read_compression_task(
    vector: TaskVector,
    header: ArtifactHeader,
    bits: NDArray[np.int64],
    effort: str,
    parallel_map: ParallelMap,
) -> CompressionTask:
    """Returns a problem, its deltas read and its choices of density and bit-width counted."""
    tensors = [
        tensor for tensor in (read_delta_rows(vector, name) for name in vector.tensors) if tensor is not None
    ]
    tables = parallel_map(lambda number: rate_distortion_table(tensors[number].delta, bits), len(tensors))
    return CompressionTask(vector, header, tensors, tables, bits, effort, parallel_map)


def widened(table: RateDistortionTable, kept: Quantisation, width: int) -> Quantisation:
    """Returns the same entries in levels of another width, the scale as much above the best as it was."""
    threshold = float(np.median(kept.thresholds))
    growth = kept.scale / scale_at(table, threshold, kept.bits)
    return replace(kept, bits=width, scale=float(np.float32(growth * scale_at(table, threshold, width))))
