"""Tied tensors: which of their names counts, and embeddings that a file holds twice.

A model may use one tensor under several names, and a file of it may hold one of these names or all. Whatever
the file holds, the tensor is to have one name.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from flexswitch.merging.checkpoints.checkpoint import Checkpoint, TensorInfo

# Of an input embedding and what transformers ties to it, files hold the input embedding.
_EMBEDDING = re.compile(
    r"(?:.*\.)?(?:shared|wte|embed_tokens|embed_in|word_embeddings?|tok(?:en)?_embeddings?)\.weight"
)
_BLOCK_ENTRIES = 1 << 18


def main_name(names: Iterable[str]) -> str:
    """Returns the name under which a tied tensor counts.

    It is that of an input embedding, else any: the one with the fewest parts, then the first.
    """
    return min(names, key=lambda name: (not _EMBEDDING.fullmatch(name), name.count("."), name))


def repeated_embeddings(checkpoint: Checkpoint) -> dict[str, str]:
    """Returns further name → main name of input embeddings that are stored several times, as by a tied head.

    Only matrices of the embedding's shape and dtype are read, as far as they agree with it.
    """
    groups: defaultdict[TensorInfo, list[str]] = defaultdict(list)
    for name, info in checkpoint.tensors.items():
        if len(info.shape) == 2 and info.entries:
            groups[info].append(name)
    found: dict[str, str] = {}
    for names in groups.values():
        first = main_name(names)
        if len(names) > 1 and _EMBEDDING.fullmatch(first):
            found |= {name: first for name in names if name != first and _agree(checkpoint, first, name)}
    return found


def unties(config: Mapping[str, object]) -> bool:
    """Returns whether a config.json says, at any depth, that equal embeddings are separate weights."""
    nested = [value for value in config.values() if isinstance(value, dict)]
    return config.get("tie_word_embeddings") is False or any(map(unties, nested))


def _agree(checkpoint: Checkpoint, one: str, other: str) -> bool:
    """Returns whether two tensors of one shape and dtype have the same bytes."""
    entries = checkpoint.tensors[one].entries

    def part(name: str, start: int) -> Tensor:
        return checkpoint.read(name, start, min(entries, start + _BLOCK_ENTRIES)).view(torch.uint8)

    return all(
        torch.equal(part(one, start), part(other, start)) for start in range(0, entries, _BLOCK_ENTRIES)
    )
