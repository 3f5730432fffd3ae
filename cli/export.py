"""`flexswitch export`: a task in the form that other software serves."""

from typing import Annotated, Any, Literal

import typer
from rich.table import Table

from flexswitch.cli.command import command
from flexswitch.cli.console import Console, size, table
from flexswitch.cli.options import Output, Overwrite


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
    to: Annotated[Literal["lora"], typer.Option(help="The form: a PEFT LoRA.", show_default=False)],
    output: Output,
    rank: Annotated[
        str, typer.Option(metavar="R|auto", help="Rank of the LoRA; auto is the least with an error of 0.1.")
    ] = "auto",
    overwrite: Overwrite = False,
) -> dict[str, Any]:
    """Write one task as a PEFT LoRA, which servers load beside the base, and tell its error.

    Example: flexswitch export zoo --base base --task sst2 --to lora -o sst2-lora
    """
    from flexswitch.merging.commands.export import export

    made = export(
        sources, output, base=base, task=task, to=to, rank=rank, overwrite=overwrite, reporter=console,
    )  # fmt: skip
    stored = sum(file.stat().st_size for file in output.iterdir())
    document = {
        "output": str(output), "task": task, "rank": made.lora.rank, "error": made.lora.total_error,
        "errors": dict(made.lora.errors), "left_out": made.lora.left_out, "bytes": stored,
    }  # fmt: skip
    return console.result(
        document,
        _errors(made.lora.errors),
        f"{output}: '{task}' as a LoRA of rank {made.lora.rank}, {size(stored)}; relative error "
        f"{made.lora.total_error:.3g}",
    )


def _errors(errors: Any) -> Table:
    rows = table("", "tensor", "relative error", left=1)
    for name, error in errors.items():
        rows.add_row(name, f"{error:.3g}")
    return rows
