"""Stores what units keep, to see how large the artifact is: the real codecs, the real file."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flexswitch.codecs.format.artifact_writer import ArtifactWriter, PackedTensor, packed_tensor
from flexswitch.codecs.format.extra_forms import packed_extra
from flexswitch.codecs.format.records import ArtifactHeader
from flexswitch.codecs.storage import store
from flexswitch.codecs.threads import ParallelMap
from flexswitch.merging.flex_switch.delta_rows import DeltaRows, Quantisation, sparse_tensor
from flexswitch.merging.flex_switch.rate import fitted_factor
from flexswitch.merging.task_vectors.task_vector import TaskVector


class ArtifactSizer:
    """Packs the units of one task vector; `header` is what the artifact will say of itself."""

    def __init__(
        self,
        vector: TaskVector,
        header: ArtifactHeader,
        units: Sequence[DeltaRows],
        effort: str,
        each: ParallelMap,
    ) -> None:
        self._extras = {name: packed_extra(vector.extra(name)) for name in vector.extras}
        self._header = header
        self._units = units
        self._effort = effort
        self._each = each

    def size(self, hardened: Sequence[Quantisation]) -> int:
        """Returns the bytes of the artifact that keeps this, extras and header included."""
        return self._file_bytes(self._packed(hardened))

    def empty_size(self) -> int:
        """Returns the bytes of the artifact that keeps nothing."""
        return self._file_bytes([None] * len(self._units))

    def factors(self, hardened: Sequence[Quantisation], before: NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns each unit's real over estimated bits (rate.py), (unit,)."""
        found = before.copy()
        for number, (unit, packed) in enumerate(zip(self._units, self._packed(hardened), strict=True)):
            if packed is not None:
                kept = kept_by_row(unit, hardened[number])
                found[number] = fitted_factor(
                    packed.record.size, kept, unit.columns, hardened[number].bits, before[number]
                )
        return found

    def _packed(self, hardened: Sequence[Quantisation]) -> list[PackedTensor | None]:
        return self._each(lambda number: self._pack(self._units[number], hardened[number]), len(self._units))

    def _pack(self, unit: DeltaRows, hardened: Quantisation) -> PackedTensor | None:
        sparse = sparse_tensor(unit, hardened)
        if not len(sparse.levels):
            return None
        form = store(sparse, effort=self._effort)
        return packed_tensor(sparse, form, hardened.scale, unit.dtype)

    def _file_bytes(self, packed: Sequence[PackedTensor | None]) -> int:
        with tempfile.TemporaryDirectory(prefix="flexswitch.") as folder:
            path = Path(folder) / "artifact"
            with ArtifactWriter(path) as writer:
                for name, extra in self._extras.items():
                    writer.add_extra(name, extra)
                for unit, each in zip(self._units, packed, strict=True):
                    if each is not None:
                        writer.add_tensor(unit.name, each)
                writer.finish(self._header)
            return path.stat().st_size


def kept_by_row(unit: DeltaRows, hardened: Quantisation) -> NDArray[np.int64]:
    """Returns how many entries each row keeps, (row,)."""
    kept = np.abs(unit.delta.reshape(-1, unit.columns)) > hardened.thresholds[:, None]
    return np.asarray(np.count_nonzero(kept, axis=1))
