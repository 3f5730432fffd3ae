"""Which matrices are stored by their singular vectors. Source: docs/methods.md §4."""

import math
from typing import NamedTuple

import numpy as np

from flexswitch.merging.compression.delta import Compressed
from flexswitch.merging.flex_switch.allocation import option_bits
from flexswitch.merging.flex_switch.compression_task import CompressionTask
from flexswitch.merging.flex_switch.delta_rows import DeltaRows
from flexswitch.merging.flex_switch.low_rank_form import Matrix, low_rank_form, matrix_of
from flexswitch.merging.flex_switch.rate_distortion import RateDistortionTable

_LEAST_SIDE = 16  # rows and columns of a matrix
_LEAST_SHARE = 0.6  # of the norm of the chosen matrices: where less is left, large entries serve better
# Bits an entry from about which the signs of most entries fit, and serve better, unless vectors leave a small
# part of the squared error that entries do.
_MOST_RATE, _FAR_NEARER = 0.93, 1 / 25
_MORE = 1.1  # times the bits, for which triples are computed
_TRIES, _NEAR = 8, 0.985
_SHARE = 0.6  # of the bits, beside entries


class _Better(NamedTuple):
    """A matrix, the squared error of its low-rank form, and all squares."""

    tensor: DeltaRows
    matrix: Matrix
    error: float
    total: float


def with_low_rank(task: CompressionTask, target: int) -> CompressionTask:
    """Returns the task with those matrices given whose singular vectors come nearer than their large entries.

    All tensors are compared at the same number of bits for an entry of a changed row. The task is returned as
    it is where the vectors keep too little of the matrices' norm, or bits suffice for most entries' signs.
    """
    rate = _rate(task, target)
    chosen = _chosen(task, rate, 1.0 if rate < _MOST_RATE else _FAR_NEARER)
    if not chosen:
        return task
    others = sum(tensor.entries for tensor in task.tensors if tensor.name not in chosen)
    empty = task.sizer().empty_size()
    goal = target - rate * others / 8
    best, fits, exceeds, tried, last = task, 0.0, _MORE * rate, rate, 0
    for _ in range(_TRIES):
        given = low_rank_forms(task, chosen, tried)
        found = task.with_given(given).without(given)
        size = found.sizer().empty_size()
        if size > goal:
            exceeds = tried
        elif tried > fits:
            best, fits = found, tried
        if _NEAR * goal <= size <= goal:
            break
        likely = tried * (_NEAR + 1) / 2 * (goal - empty) / max(1, size - empty)
        # The size goes up in steps: where a proportion stays on one, half of what is left is tried.
        tried = likely if fits < likely < exceeds and size != last else (fits + exceeds) / 2
        last = size
    return best


def forms_beside_entries(task: CompressionTask, target: int) -> dict[str, Compressed]:
    """Returns low-rank forms of such matrices, in a share of the bits; trained entries are added to them."""
    rate = _SHARE * _rate(task, target)
    return low_rank_forms(task, _chosen(task, rate, 1.0), rate)


def _rate(task: CompressionTask, target: int) -> float:
    """Returns the bits that a target leaves for each entry of a changed row."""
    return task.payload_bits(target) / max(1, sum(tensor.entries for tensor in task.tensors))


def _chosen(task: CompressionTask, rate: float, nearer: float) -> dict[str, tuple[DeltaRows, Matrix]]:
    """Returns the matrices to be stored by singular vectors at so many bits an entry.

    nearer: the share of the squared error of large entries that the vectors may leave.
    """

    def compared(number: int) -> _Better | None:
        """Returns a matrix whose low-rank form comes nearer to it than its largest entries."""
        tensor, table = task.tensors[number], task.tables[number]
        if len(tensor.shape) != 2 or min(len(tensor.rows), tensor.columns) < _LEAST_SIDE:
            return None
        bits = rate * tensor.entries
        matrix = matrix_of(tensor.delta.reshape(-1, tensor.columns), _MORE * bits)
        made = low_rank_form(matrix, tensor.shape, tensor.rows, bits)
        if made is None or made.squares is None:
            return None
        error, total = made.squares
        by_entries = _least_error(tensor, table, bits)
        return _Better(tensor, matrix, error, total) if error < nearer * by_entries else None

    found = [each for each in task.parallel_map(compared, len(task.tensors)) if each is not None]
    error, total = math.fsum(each.error for each in found), math.fsum(each.total for each in found)
    if not found or total - error < _LEAST_SHARE**2 * total:
        return {}
    return {each.tensor.name: (each.tensor, each.matrix) for each in found}


def _least_error(tensor: DeltaRows, table: RateDistortionTable, bits: float) -> float:
    """Returns the squared error of the tensor's largest entries in so many bits."""
    usable = option_bits(table, tensor.entries, 1.0) <= bits
    return float(np.min(table.errors[usable]))


def low_rank_forms(
    task: CompressionTask, chosen: dict[str, tuple[DeltaRows, Matrix]], rate: float
) -> dict[str, Compressed]:
    """Returns the low-rank forms at so many bits an entry, of those matrices that have one."""
    names = list(chosen)

    def made(number: int) -> Compressed | None:
        tensor, matrix = chosen[names[number]]
        return low_rank_form(matrix, tensor.shape, tensor.rows, rate * tensor.entries)

    found = task.parallel_map(made, len(names))
    return {name: each for name, each in zip(names, found, strict=True) if each is not None}
