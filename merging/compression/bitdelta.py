"""BitDelta: the sign of every entry of a weight matrix, under the matrix's mean magnitude.

Its second half, the distillation of the scales, needs data and is not part of this.
Source: Liu et al. 2024, "BitDelta: Your Fine-Tune May Only Be Worth One Bit" (arXiv 2402.10193);
docs/methods.md §6.18.
"""

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from flexswitch.codecs.sums import steady_sum
from flexswitch.merging.compression.delta import Compressed, Delta, assemble
from flexswitch.merging.compression.p_discard import p_discard


def bitdelta(
    delta: Delta,
    *,
    embeddings: Annotated[
        Literal["full", "bits"],
        Field(
            description="Matrices with `embed` in their name: keep them in float32, as the released code "
            "does, or take their signs."
        ),
    ] = "full",
) -> Compressed:
    """Returns sign(delta) · mean|delta| of a matrix, zeros as +1.

    Tensors that do not have two dimensions, and matrices whose mean is zero in float32, are kept in float32
    without their zeros.
    """
    is_embedding = "embed" in delta.name.lower()
    entries = int(np.prod(delta.shape, dtype=np.int64))
    if len(delta.shape) != 2 or not entries or (is_embedding and embeddings == "full"):
        return p_discard(delta, drop=0.0)
    magnitudes = (np.abs(block).astype(np.float64) for block in delta.read())
    scale = float(np.float32(steady_sum(magnitudes) / entries))
    if not scale:
        return p_discard(delta, drop=0.0)
    masks, signs = [], []
    for block in delta.read():
        masks.append(np.packbits(np.ones(len(block), np.bool_), bitorder="little"))
        signs.append((block >= 0).view(np.uint8))
    return Compressed(assemble(delta.shape, masks, signs, bits=1), scale)
