"""Measures the size of an artifact by writing it with the real codecs."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flexswitch.codecs.format.artifact_writer import ArtifactWriter, PackedTensor, packed_sum
from flexswitch.codecs.format.extra_forms import PackedExtra
from flexswitch.codecs.format.records import ArtifactHeader
from flexswitch.codecs.sums import square_sum
from flexswitch.codecs.threads import ParallelMap
from flexswitch.merging.compression.delta import Compressed, Squares
from flexswitch.merging.compression.packed import packed_parts
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


class Given(NamedTuple):
    """Parts of a tensor that are settled, as they are stored, and how far they are from its delta."""

    parts: list[PackedTensor]
    squares: Squares


class ArtifactSizer:
    """Measures artifacts of one task vector.

    extras, header: those that they are written with. factors: tensor → the multiple of the base's that it
    contains. given: parts of these and of further tensors that are settled.
    """

    def __init__(
        self,
        extras: Mapping[str, PackedExtra],
        header: ArtifactHeader,
        tensors: Sequence[DeltaRows],
        effort: str,
        parallel_map: ParallelMap,
        factors: Mapping[str, float],
        given: Mapping[str, Given],
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
        squares = self._parallel_map(
            lambda number: row_squares(self._tensors[number], quantised[number]), len(self._tensors)
        )
        return self._file_bytes(self._sparse(quantised), squares)

    def empty_size(self) -> int:
        """Returns the bytes of the artifact that keeps no entries."""
        dropped = [Squares(total, total) for total in (square_sum(tensor.delta) for tensor in self._tensors)]
        return self._file_bytes([[] for _ in self._tensors], dropped)

    def factors(self, quantised: Sequence[Quantisation], before: NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns the real bits of each tensor over those estimated (rate.py), (tensor,)."""
        found = before.copy()
        for number, (tensor, parts) in enumerate(zip(self._tensors, self._sparse(quantised), strict=True)):
            for part in parts:
                kept = kept_by_row(tensor, quantised[number])
                found[number] = fitted_factor(
                    part.record.size, kept, tensor.columns, quantised[number].bits, before[number]
                )
        return found

    def _sparse(self, quantised: Sequence[Quantisation]) -> list[list[PackedTensor]]:
        """Returns each tensor's kept entries as they are stored, an empty list where there are none."""

        def stored(number: int) -> list[PackedTensor]:
            tensor = self._tensors[number]
            kept = Compressed(*stored_form(tensor, quantised[number]))
            return packed_parts(kept, self._effort, tensor.dtype)

        return self._parallel_map(stored, len(self._tensors))

    def _file_bytes(self, sparse: Sequence[list[PackedTensor]], squares: Sequence[Squares]) -> int:
        parts = {name: each.parts for name, each in self._given.items()}
        error = {name: each.squares for name, each in self._given.items()}
        for tensor, stored, found in zip(self._tensors, sparse, squares, strict=True):
            name = tensor.name
            total = error[name].total if name in error else found.total
            parts[name] = stored + parts.get(name, []) or self._nothing(tensor)
            error[name] = Squares(found.error, total)
        with tempfile.TemporaryDirectory(prefix="flexswitch.") as folder:
            path = Path(folder) / "artifact"
            with ArtifactWriter(path) as writer:
                for name, extra in self._extras.items():
                    writer.add_extra(name, extra)
                for name, each in sorted(parts.items()):
                    if each:
                        writer.add_tensor(name, packed_sum(each, self._factors.get(name, 0.0)))
                writer.finish(self._header.model_copy(update={"error": error_record(error)}))
            return path.stat().st_size

    def _nothing(self, tensor: DeltaRows) -> list[PackedTensor]:
        """Returns how a tensor is stored of which no entry is kept."""
        factor = self._factors.get(tensor.name, 0.0)
        return packed_parts(
            Compressed(nothing_kept(tensor.shape), 0.0, base_factor=factor), self._effort, tensor.dtype
        )


def kept_by_row(tensor: DeltaRows, quantised: Quantisation) -> NDArray[np.int64]:
    """Returns the number of kept entries of each row, (row,)."""
    kept = kept_entries(tensor.delta.reshape(-1, tensor.columns), quantised)
    return np.asarray(np.count_nonzero(kept, axis=1))
