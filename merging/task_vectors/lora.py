"""The task vector of a PEFT LoRA directory: scaling · B A of each target, expanded as it is read.

Whatever cannot be expanded exactly is refused. Source: peft's tuners/lora/layer.py (get_delta_weight),
tuners/lora/model.py (rank and scaling of a module), utils/save_and_load.py (names of tensors).
"""

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from flexswitch.codecs.errors import InputError
from flexswitch.codecs.format.records import BaseIdentity, RawTensor
from flexswitch.codecs.sparse import FloatArray
from flexswitch.merging.checkpoints.checkpoint import Checkpoint, TensorInfo
from flexswitch.merging.checkpoints.config import read_config, read_json_object
from flexswitch.merging.checkpoints.fingerprint import identify
from flexswitch.merging.checkpoints.floating import is_floating
from flexswitch.merging.checkpoints.opening import ADAPTER_CONFIG, Location
from flexswitch.merging.checkpoints.pairing import EVERYTHING, Headers, Selection, pair
from flexswitch.merging.task_vectors.lora_adapter import open_adapter
from flexswitch.merging.task_vectors.lora_targets import Target, find_targets, refuse_half_tied
from flexswitch.merging.task_vectors.model_changes import cut_rows, model_record
from flexswitch.merging.task_vectors.raw_tensors import raw_tensor
from flexswitch.merging.task_vectors.reading_hints import pair_hints
from flexswitch.merging.task_vectors.side_files import changed_files
from flexswitch.merging.task_vectors.stored_weights import StoredWeights, changed_tensors
from flexswitch.merging.task_vectors.task_vector import block_ranges

_Rows = NDArray[np.float64]

TILE_ENTRIES = 1 << 15  # added up at a time, so that the sums stay in the processor's cache


class LoraVector:
    """The task vector of a PEFT LoRA directory on an open base.

    `tensors` holds the targets, and those tensors of the base that the adapter stores whole (biases,
    `modules_to_save`).
    """

    def __init__(self, base: Checkpoint, place: Location, selection: Selection = EVERYTHING) -> None:
        adapter = open_adapter(base, place.source, place.path, selection)
        targets = find_targets(base, adapter)
        names = adapter.base_names
        infos = {name: base.tensors[names[name]] for name in adapter.factors if name in names}
        infos |= {name: adapter.stored[key] for name, key in adapter.whole.items()}
        refuse_half_tied(base, adapter, infos)
        touched = sorted({names[name] for name in infos if name in names})
        base_headers = Headers(base.source, {name: base.tensors[name] for name in touched}, base.aliases)
        headers = Headers(place.source, dict(sorted(infos.items())), {})
        pairing = pair(base_headers, headers, selection)
        self.source = place.source
        self.base = base
        self.notes = [*base.notes, *pairing.notes, *_other_adapters(place.path)]
        self.tensors = {
            name: TensorInfo(infos[other].dtype, base.tensors[name].shape)
            for name, other in pairing.tensors.items()
        }
        self.parameters = sum(
            info.entries
            for name, info in base.tensors.items()
            if info.shape and is_floating(info.dtype) and selection.takes(name)
        )
        config_path = place.path / "config.json"
        config = read_json_object(config_path) if config_path.is_file() else {}
        self.model = model_record(base_headers, headers, pairing, read_config(base), config)
        self._directories = base.directory, place.path
        self._cut = cut_rows(base_headers, headers, pairing)
        self._adapter, self._pairing = adapter, pairing
        self._targets = {names[name]: target for name, target in targets.items()}
        whole = {
            name: adapter.stored_name(other)
            for name, other in pairing.tensors.items()
            if name not in self._targets
        }
        self._whole = StoredWeights(base, adapter.checkpoint, whole, self.source)
        self.hints = pair_hints(base, adapter.checkpoint, self._read_ahead)

    @cached_property
    def extras(self) -> Mapping[str, TensorInfo]:
        """The adapter's own tensors, and the buffers that differ from the base's."""
        adapter, buffers = self._adapter, self._pairing.buffers
        stored = {name: adapter.stored_name(other) for name, other in buffers.items()}
        changed = [buffers[name] for name in changed_tensors(self.base, adapter.checkpoint, stored)]
        names = sorted({*self._pairing.extras, *changed})
        return {name: adapter.stored[adapter.whole[name]] for name in names}

    @cached_property
    def files(self) -> Mapping[str, bytes]:
        """The small files beside the weights that differ from the base's. Raises: InputError."""
        return changed_files(*self._directories, self._cut)

    def identity(self) -> BaseIdentity:
        """Returns the base's identity; reads every tensor of it whose digest is not known."""
        return identify(self.base)

    def blocks(self, name: str, size: int | None = None) -> Iterator[FloatArray]:
        """Yields a tensor's delta. Raises: InputError if it is not finite."""
        if name in self._targets:
            return self._expand(name, self._targets[name], size)
        return self._whole.blocks(name, size)

    def exact(self, name: str) -> tuple[NDArray[np.int64], FloatArray]:
        """Returns the fine-tuned weights that base + delta misses; of a target none are known."""
        if name in self._targets:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        return self._whole.exact(name)

    def extra(self, name: str) -> RawTensor:
        """Returns a tensor that the adapter stores whole."""
        return raw_tensor(self._adapter.checkpoint, self._adapter.stored_name(name))

    def _read_ahead(self, name: str) -> None:
        if name not in self._targets:  # a target's factors are small
            self._whole.read_ahead(name)

    def _expand(self, name: str, target: Target, size: int | None) -> Iterator[FloatArray]:
        """Yields float32(scaling · B A), summed over the rank in float64 and rounded once."""
        a = self._adapter.checkpoint.read(target.a).to(torch.float64).reshape(target.rank, -1)
        b = self._adapter.checkpoint.read(target.b).to(torch.float64).reshape(-1, target.rank).T.contiguous()
        left, right = (a.numpy(), b.numpy()) if target.transposed else (b.numpy(), a.numpy())
        columns = right.shape[1]
        for start, stop in block_ranges(self.base.tensors[name].entries, size):
            first, last = start // columns, -(-stop // columns)  # the rows that the block touches
            with np.errstate(over="ignore", invalid="ignore"):  # checked below
                rows = _product(left, right, first, last).reshape(-1)
                total = rows[start - first * columns : stop - first * columns] * target.scaling
                if target.weight is not None:
                    total += self._saved_minus_base(target.weight, name, start, stop)
                delta = total.astype(np.float32)
            if not np.isfinite(delta).all():
                raise InputError(
                    f"{self.source}: the delta of tensor '{name}' is not finite near entry {start:,}; "
                    "the adapter holds NaN, infinite or far too large weights"
                )
            yield delta

    def _saved_minus_base(self, saved: str, name: str, start: int, stop: int) -> _Rows:
        one, other = self._adapter.checkpoint.read(saved, start, stop), self.base.read(name, start, stop)
        difference: _Rows = one.to(torch.float32).to(torch.float64).sub(other.to(torch.float32)).numpy()
        return difference


def _other_adapters(directory: Path) -> list[str]:
    """Returns a note on further adapters in folders of an adapter's directory, none if there are none."""
    others = sorted(path.parent.name for path in directory.glob(f"*/{ADAPTER_CONFIG}"))
    return [f"{directory}: its other adapters are left out: {', '.join(others)}"] if others else []


def _product(left: _Rows, right: _Rows, first: int, last: int) -> _Rows:
    """Returns rows [first, last) of leftᵀ · right; left: (rank, rows), right: (rank, columns).

    Summed term by term, so that an entry does not depend on threads or block boundaries.
    """
    total = np.zeros((last - first, right.shape[1]))
    step = max(1, TILE_ENTRIES // right.shape[1])
    for start in range(0, last - first, step):
        tile = total[start : start + step]
        columns = left[:, first + start :][:, : len(tile), None]  # (rank, rows of the tile, 1)
        for column, row in zip(columns, right, strict=True):
            tile += column * row
    return total
