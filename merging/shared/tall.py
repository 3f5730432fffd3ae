"""TALL-masks: the sum of the deltas, and of each task the mask of the entries that matter to it.

Source: Wang et al. 2024, "Localizing Task Information" (arXiv 2405.07813), section 3; docs/methods.md §6.30.
"""

from functools import partial as bind
from typing import Annotated, Literal, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from flexswitch.codecs.sparse import FloatArray
from flexswitch.merging.methods.settings import ByTask
from flexswitch.merging.shared.form import Bits, Compress, SharedForm
from flexswitch.merging.shared.values import masked, stored_in
from flexswitch.merging.static.task_arithmetic import task_arithmetic
from flexswitch.merging.static.ties import ties
from flexswitch.merging.task_vectors.task_vector import TaskVector


def tall(
    *,
    mask_lambda: Annotated[
        ByTask, Field(ge=0, description="How far |τ| exceeds the rest of the merge where an entry is kept.")
    ] = 0.4,
    merge: Annotated[
        Literal["sum", "ties"],
        Field(description="What the tasks share: the sum of the deltas, or what TIES sums up."),
    ] = "sum",
    density: Annotated[float, Field(ge=0, le=1, description="Share of the model that TIES keeps.")] = 0.2,
    shared_bits: Bits = 32,
) -> SharedForm:
    """Returns the form that keeps of the merged vector the entries where |τ| > mask_lambda · |merged − τ|."""
    factor = cast(float, mask_lambda)  # of one task

    def keep(delta: FloatArray, shared: FloatArray) -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = np.abs(delta) > np.float32(factor) * np.abs(shared - delta)
        return found

    def own(vector: TaskVector, shared: TaskVector, jobs: int) -> Compress:
        return bind(masked, shared=shared, keep=keep, scale=1.0)

    unify = bind(task_arithmetic, lambda_=1.0)
    if merge == "ties":
        unify = bind(ties, density=density, merge="sum")
    return SharedForm("product", unify, stored_in(shared_bits), own)
