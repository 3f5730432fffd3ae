"""Input and output of a compression method: a tensor's delta in blocks, and its kept entries."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flexswitch.codecs.sparse import LEVEL_DTYPES, FloatArray, Levels, SparseTensor
from flexswitch.merging.task_vectors.factors import product_blocks


@dataclass(frozen=True)
class Delta:
    """The change of one tensor. `read` returns its flat float32 blocks in order and can be called again.

    Every block but the last has a multiple of 8 entries. Random draws depend on a seed, the task and the
    tensor's name only. sample: returns pieces from all over the tensor, (pieces, entries), where that is much
    quicker than `read`; else None.
    """

    name: str
    shape: tuple[int, ...]
    read: Callable[[], Iterable[FloatArray]]
    task: str = ""
    sample: Callable[[], FloatArray] | None = None


class Squares(NamedTuple):
    """Σ (τ − τ̂)² and Σ τ² over the entries of a tensor, in float64."""

    error: float
    total: float


@dataclass(frozen=True, eq=False)
class Compressed:
    """The kept entries of a tensor, the float32 scale of their levels, and its zero point, if it has one.

    shape: of the matrix whose two factors are kept, one above the other; None for the tensor itself.
    weights: of the factors' columns, float32, (rank,); None for 1. more: further parts, which are added.
    base_factor: times which the base's tensor is added, a float32. squares: how far it is from the delta,
    where the method finds that on its way; else None.
    """

    sparse: SparseTensor
    scale: float
    zero: int | None = None
    shape: tuple[int, ...] | None = None
    weights: tuple[float, ...] | None = None
    more: tuple["Compressed", ...] = ()
    base_factor: float = 0.0
    squares: Squares | None = None

    @property
    def parts(self) -> tuple["Compressed", ...]:
        """All parts, this first."""
        return (self, *self.more)

    def values(self) -> FloatArray:
        """Returns what it decodes to, flat."""
        return sum((_values(part) for part in self.more), _values(self))


def _values(part: Compressed) -> FloatArray:
    stored = np.concatenate([np.empty(0, np.float32), *part.sparse.dense_blocks(part.scale, zero=part.zero)])
    if part.shape is None:
        return stored
    matrix = stored.reshape(part.sparse.shape)
    return np.concatenate(list(product_blocks(matrix, part.shape[0], part.weights)))


def assemble(
    shape: tuple[int, ...], masks: list[NDArray[np.uint8]], levels: list[Levels], bits: int
) -> SparseTensor:
    """Returns the sparse tensor of packed mask blocks and level blocks."""
    mask = np.concatenate(masks) if masks else np.empty(0, np.uint8)
    joined = np.concatenate(levels) if levels else np.empty(0, LEVEL_DTYPES[bits])
    return SparseTensor(shape, mask, joined.astype(LEVEL_DTYPES[bits], copy=False), bits)
