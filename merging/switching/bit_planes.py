"""A unit's delta in bits, as it stays in a device's memory: a mask, and a plane for each bit of a level.

A product decodes the bits where it needs them: on CUDA inside the kernel (bit_planes_kernel.py), if Triton is
installed, which comes with torch for CUDA; elsewhere into values that are dropped after it.
"""

import importlib.util
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flexswitch.codecs.sparse import FloatArray, level_table
from flexswitch.merging.switching.csr import Ids

_WORD = 32
_KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, eq=False)
class BitPlaneMatrix:
    """planes: (1 + bits, row, word) int32, the mask and the levels' bits, the lowest first; a column of a row
    is bit column % 32 of its word column // 32. columns: how many there are. A level stands for
    step · (2 · level + low); table: (2^bits,) float32, that of each level.
    """

    planes: Tensor
    columns: int
    step: float
    low: int
    table: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.planes.shape[1], self.columns

    @property
    def nbytes(self) -> int:
        """The memory that it takes."""
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
        self, inputs: Tensor, places: Tensor, factors: Tensor, shift: Tensor, total: Tensor
    ) -> None:
        """Adds factors[i] · (τ·x + shift) to total[places[i]] for x = inputs[places[i]].

        inputs: (token, column), in any floating type; places: (entry,) int64, each once; factors: (entry,),
        shift: (row,), total: (token, row), all three float32 or float64; all on the device.
        """
        if _runs_kernel(inputs, total):
            from flexswitch.merging.switching.bit_planes_kernel import add_bit_plane_product

            add_bit_plane_product(self.planes, self.step, self.low, inputs, places, factors, shift, total)
            return
        delta = self.dense().to(inputs.dtype)
        product = torch.nn.functional.linear(inputs[places], delta)
        total.index_add_(0, places, (product.to(total.dtype) + shift) * factors[:, None])

    def _values(self, planes: Tensor) -> Tensor:
        """Returns what planes (1 + bits, row, word) stand for, (row, column) float32."""
        shifts = torch.arange(_WORD, dtype=torch.int32, device=planes.device)
        bits = ((planes[..., None] >> shifts) & 1).flatten(2)[:, :, : self.columns]  # (plane, row, column)
        levels = torch.zeros(bits.shape[1:], dtype=torch.int64, device=planes.device)
        for number in range(1, len(bits)):
            levels |= bits[number].long() << (number - 1)
        return self.table[levels] * bits[0]


def pack_bit_planes(
    places: Ids,
    levels: NDArray[np.uint8],
    matrix: tuple[int, int],
    bits: int,
    scale: float,
    zero: int | None,
    turned: bool,
    device: torch.device,
) -> BitPlaneMatrix:
    """Returns a unit's entries in bits on a device.

    places, levels: (kept,), where entries lie in a matrix of so many rows and columns, and their levels of up
    to 8 bits; turned: pack the transpose.
    """
    rows, columns = matrix
    width = rows if turned else columns
    planes = []
    for plane in (np.ones(len(places), np.uint8), *((levels >> bit) & 1 for bit in range(bits))):
        whole = np.zeros(matrix, np.uint8)
        whole.reshape(-1)[places] = plane
        planes.append(_words(whole.T if turned else whole))
    table = torch.from_numpy(level_table(bits, scale, zero)).to(device)
    steps = (1 << bits) - 1
    step, low = (scale / max(1, steps), -steps) if zero is None else (scale / 2, -2 * zero)
    return BitPlaneMatrix(torch.from_numpy(np.stack(planes)).to(device), width, step, low, table)


def _words(flags: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Returns bits (row, column) as (row, word), rows filled up with zeros."""
    filled = np.zeros((len(flags), -(-flags.shape[1] // _WORD) * _WORD), np.uint8)
    filled[:, : flags.shape[1]] = flags
    return np.packbits(filled, axis=1, bitorder="little").view(np.int32)


def _runs_kernel(inputs: Tensor, total: Tensor) -> bool:
    if inputs.device.type != "cuda" or total.dtype != torch.float32 or inputs.dtype not in _KERNEL_DTYPES:
        return False
    return importlib.util.find_spec("triton") is not None
