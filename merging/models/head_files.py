"""Heads that lie beside a zoo: `DIR/<task>.safetensors`, or `DIR/<task>.txt` with the texts of the classes.

A safetensors file has `weight` (class, width), perhaps `bias` (class,), and perhaps `logit_scale`, a number
by which the weight is multiplied. A line of a text file is a class; several texts of one are separated by
tabs.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from flexswitch.codecs.errors import InputError
from flexswitch.merging.checkpoints.architecture import HEAD_BIAS, HEAD_WEIGHT
from flexswitch.merging.checkpoints.safetensors_checkpoint import SafetensorsCheckpoint

Heads = Mapping[str, Mapping[str, Tensor]]  # task → the tensors of its head, as a module `head` names them
OfTexts = Callable[[Sequence[Sequence[str]]], Tensor]
_NAMES = {"weight", "bias", "logit_scale"}


def read_head_files(folder: Path, tasks: Iterable[str], of_texts: OfTexts | None = None) -> Heads:
    """Returns the heads of tasks from a folder.

    of_texts: makes a weight of the classes' texts. Raises: InputError where a task has no file, or a file
    does not hold a head.
    """
    return {task: _head(folder, task, of_texts) for task in tasks}


def _head(folder: Path, task: str, of_texts: OfTexts | None) -> Mapping[str, Tensor]:
    tensors, texts = folder / f"{task}.safetensors", folder / f"{task}.txt"
    if tensors.is_file():
        return _stored(tensors)
    if not texts.is_file():
        raise InputError(
            f"{folder}: has no head of the task '{task}'; expected {tensors.name} with the tensor 'weight', "
            f"or {texts.name} with a class on each line"
        )
    if of_texts is None:
        raise InputError(f"{texts}: texts take CLIP's text encoder to make a head; give {tensors.name}")
    try:
        lines = [line.split("\t") for line in texts.read_text("utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as reason:
        raise InputError(f"{texts}: is not UTF-8 text ({reason})") from reason
    if not lines:
        raise InputError(f"{texts}: is empty; expected a class on each line")
    return {HEAD_WEIGHT: of_texts(lines)}


def _stored(path: Path) -> Mapping[str, Tensor]:
    file = SafetensorsCheckpoint(str(path), [path], None)
    shapes = {name: info.shape for name, info in file.tensors.items()}
    weight, bias = shapes.get("weight", ()), shapes.get("bias")
    if len(weight) != 2 or not set(shapes) <= _NAMES or bias not in (None, weight[:1]):
        found = ", ".join(f"'{name}' {list(shape)}" for name, shape in shapes.items())
        raise InputError(
            f"{path}: holds {found or 'nothing'}; expected 'weight' [classes, width], and perhaps 'bias' "
            "[classes] and 'logit_scale'"
        )
    scale = file.read("logit_scale").float() if "logit_scale" in shapes else torch.ones(1)
    if scale.numel() != 1:
        raise InputError(f"{path}: has a logit_scale of {scale.numel()} numbers, expected one")
    head = {HEAD_WEIGHT: file.read("weight").float().view(weight) * scale}
    return head if bias is None else {**head, HEAD_BIAS: file.read("bias").float()}
