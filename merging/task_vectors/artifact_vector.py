"""The task vector that an artifact decodes to."""

import math
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flexswitch.codecs.format.container import Artifact
from flexswitch.codecs.format.records import BaseIdentity, PartRecord, RawTensor
from flexswitch.codecs.format.tensor_names import is_side_file
from flexswitch.codecs.sparse import FloatArray
from flexswitch.merging.checkpoints.checkpoint import Checkpoint, TensorInfo
from flexswitch.merging.checkpoints.floating import is_floating
from flexswitch.merging.task_vectors.apply import Addend
from flexswitch.merging.task_vectors.base_multiple import multiple_blocks
from flexswitch.merging.task_vectors.exact_tensors import exact_delta, exact_numbers, number_bytes
from flexswitch.merging.task_vectors.factors import product_blocks
from flexswitch.merging.task_vectors.reading_hints import ReadingHints
from flexswitch.merging.task_vectors.side_files import read_files
from flexswitch.merging.task_vectors.task_vector import block_ranges


class ArtifactVector:
    """The task vector that an artifact decodes to.

    weights: the base, by whose numbers tensors are decoded that are stored exactly or contain a multiple of
    the base's. Integers that are stored exactly count as the task's own.
    """

    def __init__(self, artifact: Artifact, weights: Checkpoint | None = None) -> None:
        self.artifact = artifact
        self._weights = weights
        self.hints = ReadingHints((artifact.path,))
        self.source = str(artifact.path)
        self.model = artifact.header.model
        self.parameters = artifact.header.parameters
        header = artifact.header
        exact = {name: TensorInfo(each.dtype, tuple(each.shape)) for name, each in header.exact.items()}
        deltas = {name: info for name, info in exact.items() if is_floating(info.dtype) and info.shape}
        self._own = {self.model.finetuned_name(name): name for name in exact if name not in deltas}
        coded = {name: TensorInfo(each.dtype, tuple(each.shape)) for name, each in header.tensors.items()}
        own = {
            name: TensorInfo(each.dtype, tuple(each.shape))
            for name, each in header.extras.items()
            if not is_side_file(name)
        }
        self.tensors = dict(sorted((coded | deltas).items()))
        self.extras = own | {name: exact[inside] for name, inside in self._own.items()}

    @property
    def files(self) -> Mapping[str, bytes]:
        """The files beside the weights. Raises: ArtifactError if they are damaged or may not be written."""
        records = {name: each for name, each in self.artifact.header.extras.items() if is_side_file(name)}
        return read_files(
            self.source, {name: math.prod(each.shape) for name, each in records.items()}, self.extra
        )

    def identity(self) -> BaseIdentity:
        """Returns the identity of the base it was made from."""
        return self.artifact.header.base

    def blocks(self, name: str, size: int | None = None) -> Iterator[FloatArray]:
        """Yields a tensor's reconstructed delta, decoding one stored block at a time. Raises: DecodeError."""
        if name in self.artifact.header.exact:
            yield from exact_delta(self.artifact, self._base(), name, size)
            return
        parts = [self._part(name, number, size) for number in range(len(self._parts(name)))]
        if factor := self.base_factor(name):
            parts.append(multiple_blocks(self._base(), name, factor, size))
        for first, *others in zip(*parts, strict=True):
            total = first
            for other in others:
                with np.errstate(over="ignore", invalid="ignore"):  # beyond float32, infinities
                    total = total + other
            yield total

    def is_sparse(self, name: str) -> bool:
        """Returns whether a tensor's kept entries are those of its delta, and not of factors or of parts."""
        return self.has_entries(name) and not self.base_factor(name)

    def has_entries(self, name: str) -> bool:
        """Returns whether a tensor's kept entries are those of its delta without a multiple of the base's."""
        if self.is_exact(name):
            return False
        first, *others = self._parts(name)
        return first.rank is None and not others

    def is_low_rank(self, name: str) -> bool:
        """Returns whether a part of a tensor is the product of two thin matrices."""
        return not self.is_exact(name) and any(part.rank is not None for part in self._parts(name))

    def thin_factors(self, name: str) -> list[tuple[FloatArray, FloatArray]]:
        """Returns A·diag(weights), (row, rank), and B, (column, rank), of each such part.

        Raises: DecodeError.
        """
        found = []
        for number, record in enumerate(self._parts(name)):
            if record.rank is not None:
                factors, rows = self._factors(name, number), record.shape[0]
                weights = np.array(record.weights or [1.0] * record.rank, np.float32)
                found.append((factors[:rows] * weights, factors[rows:]))
        return found

    def base_factor(self, name: str) -> float:
        """Returns the factor of the base's tensor that a tensor contains, 0 if it contains none."""
        return 0.0 if self.is_exact(name) else self.artifact.header.tensors[name].base_factor

    def base_tensor(self, name: str) -> Tensor:
        """Returns the base's tensor, flat; what a model in memory holds is not copied."""
        return self._base().read(name)

    def addend(self, name: str, lambda_: float) -> Addend:
        """Returns λ times a sparse tensor's delta, to be added in place. Raises: DecodeError."""
        return Addend(self.artifact, name, lambda_)

    def _parts(self, name: str) -> list[PartRecord]:
        return self.artifact.header.tensors[name].parts

    def _part(self, name: str, number: int, size: int | None) -> Iterator[FloatArray]:
        """Yields the values of one of a tensor's parts, flat. Raises: DecodeError."""
        record, addend = self._parts(name)[number], Addend(self.artifact, name, 1.0, number)
        if record.rank is not None:
            yield from product_blocks(self._factors(name, number), record.shape[0], record.weights, size)
            return
        for start, stop in block_ranges(self.tensors[name].entries, size):
            block = torch.zeros(stop - start)
            addend.add_to(block)
            yield block.numpy()

    def _factors(self, name: str, number: int) -> FloatArray:
        """Returns the two factors of a low-rank part, one above the other. Raises: DecodeError."""
        record = self._parts(name)[number]
        factors = torch.zeros(record.layout.entries)
        Addend(self.artifact, name, 1.0, number).add_to(factors)
        return factors.numpy().reshape(record.stored_shape)

    def is_exact(self, name: str) -> bool:
        """Returns whether a tensor is stored exactly."""
        return name in self.artifact.header.exact

    def numbers(self, name: str) -> Iterator[Tensor]:
        """Yields the fine-tuned numbers of a tensor that is stored exactly, flat. Raises: DecodeError."""
        return exact_numbers(self.artifact, self._base(), name)

    def exact(self, name: str) -> tuple[NDArray[np.int64], FloatArray]:
        """Returns nothing: an artifact holds no corrections."""
        return np.empty(0, np.int64), np.empty(0, np.float32)

    def extra(self, name: str) -> RawTensor:
        """Returns one of the extras. Raises: DecodeError."""
        if name not in self._own:
            return self.artifact.extra(name)
        info = self.extras[name]
        data = [number_bytes(numbers, info.dtype) for numbers in self.numbers(self._own[name])]
        return RawTensor(info.dtype, info.shape, b"".join(data))

    def _base(self) -> Checkpoint:
        if self._weights is None:
            raise ValueError(f"{self.source}: only the base's weights decode its tensors")
        return self._weights
