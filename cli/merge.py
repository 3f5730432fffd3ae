"""`flexswitch merge`: one task restored, or many merged, as a complete model directory."""

from typing import Annotated, Any, Literal

import typer

from flexswitch.cli.command import command
from flexswitch.cli.console import Console, size
from flexswitch.cli.options import Exclude, Include, Jobs, Memory, OnResize, Output, Overwrite, Set
from flexswitch.merging.methods.registry import method_names


@command
def merge(
    console: Console,
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="[TASK=]SOURCE...",
            help="Zoos, artifacts, task vectors, LoRAs or fine-tuned checkpoints.",
        ),
    ],
    base: Annotated[str, typer.Option(help="The base they were made from.", show_default=False)],
    output: Output,
    task: Annotated[str | None, typer.Option(help="Restore this one task.", show_default=False)] = None,
    method: Annotated[
        str | None,
        typer.Option(help=f"Merge all tasks by: {', '.join(method_names('merge'))}.", show_default=False),
    ] = None,
    set_: Set = None,
    weight: Annotated[
        list[str] | None,
        typer.Option(metavar="TASK=W", help="A task's weight in a merge, 1 by default; repeatable."),
    ] = None,
    set_for: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[TASK:]GLOB:KEY=VALUE",
            help="A setting, or `weight`, of tensors with these names; repeatable, the last match counts.",
        ),
    ] = None,
    include: Include = None,
    exclude: Exclude = None,
    on_resize: OnResize = "refuse",
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(help="Dtype of the weights.", show_default="the base's"),
    ] = None,
    max_shard_size: Annotated[str, typer.Option(metavar="SIZE", help="The largest weight file.")] = "5GB",
    jobs: Jobs = None,
    memory: Memory = "1GB",
    overwrite: Overwrite = False,
) -> dict[str, Any]:
    """Restore one task's model (--task), or merge several into one (--method).

    A setting's value is a number, or several along the layers with linear steps in between: 0.1,0.5,0.3.

    Example: flexswitch merge zoo --base base -o sst2-restored --task sst2

    Example: flexswitch merge zoo --base base -o merged --method average

    Example: flexswitch merge a b --base o -o ab --method average --weight b=2
    """
    from flexswitch.codecs.byte_size import parse_size
    from flexswitch.merging.commands.merge import merge
    from flexswitch.merging.commands.results import merged
    from flexswitch.merging.methods.settings import parse_overrides, parse_settings

    made = merge(
        sources, output, base=base, task=task, method=method, settings=parse_settings(set_ or []),
        weights=parse_settings(weight or [], "--weight", "TASK=W"),
        set_for=parse_overrides(set_for or []),
        include=include or (), exclude=exclude or (), on_resize=on_resize, dtype=dtype,
        max_shard_size=parse_size(max_shard_size), jobs=jobs, memory=parse_size(memory), overwrite=overwrite,
        reporter=console,
    )  # fmt: skip
    document = merged(made)
    return console.result(
        document,
        f"{output}: {', '.join(made.tasks)} {made.method}, {made.tensors} tensors, {size(document['bytes'])}",
    )
