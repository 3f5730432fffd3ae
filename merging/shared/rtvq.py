"""RTVQ: the mean of the deltas in a few bits, and what it leaves of each task in fewer.

Source: Kim et al. 2025, "Task Vector Quantization" (arXiv 2503.06921), section 4.3; docs/methods.md §6.30.
"""

from functools import partial as bind
from typing import Annotated

from pydantic import Field

from flexswitch.merging.compression.tvq import tvq
from flexswitch.merging.shared.form import Bits, Compress, SharedForm
from flexswitch.merging.shared.values import stored_in
from flexswitch.merging.static.task_deltas import Combination, TensorDeltas, weighted_sum
from flexswitch.merging.task_vectors.task_vector import TaskVector


def rtvq(
    *,
    shared_bits: Bits = 3,
    bits: Annotated[int, Field(ge=1, le=8, description="Bits of a task's own level.")] = 2,
    error_correction: Annotated[
        bool, Field(description="Whether a task also stores the error that the shared levels make.")
    ] = True,
) -> SharedForm:
    """Returns the form whose tasks are the quantised mean plus a quantised offset."""

    def own(vector: TaskVector, shared: TaskVector, jobs: int) -> Compress:
        return bind(tvq, bits=bits)

    return SharedForm("sum", _mean, stored_in(shared_bits), own, is_open=True, corrects=error_correction)


def _mean(deltas: TensorDeltas) -> Combination:
    count = len(deltas.weights)
    return Combination(lambda block: weighted_sum(block.deltas, [1.0] * count) / count)
