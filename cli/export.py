"""`flexswitch export`: a task in the form that other software serves."""

from typing import Annotated, Any, Literal

import typer

from flexswitch.cli.command import command
from flexswitch.cli.console import Console, size, table
from flexswitch.cli.options import Output, Overwrite
from flexswitch.cli.table import Table


@command
def export(
    console: Console,
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="[TASK=]SOURCE...", help="A zoo, artifact, task vector or fine-tuned checkpoint."
        ),
    ],
    base: Annotated[str, typer.Option(help="The base it was made from.", show_default=False)],
    task: Annotated[str, typer.Option(help="The task to export.", show_default=False)],
    to: Annotated[
        Literal["lora", "shira", "vllm-patch"],
        typer.Option(
            help="lora: a PEFT LoRA, an approximation; shira: PEFT's sparse adapter; vllm-patch: the changed "
            "weights with their places.",
            show_default=False,
        ),
    ],
    output: Output,
    rank: Annotated[
        str, typer.Option(metavar="R|auto", help="Rank of a LoRA; auto is the least with an error of 0.1.")
    ] = "auto",
    overwrite: Overwrite = False,
) -> dict[str, Any]:
    """Write one task for other software: as an adapter of PEFT, with its error, or as a patch of the base.

    Example: flexswitch export zoo --base base --task sst2 --to lora -o sst2-lora

    Example: flexswitch export zoo --base base --task sst2 --to vllm-patch -o sst2-patch
    """
    from flexswitch.merging.commands.export import FORMS, export

    made = export(
        sources, output, base=base, task=task, to=to, rank=rank, overwrite=overwrite, reporter=console,
    )  # fmt: skip
    stored = sum(file.stat().st_size for file in output.iterdir())
    document: dict[str, Any] = {"output": str(output), "task": task, "to": to, "bytes": stored}
    line = f"{output}: '{task}' as {FORMS[made.to]}"
    if made.adapter is None:
        return console.result(document, f"{line}, {size(stored)}")
    found = made.adapter
    document |= {
        "rank": found.rank, "error": found.total_error, "errors": dict(found.errors),
        "left_out": found.left_out,
    }  # fmt: skip
    line = f"{line} of rank {found.rank}, {size(stored)}; relative error {found.total_error:.3g}"
    return console.result(document, _errors(found.errors), line)


def _errors(errors: Any) -> Table:
    rows = table("", "tensor", "relative error", left=1)
    for name, error in errors.items():
        rows.add_row(name, f"{error:.3g}")
    return rows
