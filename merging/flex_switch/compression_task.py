"""A task vector to be compressed to a size: its deltas, their rate–distortion tables, and their sizes."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from flexswitch.codecs.format.extra_forms import PackedExtra
from flexswitch.codecs.format.quality_records import TrainingRecord
from flexswitch.codecs.format.records import ArtifactHeader
from flexswitch.codecs.threads import ParallelMap
from flexswitch.merging.compression.delta import Compressed, Delta, Squares
from flexswitch.merging.compression.extras import pack_extras
from flexswitch.merging.compression.packed import packed_parts
from flexswitch.merging.compression.relative_error import EXACT
from flexswitch.merging.flex_switch.artifact_size import ArtifactSizer, Given
from flexswitch.merging.flex_switch.delta_rows import (
    DeltaRows,
    Quantisation,
    nothing_kept,
    read_delta_rows,
    row_squares,
    stored_form,
)
from flexswitch.merging.flex_switch.fit_to_size import fit_to_size, meets_target
from flexswitch.merging.flex_switch.initialisation import scale_at
from flexswitch.merging.flex_switch.rate_distortion import RateDistortionTable, rate_distortion_table
from flexswitch.merging.flex_switch.size_estimate import size_estimate
from flexswitch.merging.task_vectors.task_vector import TaskVector


@dataclass(frozen=True, eq=False)
class CompressionTask:
    """A task vector to be compressed.

    vector: what is left of it without multiples of the base's weights. bits: candidate bit-widths,
    (candidate,). effort: see `store`. extras: the task's own tensors, as stored. factors: tensor → the
    multiple that was taken from it. given, stored: parts of these and of further
    tensors that are settled.
    """

    vector: TaskVector
    header: ArtifactHeader
    tensors: list[DeltaRows]
    tables: list[RateDistortionTable]
    bits: NDArray[np.int64]
    effort: str
    parallel_map: ParallelMap
    extras: Mapping[str, PackedExtra]
    factors: Mapping[str, float]
    given: Mapping[str, Compressed] = field(default_factory=dict)
    stored: Mapping[str, Given] = field(default_factory=dict)

    def sizer(self, record: TrainingRecord | None = None) -> ArtifactSizer:
        """Returns the sizer of artifacts that carry this record."""
        header = self.header.model_copy(update={"training": record})
        return ArtifactSizer(
            self.extras,
            header,
            self.tensors,
            self.effort,
            self.parallel_map,
            self.factors,
            {**self.stored, **self._multiples()},
        )

    def _multiples(self) -> dict[str, Given]:
        """Returns the tensors that are a multiple of the base's and nothing else."""
        names = set(self.factors) - {tensor.name for tensor in self.tensors} - set(self.given)
        nothing = {name: nothing_kept(self.vector.tensors[name].shape) for name in names}
        return {
            name: self._stored(name, Compressed(each, 0.0, base_factor=self.factors[name]))
            for name, each in nothing.items()
        }

    def _stored(self, name: str, compressed: Compressed) -> Given:
        parts = packed_parts(compressed, self.effort, self.vector.tensors[name].dtype)
        return Given(parts, compressed.squares or EXACT)

    def with_given(self, given: Mapping[str, Compressed]) -> "CompressionTask":
        """Returns the task in which these parts are settled."""
        names = list(given)
        stored = self.parallel_map(
            lambda number: self._stored(names[number], given[names[number]]), len(names)
        )
        return replace(self, given=given, stored=dict(zip(names, stored, strict=True)))

    def without(self, names: Collection[str]) -> "CompressionTask":
        """Returns the task without the entries of these tensors."""
        left = [number for number, tensor in enumerate(self.tensors) if tensor.name not in names]
        return replace(
            self,
            tensors=[self.tensors[number] for number in left],
            tables=[self.tables[number] for number in left],
        )

    def payload_bits(self, target: int) -> float:
        """Returns the bits that are left for the tensors in an artifact of `target` bytes."""
        return 8.0 * (target - self.sizer().empty_size())

    def settled_bits(self) -> float:
        """Returns the bits of the settled parts."""
        return 8.0 * sum(part.record.size for given in self.stored.values() for part in given.parts)

    def fit(
        self, quantised: Sequence[Quantisation], sizer: ArtifactSizer, target: int
    ) -> tuple[list[Quantisation], int]:
        """Returns the quantisation that fits `target` bytes, and its size. Bit-widths do not change."""
        estimate = size_estimate(self.tensors, self.tables, quantised)
        return fit_to_size(quantised, sizer.size, estimate, sizer.empty_size(), target)

    def fill(
        self, quantised: Sequence[Quantisation], sizer: ArtifactSizer, target: int
    ) -> tuple[list[Quantisation], int]:
        """Returns the quantisation that fills `target` bytes, and its size.

        If all entries in the given bit-widths do not fill it, each tensor takes the next bit-width at its
        threshold, with the best scale there times the norm compensation that it had.
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

    def compressor(self, quantised: Sequence[Quantisation]) -> Callable[[Delta], Compressed]:
        """Returns the function that compresses each tensor: its kept entries, settled parts and multiple."""
        by_name = {tensor.name: (tensor, kept) for tensor, kept in zip(self.tensors, quantised, strict=True)}

        def compress(delta: Delta) -> Compressed:
            given = self.given.get(delta.name)
            parts, squares = ((), EXACT) if given is None else (given.parts, given.squares or EXACT)
            if delta.name in by_name:
                tensor, kept = by_name[delta.name]
                found = row_squares(tensor, kept)
                squares = Squares(found.error, squares.total if parts else found.total)
                sparse, scale = stored_form(tensor, kept)
                parts = (Compressed(sparse, scale), *parts) if len(sparse.levels) else parts
            first, *more = parts or (Compressed(nothing_kept(delta.shape), 0.0),)
            factor = self.factors.get(delta.name, 0.0)
            return replace(first, more=tuple(more), base_factor=factor, squares=squares)

        return compress


def read_compression_task(
    vector: TaskVector,
    header: ArtifactHeader,
    bits: NDArray[np.int64],
    effort: str,
    parallel_map: ParallelMap,
    extras: Mapping[str, PackedExtra] | None = None,
    factors: Mapping[str, float] = MappingProxyType({}),
    held: bool = True,
) -> CompressionTask:
    """Returns the compression task of a task vector, with its deltas and rate–distortion tables.

    extras: the task's own tensors as they are stored, None for exactly. factors: tensor → the
    multiple of the base's weights that was taken from the vector. held: whether deltas stay in memory.
    """
    stored = pack_extras(vector, vector.extras, "exact") if extras is None else extras
    read = [read_delta_rows(vector, name, held) for name in vector.tensors]
    tensors = [tensor for tensor in read if tensor is not None]
    tables = parallel_map(lambda number: rate_distortion_table(tensors[number].delta, bits), len(tensors))
    return CompressionTask(vector, header, tensors, tables, bits, effort, parallel_map, stored, factors)


def widened(table: RateDistortionTable, kept: Quantisation, width: int) -> Quantisation:
    """Returns the same kept entries at another bit-width, with the same ratio of scale to best scale."""
    threshold = float(np.median(kept.thresholds))
    ratio = kept.scale / scale_at(table, threshold, kept.bits)
    return replace(kept, bits=width, scale=float(np.float32(ratio * scale_at(table, threshold, width))))
