"""`flexswitch extract`: fine-tuned minus base, as a task vector file."""

from typing import Annotated, Any

import typer

from flexswitch.cli.console import Console, size
from flexswitch.cli.options import Debug, Exclude, Include, Json, Name, OnResize, Output, Overwrite, Quiet


def extract(
    base: Annotated[str, typer.Argument(help="The base: a directory, a state-dict file or a hub id.")],
    finetuned: Annotated[str, typer.Argument(help="The fine-tuned checkpoint, or a PEFT LoRA directory.")],
    output: Output,
    dtype: Annotated[
        str, typer.Option(help="float32 restores the weights exactly; bfloat16 takes half the space.")
    ] = "float32",
    include: Include = None,
    exclude: Exclude = None,
    on_resize: OnResize = "refuse",
    name: Name = None,
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> dict[str, Any]:
    """Subtract a base from a fine-tuned checkpoint.

    Example: flexswitch extract models/base models/sst2 -o sst2.tv.safetensors
    """
    from flexswitch.cli.arguments import choice, new_task_name, selection
    from flexswitch.codecs.errors import UsageError
    from flexswitch.codecs.format.atomic import check_output
    from flexswitch.merging.checkpoints.hashing import HashingCheckpoint
    from flexswitch.merging.checkpoints.opening import open_checkpoint
    from flexswitch.merging.task_vectors.open_vector import open_finetuned
    from flexswitch.merging.task_vectors.task_vector_file import SUFFIX, write_task_vector

    console = Console(quiet, json)
    if not output.name.endswith(SUFFIX):
        raise UsageError(f"-o {output}: expected a file name that ends in {SUFFIX}")
    task = new_task_name(name, output)
    stored = choice("--dtype", dtype, ("float32", "bfloat16"))
    check_output(output, overwrite)
    vector = open_finetuned(
        finetuned, HashingCheckpoint(open_checkpoint(base)), selection(include, exclude, on_resize)
    )
    for note in vector.notes:
        console.note(note)
    with console.progress(
        f"extracting {len(vector.tensors)} tensors of {finetuned}", len(vector.tensors)
    ) as step:
        header = write_task_vector(vector, output, task, stored, overwrite, step)
    stored_bytes = output.stat().st_size
    document = {
        "output": str(output),
        "task": task,
        "tensors": len(vector.tensors),
        "parameters": vector.parameters,
        "extras": sorted(vector.extras),
        "bytes": stored_bytes,
        "base": header.base.model_dump(),
    }
    return console.result(
        document,
        f"{output}: task '{task}', {len(vector.tensors)} tensors, {vector.parameters:,} parameters, "
        f"{len(vector.extras)} extras, {size(stored_bytes)}",
    )
