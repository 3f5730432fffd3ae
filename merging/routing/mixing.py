"""Weights of task vectors from the tasks' shares of the votes."""

import numpy as np
from numpy.typing import NDArray

MIXES = ("share", "root")

_SAME = 1e-6  # shares are thirds and tenths in float32


def mixed(shares: NDArray[np.float32], mix: str) -> NDArray[np.float32]:
    """Returns the weights of task vectors for shares (sample, task) that sum to 1.

    "share": the share itself (docs/methods.md §3). "root": its square root, so that the squares sum to 1.
    Task vectors are nearly orthogonal, so the roots move a sample of two tasks as far from the base as a
    sample of one task; plain shares would move it less.

    >>> mixed(np.array([[0.64, 0.36], [1, 0]], np.float32), "root").round(3).tolist()
    [[0.800000011920929, 0.6000000238418579], [1.0, 0.0]]
    """
    return np.sqrt(shares) if mix == "root" else shares


def snap(shares: NDArray[np.float32], within: float) -> NDArray[np.float32]:
    """Returns shares (sample, task) without those of at most `within`, the others scaled to sum to 1.

    A row whose largest share is at least 1 - within becomes one-hot. The largest share is always kept, and
    so are shares equal to it. within: from 0 to below 0.5.

    >>> snap(np.array([[0.96, 0.04], [0.7, 0.3]], np.float32), 0.05).tolist()
    [[1.0, 0.0], [0.699999988079071, 0.30000001192092896]]
    """
    largest = shares.max(1, keepdims=True)
    dropped = (shares <= within + _SAME) & (shares < largest)
    kept = np.where(dropped, np.float32(0), shares)
    scaled = kept / kept.sum(1, keepdims=True, dtype=np.float64)
    changed = dropped & (shares > 0)
    return np.where(changed.any(1, keepdims=True), scaled, shares).astype(np.float32)
