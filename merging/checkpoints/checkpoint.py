"""Opens any checkpoint lazily: names, shapes and dtypes from headers, weights block by block.

A checkpoint is a Hugging Face model directory, one state-dict file, or a hub id. Nothing is unpickled
but plain tensors, and no code that comes with a checkpoint is run.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from flexswitch.codecs.errors import InputError
from flexswitch.codecs.format.safetensors_file import RangeReader, StoredTensor, read_header
from flexswitch.merging.checkpoints.dtypes import DTYPE_NAMES, TORCH_DTYPES
from flexswitch.merging.checkpoints.hub import download_checkpoint, is_hub_id

ADAPTER_CONFIG = "adapter_config.json"
_WEIGHT_FILES = ("model.safetensors.index.json", "model.safetensors", "pytorch_model.bin.index.json",
                 "pytorch_model.bin")  # fmt: skip


@dataclass(frozen=True)
class TensorInfo:
    """A tensor as its header describes it: dtype by its safetensors name."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def entries(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)


class Checkpoint(Protocol):
    """An open checkpoint.

    source names it in messages; tensors holds the headers in name order; aliases maps the further
    names of a tied tensor to the one in `tensors`; directory is where config and tokenizer lie.
    """

    source: str
    directory: Path | None
    hub_id: str | None

    @property
    def files(self) -> Sequence[Path]:
        """The files of the weights."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """The headers in name order."""

    @property
    def aliases(self) -> Mapping[str, str]:
        """The further names of tied tensors."""

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Returns entries [start, stop) of a tensor, flat, in its own dtype; the caller may change them."""

    def read_ahead(self, name: str) -> None:
        """Asks the system to have a tensor's bytes in memory soon; they need not be."""


class SafetensorsCheckpoint:
    """Tensors in one or more safetensors files."""

    def __init__(self, source: str, files: list[Path], directory: Path | None) -> None:
        self.source = source
        self.files: Sequence[Path] = files
        self.directory = directory
        self.hub_id: str | None = None
        self.aliases: dict[str, str] = {}
        self._stored: dict[str, tuple[Path, StoredTensor]] = {}
        self._readers = {path: RangeReader(path, InputError) for path in files}
        for path in files:
            for name, stored in read_header(path, InputError).tensors.items():
                if stored.dtype not in TORCH_DTYPES:
                    raise InputError(
                        f"{path}: tensor '{name}' has the dtype {stored.dtype}, which is not handled"
                    )
                self._stored[name] = (path, stored)
        self.tensors = {
            name: TensorInfo(stored.dtype, stored.shape) for name, (_, stored) in sorted(self._stored.items())
        }

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Returns entries [start, stop) of a tensor, flat, in its own dtype."""
        path, stored = self._stored[name]
        stop = self.tensors[name].entries if stop is None else stop
        dtype = TORCH_DTYPES[stored.dtype]
        if stop <= start:
            return torch.empty(0, dtype=dtype)
        width = dtype.itemsize
        data = self._readers[path].read(stored.offset + start * width, (stop - start) * width)
        return torch.from_numpy(data).view(dtype)

    def read_ahead(self, name: str) -> None:
        """Asks the system to have a tensor's bytes in memory soon."""
        path, stored = self._stored[name]
        self._readers[path].read_ahead(stored.offset, stored.size)


class TorchCheckpoint:
    """Tensors in one or more files of torch.save, mapped into memory and unpickled by `weights_only`."""

    def __init__(self, source: str, files: list[Path], directory: Path | None) -> None:
        self.source = source
        self.files: Sequence[Path] = files
        self.directory = directory
        self.hub_id: str | None = None
        self.aliases: dict[str, str] = {}
        self._state: dict[str, Tensor] = {}
        for path in files:
            self._state |= _load_state(path)
        self.tensors: dict[str, TensorInfo] = {}
        first_names: dict[tuple[object, ...], str] = {}
        for name, tensor in sorted(self._state.items()):
            place = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
            first = first_names.setdefault(place, name) if tensor.numel() else name
            if first != name:
                self.aliases[name] = first
            else:
                self.tensors[name] = TensorInfo(DTYPE_NAMES[tensor.dtype], tuple(tensor.shape))

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Returns entries [start, stop) of a tensor, flat, in its own dtype."""
        return self._state[name].reshape(-1)[start:stop].clone()

    def read_ahead(self, name: str) -> None:
        """Does nothing: the file is mapped into memory."""


def open_checkpoint(source: str) -> Checkpoint:
    """Opens a model directory, a state-dict file or a hub id; a PEFT directory is opened by `lora.py`.

    Raises: InputError where there is none, or its headers are damaged.
    """
    path, hub_id = locate(source)
    if path.is_file():
        return _open_files(source, [path], None)
    if (path / ADAPTER_CONFIG).is_file() and not any((path / name).is_file() for name in _WEIGHT_FILES):
        raise InputError(
            f"{source}: is a PEFT adapter, expected a whole model; give it as the fine-tuned checkpoint"
        )
    checkpoint = _open_files(source, _weight_files(path, source), path)
    checkpoint.hub_id = hub_id
    return checkpoint


def is_adapter(source: str) -> bool:
    """Returns whether a checkpoint is a PEFT adapter directory rather than a whole model."""
    path, _ = locate(source)
    return (path / ADAPTER_CONFIG).is_file() and not any((path / name).is_file() for name in _WEIGHT_FILES)


def locate(source: str) -> tuple[Path, str | None]:
    """Returns a checkpoint's local path, and its hub id where it was fetched from the hub.

    Raises: InputError where it is neither a path nor a repository of the hub.
    """
    path = Path(source).expanduser()
    if path.exists():
        return path, None
    if is_hub_id(source):
        try:
            return download_checkpoint(source), source
        except InputError as reason:
            raise InputError(f"{source}: no such file or directory; from the hub: {reason}") from reason
    raise InputError(f"{source}: no such file or directory; expected a checkpoint, or a hub id org/name")


def read_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """Returns a checkpoint's config.json, empty where it has none. Raises: InputError."""
    if checkpoint.directory is None or not (checkpoint.directory / "config.json").is_file():
        return {}
    return read_json_object(checkpoint.directory / "config.json")


def read_json_object(path: Path) -> dict[str, Any]:
    """Returns the JSON object in a file. Raises: InputError."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as reason:
        raise InputError(f"{path}: is not JSON ({reason})") from reason
    if not isinstance(document, dict):
        raise InputError(f"{path}: holds a JSON {type(document).__name__}, expected an object")
    return document


def _open_files(source: str, files: list[Path], directory: Path | None) -> Checkpoint:
    if files[0].suffix == ".safetensors":
        return SafetensorsCheckpoint(source, files, directory)
    if files[0].suffix in (".bin", ".pt", ".pth"):
        return TorchCheckpoint(source, files, directory)
    raise InputError(
        f"{files[0]}: not a checkpoint: the suffix is '{files[0].suffix}', "
        "expected .safetensors, .bin, .pt or .pth"
    )


def _weight_files(directory: Path, source: str) -> list[Path]:
    for name in _WEIGHT_FILES:
        path = directory / name
        if path.is_file():
            return _shards(path) if path.suffix == ".json" else [path]
    raise InputError(
        f"{source}: not a checkpoint: it has none of {', '.join((*_WEIGHT_FILES, ADAPTER_CONFIG))}"
    )


def _shards(index: Path) -> list[Path]:
    """Returns the files that a shard index names. Raises: InputError on a missing or foreign one."""
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index}: has no 'weight_map' of tensor names to shard files")
    files = sorted({str(name) for name in weight_map.values()})
    for name in files:
        if Path(name).name != name:
            raise InputError(f"{index}: names the shard '{name}', expected a file of the same folder")
        if not (index.parent / name).is_file():
            raise InputError(f"{index}: names the shard '{name}', which is missing; download it again")
    return [index.parent / name for name in files]


def _load_state(path: Path) -> dict[str, Tensor]:
    """Returns a torch.save file's tensors by name. Raises: InputError."""
    try:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as reason:  # a file of the format before torch 1.6 can't be mapped
            if "mmap" not in str(reason):
                raise
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as reason:  # torch.load raises half a dozen kinds on a damaged file
        if isinstance(reason, (OSError, MemoryError)):
            raise
        raise InputError(
            f"{path}: does not load as a state dict with weights_only ({_refusal(reason)})"
        ) from reason
    if not isinstance(state, dict) or not state:
        raise InputError(f"{path}: holds a {type(state).__name__}, expected a state dict of tensors")
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
    return {name: value.detach() for name, value in state.items()}


def _refusal(reason: Exception) -> str:
    """Returns in one line why torch.load refused a file: what it holds beside tensors, or its own words."""
    held = re.search(r"GLOBAL ([\w.]+)", str(reason))
    if held:
        return f"it holds a '{held[1]}'; save the model's state_dict() alone"
    return (str(reason).splitlines() or [type(reason).__name__])[0][:160]
