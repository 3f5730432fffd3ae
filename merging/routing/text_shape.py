"""The shape of a text: which classes of letters, digits, spaces and punctuation follow each other.

The shape keeps what most tokenizers drop, such as upper case and the spaces around punctuation, and hints at
the source of a text. Upper-case letters become A, lower-case letters a and decimal digits 0; other characters
stay. A line feed is added at both ends. Runs of one to three characters are hashed into buckets and counted.
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
    """Returns the texts' shapes followed by a model's features, (text, width) float32.

    means: (text, width), the features, which consist of `parts` parts; the shapes are as wide as one part.
    """
    return torch.cat([text_shapes(texts, means.shape[1] // parts).to(means), means], 1)


class _Classes(dict[int, int]):
    """Maps a code point to that of its class; each is computed once."""

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
    """Returns how often a text contains runs of characters of each bucket, (width,)."""
    encoded = f"\n{shape_of(text)}\n".encode("utf-32-le", "surrogatepass")
    points = np.frombuffer(encoded, np.uint32)
    hashes, found = np.full(len(points), _OFFSET, np.uint32), []
    for length in range(1, min(_LONGEST, len(points)) + 1):
        behind = points[length - 1 :]
        hashes = (hashes[: len(behind)] ^ behind) * _PRIME
        found.append((hashes ^ (hashes >> np.uint32(15))) % np.uint32(width))
    return np.bincount(np.concatenate(found), minlength=width).astype(np.float64)
