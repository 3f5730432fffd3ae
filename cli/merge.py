"""`flexswitch merge`: one task restored, or many merged, as a complete model directory."""

from typing import Annotated, Any, Literal

import typer

from flexswitch.cli.command import command
from flexswitch.cli.console import Console, size
from flexswitch.cli.options import Output, Overwrite, Set
from flexswitch.merging.methods.registry import method_names


@command
def merge(
    console: Console,
    sources: Annotated[
        list[str], typer.Argument(help="Zoos, artifacts, task vectors or fine-tuned checkpoints.")
    ],
    base: Annotated[str, typer.Option(help="The base they were made from.", show_default=False)],
    output: Output,
    task: Annotated[str | None, typer.Option(help="Restore this one task.", show_default=False)] = None,
    method: Annotated[
        str | None,
        typer.Option(help=f"Merge all tasks by: {', '.join(method_names('merge'))}.", show_default=False),
    ] = None,
    set_: Set = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(help="Dtype of the weights.", show_default="the base's"),
    ] = None,
    max_shard_size: Annotated[str, typer.Option(metavar="SIZE", help="The largest weight file.")] = "5GB",
    overwrite: Overwrite = False,
) -> dict[str, Any]:
    """Restore one task's model (--task), or merge several into one (--method).

    Example: flexswitch merge zoo --base base -o sst2-restored --task sst2

    Example: flexswitch merge zoo --base base -o merged --method average
    """
    from flexswitch.merging.commands.merge import merge
    from flexswitch.merging.commands.results import merged
    from flexswitch.merging.methods.settings import parse_settings
    from flexswitch.merging.task_vectors.model_directory import parse_size

    made = merge(
        sources, output, base=base, task=task, method=method, settings=parse_settings(set_ or []),
        dtype=dtype, max_shard_size=parse_size(max_shard_size), overwrite=overwrite, reporter=console,
    )  # fmt: skip
    document = merged(made)
    return console.result(
        document,
        f"{output}: {', '.join(made.tasks)} {made.method}, {made.tensors} tensors, {size(document['bytes'])}",
    )
