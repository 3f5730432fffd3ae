"""Matrices stored as the product of two thin ones, made of their leading singular vectors."""

from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field

from flexswitch.codecs.sparse import FloatArray
from flexswitch.merging.compression.delta import Compressed, Delta
from flexswitch.merging.compression.floats import floats
from flexswitch.merging.task_vectors.singular_triples import Triples, leading_triples

Others = Annotated[
    Literal["keep", "drop"],
    Field(description="Tensors that are no matrices, such as biases: keep all of them, or leave them out."),
]

_EPSILON = torch.finfo(torch.float32).eps


def low_rank(delta: Delta, rank: int, bits: int) -> Compressed:
    """Returns A, (row, rank), above B, (column, rank), as floats; A·Bᵀ is the nearest matrix of that rank.

    Both have the roots of the singular values. The rank is less where the others are within the rounding of
    float32. Raises: InputError if a value is not finite in so many bits.
    """
    triples = delta_triples(delta, rank)
    if not len(triples.values):
        return left_out(delta)
    roots = triples.values.sqrt()
    stacked = torch.cat([triples.left * roots, triples.right.T * roots]).to(torch.float32).contiguous()
    stored = floats(Delta(delta.name, tuple(stacked.shape), lambda: [stacked.numpy().reshape(-1)]), bits)
    return replace(stored, shape=delta.shape)


def delta_triples(delta: Delta, rank: int) -> Triples:
    """Returns a matrix's leading singular triples, but for those within the rounding of float32."""
    matrix = torch.from_numpy(whole(delta)).to(torch.float64).reshape(delta.shape)
    found = leading_triples(matrix, rank)
    count = int((found.values > _EPSILON * torch.linalg.vector_norm(matrix)).sum())
    return Triples(found.left[:, :count], found.values[:count], found.right[:count], found.spectrum)


def whole(delta: Delta) -> FloatArray:
    """Returns a tensor's delta, flat."""
    return np.concatenate([np.empty(0, np.float32), *delta.read()])


def kept_or_left_out(delta: Delta, others: str, bits: int) -> Compressed:
    """Returns a tensor that is no matrix, by the setting `others`. Raises: InputError."""
    return floats(delta, bits) if others == "keep" else left_out(delta)


def left_out(delta: Delta) -> Compressed:
    """Returns a tensor of which nothing is kept."""
    zeros = np.zeros(int(np.prod(delta.shape, dtype=np.int64)), np.float32)
    return floats(Delta(delta.name, delta.shape, lambda: [zeros]), 32)
