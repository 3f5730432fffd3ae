"""The task vector between two checkpoints, computed as it is read."""

import hashlib
from collections.abc import Container, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flexswitch.codecs.errors import InputError
from flexswitch.codecs.format.records import BaseIdentity, ModelRecord, RawTensor
from flexswitch.codecs.sparse import FloatArray
from flexswitch.merging.checkpoints.architecture import detect_adapter
from flexswitch.merging.checkpoints.checkpoint import Checkpoint, TensorInfo
from flexswitch.merging.checkpoints.config import read_config
from flexswitch.merging.checkpoints.fingerprint import byte_view, identify, known_digests
from flexswitch.merging.checkpoints.pairing import EVERYTHING, Pairing, Selection, pair
from flexswitch.merging.task_vectors.difference import add_delta, difference
from flexswitch.merging.task_vectors.raw_tensors import raw_tensor
from flexswitch.merging.task_vectors.task_vector import block_ranges

# Entries of config.json that say where a model came from, not how it is run.
_PROVENANCE_KEYS = {"_name_or_path", "transformers_version", "_commit_hash"}


class CheckpointPair:
    """The task vector between two open checkpoints; computed as it is read."""

    def __init__(self, base: Checkpoint, finetuned: Checkpoint, selection: Selection = EVERYTHING) -> None:
        self.source = finetuned.source
        self.base = base
        self._finetuned = finetuned
        self.pairing: Pairing = pair(base, finetuned, selection)
        self.parameters = sum(base.tensors[name].entries for name in self.pairing.tensors)
        self.tensors = {
            name: TensorInfo(finetuned.tensors[other].dtype, base.tensors[name].shape)
            for name, other in self.pairing.tensors.items()
        }
        config = read_config(finetuned)
        self.model = ModelRecord(
            adapter=detect_adapter(config, self.pairing.extras),
            base_prefix=self.pairing.base_prefix,
            prefix=self.pairing.prefix,
            config=config_changes(read_config(base), config, self._cut_rows()),
        )
        self.notes = self.pairing.notes
        self.digests = known_digests(base)
        self._changed_buffers: dict[str, TensorInfo] | None = None

    @property
    def extras(self) -> Mapping[str, TensorInfo]:
        """The checkpoint's own tensors, and the buffers that differ from the base's."""
        if self._changed_buffers is None:
            self._changed_buffers = {
                other: self._finetuned.tensors[other]
                for name, other in self.pairing.buffers.items()
                if not _same(self.base, name, self._finetuned, other)
            }
        own = {name: self._finetuned.tensors[name] for name in self.pairing.extras}
        return dict(sorted((own | self._changed_buffers).items()))

    def identity(self) -> BaseIdentity:
        """Returns the base's full identity; reads what has not been read yet."""
        return identify(self.base, self.digests)

    def blocks(self, unit: str) -> Iterator[FloatArray]:
        """Yields a unit's delta. Raises: InputError where it is not finite."""
        for start, base, finetuned in self._stored_weights(unit):
            delta, finite = difference(base, finetuned)
            if not finite:
                raise InputError(
                    f"{self.source}: tensor '{unit}' minus the base's is not finite near entry {start:,}; "
                    "one of the two holds NaN, infinite or huge weights"
                )
            yield delta

    def exact(self, unit: str) -> tuple[NDArray[np.int64], FloatArray]:
        """Returns the weights where rounding makes base + delta another float32 than the fine-tuned one."""
        positions, values = [np.empty(0, np.int64)], [np.empty(0, np.float32)]
        for start, base, finetuned in self._weights(unit):
            found = add_delta(base, finetuned - base)
            # Compared as bits, since 0 and -0 are equal.
            missed = torch.nonzero(found.view(torch.int32) != finetuned.view(torch.int32)).view(-1)
            positions.append(missed.numpy() + start)
            values.append(finetuned[missed].numpy())
        return np.concatenate(positions), np.concatenate(values)

    def extra(self, name: str) -> RawTensor:
        """Returns a tensor of the fine-tuned checkpoint."""
        return raw_tensor(self._finetuned, name)

    @property
    def files(self) -> list[Path]:
        """The files of both checkpoints."""
        return [*self.base.files, *self._finetuned.files]

    def read_ahead(self, unit: str) -> None:
        """Asks the system to have a unit's bytes of both checkpoints in memory soon."""
        self.base.read_ahead(unit)
        self._finetuned.read_ahead(self.pairing.tensors[unit])

    def is_cheap(self, unit: str) -> bool:
        """Returns True: a difference is computed faster than memory gives it back."""
        return True

    def _cut_rows(self) -> set[tuple[object, object]]:
        """Returns the numbers of rows, the base's and the fine-tuned's, of units that take the base's."""
        shapes = [
            (self.base.tensors[name].shape, self._finetuned.tensors[other].shape)
            for name, other in self.pairing.tensors.items()
        ]
        return {(base[0], finetuned[0]) for base, finetuned in shapes if base != finetuned}

    def _weights(self, unit: str) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yields (start, base, fine-tuned) blocks in float32."""
        for start, base, finetuned in self._stored_weights(unit):
            yield start, base.to(torch.float32), finetuned.to(torch.float32)

    def _stored_weights(self, unit: str) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yields (start, base, fine-tuned) blocks; rows that only the base has are the base's."""
        other = self.pairing.tensors[unit]
        available = self._finetuned.tensors[other].entries
        digest = hashlib.sha256() if unit not in self.digests else None
        for start, stop in block_ranges(self.base.tensors[unit].entries):
            base = self.base.read(unit, start, stop)
            if digest is not None:
                digest.update(byte_view(base).data)
            finetuned = self._finetuned.read(other, start, min(stop, available))
            if len(finetuned) < len(base):
                finetuned = torch.cat([finetuned, base[len(finetuned) :]])
            yield start, base, finetuned
        if digest is not None:
            self.digests[unit] = digest.hexdigest()


def config_changes(
    base: Mapping[str, object], finetuned: Mapping[str, object], cut: Container[tuple[object, object]]
) -> dict[str, object]:
    """Returns the entries of a fine-tuned config.json that the base's lacks or has otherwise.

    An entry that counts the rows of a tensor in `cut` (vocab_size) is left out: the base's rows are taken.
    """
    return {
        key: value
        for key, value in finetuned.items()
        if key not in _PROVENANCE_KEYS
        and (key not in base or base[key] != value)
        and not (type(value) is int and (base.get(key), value) in cut)
    }


def _same(base: Checkpoint, name: str, finetuned: Checkpoint, other: str) -> bool:
    one, two = base.tensors[name], finetuned.tensors[other]
    return one == two and torch.equal(base.read(name), finetuned.read(other))
