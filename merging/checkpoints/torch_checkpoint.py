"""A checkpoint in files of torch.save."""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flexswitch.codecs.errors import InputError
from flexswitch.merging.checkpoints.checkpoint import TensorInfo
from flexswitch.merging.checkpoints.dtypes import DTYPE_NAMES
from flexswitch.merging.checkpoints.tied_names import main_name


class TorchCheckpoint:
    """Tensors in one or more files of torch.save, mapped into memory and unpickled by `weights_only`."""

    def __init__(self, source: str, files: list[Path], directory: Path | None) -> None:
        self.source = source
        self.files: Sequence[Path] = files
        self.directory = directory
        self.hub_id: str | None = None
        self.notes: list[str] = []
        self.aliases: dict[str, str] = {}
        self._state: dict[str, Tensor] = {}
        for path in files:
            key, state = _load_state(path)
            self._state |= state
            self.notes += [f"{path}: its tensors under '{key}' are taken"] if key else []
        self.tensors: dict[str, TensorInfo] = {}
        tied: defaultdict[tuple[object, ...], list[str]] = defaultdict(list)
        for name, tensor in self._state.items():
            place = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
            tied[place if tensor.numel() else (name,)].append(name)
        main_names = {name: main_name(names) for names in tied.values() for name in names}
        for name, tensor in sorted(self._state.items()):
            if main_names[name] == name:
                self.tensors[name] = TensorInfo(DTYPE_NAMES[tensor.dtype], tuple(tensor.shape))
            else:
                self.aliases[name] = main_names[name]

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Returns entries [start, stop) of a tensor, flat, in its own dtype."""
        return self._state[name].reshape(-1)[start:stop].clone()

    def read_ahead(self, name: str) -> None:
        """Does nothing: the file is mapped into memory."""


def _load_state(path: Path) -> tuple[str, dict[str, Tensor]]:
    """Returns the key of a torch.save file's only state dict, "" if it is the whole, and its tensors by name.

    Raises: InputError.
    """
    try:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as reason:  # a file of the format before torch 1.6 can't be mapped
            if "mmap" not in str(reason):
                raise
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as reason:  # torch.load raises many kinds of errors on a damaged file
        if isinstance(reason, OSError):
            raise
        raise InputError(
            f"{path}: does not load as a state dict with weights_only ({_refusal(reason)})"
        ) from reason
    if not isinstance(state, dict) or not state:
        raise InputError(f"{path}: holds a {type(state).__name__}, expected a state dict of tensors")
    found = dict(_state_dicts("", state))
    if len(found) > 1 and "" not in found:
        raise InputError(
            f"{path}: holds the state dicts {', '.join(sorted(found))}, expected one; save one of them alone"
        )
    key, state = ("", state) if "" in found or not found else next(iter(found.items()))
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise InputError(
                f"{path}: not a state dict: '{name}' holds a {type(value).__name__}, expected names of "
                "tensors; save the model's state_dict() alone"
            )
        if value.dtype not in DTYPE_NAMES or value.layout != torch.strided:
            raise InputError(
                f"{path}: tensor '{name}' has the dtype {value.dtype} and the layout {value.layout}, "
                "which is not handled"
            )
    return key, {name: value.detach() for name, value in state.items()}


def _state_dicts(key: str, held: dict[Any, Any]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yields the dicts of names and tensors alone, of two tensors or more, by their dotted keys in a file."""
    if held and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in held.items()):
        if not key or len(held) > 1:
            yield key, held
        return
    for name, value in held.items():
        if isinstance(name, str) and isinstance(value, dict):
            yield from _state_dicts(f"{key}.{name}" if key else name, value)


def _refusal(reason: Exception) -> str:
    """Returns in one line why torch.load refused a file: the object that is no tensor, or its message."""
    held = re.search(r"GLOBAL ([\w.]+)", str(reason))
    if held:
        return f"it holds a '{held[1]}'; save the model's state_dict() alone"
    return (str(reason).splitlines() or [type(reason).__name__])[0][:160]
