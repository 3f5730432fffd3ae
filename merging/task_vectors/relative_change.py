"""How far a fine-tuning moved the weights that it touched, ‖τ‖ / ‖θ‖. Source: docs/methods.md §1."""

import math
from collections.abc import Mapping

import torch

from flexswitch.codecs.format.quality_records import four_digits
from flexswitch.codecs.sums import square_sum
from flexswitch.merging.checkpoints.checkpoint import Checkpoint
from flexswitch.merging.task_vectors.task_vector import TaskVector, block_ranges

_LARGEST = 1e38  # of weights that were all 0, too


def change_against(base: Checkpoint, vector: TaskVector) -> float:
    """Returns ‖τ‖ / ‖θ‖ over the tensors that changed; see `relative_change`."""
    squares = {name: math.fsum(map(square_sum, vector.blocks(name))) for name in vector.tensors}
    return relative_change(base, squares)


def relative_change(base: Checkpoint, squares: Mapping[str, float]) -> float:
    """Returns ‖τ‖ / ‖θ‖ over the tensors that changed, to four digits, from Σ τ² of each; 0 if none did.

    Weights that are not finite, which no fine-tuning changes, do not count.
    """
    moved = {name: found for name, found in squares.items() if found > 0}
    if not moved:
        return 0.0
    whole = math.fsum(_base_squares(base, name) for name in moved)
    change = math.sqrt(math.fsum(moved.values()))
    return four_digits(min(change / math.sqrt(whole), _LARGEST) if whole else _LARGEST)


def _base_squares(base: Checkpoint, name: str) -> float:
    blocks = (
        base.read(name, start, stop).to(torch.float32).nan_to_num(0.0, 0.0, 0.0).numpy()
        for start, stop in block_ranges(base.tensors[name].entries)
    )
    return math.fsum(map(square_sum, blocks))
