"""What a fuzzing target of a file's reader is."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from documents import Change, mutate_json

Mutate = Callable[[bytes, random.Random, Change], bytes]


@dataclass(frozen=True)
class Reader:
    """A reader of files.

    seeds: yields the files to begin with; target: reads a file of these bytes; both use a folder. words: keys
    and values that it knows.
    """

    label: str
    seeds: Callable[[Path], Iterator[bytes]]
    target: Callable[[bytes, Path], None]
    words: Sequence[Any] = ()
    longest: int = 1 << 17
    own_mutate: Mutate | None = None

    def mutate(self, data: bytes, draw: random.Random, change: Change) -> bytes:
        """Returns a changed file."""
        if self.own_mutate is not None:
            return self.own_mutate(data, draw, change)
        return mutate_json(data, self.words, draw, change)
