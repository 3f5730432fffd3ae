"""Checks that the weights of a model in memory are those of a task vector's base."""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from flexswitch.codecs.errors import InputError
from flexswitch.codecs.format.records import BaseIdentity
from flexswitch.merging.checkpoints.checkpoint import Checkpoint, TensorInfo
from flexswitch.merging.checkpoints.dtypes import DTYPE_NAMES
from flexswitch.merging.checkpoints.fingerprint import check_base, fingerprint
from flexswitch.merging.checkpoints.tied_names import main_name
from flexswitch.merging.task_vectors.task_vector import block_ranges


class LiveWeights:
    """The tensors of a model in memory as a checkpoint; those that share their storage are tied."""

    source = "the model"

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self.files: list[Path] = []
        self.directory: Path | None = None
        self.hub_id: str | None = None
        self.notes: list[str] = []
        tied: defaultdict[tuple[object, ...], list[str]] = defaultdict(list)
        for name, tensor in weights.items():
            place = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
            tied[place if tensor.numel() else (name,)].append(name)
        names = sorted(map(main_name, tied.values()))
        self.aliases: dict[str, str] = {}
        self.tensors = {name: TensorInfo(_dtype(weights[name]), tuple(weights[name].shape)) for name in names}
        self._weights = weights

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Returns entries [start, stop) of a tensor, flat, on the CPU."""
        return self._weights[name].detach().reshape(-1)[start:stop].cpu()

    def read_ahead(self, name: str) -> None:
        """Does nothing: the tensors are in memory."""


def check_live_weights(
    weights: Mapping[str, Tensor], expected: BaseIdentity, owner: str, base: Checkpoint | None
) -> None:
    """Checks that weights are the base's, by the base itself or, without one, by their fingerprint.

    weights: base name → tensor. With a base they may be of another dtype than the base's, in which they have
    its values rounded, and the model may lack tensors of the base. Raises: InputError.
    """
    if base is None:
        found = fingerprint(LiveWeights(weights))
        if found != expected.fingerprint:
            known_as = f" ({expected.id})" if expected.id else ""
            raise InputError(
                f"the model does not hold the base of {owner}: its weights' fingerprint is "
                f"{found[:12]}, expected {expected.fingerprint[:12]}{known_as}; load the base into it, or "
                "if it holds another dtype or only some tensors, give base= to compare with"
            )
        return
    check_base(base, expected, owner)
    for name in sorted(weights.keys() & base.tensors.keys()):
        _check_tensor(name, weights[name].detach().reshape(-1), base, owner)
    for alias, name in base.aliases.items():
        pair = [weights[each].data_ptr() for each in (alias, name) if each in weights]
        if len(set(pair)) > 1:
            raise InputError(
                f"the model does not hold the base of {owner}: it holds '{alias}' and '{name}' apart, which "
                f"{base.source} ties"
            )


def _check_tensor(name: str, live: Tensor, base: Checkpoint, owner: str) -> None:
    for start, stop in block_ranges(base.tensors[name].entries):
        found, stored = live[start:stop].cpu(), base.read(name, start, stop)
        wanted = stored.to(live.dtype)
        is_same = len(found) == len(wanted) and live.is_floating_point() == stored.is_floating_point()
        if not is_same or not torch.equal(found.view(torch.uint8), wanted.view(torch.uint8)):
            raise InputError(
                f"the model does not hold the base of {owner}: its tensor '{name}' differs from that of "
                f"{base.source} near entry {start:,}; load the base into it"
            )


def _dtype(tensor: Tensor) -> str:
    return DTYPE_NAMES.get(tensor.dtype, str(tensor.dtype))
