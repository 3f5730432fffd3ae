"""SVD-r: each matrix's delta as the product of two thin ones, as a LoRA of rank r.

Source: Ryu et al. 2023, "Efficient Storage of Fine-Tuned Models via Low-Rank Approximation of Weight
Residuals" (arXiv 2305.18425); docs/methods.md §6.24.
"""

from typing import Annotated, Literal

from pydantic import Field

from flexswitch.merging.compression.delta import Compressed, Delta
from flexswitch.merging.compression.floats import floats
from flexswitch.merging.compression.low_rank import Others, kept_or_left_out, low_rank


def svd(
    delta: Delta,
    *,
    rank: Annotated[int, Field(ge=1, lt=1 << 32, description="Singular vectors that a matrix keeps.")] = 8,
    bits: Annotated[Literal[16, 32], Field(description="Bits of a value: bfloat16 or float32.")] = 16,
    others: Others = "keep",
) -> Compressed:
    """Returns the two factors of the best approximation of a rank; matrices that take less are kept whole.

    Raises: InputError if a value is not finite in so many bits.
    """
    if len(delta.shape) != 2:
        return kept_or_left_out(delta, others, bits)
    rows, columns = delta.shape
    return low_rank(delta, rank, bits) if rank * (rows + columns) < rows * columns else floats(delta, bits)
