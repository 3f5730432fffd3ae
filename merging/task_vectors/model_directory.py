"""Writes a restored or merged model as a directory that transformers loads."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flexswitch.codecs.errors import InputError
from flexswitch.codecs.format.atomic import atomic_directory, check_space
from flexswitch.codecs.format.safetensors_file import DTYPE_BYTES, SafetensorsWriter
from flexswitch.codecs.format.tensor_names import check_tensor_names
from flexswitch.codecs.format.written_files import foreign_file, inside, list_files
from flexswitch.merging.checkpoints.checkpoint import Checkpoint
from flexswitch.merging.checkpoints.config import CODE_KEYS, read_config, with_dtype, without_keys
from flexswitch.merging.checkpoints.model_config import written_config
from flexswitch.merging.task_vectors.base_files import copy_base_files
from flexswitch.merging.task_vectors.markdown import markdown_text
from flexswitch.merging.task_vectors.restore import OutputTensor
from flexswitch.merging.task_vectors.side_files import changed_contents, write_contents

_CARD = "README.md"


def write_model_directory(
    path: Path,
    outputs: Mapping[str, OutputTensor],
    base: Checkpoint,
    config_changes: Mapping[str, Any],
    card: Callable[[], str],
    shard_bytes: int,
    overwrite: bool,
    on_tensor: Callable[[str], None] = lambda name: None,
    files: Mapping[str, bytes] = {},
    on_note: Callable[[str], None] = lambda note: None,
) -> None:
    """Writes weights in shards, the base's config and tokenizer files, and a model card.

    files: changes of the files, as a task vector carries them.
    card: returns the card's text; called last, so that it can check what was read while writing.
    Raises: InputError if the output or a tensor's name may not be written, or the disk is too small.
    """
    check_tensor_names(path, outputs, InputError)
    shards = _plan_shards(outputs, shard_bytes)
    contents = changed_contents(base.directory, files)
    with atomic_directory(path, overwrite, refusal=foreign_file) as partial:
        check_space(path, sum(map(_bytes, outputs.values())))
        for shard, names in shards.items():
            file = inside(partial, shard)
            file.parent.mkdir(exist_ok=True)
            with SafetensorsWriter(file, {"format": "pt"}) as writer:
                for name in names:
                    on_tensor(name)
                    info = outputs[name].info
                    writer.add(
                        name.rpartition("/")[2], info.dtype, info.shape, _chunks(outputs[name].blocks())
                    )
        weight_map = {name: shard for shard, names in shards.items() for name in names if "/" not in name}
        if len(set(weight_map.values())) > 1:
            total = sum(_bytes(outputs[name]) for name in weight_map)
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
            _write_json(partial / "model.safetensors.index.json", index)
        config = without_keys(
            written_config(read_config(base), config_changes), rf"{CODE_KEYS}|quantization_config"
        )
        if "dtype" in config_changes:
            config = with_dtype(config, config_changes["dtype"])
        if config:
            _write_json(partial / "config.json", config)
        copy_base_files(base.directory, partial, on_note)
        write_contents(partial, contents)
        (partial / _CARD).write_text(card(), encoding="utf-8")
        list_files(partial)


def model_card(title: str, lines: Mapping[str, str], command: str) -> str:
    """Returns a model card in Markdown that describes how the model was made."""
    rows = "\n".join(f"- {label}: {markdown_text(value)}" for label, value in lines.items())
    front = "---\ntags:\n- flexswitch\n- merge\n---\n"
    return f"{front}\n# {title}\n\nMade with flexswitch.\n\n{rows}\n\n    {command}\n"


def _plan_shards(outputs: Mapping[str, OutputTensor], shard_bytes: int) -> dict[str, list[str]]:
    """Returns file name → tensor names, each file of at most `shard_bytes` or one tensor.

    The tensors of a module's folder are in a file there.
    """
    groups: list[list[str]] = [[]]
    folders: dict[str, list[str]] = {}
    used = 0
    # Wide dtypes come first, so that every tensor starts at a multiple of its width.
    for name in sorted(outputs, key=lambda name: (-DTYPE_BYTES[outputs[name].info.dtype], name)):
        if "/" in name:
            folders.setdefault(f"{name.partition('/')[0]}/model.safetensors", []).append(name)
            continue
        needed = _bytes(outputs[name])
        if groups[-1] and used + needed > shard_bytes:
            groups.append([])
            used = 0
        groups[-1].append(name)
        used += needed
    if len(groups) == 1:
        return {"model.safetensors": groups[0], **folders}
    files = [f"model-{number:05d}-of-{len(groups):05d}.safetensors" for number in range(1, len(groups) + 1)]
    return dict(zip(files, groups, strict=True)) | folders


def _bytes(output: OutputTensor) -> int:
    return output.info.entries * DTYPE_BYTES[output.info.dtype]


def _chunks(blocks: Iterator[Tensor]) -> Iterator[memoryview]:
    for block in blocks:
        yield block.contiguous().view(torch.uint8).numpy().data


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
