"""The shape of a text: what letters, digits, spaces and marks stand side by side.

Most tokenizers drop what it tells: upper case, and whether a mark stands close to its word. What source a
text comes from shows in it. Upper-case letters count as A, lower-case ones as a, decimal digits as 0, all
else as itself; a text begins and ends with a line feed. Runs of one to three characters are counted, hashed
into buckets (feature hashing).
Source: Weinberger et al. 2009 (arXiv 0902.2206).
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_LONGEST = 3
_OFFSET, _PRIME = np.uint32(2166136261), np.uint32(16777619)  # FNV-1a's


def text_shapes(texts: Sequence[str], width: int) -> Tensor:
    """Returns the square roots of counts, each row of length 1, (text, width) float32."""
    counts = np.stack([_counts(text, width) for text in texts])
    roots = np.sqrt(counts)
    return torch.from_numpy((roots / np.linalg.norm(roots, axis=1, keepdims=True)).astype(np.float32))


def shape_of(text: str) -> str:
    """Returns a text's shape.

    >>> shape_of("In 2004, SBC paid £90.")
    'Aa 0000, AAA aaaa £00.'
    """
    return text.translate(_CLASSES)


def with_shapes(means: Tensor, texts: Sequence[str], parts: int) -> Tensor:
    """Returns the texts' shapes and behind them a model's features, (text, width) float32.

    means: (text, width), of so many parts as wide as the shapes become.
    """
    return torch.cat([text_shapes(texts, means.shape[1] // parts).to(means), means], 1)


class _Classes(dict[int, int]):
    """Code point → that of its class, worked out once each."""

    def __missing__(self, point: int) -> int:
        character = chr(point)
        if character.isupper():
            found = ord("A")
        elif character.islower():
            found = ord("a")
        else:
            found = ord("0") if character.isdecimal() else point
        self[point] = found
        return found


_CLASSES = _Classes()


def _counts(text: str, width: int) -> NDArray[np.float64]:
    """Returns how often each bucket's runs of characters stand in a text, (width,)."""
    encoded = f"\n{shape_of(text)}\n".encode("utf-32-le", "surrogatepass")
    points = np.frombuffer(encoded, np.uint32)
    hashes, found = np.full(len(points), _OFFSET, np.uint32), []
    for length in range(1, min(_LONGEST, len(points)) + 1):
        behind = points[length - 1 :]
        hashes = (hashes[: len(behind)] ^ behind) * _PRIME
        found.append((hashes ^ (hashes >> np.uint32(15))) % np.uint32(width))
    return np.bincount(np.concatenate(found), minlength=width).astype(np.float64)
