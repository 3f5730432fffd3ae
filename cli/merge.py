"""`flexswitch merge`: one task restored, or many merged, as a complete model directory."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from flexswitch.cli.command import command
from flexswitch.cli.console import Console, size
from flexswitch.cli.options import (
    Adapter,
    Device,
    Exclude,
    Include,
    Jobs,
    Key,
    MaxLength,
    Memory,
    Output,
    Overwrite,
    Set,
    completing,
)
from flexswitch.merging.methods.registry import method_names

_SHOWN = 8  # tasks
_PER_TASK = 256


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
    on_resize: Annotated[
        Literal["refuse", "extra", "rows"],
        typer.Option(
            help="For a tensor of another shape: refuse, take it whole (extra, with --task alone), or take "
            "the overlapping rows."
        ),
    ] = "refuse",
    key: Key = None,
    exemplars: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of <task>.train.* files, for methods that learn from examples.",
            show_default=False,
        ),
    ] = None,
    per_task: Annotated[
        int, typer.Option(min=1, help="Number of examples of each task to learn from, or to tune on.")
    ] = _PER_TASK,
    adapter: Adapter = None,
    device: Device = "cpu",
    max_length: MaxLength = None,
    checkpoint_every: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Keep a training's state in OUTPUT.training every N steps, and continue from it.",
            show_default=False,
        ),
    ] = None,
    tune: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUES",
            help="Choose a setting by the accuracy on --data: of values (0.1,0.5), or of up to ten "
            "from one to another (0.1:1.0; 1:3 for whole numbers); repeatable, all combinations are tried.",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of labelled <task>.train.* files, for --tune.",
            show_default=False,
        ),
    ] = None,
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

    Example: flexswitch merge zoo --base base -o merged --method ties --tune lambda=0.8:1.7 --data exemplars

    Example: flexswitch merge zoo --base base -o merged --method regmean --exemplars exemplars

    Example: flexswitch merge --config ties.yaml -o merged
    """
    from flexswitch.codecs.byte_size import parse_size
    from flexswitch.codecs.errors import UsageError
    from flexswitch.merging.commands.merge import merge
    from flexswitch.merging.commands.merge_config import merge_config
    from flexswitch.merging.commands.merge_report import report_lines
    from flexswitch.merging.commands.peer_config import check_alone
    from flexswitch.merging.commands.results import merged
    from flexswitch.merging.methods.settings import parse_overrides, parse_settings

    shard_size, memory_size = parse_size(max_shard_size), parse_size(memory)
    if config is not None:
        check_alone(
            SOURCE=sources, __base=base, __task=task, __method=method, __set=set_, __weight=weight,
            __set_for=set_for, __exemplars=exemplars, __tune=tune, __key=key, __data=data, __adapter=adapter,
            __max_length=max_length, __checkpoint_every=checkpoint_every, __dtype=dtype,
            __per_task=per_task != _PER_TASK, __device=device != "cpu",
        )  # fmt: skip
        made = merge_config(
            config, output, include=include or (), exclude=exclude or (), on_resize=on_resize,
            max_shard_size=shard_size, jobs=jobs, memory=memory_size, overwrite=overwrite, reporter=console,
        )  # fmt: skip
    elif not sources or base is None:
        raise UsageError("give SOURCE... and --base BASE, or --config FILE alone")
    else:
        made = merge(
            sources, output, base=base, task=task, method=method, settings=parse_settings(set_ or []),
            weights=parse_settings(weight or [], "--weight", "TASK=W", at_last=True),
            set_for=parse_overrides(set_for or []), include=include or (), exclude=exclude or (),
            on_resize=on_resize, key=key, exemplars=exemplars, per_task=per_task, adapter=adapter,
            device=device, max_length=max_length, checkpoint_every=checkpoint_every,
            tune=parse_settings(tune or [], "--tune", "KEY=VALUES"), data=data, dtype=dtype,
            max_shard_size=shard_size, jobs=jobs, memory=memory_size, overwrite=overwrite, reporter=console,
        )  # fmt: skip
    document = merged(made)
    tasks = ", ".join(made.tasks) if len(made.tasks) <= _SHOWN else f"{len(made.tasks):,} tasks by"
    lines = [f"{label}: {text}" for label, text in report_lines(made.report).items()]
    return console.result(
        document,
        f"{output}: {tasks} {made.method}, {made.tensors} tensors, {size(document['bytes'])}",
        *lines,
    )
