"""Adds a compressed tensor to weights in place; only the kept entries are touched.

A kept weight becomes w + λ·v, computed in float32 and rounded once to the weight's dtype. Where λ·v is zero,
and where nothing is kept, the weight does not change by a bit. On a GPU the mask and the levels are copied
packed and decoded there.
"""

from bisect import bisect_left
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flexswitch.codecs.compiled import compiled
from flexswitch.codecs.format.container import Artifact
from flexswitch.codecs.sparse import (
    FloatArray,
    Levels,
    SparseTensor,
    level_table,
    level_values,
)
from flexswitch.merging.task_vectors.rounding import refuse_overflow, rounded

COMPILED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_LARGEST = np.finfo(np.float32).max
DEVICE_ENTRIES = 1 << 26  # decoded at once on a GPU

Places = NDArray[Any]  # uint32 or int64
Halves = NDArray[np.uint16]


class Addend:
    """λ times the kept entries of one tensor, added to its weights from the first entry to the last.

    part: which of the tensor's parts they are of.
    """

    def __init__(self, artifact: Artifact, name: str, lambda_: float, part: int = 0) -> None:
        self._name, record = name, artifact.header.tensors[name].parts[part]
        self._values = ScaledLevels(record.bits, record.scale, lambda_, record.zero)
        self._blocks = artifact.entries(name, part)
        self._offset, self._places = 0, np.empty(0, np.int64)
        self._levels: Levels = np.empty(0, np.uint8)
        self._start = 0

    def add_to(self, weights: Tensor) -> None:
        """Adds the next entries to the next weights, flat and contiguous on the CPU.

        Raises: InputError where a finite weight would become infinite; DecodeError.
        """
        stop = self._start + len(weights)
        while True:
            inside = bisect_left(self._places, stop - self._offset)  # in the dtype of `places`
            if inside:
                values = self._values.of(self._levels[:inside])
                start = self._start - self._offset
                index = add_on_cpu(weights, self._places[:inside], start, values)
                if index >= 0:
                    total = float(weights[int(self._places[index]) - start]) + float(values[index])
                    refuse_overflow(self._name, total, weights.dtype)
                self._places, self._levels = self._places[inside:], self._levels[inside:]
            following = None if len(self._places) else next(self._blocks, None)
            if following is None:
                break
            self._offset, self._places, self._levels = following
        self._start = stop


class ScaledLevels:
    """The float32 values λ·v of levels."""

    def __init__(self, bits: int, scale: float, lambda_: float, zero: int | None = None) -> None:
        self._bits = bits
        self._factor = np.float32(lambda_)
        self._table = self._times(level_table(bits, scale, zero)) if bits <= 8 else None

    def of(self, levels: Levels) -> FloatArray:
        if self._table is None:
            return self._times(level_values(levels, self._bits, 1.0))
        values = np.empty(len(levels), np.float32)
        _look_up(self._table, levels, values)
        return values

    def _times(self, values: FloatArray) -> FloatArray:
        with np.errstate(over="ignore", invalid="ignore"):  # as in the weights' own dtype
            return values * self._factor


def add_on_cpu(weights: Tensor, places: Places, start: int, values: FloatArray) -> int:
    """Adds values to the weights at `places` − start, up to the first that would not be finite any more.

    Returns the index of that value, −1 if there is none.
    """
    if weights.dtype == torch.float32:
        return int(_add_to_floats(weights.numpy(), places, start, values))
    halves = weights.view(torch.uint16).numpy()
    add = _add_to_bfloats if weights.dtype == torch.bfloat16 else _add_to_halves
    return int(add(halves, places, start, values))


def add_on_device(weights: Tensor, sparse: SparseTensor, values: ScaledLevels, name: str) -> None:
    """Adds on the weights' own device, in any floating dtype; mask and levels are decoded there.

    Raises: InputError naming the tensor where a finite weight would become infinite.
    """
    device, used = weights.device, 0
    for first in range(0, len(weights), DEVICE_ENTRIES):
        part = weights[first : first + DEVICE_ENTRIES]
        mask = np.ascontiguousarray(sparse.mask[first // 8 : -(-(first + len(part)) // 8)])
        packed = torch.from_numpy(mask).to(device)
        marks = (packed[:, None] >> torch.arange(8, dtype=torch.uint8, device=device)) & 1  # (byte, 8)
        positions = marks.view(-1)[: len(part)].nonzero().view(-1)  # (kept,)
        levels = sparse.levels[used : used + len(positions)]
        added = torch.from_numpy(values.of(levels)).to(device)
        before = part[positions]
        after = rounded(before.to(torch.float32) + added, before, part.dtype, name)
        part[positions] = torch.where(added == 0, before, after)
        used += len(positions)


@compiled
def _look_up(table: FloatArray, levels: NDArray[np.uint8], values: FloatArray) -> None:
    for index in range(levels.size):
        values[index] = table[levels[index]]


@compiled
def _add_to_floats(weights: FloatArray, places: Places, start: int, values: FloatArray) -> int:
    for index in range(places.size):
        if values[index] != 0:
            weight = weights[np.int64(places[index]) - start]
            total = weight + values[index]
            if not abs(total) <= _LARGEST and abs(weight) <= _LARGEST:
                return index
            weights[np.int64(places[index]) - start] = total
    return -1


@compiled
def _add_to_bfloats(weights: Halves, places: Places, start: int, values: FloatArray) -> int:
    for index in range(places.size):
        if values[index] != 0:
            half = np.int64(weights[np.int64(places[index]) - start])
            total = _float(half << 16) + values[index]
            made = _upper_bits(_pattern(total), 16) if total == total else 0x7FC0
            if made & 0x7F80 == 0x7F80 and half & 0x7F80 != 0x7F80:
                return index
            weights[np.int64(places[index]) - start] = made
    return -1


@compiled
def _add_to_halves(weights: Halves, places: Places, start: int, values: FloatArray) -> int:
    for index in range(places.size):
        if values[index] != 0:
            half = np.int64(weights[np.int64(places[index]) - start])
            size = half & 0x7FFF
            # Shifted into a float32, exponent and mantissa encode 2^-112 of the value.
            weight = _float(size << 13) * np.float32(2.0**112)
            if size >= 0x7C00:
                weight = np.float32(np.inf) if size == 0x7C00 else np.float32(np.nan)
            made = _half((-weight if half >> 15 else weight) + values[index])
            if made & 0x7C00 == 0x7C00 and size < 0x7C00:
                return index
            weights[np.int64(places[index]) - start] = made
    return -1


@compiled
def _half(value: np.float32) -> Any:
    """Returns the bit pattern of the float16 nearest to a float32, ties to even."""
    sign, size = (_pattern(value) >> 16) & 0x8000, np.float32(abs(value))
    if size >= np.float32(65520):  # halfway from the largest float16 to the next power of two
        return sign | 0x7C00
    if size >= np.float32(2.0**-14):
        return sign | _upper_bits(_pattern(size) - (112 << 23), 13)
    if value == value:
        # Below 2^-14 a float16 counts in units of 2^-24, and so does a float32 from 1/2 to 1.
        return sign | (_pattern(size + np.float32(0.5)) - _pattern(np.float32(0.5)))
    return 0x7E00


@compiled
def _upper_bits(pattern: int, width: int) -> int:
    """Returns a pattern without its lowest bits, rounded to nearest, ties to even."""
    return (pattern + (1 << (width - 1)) - 1 + ((pattern >> width) & 1)) >> width


@compiled
def _float(pattern: Any) -> np.float32:
    return np.uint32(pattern).view(np.float32)


@compiled
def _pattern(value: np.float32) -> Any:
    return np.int64(np.float32(value).view(np.uint32))
