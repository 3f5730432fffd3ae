"""Twin-Merging: a static merge that tasks share, and the largest singular vectors of what it leaves of each.

Source: Lu et al. 2024, "Twin-Merging" (arXiv 2406.15479), section 3; docs/methods.md §6.30.
"""

import math
from functools import partial as bind
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from flexswitch.codecs.order_statistics import kept_count
from flexswitch.merging.compression.dare import dare
from flexswitch.merging.compression.delta import Compressed, Delta
from flexswitch.merging.compression.floats import floats
from flexswitch.merging.compression.low_rank import low_rank
from flexswitch.merging.compression.plan import SVD_BYTES
from flexswitch.merging.shared.form import Bits, Compress, SharedForm
from flexswitch.merging.shared.values import stored_in
from flexswitch.merging.static.order_statistic import largest_reach
from flexswitch.merging.static.task_arithmetic import task_arithmetic
from flexswitch.merging.task_vectors.task_vector import TaskVector

Strategy = Annotated[
    Literal["svd", "magnitude", "random"],
    Field(description="What is kept of a matrix: singular vectors, or the largest or random entries."),
]


def twin(
    *,
    lambda_: Annotated[float, Field(description="Scale of the sum of the deltas that is shared.")] = 0.29,
    strategy: Strategy = "svd",
    drop: Annotated[
        float, Field(ge=0, lt=1, description="Share of the singular values, or of the entries, to drop.")
    ] = 0.9,
    bits: Annotated[Literal[16, 32], Field(description="Bits of a task's own value.")] = 32,
    seed: Annotated[int, Field(description="Seed of random entries.")] = 0,
    shared_bits: Bits = 32,
) -> SharedForm:
    """Returns the form that shares task arithmetic; tensors that are no matrices are kept whole."""

    def compress(delta: Delta) -> Compressed:
        if len(delta.shape) != 2 or drop == 0:
            return floats(delta, bits)
        if strategy == "svd":
            return low_rank(delta, kept_count(drop, min(delta.shape)), bits)
        if strategy == "random":
            return dare(delta, drop=drop, bits=bits, seed=seed)
        return _largest(delta, drop, bits)

    def own(vector: TaskVector, shared: TaskVector, jobs: int) -> Compress:
        return compress

    unify = bind(task_arithmetic, lambda_=lambda_)
    return SharedForm("sum", unify, stored_in(shared_bits), own, is_open=True, entry_bytes=SVD_BYTES)


def _largest(delta: Delta, drop: float, bits: int) -> Compressed:
    """Returns the entries of largest magnitude, and all that equal the last."""
    least = np.float32(largest_reach(delta.read, kept_count(drop, math.prod(delta.shape))))

    def read() -> list[np.ndarray]:
        return [np.where(np.abs(block) >= least, block, np.float32(0)) for block in delta.read()]

    return floats(Delta(delta.name, delta.shape, read), bits)
