"""Opens any checkpoint: a Hugging Face model directory, one state-dict file, or a hub id.

Only plain tensors are unpickled, and no code that comes with a checkpoint is run.
"""

import os
from pathlib import Path
from typing import NamedTuple

from flexswitch.codecs.argument_types import PATH, check_argument, is_path
from flexswitch.codecs.errors import InputError
from flexswitch.codecs.format.hub_id import is_hub_id
from flexswitch.codecs.format.tensor_names import check_tensor_names
from flexswitch.merging.checkpoints.checkpoint import Checkpoint
from flexswitch.merging.checkpoints.config import read_config, read_json_object
from flexswitch.merging.checkpoints.hub import download_checkpoint
from flexswitch.merging.checkpoints.modules import ModulesCheckpoint, module_folders
from flexswitch.merging.checkpoints.other_layouts import other_layout
from flexswitch.merging.checkpoints.quantised import dequantised
from flexswitch.merging.checkpoints.safetensors_checkpoint import SafetensorsCheckpoint
from flexswitch.merging.checkpoints.tied_names import repeated_embeddings, unties
from flexswitch.merging.checkpoints.torch_checkpoint import TorchCheckpoint
from flexswitch.merging.checkpoints.wrappers import unwrapped

ADAPTER_CONFIG = "adapter_config.json"
_POINTER = b"version https://git-lfs.github.com/spec/"
_LONGEST_NAME = 250  # letters; file systems allow 255 bytes
_TORCH_SUFFIXES = (".bin", ".pt", ".pth", ".pth.tar", ".ckpt")
# In the order in which transformers looks for them.
_WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin",
                 "pytorch_model.bin.index.json")  # fmt: skip


class Location(NamedTuple):
    """Where a checkpoint is.

    source: the user's path or hub id. path: the local file or directory. hub_id: None if it is local.
    """

    source: str
    path: Path
    hub_id: str | None

    @property
    def is_adapter(self) -> bool:
        """Whether it is a PEFT adapter directory rather than a whole model."""
        has_weights = any((self.path / name).is_file() for name in _WEIGHT_FILES)
        return (self.path / ADAPTER_CONFIG).is_file() and not has_weights


def locate(source: str) -> Location:
    """Returns where a checkpoint is; downloads it if the source is a hub id and no existing path.

    Raises: InputError if it is neither a path nor a repository of the hub.
    """
    path = Path(os.path.expanduser(source))
    if os.path.exists(path):  # False, too, where no path can have this name
        return Location(source, path, None)
    if is_hub_id(source):
        try:
            return Location(source, download_checkpoint(source), source)
        except InputError as reason:
            raise InputError(f"{source}: no such file or directory; from the hub: {reason}") from reason
    raise InputError(f"{source}: no such file or directory; expected a checkpoint, or a hub id org/name")


def open_checkpoint(source: str | Path | Location, key: str | None = None) -> Checkpoint:
    """Opens a model directory, a state-dict file or a hub id; FP8 weights are dequantised.

    key: of the state dict in a file of torch.save that holds several. Raises: InputError if there is none, it
    is a PEFT adapter, its headers are damaged, or it holds codes.
    """
    return dequantised(unwrapped(open_stored(source, key)))


def open_stored(source: str | Path | Location, key: str | None = None) -> Checkpoint:
    """Opens a checkpoint whose tensors are as stored, even if they are codes. Raises: InputError."""
    checkpoint = _open_any(source, key)
    check_tensor_names(checkpoint.source, [*checkpoint.tensors, *checkpoint.aliases], InputError)
    return checkpoint


def _open_any(source: str | Path | Location, key: str | None) -> Checkpoint:
    if not isinstance(source, Location):
        check_argument("open_checkpoint", "source", source, is_path(source), f"{PATH}, or a hub id")
    place = source if isinstance(source, Location) else locate(str(source))
    if place.path.is_file():
        return _open_files(place.source, [place.path], None, key)
    if key is not None:
        raise InputError(
            f"{place.source}: --key {key}: is a directory, and not a file with several state dicts"
        )
    if place.is_adapter:
        raise InputError(
            f"{place.source}: is a PEFT adapter, expected a whole model; give it as the fine-tuned checkpoint"
        )
    files, notes = _weight_files(place.path, place.source)
    checkpoint: Checkpoint = _open_files(place.source, files, place.path)
    checkpoint.hub_id = place.hub_id
    checkpoint.notes = notes
    modules = {folder: place.path / folder for folder in module_folders(place.path)}
    opened = {
        name: _open_files(place.source, _weight_files(folder, place.source)[0], None)
        for name, folder in modules.items()
        if _has_weights(folder)
    }
    return ModulesCheckpoint(checkpoint, opened) if opened else checkpoint


def _open_files(source: str, files: list[Path], directory: Path | None, key: str | None = None) -> Checkpoint:
    opened: SafetensorsCheckpoint | TorchCheckpoint
    for file in files:
        _refuse_pointer(file)
    if files[0].suffix == ".safetensors":
        if key is not None:
            raise InputError(
                f"{files[0]}: --key {key}: a safetensors file has no state dicts inside; leave it out"
            )
        opened = SafetensorsCheckpoint(source, files, directory)
    elif files[0].name.endswith(_TORCH_SUFFIXES):
        opened = TorchCheckpoint(source, files, directory, key)
    else:
        raise InputError(
            f"{files[0]}: not a checkpoint: the suffix is '{files[0].suffix}', "
            f"expected .safetensors, {', '.join(_TORCH_SUFFIXES[:-1])} or {_TORCH_SUFFIXES[-1]}"
        )
    repeated = repeated_embeddings(opened)
    if repeated and not unties(read_config(opened)):
        opened.aliases |= repeated | {
            name: repeated[first] for name, first in opened.aliases.items() if first in repeated
        }
        opened.tensors = {name: info for name, info in opened.tensors.items() if name not in repeated}
    return opened


def _refuse_pointer(file: Path) -> None:
    """Raises: InputError if a file is what Git has of a large file that was not downloaded."""
    with file.open("rb") as stream:
        if stream.read(len(_POINTER)) == _POINTER:
            raise InputError(f"{file}: is a pointer of Git LFS, and not the weights; get them: git lfs pull")


def _has_weights(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _WEIGHT_FILES)


def _weight_files(directory: Path, source: str) -> tuple[list[Path], list[str]]:
    """Returns the files that transformers takes, and a note on a second set of weights beside them."""
    found = {name: directory / name for name in _WEIGHT_FILES if (directory / name).is_file()}
    if not found:
        inner = next((each for each in module_folders(directory) if _has_weights(directory / each)), None)
        if inner is not None:
            raise InputError(
                f"{source}: its model lies in the folder {inner}, in an older layout of "
                f"sentence-transformers; save it anew: SentenceTransformer('{source}').save_pretrained('NEW')"
            )
        raise InputError(
            f"{source}: not a checkpoint: it has none of {', '.join((*_WEIGHT_FILES, ADAPTER_CONFIG))}"
            f"{other_layout(directory)}"
        )
    name, path = next(iter(found.items()))
    files = _shards(path) if path.suffix == ".json" else [path]
    index = directory / f"{name}.index.json"
    if index.is_file() and _shard_names(index) != [name]:
        return files, [f"{name} is taken, and not {index.name} beside it, as transformers does"]
    return files, []


def _shards(index: Path) -> list[Path]:
    """Returns the files that a shard index names. Raises: InputError if one is missing or elsewhere."""
    files = _shard_names(index)
    for name in files:
        if Path(name).name != name or len(name) > _LONGEST_NAME:
            raise InputError(
                f"{index}: names the shard '{name[:_LONGEST_NAME]}', expected a file of the same folder"
            )
        if not (index.parent / name).is_file():
            raise InputError(f"{index}: names the shard '{name}', which is missing; download it again")
    return [index.parent / name for name in files]


def _shard_names(index: Path) -> list[str]:
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index}: has no 'weight_map' of tensor names to shard files")
    return sorted({str(name) for name in weight_map.values()})
