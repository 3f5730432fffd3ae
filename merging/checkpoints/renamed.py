"""A checkpoint under other names, and with tensors that are made of its own as they are read."""

from collections import Counter
from collections.abc import Callable, Mapping
from functools import lru_cache
from threading import Lock
from typing import NamedTuple

from torch import Tensor

from flexswitch.merging.checkpoints.checkpoint import Checkpoint, TensorInfo

# Groups of converted tensors in memory: the experts of a layer are two or three.
_HELD_GROUPS = 3


class Conversion(NamedTuple):
    """A tensor that is made of others: its form, their names, what makes it of them, and its name in that."""

    info: TensorInfo
    sources: tuple[str, ...]
    make: Callable[[dict[str, Tensor]], Mapping[str, Tensor]]
    made_name: str


class RenamedCheckpoint:
    """A checkpoint's tensors under other names. The last converted tensors are held in memory.

    names: new name → own name, for every tensor and alias that stays. conversions: new name → how it is made.
    """

    def __init__(
        self, checkpoint: Checkpoint, names: Mapping[str, str], conversions: Mapping[str, Conversion] = {}
    ) -> None:
        self.source, self.directory, self.hub_id = checkpoint.source, checkpoint.directory, checkpoint.hub_id
        self.files, self.notes = checkpoint.files, checkpoint.notes
        self._checkpoint, self._conversions = checkpoint, conversions
        self._own = {new: name for new, name in names.items() if name in checkpoint.tensors}
        new_names = {name: new for new, name in self._own.items()}
        self.aliases = {
            new: new_names[checkpoint.aliases[name]]
            for new, name in names.items()
            if name in checkpoint.aliases and checkpoint.aliases[name] in new_names
        }
        tensors = {new: checkpoint.tensors[name] for new, name in self._own.items()}
        tensors |= {new: conversion.info for new, conversion in conversions.items()}
        self.tensors = dict(sorted(tensors.items()))
        self._lock = Lock()
        self._made = lru_cache(_HELD_GROUPS)(self._make)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Returns entries [start, stop) of a tensor, flat, in its own dtype."""
        if name in self._own:
            return self._checkpoint.read(self._own[name], start, stop)
        with self._lock:
            conversion = self._conversions[name]
            made = self._made(conversion.sources, conversion.make)[conversion.made_name]
        return made.reshape(-1)[start:stop].clone()

    def read_ahead(self, name: str) -> None:
        """Asks the system to have a tensor's bytes in memory soon."""
        own = self._own.get(name)
        for source in self._conversions[name].sources if own is None else (own,):
            self._checkpoint.read_ahead(source)

    def _make(
        self, sources: tuple[str, ...], make: Callable[[dict[str, Tensor]], Mapping[str, Tensor]]
    ) -> Mapping[str, Tensor]:
        shapes = {source: self._checkpoint.tensors[source].shape for source in sources}
        return make({name: self._checkpoint.read(name).reshape(shape) for name, shape in shapes.items()})


def renamed(checkpoint: Checkpoint, new_names: Mapping[str, str]) -> Checkpoint:
    """Returns a checkpoint under other names: own name → new name; the others stay as they are.

    A new name that another tensor has, or that several would get, is not given.
    """
    own = [*checkpoint.tensors, *checkpoint.aliases]
    given = {name: new for name, new in new_names.items() if new != name and name in own}
    taken = Counter([*(name for name in own if name not in given), *given.values()])
    given = {name: new for name, new in given.items() if taken[new] == 1}
    if not given:
        return checkpoint
    return RenamedCheckpoint(checkpoint, {given.get(name, name): name for name in own})
