"""Parts a delta into a multiple of the base's weights and a rest: τ = f θ + rest. Source: docs/methods.md §4.

Weight decay shrinks all weights of a matrix alike (I. Loshchilov, F. Hutter 2019, "Decoupled Weight Decay
Regularization", arXiv 1711.05101). One number tells it; a sparse delta would spend most of its bits on it.
"""

from collections.abc import Iterator, Mapping
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray

from flexswitch.codecs.format.records import BaseIdentity, RawTensor, float32_scale
from flexswitch.codecs.sparse import FloatArray
from flexswitch.codecs.sums import steady_sum
from flexswitch.merging.checkpoints.checkpoint import Checkpoint, TensorInfo
from flexswitch.merging.checkpoints.dtypes import TORCH_DTYPES
from flexswitch.merging.compression.delta import Compressed
from flexswitch.merging.task_vectors.base_multiple import multiple_blocks
from flexswitch.merging.task_vectors.task_vector import TaskVector, block_ranges

_LEAST_SHARE = 0.2  # of a tensor's Σ |τ| that a multiple has to explain
_SAMPLE = 1 << 18  # entries of a tensor that the factor is fitted to, about
_ROUNDING = 2.0**-18  # of a weight that training has rounded in every step


class MultipleVector:
    """Multiples of a base's weights, and parts of a task vector that are settled, as a task vector.

    factors: tensor → f, float32 values. given: tensor → its part. The extras are the task vector's.
    """

    def __init__(
        self,
        base: Checkpoint,
        vector: TaskVector,
        factors: Mapping[str, float],
        given: Mapping[str, Compressed] = MappingProxyType({}),
    ) -> None:
        self.base, self._vector, self._factors, self._given = base, vector, factors, given
        self.source, self.parameters, self.hints = vector.source, vector.parameters, vector.hints
        self.model, self.extras, self.files = vector.model, vector.extras, vector.files

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """The tensors with a multiple or a part, by name."""
        names = {*self._factors, *self._given}
        return {name: info for name, info in self._vector.tensors.items() if name in names}

    def identity(self) -> BaseIdentity:
        """Returns which base it belongs to."""
        return self._vector.identity()

    def blocks(self, name: str, size: int | None = None) -> Iterator[FloatArray]:
        """Yields f θ of a tensor, and its part."""
        if name not in self._factors:
            return self._part(name, size)
        multiple = multiple_blocks(self.base, name, self._factors[name], size)
        return map(np.add, multiple, self._part(name, size)) if name in self._given else multiple

    def _part(self, name: str, size: int | None) -> Iterator[FloatArray]:
        values = self._given[name].values()
        return (values[start:stop] for start, stop in block_ranges(len(values), size))

    def exact(self, name: str) -> tuple[NDArray[np.int64], FloatArray]:
        """Returns nothing."""
        return np.empty(0, np.int64), np.empty(0, np.float32)

    def extra(self, name: str) -> RawTensor:
        """Returns one of the given vector's extras."""
        return self._vector.extra(name)


class RestVector(MultipleVector):
    """A task vector minus multiples of its base and settled parts.

    What is as small as the roundings of weights is 0, so that rows which decayed alone have not changed.
    """

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """All tensors of the task vector."""
        return self._vector.tensors

    def blocks(self, name: str, size: int | None = None) -> Iterator[FloatArray]:
        """Yields τ − f θ of a tensor, in float32, without its part."""
        rest = self._rest(name, size)
        return map(np.subtract, rest, self._part(name, size)) if name in self._given else rest

    def _rest(self, name: str, size: int | None) -> Iterator[FloatArray]:
        if name not in self._factors:
            yield from self._vector.blocks(name, size)
            return
        rounding = max(_ROUNDING, torch.finfo(TORCH_DTYPES[self.tensors[name].dtype]).eps)
        least = rounding / abs(self._factors[name])  # of |f θ|
        multiples = multiple_blocks(self.base, name, self._factors[name], size)
        for delta, multiple in zip(self._vector.blocks(name, size), multiples, strict=True):
            rest = delta - multiple
            rest[np.abs(rest) <= least * np.abs(multiple)] = 0
            yield rest


def fitted_factors(base: Checkpoint, vector: TaskVector) -> dict[str, float]:
    """Returns the factors of the matrices of which a multiple of the base's weights explains much."""
    matrices = [name for name, info in vector.tensors.items() if len(info.shape) > 1]
    fitted = {name: fitted_factor(base, vector, name) for name in matrices}
    return {name: factor for name, factor in fitted.items() if factor}


def fitted_factor(base: Checkpoint, vector: TaskVector, name: str) -> float:
    """Returns the f of least Σ |τ − f θ|, a float32; 0 where f θ explains too little of it.

    It is a median, so that rows which decayed alone have no rest although others moved far. About 2^18
    entries decide, evenly spaced. Tensors with weights that are not finite have none.
    """
    step = max(1, vector.tensors[name].entries // _SAMPLE)
    weights, delta, start = [], [], 0
    for block in vector.blocks(name):
        stop = start + len(block)
        chosen, numbers = slice(-start % step, None, step), base.read(name, start, stop).to(torch.float32)
        if not bool(numbers.isfinite().all()):
            return 0.0
        delta.append(block[chosen].astype(np.float64))
        weights.append(numbers.to(torch.float64).numpy()[chosen])
        start = stop
    before, moved = (np.concatenate([np.empty(0), *parts]) for parts in (weights, delta))
    factor = float32_scale(_weighted_median(before, moved))
    rest, whole = (steady_sum([np.abs(each)]) for each in (moved - factor * before, moved))
    return factor if rest <= (1 - _LEAST_SHARE) * whole else 0.0


def _weighted_median(weights: NDArray[np.float64], moved: NDArray[np.float64]) -> float:
    """Returns the median of moved / weights, in which each counts as much as the size of its weight."""
    usable = weights != 0
    ratios, sizes = moved[usable] / weights[usable], np.abs(weights[usable])
    if not len(ratios):
        return 0.0
    order = np.argsort(ratios, kind="stable")
    below = np.cumsum(sizes[order])
    return float(ratios[order][np.searchsorted(below, below[-1] / 2)])
