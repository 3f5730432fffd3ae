"""Measures the size of an artifact by writing it with the real codecs."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flexswitch.codecs.format.artifact_writer import ArtifactWriter, PackedTensor
from flexswitch.codecs.format.extra_forms import PackedExtra
from flexswitch.codecs.format.records import ArtifactHeader
from flexswitch.codecs.sparse import SparseTensor
from flexswitch.codecs.sums import square_sum
from flexswitch.codecs.threads import ParallelMap
from flexswitch.merging.compression.delta import Compressed, Squares
from flexswitch.merging.compression.packed import packed
from flexswitch.merging.compression.relative_error import error_record
from flexswitch.merging.flex_switch.delta_rows import (
    DeltaRows,
    Quantisation,
    kept_entries,
    nothing_kept,
    row_squares,
    stored_form,
)
from flexswitch.merging.flex_switch.rate import fitted_factor


class Stored(NamedTuple):
    """A tensor as it is stored, None where nothing is, and how far that is from its delta."""

    packed: PackedTensor | None
    squares: Squares


class ArtifactSizer:
    """Measures artifacts of one task vector.

    extras, header: those that they are written with. factors: tensor → the multiple of the base's that it
    contains. given: further tensors.
    """

    def __init__(
        self,
        extras: Mapping[str, PackedExtra],
        header: ArtifactHeader,
        tensors: Sequence[DeltaRows],
        effort: str,
        parallel_map: ParallelMap,
        factors: Mapping[str, float],
        given: Mapping[str, Stored],
    ) -> None:
        self._extras = extras
        self._header = header
        self._tensors = tensors
        self._effort = effort
        self._parallel_map = parallel_map
        self._factors = factors
        self._given = given

    def size(self, quantised: Sequence[Quantisation]) -> int:
        """Returns the bytes of the artifact with these quantised tensors, extras and header included."""
        stored = self._packed(quantised)
        squares = self._parallel_map(
            lambda number: row_squares(self._tensors[number], quantised[number]), len(self._tensors)
        )
        return self._file_bytes(stored, squares)

    def empty_size(self) -> int:
        """Returns the bytes of the artifact that keeps no entries."""
        dropped = [Squares(total, total) for total in (square_sum(tensor.delta) for tensor in self._tensors)]
        nothing = [
            self._pack_kept(tensor.name, nothing_kept(tensor.shape), 0.0, tensor.dtype)
            for tensor in self._tensors
        ]
        return self._file_bytes(nothing, dropped)

    def factors(self, quantised: Sequence[Quantisation], before: NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns the real bits of each tensor over those estimated (rate.py), (tensor,)."""
        found = before.copy()
        for number, (tensor, stored) in enumerate(zip(self._tensors, self._packed(quantised), strict=True)):
            if stored is not None:
                kept = kept_by_row(tensor, quantised[number])
                found[number] = fitted_factor(
                    stored.record.size, kept, tensor.columns, quantised[number].bits, before[number]
                )
        return found

    def _packed(self, quantised: Sequence[Quantisation]) -> list[PackedTensor | None]:
        return self._parallel_map(
            lambda number: self._pack(self._tensors[number], quantised[number]), len(self._tensors)
        )

    def _pack(self, tensor: DeltaRows, quantised: Quantisation) -> PackedTensor | None:
        return self._pack_kept(tensor.name, *stored_form(tensor, quantised), tensor.dtype)

    def _pack_kept(self, name: str, sparse: SparseTensor, scale: float, dtype: str) -> PackedTensor | None:
        return packed(
            Compressed(sparse, scale, base_factor=self._factors.get(name, 0.0)), self._effort, dtype
        )

    def _file_bytes(self, tensors: Sequence[PackedTensor | None], squares: Sequence[Squares]) -> int:
        names = [tensor.name for tensor in self._tensors]
        given = self._given
        error = error_record(
            {name: each.squares for name, each in given.items()} | dict(zip(names, squares, strict=True))
        )
        stored = {name: each.packed for name, each in given.items()} | dict(zip(names, tensors, strict=True))
        with tempfile.TemporaryDirectory(prefix="flexswitch.") as folder:
            path = Path(folder) / "artifact"
            with ArtifactWriter(path) as writer:
                for name, extra in self._extras.items():
                    writer.add_extra(name, extra)
                for name, tensor in sorted(stored.items()):
                    if tensor is not None:
                        writer.add_tensor(name, tensor)
                writer.finish(self._header.model_copy(update={"error": error}))
            return path.stat().st_size


def kept_by_row(tensor: DeltaRows, quantised: Quantisation) -> NDArray[np.int64]:
    """Returns the number of kept entries of each row, (row,)."""
    kept = kept_entries(tensor.delta.reshape(-1, tensor.columns), quantised)
    return np.asarray(np.count_nonzero(kept, axis=1))
