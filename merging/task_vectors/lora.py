"""The task vector of a PEFT LoRA directory: scaling · B A of each target, expanded as it is read.

What can't be expanded exactly is refused by name. Source: peft's tuners/lora/layer.py (get_delta_weight),
tuners/lora/model.py (rank and scaling of a module), utils/save_and_load.py (names of tensors).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flexswitch.codecs.errors import InputError
from flexswitch.codecs.sparse import FloatArray
from flexswitch.merging.checkpoints.checkpoint import Checkpoint, TensorInfo
from flexswitch.merging.checkpoints.dtypes import is_floating
from flexswitch.merging.checkpoints.opening import locate
from flexswitch.merging.checkpoints.pairing import EVERYTHING, Selection
from flexswitch.merging.task_vectors.checkpoint_pair import CheckpointPair
from flexswitch.merging.task_vectors.lora_adapter import open_adapter
from flexswitch.merging.task_vectors.lora_targets import Target, find_targets, refuse_half_tied
from flexswitch.merging.task_vectors.task_vector import block_ranges

_Rows = NDArray[np.float64]

TILE_ENTRIES = 1 << 15  # summed at once, so that the sums stay in the processor's cache


@dataclass
class _Excerpt:
    """Some tensors of a checkpoint; `stored` maps those that got another name to the checkpoint's."""

    source: str
    directory: Path | None
    whole: Checkpoint
    stored: Mapping[str, str]
    tensors: Mapping[str, TensorInfo]
    aliases: Mapping[str, str]
    hub_id: str | None = None

    @property
    def files(self) -> Sequence[Path]:
        """The files of the checkpoint."""
        return self.whole.files

    def read_ahead(self, name: str) -> None:
        """Asks the system to have a tensor's bytes in memory soon."""
        self.whole.read_ahead(self.stored.get(name, name))

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Returns entries [start, stop) of a tensor, flat, in its own dtype."""
        return self.whole.read(self.stored.get(name, name), start, stop)


class LoraVector(CheckpointPair):
    """The task vector of a PEFT LoRA directory on an open base.

    units holds the targets and those tensors of the base that were saved whole (biases,
    `modules_to_save`): nothing else changes, and a unit that is left out decodes to zeros.
    """

    def __init__(self, base: Checkpoint, source: str, selection: Selection = EVERYTHING) -> None:
        directory = locate(source)[0]
        adapter = open_adapter(base, source, directory, selection)
        targets = find_targets(base, adapter)
        names = adapter.base_names
        infos = {name: base.tensors[names[name]] for name in adapter.factors if name in names}
        infos |= {name: adapter.stored[key] for name, key in adapter.whole.items()}
        refuse_half_tied(base, adapter, infos)
        touched = {
            name: base.tensors[name] for name in sorted({names[name] for name in infos if name in names})
        }
        home = directory if (directory / "config.json").is_file() else base.directory
        super().__init__(
            _Excerpt(base.source, base.directory, base, {}, touched, base.aliases),
            _Excerpt(source, home, adapter.checkpoint, adapter.whole, dict(sorted(infos.items())), {}),
            selection,
        )
        self._adapter = adapter.checkpoint
        self.base = base
        self._targets = {names[name]: target for name, target in targets.items()}
        self.parameters = sum(
            info.entries
            for name, info in base.tensors.items()
            if info.shape and is_floating(info.dtype) and selection.takes(name)
        )

    def blocks(self, unit: str) -> Iterator[FloatArray]:
        """Yields a unit's delta. Raises: InputError where it is not finite."""
        return self._expand(unit, self._targets[unit]) if unit in self._targets else super().blocks(unit)

    def read_ahead(self, unit: str) -> None:
        """Asks the system to have a unit's bytes in memory soon; a target's factors are small."""
        if unit not in self._targets:
            super().read_ahead(unit)

    def is_cheap(self, unit: str) -> bool:
        """Returns False for a target, whose factors are multiplied each time."""
        return unit not in self._targets

    def exact(self, unit: str) -> tuple[NDArray[np.int64], FloatArray]:
        """Returns nothing for a target, and for a tensor saved whole the weights that rounding would miss."""
        if unit in self._targets:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        return super().exact(unit)

    def _expand(self, unit: str, target: Target) -> Iterator[FloatArray]:
        """Yields float32(scaling · B A), summed over the rank in float64 and rounded once."""
        a = self._adapter.read(target.a).to(torch.float64).reshape(target.rank, -1)
        b = self._adapter.read(target.b).to(torch.float64).reshape(-1, target.rank).T.contiguous()
        left, right = (a.numpy(), b.numpy()) if target.transposed else (b.numpy(), a.numpy())
        columns = right.shape[1]
        for start, stop in block_ranges(self.base.tensors[unit].entries):
            first, last = start // columns, -(-stop // columns)  # the rows that the block touches
            with np.errstate(over="ignore", invalid="ignore"):  # told below
                rows = _product(left, right, first, last).reshape(-1)
                total = rows[start - first * columns : stop - first * columns] * target.scaling
                if target.weight is not None:
                    total += self._saved_minus_base(target.weight, unit, start, stop)
                delta = total.astype(np.float32)
            if not np.isfinite(delta).all():
                raise InputError(
                    f"{self.source}: the delta of tensor '{unit}' is not finite near entry {start:,}; "
                    "the adapter holds NaN, infinite or far too large weights"
                )
            yield delta

    def _saved_minus_base(self, saved: str, unit: str, start: int, stop: int) -> _Rows:
        one, other = self._adapter.read(saved, start, stop), self.base.read(unit, start, stop)
        difference: _Rows = one.to(torch.float32).to(torch.float64).sub(other.to(torch.float32)).numpy()
        return difference


def _product(left: _Rows, right: _Rows, first: int, last: int) -> _Rows:
    """Returns rows [first, last) of leftᵀ · right; left: (rank, rows), right: (rank, columns).

    Summed term by term, so that an entry's bytes depend on neither threads nor the borders of blocks.
    """
    total = np.zeros((last - first, right.shape[1]))
    step = max(1, TILE_ENTRIES // right.shape[1])
    for start in range(0, last - first, step):
        tile = total[start : start + step]
        columns = left[:, first + start :][:, : len(tile), None]  # (rank, rows of the tile, 1)
        for column, row in zip(columns, right, strict=True):
            tile += column * row
    return total
