"""`flexswitch merge`: one task restored, or many merged, as a complete model directory."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from flexswitch.cli.command import command
from flexswitch.cli.console import Console, size
from flexswitch.cli.options import (
    Exclude,
    Include,
    Jobs,
    Memory,
    OnResize,
    Output,
    Overwrite,
    Set,
    completing,
)
from flexswitch.merging.methods.registry import method_names


@command
def merge(
    console: Console,
    output: Output,
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TASK=]SOURCE...",
            help="Zoos, artifacts, task vectors, LoRAs or fine-tuned checkpoints.",
            show_default=False,
        ),
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="The base they were made from.", show_default=False)
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Merge as this YAML file of mergekit says, in place of sources, --base and --method.",
            show_default=False,
        ),
    ] = None,
    task: Annotated[str | None, typer.Option(help="Restore this one task.", show_default=False)] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help=f"Merge all tasks by: {', '.join(method_names('merge'))}.",
            show_default=False,
            autocompletion=completing(method_names("merge")),
        ),
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

    Example: flexswitch merge --config ties.yaml -o merged
    """
    from flexswitch.codecs.byte_size import parse_size
    from flexswitch.codecs.errors import UsageError
    from flexswitch.merging.commands.merge import merge
    from flexswitch.merging.commands.merge_config import merge_config
    from flexswitch.merging.commands.peer_config import check_alone
    from flexswitch.merging.commands.results import merged
    from flexswitch.merging.methods.settings import parse_overrides, parse_settings

    shard_size, memory_size = parse_size(max_shard_size), parse_size(memory)
    if config is not None:
        check_alone(
            SOURCE=sources, __base=base, __task=task, __method=method, __set=set_, __weight=weight,
            __set_for=set_for, __include=include, __exclude=exclude, __dtype=dtype,
        )  # fmt: skip
        made = merge_config(
            config, output, max_shard_size=shard_size, jobs=jobs, memory=memory_size, overwrite=overwrite,
            reporter=console,
        )  # fmt: skip
    elif not sources or base is None:
        raise UsageError("give SOURCE... and --base BASE, or --config FILE alone")
    else:
        made = merge(
            sources, output, base=base, task=task, method=method, settings=parse_settings(set_ or []),
            weights=parse_settings(weight or [], "--weight", "TASK=W"),
            set_for=parse_overrides(set_for or []), include=include or (), exclude=exclude or (),
            on_resize=on_resize, dtype=dtype, max_shard_size=shard_size, jobs=jobs, memory=memory_size,
            overwrite=overwrite, reporter=console,
        )  # fmt: skip
    document = merged(made)
    return console.result(
        document,
        f"{output}: {', '.join(made.tasks)} {made.method}, {made.tensors} tensors, {size(document['bytes'])}",
    )
