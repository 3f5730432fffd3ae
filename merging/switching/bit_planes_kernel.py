"""A Triton kernel for the product with bit planes, which it decodes tile by tile."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_TOKENS, _ROWS, _WORDS = 32, 64, 2  # a program's tile; a word holds 32 columns


def add_bit_plane_product(
    planes: Tensor,
    scale: float,
    offset: int,
    inputs: Tensor,
    positions: Tensor,
    factors: Tensor,
    bias: Tensor,
    total: Tensor,
) -> None:
    """Adds factors[i] · (τ·x + bias) to total[positions[i]] for x = inputs[positions[i]], in position.

    planes, scale, offset: those of a BitPlaneMatrix; inputs: (token, column) float32, bfloat16 or float16;
    positions: (entry,) int64, distinct; factors: (entry,), bias: (row,), total: (token, row), float32. The
    inputs are multiplied by integers, which their type holds exactly; the sums are float32.
    """
    if not len(positions):
        return
    bits, rows, words = len(planes) - 1, planes.shape[1], planes.shape[2]
    grid = (triton.cdiv(len(positions), _TOKENS), triton.cdiv(rows, _ROWS))
    kernel: Any = _add
    with torch.cuda.device_of(inputs):
        kernel[grid](
            inputs.contiguous(), planes, positions, factors, bias, total,
            len(positions), rows, inputs.shape[1], words, scale, offset,
            bits, _TOKENS, _ROWS, _WORDS,
        )  # fmt: skip


@triton.jit
def _add(
    inputs, planes, positions, factors, bias, total,
    count, rows, columns, words, scale, offset,
    level_bits: tl.constexpr, tile_tokens: tl.constexpr, tile_rows: tl.constexpr, tile_words: tl.constexpr,
):  # fmt: skip
    """Adds a tile of the product, (tile_tokens, tile_rows)."""
    entry = tl.program_id(0) * tile_tokens + tl.arange(0, tile_tokens)
    row = tl.program_id(1) * tile_rows + tl.arange(0, tile_rows)
    is_entry, is_row = entry < count, row < rows
    position = tl.load(positions + entry, mask=is_entry, other=0)
    sums = tl.full((tile_tokens, tile_rows), 0.0, tl.float32)
    for first in range(0, words, tile_words):
        column = first * 32 + tl.arange(0, tile_words * 32)
        is_column = column < columns
        given = tl.load(
            inputs + position[:, None] * columns + column[None, :],
            mask=is_entry[:, None] & is_column[None, :],
            other=0.0,
        )
        word = planes + row[None, :] * words + (column // 32)[:, None]  # (column, row)
        there = is_row[None, :] & is_column[:, None]
        bit_in_word = (column % 32)[:, None]
        kept = (tl.load(word, mask=there, other=0) >> bit_in_word) & 1
        whole = kept * offset
        for bit in tl.static_range(level_bits):
            plane = tl.load(word + (bit + 1) * rows * words, mask=there, other=0)
            whole += kept * (((plane >> bit_in_word) & 1) << (bit + 1))
        sums = tl.dot(given, whole.to(given.dtype), sums, input_precision="ieee")
    added = scale * sums + tl.load(bias + row, mask=is_row, other=0.0)[None, :]
    factor = tl.load(factors + entry, mask=is_entry, other=0.0)
    out = total + position[:, None] * rows + row[None, :]
    inside = is_entry[:, None] & is_row[None, :]
    tl.store(out, tl.load(out, mask=inside, other=0.0) + factor[:, None] * added, mask=inside)
