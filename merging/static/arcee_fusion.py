"""Arcee Fusion: the base takes those entries of a second model whose change is unusually important.

Source: the method `arcee_fusion` of mergekit; docs/methods.md §6.20.
"""

from collections.abc import Iterator
from functools import partial as bind

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flexswitch.codecs.sparse import FloatArray
from flexswitch.merging.static.order_statistic import of_ranks
from flexswitch.merging.static.task_deltas import Block, Combination, TensorDeltas

_FLOOR = 1e-8  # added to each probability
_QUARTILES = (0.25, 0.5, 0.75)


def arcee_fusion(deltas: TensorDeltas) -> Combination:
    """Returns the delta of one task where |τ| times its row's divergence exceeds the tensor's usual range.

    The divergence is that of the softmax of the row (along the last dimension) from the base's, and the range
    ends at the median plus 1.5 interquartile ranges, which are exact for tensors of any size.
    """
    columns = deltas.shape[-1]
    divergences = np.concatenate([_divergence(base, deltas_) for base, deltas_ in _rows(deltas, columns)])
    important = bind(_importance, divergences, columns)

    def read() -> Iterator[FloatArray]:
        return (important(block).numpy() for block in deltas.blocks())

    # In rising order, of n entries the one with the number ⌊q · (n − 1)⌋, counted from 0.
    ranks = [deltas.entries - int(quartile * (deltas.entries - 1)) for quartile in _QUARTILES]
    first, median, third = of_ranks(read, ranks)
    least = median + 1.5 * (third - first)
    return Combination(lambda block: torch.where(important(block) >= least, block.deltas[0], 0.0))


def _importance(divergences: NDArray[np.float64], columns: int, block: Block) -> Tensor:
    """Returns |τ| times the divergence of its row, float32 (entry,)."""
    rows = np.arange(block.start, block.start + len(block.base)) // columns
    magnitudes = block.deltas[0].abs().numpy().astype(np.float64)
    return torch.from_numpy((magnitudes * divergences[rows]).astype(np.float32))


def _rows(deltas: TensorDeltas, columns: int) -> Iterator[tuple[FloatArray, FloatArray]]:
    """Yields whole rows of the base and of the delta, (row, column)."""
    base, delta = np.empty(0, np.float32), np.empty(0, np.float32)
    for block in deltas.blocks():
        base = np.concatenate([base, block.base.numpy()])
        delta = np.concatenate([delta, block.deltas[0].numpy()])
        whole = len(base) // columns * columns
        if whole:
            yield base[:whole].reshape(-1, columns), delta[:whole].reshape(-1, columns)
        base, delta = base[whole:], delta[whole:]


def _divergence(base: FloatArray, delta: FloatArray) -> NDArray[np.float64]:
    """Returns Σ p log(p / q) of each row, (row,)."""
    before = base.astype(np.float64)
    own, old = _softmax(before + delta) + _FLOOR, _softmax(before) + _FLOOR
    found: NDArray[np.float64] = (own * np.log(own / old)).sum(axis=1)
    return found


def _softmax(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(rows - rows.max(axis=1, keepdims=True))
    found: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return found
