"""Checkpoints whose tensors with a row for each token have those of one vocabulary, common to all models."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flexswitch.codecs.errors import InputError
from flexswitch.merging.checkpoints.checkpoint import Checkpoint, TensorInfo
from flexswitch.merging.checkpoints.dtypes import DTYPE_NAMES, TORCH_DTYPES
from flexswitch.merging.checkpoints.token_rows import LACKING, Place, TokenRows

_READ_ENTRIES = 1 << 18


@dataclass(frozen=True, eq=False)
class VocabularyTensors:
    """A checkpoint, and which of its tensors have a row for each token: name → kind.

    tied: further names of such tensors, which the checkpoint does not hold → the tensor they are tied to.
    """

    checkpoint: Checkpoint
    kinds: Mapping[str, str]
    tied: Mapping[str, str]

    def name_of(self, kind: str) -> str | None:
        """Returns the tensor of a kind, None if the model has none."""
        return next((name for name, own in self.kinds.items() if own == kind), None)

    def info(self, name: str) -> TensorInfo:
        """Returns the form of a tensor of any kind."""
        return self.checkpoint.tensors[self.tied.get(name, name)]

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Returns entries [start, stop) of a tensor of any kind."""
        return self.checkpoint.read(self.tied.get(name, name), start, stop)


class VocabularyCheckpoint:
    """One of several checkpoints, with the rows of the common vocabulary.

    models: all of them, of which it is the one of this number. rows: kind of tensor → its rows. dtype: of
    these tensors, None for that which holds all models' values; means are computed in float32.
    """

    def __init__(
        self,
        models: Sequence[VocabularyTensors],
        number: int,
        rows: Mapping[str, TokenRows],
        dtype: torch.dtype | None,
    ) -> None:
        own = models[number].checkpoint
        self.source, self.directory, self.hub_id = own.source, own.directory, own.hub_id
        self.files, self.notes, self.aliases = own.files, own.notes, own.aliases
        self._own = own
        self._readers = {
            name: _RowReader(models, number, name, rows[kind], dtype)
            for name, kind in models[number].kinds.items()
        }
        changed = {name: reader.info for name, reader in self._readers.items()}
        self.tensors = dict(sorted({**own.tensors, **changed}.items()))

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Returns entries [start, stop) of a tensor, flat, in its own dtype."""
        if name not in self._readers:
            return self._own.read(name, start, stop)
        reader = self._readers[name]
        stop = reader.info.entries if stop is None else stop
        first, last = start // reader.width, -(-stop // reader.width)
        return reader.read(first, last)[start - first * reader.width : stop - first * reader.width]

    def read_ahead(self, name: str) -> None:
        """Asks the system to have a tensor's bytes in memory soon."""
        if name in self._own.tensors:
            self._own.read_ahead(name)


class _RowReader:
    """Reads the rows of one tensor of one model."""

    def __init__(
        self,
        models: Sequence[VocabularyTensors],
        number: int,
        name: str,
        rows: TokenRows,
        dtype: torch.dtype | None,
    ) -> None:
        self._models, self._number, self._rows = models, number, rows
        kind = models[number].kinds[name]
        self._names = [
            name if each is models[number] else each.name_of(kind) for each in models
        ]  # of several of the kind, its own
        forms = [
            each.info(other) for each, other in zip(models, self._names, strict=True) if other is not None
        ]
        self._dtype = common_dtype(forms) if dtype is None else dtype
        shape = models[number].info(name).shape
        self.info = TensorInfo(DTYPE_NAMES[self._dtype], (rows.count, *shape[1:]))
        self.width = self.info.entries // rows.count
        self._check_shapes(shape)

    def read(self, first: int, last: int) -> Tensor:
        """Returns rows [first, last), flat."""
        end = min(last, self._rows.tokens)
        found = torch.zeros(max(0, last - first), self.width, dtype=self._dtype)
        own = self._rows.own[self._number]
        for start, stop in _runs(own[first:end]):
            row = int(own[first + start])
            found[start:stop] = self._read(self._number, row, row + stop - start)
        for row in range(first, end):
            if own[row] == LACKING and self._rows.others.get(row):
                found[row - first] = self._mean(self._rows.others[row])
        if last > self._rows.tokens:
            found[max(0, self._rows.tokens - first) :] = self._mean_of_tokens
        return found.reshape(-1)

    def _read(self, model: int, first: int, last: int) -> Tensor:
        """Returns rows [first, last) of a model's own tensor, (row, width)."""
        name = self._names[model]
        if name is None:
            raise ValueError("a place is in a tensor that its model has")
        entries = self._models[model].read(name, first * self.width, last * self.width)
        return entries.to(self._dtype).reshape(-1, self.width)

    def _mean(self, places: Sequence[Place]) -> Tensor:
        rows = [self._read(model, row, row + 1)[0] for model, row in places]
        return rows[0] if len(rows) == 1 else torch.stack(rows).to(torch.float32).mean(0)

    @cached_property
    def _mean_of_tokens(self) -> Tensor:
        """The mean of all tokens' rows, float64 (width,)."""
        total, step = torch.zeros(self.width, dtype=torch.float64), max(1, _READ_ENTRIES // self.width)
        for first in range(0, self._rows.tokens, step):
            block = self.read(first, min(self._rows.tokens, first + step))
            total += block.reshape(-1, self.width).to(torch.float64).sum(0)
        return total / self._rows.tokens

    def _check_shapes(self, shape: tuple[int, ...]) -> None:
        """Raises: InputError where models have rows of another width, or lack rows that are read."""
        for number, (each, name) in enumerate(zip(self._models, self._names, strict=True)):
            if name is None:
                continue
            found, needed = each.info(name).shape, self._rows.rows_read(number)
            if found[1:] != shape[1:] or found[0] < needed:
                wanted = ", ".join([f"at least {needed:,}", *map(str, shape[1:])])
                raise InputError(
                    f"{each.checkpoint.source}: tensor '{name}' has the shape {list(found)}, expected "
                    f"[{wanted}] for the tokens of the common vocabulary"
                )


def common_dtype(tensors: Sequence[TensorInfo]) -> torch.dtype:
    """Returns the dtype that holds all values of some floating tensors."""
    found = TORCH_DTYPES[tensors[0].dtype]
    for info in tensors[1:]:
        found = torch.promote_types(found, TORCH_DTYPES[info.dtype])
    return found


def _runs(rows: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Yields [start, stop) of each run of rows that follow one another in the model's own tensor."""
    held = np.flatnonzero(rows != LACKING)
    ends = np.flatnonzero((np.diff(held) != 1) | (np.diff(rows[held]) != 1)) + 1
    for part in np.split(held, ends) if len(held) else ():
        yield int(part[0]), int(part[-1]) + 1
