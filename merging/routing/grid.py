"""Rounds numbers to a grid, so that results that differ in their last bits become equal.

The last bits of a sum depend on its order, and so on the number of threads, the processor and the library.
In float64 they are about 1e-16 of the largest term. The grid is so much coarser that a number hardly ever
lies just where such a difference decides between two of its points.
"""

import torch
from torch import Tensor


def on_grid(values: Tensor, bits: int, parts: int = 1) -> Tensor:
    """Returns numbers (row, column) float64 rounded to multiples of a step.

    The step is 2^-bits of the largest power of two that does not exceed the largest magnitude of the same row
    and part; a row has `parts` parts of equal width. Zeros have no sign. With up to 22 bits, float32 holds
    the results exactly.

    >>> on_grid(torch.tensor([[4.1, -0.6, 0.1]]).double(), 2).tolist()
    [[4.0, -1.0, 0.0]]
    """
    split = values.reshape(len(values), parts, -1)  # (row, part, column)
    _, exponent = torch.frexp(split.abs().amax(2, keepdim=True))  # the largest is in [0.5, 1) · 2^exponent
    step = torch.ldexp(torch.ones_like(split[:, :, :1]), exponent - 1 - bits)
    rounded: Tensor = ((split / step).round() * step).reshape(values.shape)
    return rounded + 0.0  # zero without a sign
