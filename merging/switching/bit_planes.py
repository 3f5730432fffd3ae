"""A delta matrix as bit planes, for GPUs: a mask, and a plane for each bit of a level.

A product decodes the bits where it needs them: on CUDA inside the kernel (bit_planes_kernel.py), if Triton is
installed, as it is with torch for CUDA; elsewhere into float values that are dropped after the product. It
reads 1 + bits bits an entry instead of 16 or 32, and multiplies as many times as a dense product does.
"""

import importlib.util
import os
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flexswitch.codecs.sparse import FloatArray, level_table
from flexswitch.merging.switching.activations import Ids

_WORD = 32
_KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, eq=False)
class BitPlaneMatrix:
    """A matrix of up to 8 bits an entry.

    planes: (1 + bits, row, word) int32, the mask and the levels' bits, the lowest first; column c of a row is
    bit c % 32 of its word c // 32. columns: the number of columns. The value of a level is
    scale · (2 · level + offset); table: (2^bits,) float32, the value of each level.
    """

    planes: Tensor
    columns: int
    scale: float
    offset: int
    table: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.planes.shape[1], self.columns

    @property
    def nbytes(self) -> int:
        """The size in memory."""
        return self.planes.nbytes + self.table.nbytes

    def dense(self) -> Tensor:
        """Returns the delta, (row, column) float32."""
        return self._values(self.planes)

    def add_to(self, weights: FloatArray, factor: float) -> None:
        """Adds factor · τ to (row, column) weights in place."""
        torch.from_numpy(weights).add_(self.dense().cpu(), alpha=factor)

    def rows(self, ids: Tensor) -> Tensor:
        """Returns some rows of the delta, (id, column) float32; ids: (id,) int64 on the device."""
        return self._values(self.planes[:, ids])

    def add_product(
        self, inputs: Tensor, positions: Tensor, factors: Tensor, bias: Tensor, total: Tensor
    ) -> None:
        """Adds factors[i] · (τ·x + bias) to total[positions[i]] for x = inputs[positions[i]].

        inputs: (token, column), of any floating type; positions: (entry,) int64, distinct; factors: (entry,),
        bias: (row,), total: (token, row), all three float32 or float64; all tensors on the device.
        """
        if runs_kernel(inputs, total):
            from flexswitch.merging.switching.bit_planes_kernel import add_bit_plane_product

            add_bit_plane_product(
                self.planes, self.scale, self.offset, inputs, positions, factors, bias, total
            )
            return
        delta = self.dense().to(inputs.dtype)
        product = torch.nn.functional.linear(inputs[positions], delta)
        total.index_add_(0, positions, (product.to(total.dtype) + bias) * factors[:, None])

    def _values(self, planes: Tensor) -> Tensor:
        """Returns the values of planes (1 + bits, row, word), (row, column) float32."""
        shifts = torch.arange(_WORD, dtype=torch.int32, device=planes.device)
        bits = ((planes[..., None] >> shifts) & 1).flatten(2)[:, :, : self.columns]  # (plane, row, column)
        levels = torch.zeros(bits.shape[1:], dtype=torch.int64, device=planes.device)
        for number in range(1, len(bits)):
            levels |= bits[number].long() << (number - 1)
        return self.table[levels] * bits[0]


def pack_bit_planes(
    positions: Ids,
    levels: NDArray[np.uint8],
    matrix: tuple[int, int],
    bits: int,
    scale: float,
    zero: int | None,
    transposed: bool,
    device: torch.device,
) -> BitPlaneMatrix:
    """Returns a matrix as bit planes on a device.

    positions: (kept,), in the flattened matrix; levels: (kept,), of up to 8 bits; matrix: rows and columns;
    transposed: whether to pack the transpose.
    """
    rows, columns = matrix
    width = rows if transposed else columns
    planes = []
    for plane in (np.ones(len(positions), np.uint8), *((levels >> bit) & 1 for bit in range(bits))):
        whole = np.zeros(matrix, np.uint8)
        whole.reshape(-1)[positions] = plane
        planes.append(_words(whole.T if transposed else whole))
    table = torch.from_numpy(level_table(bits, scale, zero)).to(device)
    steps = (1 << bits) - 1
    step, offset = (scale / max(1, steps), -steps) if zero is None else (scale / 2, -2 * zero)
    return BitPlaneMatrix(torch.from_numpy(np.stack(planes)).to(device), width, step, offset, table)


def _words(flags: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Returns bits (row, column) packed into words, (row, word), each row padded with zeros."""
    filled = np.zeros((len(flags), -(-flags.shape[1] // _WORD) * _WORD), np.uint8)
    filled[:, : flags.shape[1]] = flags
    return np.packbits(filled, axis=1, bitorder="little").view(np.int32)


def runs_kernel(inputs: Tensor, total: Tensor) -> bool:
    """Returns whether the Triton kernel computes a product: on CUDA, or anywhere by Triton's interpreter."""
    has_kernel = inputs.device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"
    if not has_kernel or total.dtype != torch.float32 or inputs.dtype not in _KERNEL_DTYPES:
        return False
    return importlib.util.find_spec("triton") is not None
