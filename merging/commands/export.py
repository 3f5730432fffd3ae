"""Writes a task in the form that other software serves."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from flexswitch.codecs.errors import UsageError
from flexswitch.codecs.format.atomic import atomic_directory, check_output, check_space
from flexswitch.codecs.format.safetensors_file import SafetensorsWriter
from flexswitch.codecs.format.written_files import foreign_file, list_files
from flexswitch.merging.checkpoints.dtypes import DTYPE_NAMES
from flexswitch.merging.checkpoints.hashing import open_base
from flexswitch.merging.checkpoints.opening import ADAPTER_CONFIG
from flexswitch.merging.checkpoints.pairing import EVERYTHING
from flexswitch.merging.commands.arguments import Input, Output, check_inputs_stay, checked
from flexswitch.merging.commands.merge_sources import check_bases, open_sources
from flexswitch.merging.commands.reporter import SILENT, Reporter
from flexswitch.merging.task_vectors.lora_export import Lora, Rank, to_lora
from flexswitch.merging.task_vectors.model_directory import model_card
from flexswitch.merging.task_vectors.raw_tensors import tensor_bytes

_WEIGHTS, _CARD = "adapter_model.safetensors", "README.md"
_SHOWN = 4


class Exported(NamedTuple):
    """The folder, the task, and the LoRA that was written."""

    path: Path
    task: str
    lora: Lora


@checked
def export(
    sources: Sequence[Input],
    output: Output,
    *,
    base: Input,
    task: str,
    to: Literal["lora"],
    rank: int | str = "auto",
    overwrite: bool = False,
    reporter: Reporter = SILENT,
) -> Exported:
    """Writes a task as a PEFT LoRA directory.

    rank: of all layers; "auto" is the least that leaves out at most a tenth of the change. Raises:
    FlexswitchError.
    """
    output, given = Path(output), _rank(rank)
    if not sources:
        raise UsageError("no source is given; name a zoo, an artifact, a task vector or a checkpoint")
    check_inputs_stay(output, (base, *sources))
    check_output(output, overwrite)
    checkpoint = open_base(base)
    vectors = open_sources([str(source) for source in sources], checkpoint, EVERYTHING, task)
    vector = vectors[task]
    with reporter.progress(
        f"approximating {len(vector.tensors)} tensors of {task}", len(vector.tensors)
    ) as step:
        lora = to_lora(checkpoint, vector, given, step)
    check_bases(vectors, checkpoint)
    if lora.left_out:
        names = ", ".join(lora.left_out[:_SHOWN])
        more = f" and {len(lora.left_out) - _SHOWN} more" if len(lora.left_out) > _SHOWN else ""
        reporter.note(f"a LoRA can't change {names}{more}; their change is left out")
    _write(output, task, lora, overwrite)
    return Exported(output, task, lora)


def _rank(rank: int | str) -> Rank:
    """Returns a rank as a number, or "auto". Raises: UsageError."""
    if rank == "auto":
        return "auto"
    if not re.fullmatch(r"[1-9]\d{0,5}", str(rank), re.ASCII):
        raise UsageError(f"--rank {rank}: expected a whole number above 0, or auto")
    return int(rank)


def _write(path: Path, task: str, lora: Lora, overwrite: bool) -> None:
    lines = {"rank": str(lora.rank), "relative error of the weights' change": f"{lora.total_error:.4g}"}
    command = f"flexswitch export SOURCE --base BASE --task {task} --to lora --rank {lora.rank} -o OUT"
    with atomic_directory(path, overwrite, refusal=foreign_file) as partial:
        check_space(path, sum(tensor.nbytes for tensor in lora.tensors.values()))
        with SafetensorsWriter(partial / _WEIGHTS, {"format": "pt"}) as writer:
            for name, tensor in lora.tensors.items():
                writer.add(name, DTYPE_NAMES[tensor.dtype], tuple(tensor.shape), [tensor_bytes(tensor)])
        (partial / ADAPTER_CONFIG).write_text(json.dumps(lora.config, indent=2) + "\n", encoding="utf-8")
        (partial / _CARD).write_text(model_card(f"{task}, as a LoRA", lines, command), encoding="utf-8")
        list_files(partial)
