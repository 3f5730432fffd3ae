"""A task vector to be compressed to a size: its deltas, what it can keep of them, and how much that takes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from flexswitch.codecs.format.records import ArtifactHeader, TrainingRecord
from flexswitch.codecs.threads import ParallelMap
from flexswitch.merging.flex_switch.forecast import forecast
from flexswitch.merging.flex_switch.harden import fit_to_size, is_met
from flexswitch.merging.flex_switch.packing import Packer
from flexswitch.merging.flex_switch.profile import Choices, choices_of
from flexswitch.merging.flex_switch.start import scale_at
from flexswitch.merging.flex_switch.unit import Hardened, Unit, read_unit
from flexswitch.merging.task_vectors.task_vector import TaskVector


@dataclass(frozen=True, eq=False)
class Problem:
    """A task vector to be compressed. bits: (candidate,). effort: how its blocks are stored."""

    vector: TaskVector
    header: ArtifactHeader
    units: list[Unit]
    choices: list[Choices]
    bits: NDArray[np.int64]
    effort: str
    each: ParallelMap

    def packer(self, learning: TrainingRecord | None = None) -> Packer:
        """Returns what packs the artifact, with that record in it."""
        header = self.header.model_copy(update={"training": learning})
        return Packer(self.vector, header, self.units, self.effort, self.each)

    def payload_bits(self, target: int) -> float:
        """Returns what is left for the units in an artifact of so many bytes."""
        return 8.0 * (target - self.packer().empty_size())

    def fit(self, hardened: Sequence[Hardened], packer: Packer, target: int) -> tuple[list[Hardened], int]:
        """Returns what is kept at a size in bytes, and that size; the widths of levels stay."""
        ahead = forecast(self.units, self.choices, hardened)
        return fit_to_size(hardened, packer.size, ahead, packer.empty_size(), target)

    def fill(self, hardened: Sequence[Hardened], packer: Packer, target: int) -> tuple[list[Hardened], int]:
        """Returns what is kept at a size, and that size; in wider levels where those given do not fill it.

        Each unit then takes the next bit-width, with its best scale at the threshold it has, as many times
        larger as the one it had is than its own best.
        """
        fitted, found = self.fit(hardened, packer, target)
        for width in self.bits.tolist()[1:]:
            everything = [replace(kept, thresholds=np.zeros_like(kept.thresholds)) for kept in fitted]
            if is_met(found, target) or packer.size(everything) >= target:
                break
            hardened = [
                kept if kept.bits >= width else widened(choices, kept, width)
                for choices, kept in zip(self.choices, hardened, strict=True)
            ]
            fitted, found = self.fit(hardened, packer, target)
        return fitted, found


def read_problem(
    vector: TaskVector, header: ArtifactHeader, bits: NDArray[np.int64], effort: str, each: ParallelMap
) -> Problem:
    """Returns a problem, its deltas read and its choices of density and bit-width counted."""
    units = [unit for unit in (read_unit(vector, name) for name in vector.tensors) if unit is not None]
    choices = each(lambda number: choices_of(units[number].delta, bits), len(units))
    return Problem(vector, header, units, choices, bits, effort, each)


def widened(choices: Choices, kept: Hardened, width: int) -> Hardened:
    """Returns the same entries in levels of another width, the scale as much above the best as it was."""
    threshold = float(np.median(kept.thresholds))
    growth = kept.scale / scale_at(choices, threshold, kept.bits)
    return replace(kept, bits=width, scale=float(np.float32(growth * scale_at(choices, threshold, width))))
