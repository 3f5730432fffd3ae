"""Chooses the stored form of a tensor: leaves out empty rows and stores each block with the smallest codec.

Source: Gao et al. 2026 (arXiv 2604.28109), sparsity-aware storage strategy (SASS).
"""

from dataclasses import dataclass

import numpy as np

from flexswitch.codecs.blocks import as_matrix, cut, full_rows, take_rows
from flexswitch.codecs.codec import Codec
from flexswitch.codecs.errors import UsageError, unknown_name
from flexswitch.codecs.registry import CODECS, get_codec
from flexswitch.codecs.sparse import SparseStats, SparseTensor

EFFORTS = ("fast", "small")
# Estimates may be off by a few percent, so that all codecs this close to the smallest one are tried.
_NEARLY = 1.05


@dataclass(frozen=True)
class StoredBlock:
    """The encoding of one block, and its codec."""

    codec: Codec
    kept: int
    data: bytes


@dataclass(frozen=True)
class StoredForm:
    """A tensor as it is stored. rows: marks the rows that keep an entry, or None if no rows are left out."""

    rows: StoredBlock | None
    blocks: tuple[StoredBlock, ...]


def check_effort(effort: str) -> None:
    """Raises: UsageError on an unknown effort."""
    if effort not in EFFORTS:
        raise UsageError(unknown_name("effort", effort, EFFORTS))


def store(sparse: SparseTensor, codec: str = "auto", effort: str = "fast") -> StoredForm:
    """Returns a tensor's stored form.

    codec: the codec's name, or `auto` for the smallest one for each block. effort: with `auto`, `fast`
    chooses by estimate among the codecs that decode fast, and `small` among all codecs by trying them.
    Raises: UsageError on an unknown codec.
    """
    grid = as_matrix(sparse.shape)
    flags, rows = full_rows(sparse, grid), None
    if flags is not None:
        mask, full = np.packbits(flags, bitorder="little"), int(np.count_nonzero(flags))
        rows = store_block(SparseTensor((len(flags),), mask, np.zeros(full, np.uint8), 0), codec, effort)
        taken = take_rows(sparse.mask, grid.columns, flags)
        grid = as_matrix((full, grid.columns))
        sparse = SparseTensor((grid.rows, grid.columns), taken, sparse.levels, sparse.bits)
    return StoredForm(rows, tuple(store_block(block, codec, effort) for block in cut(sparse, grid)))


def store_block(block: SparseTensor, codec: str, effort: str) -> StoredBlock:
    """Returns the stored form of one block, see `store`. Of equal sizes the codec registered first wins."""
    stats = SparseStats(block)
    if codec != "auto":
        return _stored(get_codec(codec).fitted(stats), block)
    considered = [each for each in CODECS.values() if each.fast or effort == "small"]
    fitted = {codec: codec.estimate_bytes(stats) for codec in (each.fitted(stats) for each in considered)}
    fast = min((codec for codec in fitted if codec.fast), key=fitted.__getitem__)
    if effort == "fast":
        return _stored(fast, block)
    least = min(fitted.values())
    tried = [codec for codec, size in fitted.items() if size <= _NEARLY * least or codec is fast]
    return min((_stored(codec, block) for codec in tried), key=lambda stored: len(stored.data))


def _stored(codec: Codec, block: SparseTensor) -> StoredBlock:
    return StoredBlock(codec, len(block.levels), codec.encode(block))
