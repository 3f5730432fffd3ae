"""`flexswitch extract`: fine-tuned minus base, as a task vector file."""

from typing import Annotated, Any, Literal

import typer

from flexswitch.cli.command import command
from flexswitch.cli.console import Console, size
from flexswitch.cli.options import Exclude, Include, Key, Name, OnResize, Output, Overwrite


@command
def extract(
    console: Console,
    base: Annotated[str, typer.Argument(help="The base: a directory, a state-dict file or a hub id.")],
    finetuned: Annotated[str, typer.Argument(help="The fine-tuned checkpoint, or a PEFT LoRA directory.")],
    output: Output,
    dtype: Annotated[
        Literal["float32", "bfloat16"],
        typer.Option(help="float32 restores the weights exactly; bfloat16 takes half the space."),
    ] = "float32",
    include: Include = None,
    exclude: Exclude = None,
    on_resize: OnResize = "refuse",
    key: Key = None,
    name: Name = None,
    overwrite: Overwrite = False,
) -> dict[str, Any]:
    """Subtract a base from a fine-tuned checkpoint.

    Example: flexswitch extract models/base models/sst2 -o sst2.tv.safetensors
    """
    from flexswitch.merging.commands.extract import extract
    from flexswitch.merging.commands.results import extracted

    vector = extract(
        base, finetuned, output, dtype=dtype, include=include or (), exclude=exclude or (),
        on_resize=on_resize, key=key, name=name, overwrite=overwrite, reporter=console,
    )  # fmt: skip
    document = extracted(vector)
    return console.result(
        document,
        f"{output}: task '{vector.header.name}', {len(vector.tensors)} tensors, {vector.parameters:,} "
        f"parameters, {len(vector.extras)} extras, {size(document['bytes'])}",
    )
