"""Writes a task in the form that other software serves."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

from torch import Tensor

from flexswitch.codecs.errors import UsageError
from flexswitch.codecs.format.atomic import atomic_directory, check_output, check_space
from flexswitch.codecs.format.safetensors_file import SafetensorsWriter
from flexswitch.codecs.format.written_files import foreign_file, list_files
from flexswitch.merging.checkpoints.checkpoint import Checkpoint
from flexswitch.merging.checkpoints.dtypes import DTYPE_NAMES
from flexswitch.merging.checkpoints.hashing import open_base
from flexswitch.merging.checkpoints.opening import ADAPTER_CONFIG
from flexswitch.merging.commands.arguments import Input, Output, check_inputs_stay, checked
from flexswitch.merging.commands.merge_sources import check_bases, open_whole
from flexswitch.merging.commands.reporter import SILENT, Reporter
from flexswitch.merging.task_vectors.lora_export import Rank, to_lora
from flexswitch.merging.task_vectors.model_directory import model_card
from flexswitch.merging.task_vectors.peft_adapter import Adapter
from flexswitch.merging.task_vectors.raw_tensors import tensor_bytes
from flexswitch.merging.task_vectors.shira_export import to_shira
from flexswitch.merging.task_vectors.task_vector import TaskVector
from flexswitch.merging.task_vectors.weight_patch import weight_patch

Form = Literal["lora", "shira", "vllm-patch"]
FORMS: dict[Form, str] = {
    "lora": "a LoRA", "shira": "a sparse adapter", "vllm-patch": "a patch of the base's weights",
}  # fmt: skip
_ADAPTER, _PATCH, _CARD = "adapter_model.safetensors", "patch.safetensors", "README.md"
_SHOWN = 4


class Exported(NamedTuple):
    """The folder, the task, its form, and the adapter that was written; a patch is exact and has none."""

    path: Path
    task: str
    to: Form
    adapter: Adapter | None


@checked
def export(
    sources: Sequence[Input],
    output: Output,
    *,
    base: Input,
    task: str,
    to: Form,
    rank: int | str = "auto",
    overwrite: bool = False,
    reporter: Reporter = SILENT,
) -> Exported:
    """Writes a task as a directory: a PEFT LoRA, PEFT's sparse adapter, or a patch of the base's weights.

    rank: of a LoRA; "auto" is the least that leaves out at most a tenth of the change. Raises:
    FlexswitchError.
    """
    output, given = Path(output), _rank(rank)
    if given != "auto" and to != "lora":
        raise UsageError(f"--rank {rank}: only a LoRA has one; leave it out with --to {to}")
    if not sources:
        raise UsageError("no source is given; name a zoo, an artifact, a task vector or a checkpoint")
    check_inputs_stay(output, (base, *sources))
    check_output(output, overwrite)
    checkpoint = open_base(base)
    vectors = open_whole([str(source) for source in sources], checkpoint, task)
    vector = vectors[task]
    if to == "vllm-patch":
        with _directory(output, task, to, {}, overwrite) as partial:
            _write_patch(output, partial / _PATCH, checkpoint, vector, reporter)
            check_bases(vectors, checkpoint)
        return Exported(output, task, to, None)
    with reporter.progress(f"reading {len(vector.tensors)} tensors of {task}", len(vector.tensors)) as step:
        made = (
            to_lora(checkpoint, vector, given, step) if to == "lora" else to_shira(checkpoint, vector, step)
        )
    check_bases(vectors, checkpoint)
    if made.left_out:
        names = ", ".join(made.left_out[:_SHOWN])
        more = f" and {len(made.left_out) - _SHOWN} more" if len(made.left_out) > _SHOWN else ""
        reporter.note(f"{FORMS[to]} can't change {names}{more}; their change is left out")
    lines = {"rank": str(made.rank), "relative error of the weights' change": f"{made.total_error:.4g}"}
    with _directory(output, task, to, lines, overwrite) as partial:
        _write_adapter(output, partial, made)
    return Exported(output, task, to, made)


def _rank(rank: int | str) -> Rank:
    """Returns a rank as a number, or "auto". Raises: UsageError."""
    if rank == "auto":
        return "auto"
    if not re.fullmatch(r"[1-9]\d{0,5}", str(rank), re.ASCII):
        raise UsageError(f"--rank {rank}: expected a whole number above 0, or auto")
    return int(rank)


@contextmanager
def _directory(path: Path, task: str, to: Form, lines: Mapping[str, str], overwrite: bool) -> Iterator[Path]:
    """Yields the directory to write into, which gets its card and takes its place at the end."""
    rank = f" --rank {lines['rank']}" if to == "lora" else ""
    command = f"flexswitch export SOURCE --base BASE --task {task} --to {to}{rank} -o OUT"
    with atomic_directory(path, overwrite, refusal=foreign_file) as partial:
        yield partial
        card = model_card(f"{task}, as {FORMS[to]}", dict(lines), command)
        (partial / _CARD).write_text(card, encoding="utf-8")
        list_files(partial)


def _write_adapter(path: Path, partial: Path, adapter: Adapter) -> None:
    check_space(path, sum(tensor.nbytes for tensor in adapter.tensors.values()))
    with SafetensorsWriter(partial / _ADAPTER, {"format": "pt"}) as writer:
        for name, tensor in adapter.tensors.items():
            _add(writer, name, tensor)
    (partial / ADAPTER_CONFIG).write_text(json.dumps(adapter.config, indent=2) + "\n", encoding="utf-8")


def _write_patch(path: Path, file: Path, base: Checkpoint, vector: TaskVector, reporter: Reporter) -> None:
    """Writes the tensors `NAME.indices` and `NAME.values`; the metadata `full_shapes` is JSON by name."""
    shapes, writer = {}, SafetensorsWriter(file, {"format": "pt"})
    check_space(path, sum(info.entries * 4 for info in vector.tensors.values()))
    with writer, reporter.progress(f"comparing the weights of {vector.source}", len(base.tensors)) as step:
        for name, shape, indices, values in weight_patch(base, vector):
            step(name)
            shapes[name] = list(shape)
            if indices is not None:
                _add(writer, f"{name}.indices", indices)
            _add(writer, f"{name}.values", values)
        writer.metadata["full_shapes"] = json.dumps(shapes)


def _add(writer: SafetensorsWriter, name: str, tensor: Tensor) -> None:
    writer.add(name, DTYPE_NAMES[tensor.dtype], tuple(tensor.shape), [tensor_bytes(tensor)])
