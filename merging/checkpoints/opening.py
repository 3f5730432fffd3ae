"""Opens a checkpoint: a Hugging Face model directory, one state-dict file, or a hub id."""

from pathlib import Path

from flexswitch.codecs.errors import InputError
from flexswitch.merging.checkpoints.checkpoint import Checkpoint
from flexswitch.merging.checkpoints.config import read_json_object
from flexswitch.merging.checkpoints.hub import download_checkpoint, is_hub_id
from flexswitch.merging.checkpoints.safetensors_checkpoint import SafetensorsCheckpoint
from flexswitch.merging.checkpoints.torch_checkpoint import TorchCheckpoint

ADAPTER_CONFIG = "adapter_config.json"


_WEIGHT_FILES = ("model.safetensors.index.json", "model.safetensors", "pytorch_model.bin.index.json",
                 "pytorch_model.bin")  # fmt: skip


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
