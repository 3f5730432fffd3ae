"""A checkpoint in files of torch.save."""

import itertools
import re
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flexswitch.codecs.errors import InputError, unknown_name
from flexswitch.merging.checkpoints.checkpoint import TensorInfo
from flexswitch.merging.checkpoints.dtypes import DTYPE_NAMES
from flexswitch.merging.checkpoints.tied_names import main_name

_ZIP = b"PK\x03\x04"  # what torch.load takes for the start of a zip file
_MOST_LEVELS = 16  # of dicts in dicts
_SHOWN = 5
_MOST_TIMES = (
    8  # the bytes of the tensors in those of the files: some tensors are other views of the same values
)


class TorchCheckpoint:
    """Tensors in one or more files of torch.save, mapped into memory and unpickled by `weights_only`."""

    def __init__(
        self, source: str, files: list[Path], directory: Path | None, key: str | None = None
    ) -> None:
        """key: of the state dict in a file that holds several, such as "model.state_dict"."""
        self.source = source
        self.files: Sequence[Path] = files
        self.directory = directory
        self.hub_id: str | None = None
        self.notes: list[str] = []
        self.aliases: dict[str, str] = {}
        self._state: dict[str, Tensor] = {}
        for path in files:
            taken, state = _load_state(path, key)
            self._state |= state
            self.notes += [f"{path}: its tensors under '{taken}' are taken"] if taken else []
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
        self._check_size()

    def _check_size(self) -> None:
        """Raises: InputError if the tensors are far larger than the files, as views of few values are."""
        wanted = sum(self._state[name].nbytes for name in self.tensors)
        size = sum(path.stat().st_size for path in self.files)
        if wanted > _MOST_TIMES * size:
            name = max(self.tensors, key=lambda each: self._state[each].nbytes)
            raise InputError(
                f"{self.source}: its tensors have {wanted:,} bytes in a file of {size:,}: the values "
                f"overlap, in '{name}' most; save each tensor's contiguous() values"
            )

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Returns entries [start, stop) of a tensor, flat, in its own dtype."""
        return self._state[name].reshape(-1)[start:stop].clone()

    def read_ahead(self, name: str) -> None:
        """Does nothing: the file is mapped into memory."""


def _load_state(path: Path, key: str | None) -> tuple[str, dict[str, Tensor]]:
    """Returns the key of a torch.save file's state dict, "" if it is the whole, and its tensors by name.

    key: of the one to take, None for the only one. Raises: InputError.
    """
    state = _load(path)
    if not isinstance(state, dict) or not state:
        raise InputError(f"{path}: holds a {type(state).__name__}, expected a state dict of tensors")
    dicts = _state_dicts(path, state)
    found = dict(itertools.islice((each for each in dicts if key in (None, each[0])), _SHOWN + 1))
    if key is not None and key not in found:
        known = dict(itertools.islice(_state_dicts(path, state), _SHOWN))
        raise InputError(f"{path}: {unknown_name('state dict', key, known)}")
    if len(found) > 1 and "" not in found:
        shown = ", ".join(sorted(found)[:_SHOWN]) + (" and more" if len(found) > _SHOWN else "")
        raise InputError(
            f"{path}: holds the state dicts {shown}, expected one; name one of a fine-tuned checkpoint with "
            f"--key {min(found)}, or save it alone, as a base has to be: {_save_alone(path, min(found))}"
        )
    key, state = ("", state) if "" in found or not found else next(iter(found.items()))
    for name, value in state.items():
        _check_entry(path, name, value)
    return key, {name: value.detach() for name, value in state.items()}


def _save_alone(path: Path, key: str) -> str:
    """Returns a command that saves one state dict of a file as a file of its own."""
    parts = "".join(f"[{part!r}]" for part in key.split("."))
    code = f"import torch; torch.save(torch.load({str(path)!r}, weights_only=True){parts}, 'NEW.pt')"
    return f'python -c "{code}"'


def _load(path: Path) -> Any:
    """Returns what a file of torch.save holds. Raises: InputError."""
    try:
        _check_zip(path)
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as reason:  # a file of the format before torch 1.6 can't be mapped
            if "mmap" not in str(reason):
                raise
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as reason:  # torch.load raises many kinds of errors on a damaged file
        if isinstance(reason, OSError | InputError):
            raise
        raise InputError(
            f"{path}: does not load as a state dict with weights_only ({_refusal(reason)})"
        ) from reason


def _check_zip(path: Path) -> None:
    """Raises: InputError if the parts of a zip file are compressed, or larger than the file."""
    with path.open("rb") as stream:
        if stream.read(len(_ZIP)) != _ZIP:
            return
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
    stored = all(part.compress_type == zipfile.ZIP_STORED for part in parts)
    if not stored or sum(part.file_size for part in parts) > path.stat().st_size:
        raise InputError(
            f"{path}: its parts are compressed or overlap, expected them as torch.save stores them; save the "
            "model's state_dict() alone"
        )


def _check_entry(path: Path, name: Any, value: Any) -> None:
    """Raises: InputError if an entry of a state dict is no tensor of a name, or of a kind not handled."""
    if not isinstance(name, str):
        raise InputError(
            f"{path}: not a state dict: has a key that is a {type(name).__name__}, expected names of "
            "tensors; save the model's state_dict() alone"
        )
    if not isinstance(value, Tensor):
        raise InputError(
            f"{path}: not a state dict: '{name}' holds a {type(value).__name__}, expected names of "
            "tensors; save the model's state_dict() alone"
        )
    if any("\ud800" <= character <= "\udfff" for character in name):
        raise InputError(f"{path}: the name of the tensor '{name}' is not Unicode text; rename it")
    if value.dtype not in DTYPE_NAMES or value.layout != torch.strided:
        raise InputError(
            f"{path}: tensor '{name}' has the dtype {value.dtype} and the layout {value.layout}, "
            "which is not handled"
        )
    if type(value) not in (Tensor, nn.Parameter) or value.is_nested or value.is_meta:
        kind = "nested" if value.is_nested else "without values" if value.is_meta else type(value).__name__
        raise InputError(f"{path}: tensor '{name}' is {kind}, expected a plain tensor with its values")


def _state_dicts(path: Path, whole: dict[Any, Any]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yields the dicts of names and tensors alone, of two tensors or more, by their dotted keys in a file.

    A dict of others is visited once, so one that holds itself ends.
    Raises: InputError if they are nested deeply.
    """
    level, visited = [("", whole)], set()
    for _ in range(_MOST_LEVELS):
        below: list[tuple[str, dict[Any, Any]]] = []
        for key, held in level:
            if id(held) in visited:
                continue
            if held and all(
                isinstance(name, str) and isinstance(value, Tensor) for name, value in held.items()
            ):
                if not key or len(held) > 1:
                    yield key, held
                continue
            visited.add(id(held))
            for name, value in held.items():
                if isinstance(name, str) and isinstance(value, dict):
                    below.append((f"{key}.{name}" if key else name, value))
        if not below:
            return
        level = below
    raise InputError(
        f"{path}: its dicts are nested more than {_MOST_LEVELS} levels deep; save the model's "
        "state_dict() alone"
    )


def _refusal(reason: Exception) -> str:
    """Returns in one line why torch.load refused a file: the object that is no tensor, or its message."""
    held = re.search(r"GLOBAL ([\w.]+)", str(reason))
    if held:
        return f"it holds a '{held[1]}'; save the model's state_dict() alone"
    return (str(reason).splitlines() or [type(reason).__name__])[0][:160]
