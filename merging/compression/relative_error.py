"""How far a compressed tensor is from what it stands for: sums of squares in float64, and their record.

Source: docs/methods.md §1.
"""

import math
from collections.abc import Iterable, Mapping

import numpy as np

from flexswitch.codecs.format.quality_records import MOST_WORST, ErrorRecord, four_digits
from flexswitch.codecs.sparse import FloatArray, SparseTensor, level_values
from flexswitch.codecs.sums import square_sum
from flexswitch.merging.compression.delta import Compressed, Delta, Squares

_LARGEST = 1e38  # values beyond float32 are infinitely far from what they stand for

EXACT = Squares(0.0, 0.0)


def squares_of(delta: Delta, compressed: Compressed) -> Squares:
    """Returns the sums of squares of a tensor; where the method did not make them, by reading it again."""
    if compressed.squares is not None:
        return compressed.squares
    if compressed.shape is not None or compressed.more:
        whole = np.concatenate([np.empty(0), *delta.read()])
        return Squares(square_sum(whole - compressed.values()), square_sum(whole))
    return squares_between(delta.read(), compressed.sparse, compressed.scale, compressed.zero)


def squares_between(
    blocks: Iterable[FloatArray], sparse: SparseTensor, scale: float, zero: int | None = None
) -> Squares:
    """Returns the sums of squares of a tensor's flat blocks, and of how far its stored form is from them.

    Every block but the last has a multiple of 8 entries.
    """
    error, total, start, used = 0.0, 0.0, 0, 0
    for block in blocks:
        mask = sparse.mask[start // 8 : -(-(start + len(block)) // 8)]
        marked = np.unpackbits(mask, count=len(block), bitorder="little").view(np.bool_)
        kept = int(np.count_nonzero(marked))
        left = block.astype(np.float64)
        left[marked] -= level_values(sparse.levels[used : used + kept], sparse.bits, scale, zero)
        error, total = error + square_sum(left), total + square_sum(block)
        start, used = start + len(block), used + kept
    return Squares(error, total)


def error_record(tensors: Mapping[str, Squares]) -> ErrorRecord:
    """Returns the relative error ‖τ − τ̂‖ / ‖τ‖ of all tensors, and of those where it is largest.

    Of equal ones that of the larger norm comes first. Numbers have four significant digits.
    """
    error, total = (math.fsum(each[place] for each in tensors.values()) for place in range(2))
    relative = {name: _relative(each) for name, each in tensors.items()}
    worst = sorted(
        (name for name, found in relative.items() if found > 0),
        key=lambda name: (-relative[name], -tensors[name].total, name),
    )
    return ErrorRecord(
        relative=_relative(Squares(error, total)),
        worst={name: relative[name] for name in worst[:MOST_WORST]},
    )


def _relative(squares: Squares) -> float:
    if not squares.error:
        return 0.0
    found = min(math.sqrt(squares.error / squares.total), _LARGEST)
    return four_digits(found)
