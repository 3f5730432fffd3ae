"""The task vector between two checkpoints, computed as it is read."""

from collections.abc import Iterator, Mapping
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from flexswitch.codecs.format.records import BaseIdentity, RawTensor
from flexswitch.codecs.sparse import FloatArray
from flexswitch.merging.checkpoints.alignment import aligned
from flexswitch.merging.checkpoints.checkpoint import Checkpoint, TensorInfo
from flexswitch.merging.checkpoints.config import read_config
from flexswitch.merging.checkpoints.fingerprint import identify
from flexswitch.merging.checkpoints.pairing import EVERYTHING, Headers, Selection, pair
from flexswitch.merging.task_vectors.model_changes import cut_rows, model_record
from flexswitch.merging.task_vectors.raw_tensors import raw_tensor
from flexswitch.merging.task_vectors.reading_hints import pair_hints
from flexswitch.merging.task_vectors.side_files import changed_files
from flexswitch.merging.task_vectors.stored_weights import StoredWeights, changed_tensors


class CheckpointPair:
    """The task vector between two open checkpoints; computed as it is read.

    With a `HashingCheckpoint` as the base, `identity` does not read again what `blocks` has read.
    """

    def __init__(self, base: Checkpoint, finetuned: Checkpoint, selection: Selection = EVERYTHING) -> None:
        finetuned, are_known = aligned(base, finetuned)
        base_headers = Headers(base.source, base.tensors, base.aliases)
        headers = Headers(finetuned.source, finetuned.tensors, finetuned.aliases, are_known)
        pairing = pair(base_headers, headers, selection)
        self.source = finetuned.source
        self.base = base
        self.notes = [*base.notes, *finetuned.notes, *pairing.notes]
        self.tensors = {
            name: TensorInfo(finetuned.tensors[other].dtype, base.tensors[name].shape)
            for name, other in pairing.tensors.items()
        }
        self.parameters = sum(info.entries for info in self.tensors.values())
        self.model = model_record(base_headers, headers, pairing, read_config(base), read_config(finetuned))
        self._directories = base.directory, finetuned.directory
        self._cut = cut_rows(base_headers, headers, pairing)
        self.finetuned, self._pairing = finetuned, pairing
        self._weights = StoredWeights(base, finetuned, self.counterparts, self.source)
        self.hints = pair_hints(base, finetuned, self._weights.read_ahead, self._weights.sample)

    @property
    def counterparts(self) -> Mapping[str, str]:
        """The tensors, buffers among them, that both checkpoints hold: base name → fine-tuned name."""
        return self._pairing.tensors | self._pairing.buffers

    @cached_property
    def extras(self) -> Mapping[str, TensorInfo]:
        """The checkpoint's own tensors, and the buffers that differ from the base's."""
        buffers = self._pairing.buffers
        changed = [buffers[name] for name in changed_tensors(self.base, self.finetuned, buffers)]
        return {name: self.finetuned.tensors[name] for name in sorted({*self._pairing.extras, *changed})}

    @cached_property
    def files(self) -> Mapping[str, bytes]:
        """The small files beside the weights that differ from the base's. Raises: InputError."""
        return changed_files(*self._directories, self._cut)

    def identity(self) -> BaseIdentity:
        """Returns the base's identity; reads every tensor of it whose digest is not known."""
        return identify(self.base)

    def blocks(self, name: str, size: int | None = None) -> Iterator[FloatArray]:
        """Yields a tensor's delta. Raises: InputError if it is not finite."""
        return self._weights.blocks(name, size)

    def exact(self, name: str) -> tuple[NDArray[np.int64], FloatArray]:
        """Returns positions and float32 values of the weights that base + delta misses."""
        return self._weights.exact(name)

    def extra(self, name: str) -> RawTensor:
        """Returns a tensor of the fine-tuned checkpoint."""
        return raw_tensor(self.finetuned, name)
