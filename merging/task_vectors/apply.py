"""Adds a compressed tensor to weights in place; only the kept entries are touched.

A kept weight becomes w + λ·v, computed in float32 and rounded once to the weight's dtype. Where λ·v is zero,
and where nothing is kept, the weight does not change by a bit. On a GPU the mask and the levels are copied
packed and decoded there.
"""

from bisect import bisect_left
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flexswitch.codecs.argument_types import NUMBER, PATH, check_argument, is_number, is_path
from flexswitch.codecs.compiled import compiled
from flexswitch.codecs.errors import InputError
from flexswitch.codecs.format.container import Artifact
from flexswitch.codecs.sparse import (
    FloatArray,
    Levels,
    SparseTensor,
    level_table,
    level_values,
)
from flexswitch.merging.checkpoints.checkpoint import Checkpoint
from flexswitch.merging.checkpoints.hashing import open_base
from flexswitch.merging.task_vectors.difference import add_delta, difference
from flexswitch.merging.task_vectors.exact_tensors import exact_blocks
from flexswitch.merging.task_vectors.live_weights import LiveWeights, check_live_weights
from flexswitch.merging.task_vectors.rounding import refuse_overflow, rounded

COMPILED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_LARGEST = np.finfo(np.float32).max
DEVICE_ENTRIES = 1 << 26  # decoded at once on a GPU

Places = NDArray[Any]  # uint32 or int64
Halves = NDArray[np.uint16]


class Addend:
    """λ·τ̂ of one tensor, added to its weights part by part, from the first entry to the last."""

    def __init__(self, artifact: Artifact, name: str, lambda_: float) -> None:
        self._name, record = name, artifact.header.tensors[name]
        self._values = ScaledLevels(record.bits, record.scale, lambda_, record.zero)
        self._blocks = artifact.entries(name)
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


def add_task(
    weights: Mapping[str, Tensor],
    artifact: Artifact,
    lambda_: float = 1.0,
    *,
    base: str | Path | None = None,
    check_base: bool = True,
) -> None:
    """Adds λ·τ̂ to a live model's weights, in place and on their devices: θ becomes θ + λ·τ̂.

    weights: base name → tensor, as in a module's `state_dict()`, with the base's values. base: the base's
    path or hub id, to compare the weights with; needed where some of the base's are missing, or in another
    dtype. check_base: whether they are checked to be the base's; not where they hold another task already.

    Raises: InputError if one is missing, has another shape or dtype, is not contiguous, or is not the base's;
    InputError if one would become infinite, when they have to be loaded again; DecodeError.
    """
    _check_arguments(weights, artifact, lambda_, base)
    for name, record in (artifact.header.tensors | artifact.header.exact).items():
        found = weights.get(name)
        if found is None or list(found.shape) != record.shape or not found.is_contiguous():
            held = "none" if found is None else f"{list(found.shape)}, strides {found.stride()}"
            raise InputError(
                f"{artifact.path}: tensor '{name}' of shape {record.shape} needs a contiguous tensor of that "
                f"name and shape in the model, found {held}"
            )
        floating = name in artifact.header.tensors
        if found.is_complex() or (floating and not found.is_floating_point()):
            raise InputError(
                f"{artifact.path}: tensor '{name}' is {found.dtype} in the model, expected a dtype of "
                "real numbers"
            )
    opened = None if base is None else open_base(base)
    if check_base:
        check_live_weights(weights, artifact.header.base, str(artifact.path), opened)
    with torch.no_grad():
        for name, record in artifact.header.tensors.items():
            flat = weights[name].detach().view(-1)
            if flat.device.type == "cpu" and flat.dtype in COMPILED_DTYPES:
                Addend(artifact, name, lambda_).add_to(flat)
            else:
                values = ScaledLevels(record.bits, record.scale, lambda_, record.zero)
                add_on_device(flat, artifact.sparse(name), values, name)
        live = opened or LiveWeights(weights)
        for name in artifact.header.exact:
            _add_exact(weights[name].detach().view(-1), artifact, name, lambda_, live)


def _add_exact(weights: Tensor, artifact: Artifact, name: str, lambda_: float, base: Checkpoint) -> None:
    """Adds λ·τ to a tensor that is stored exactly; with λ = 1 it becomes the fine-tuned one, bit for bit."""
    for start, before, found in exact_blocks(artifact, base, name):
        part = weights[start : start + len(found)]
        if lambda_ == 1:
            part.copy_(rounded(found, found, part.dtype, name))
        elif found.is_floating_point():
            delta = lambda_ * torch.from_numpy(difference(before, found)[0]).to(part.device)
            part.copy_(rounded(add_delta(part.to(torch.float32), delta), part, part.dtype, name))


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


def _check_arguments(weights: object, artifact: object, lambda_: object, base: object) -> None:
    """Raises: UsageError that names an argument of a wrong type."""
    values = weights.values() if isinstance(weights, dict) else ()
    are_tensors = isinstance(weights, Mapping) and all(isinstance(each, Tensor) for each in values)
    is_artifact = isinstance(artifact, Artifact)
    for name, value, fits, expected in (
        ("weights", weights, are_tensors, "tensors by name, as module.state_dict() returns"),
        ("artifact", artifact, is_artifact, "what open_artifact returns, or zoo[task]"),
        ("lambda_", lambda_, is_number(lambda_), NUMBER),
        ("base", base, base is None or is_path(base), f"{PATH}, or None"),
    ):
        check_argument("add_task", name, value, fits, expected)
