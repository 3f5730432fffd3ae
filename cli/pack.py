"""`flexswitch pack`: artifacts into a zoo, or tasks that share one vector, each in its smallest form."""

from itertools import islice
from typing import Annotated, Any, Literal

import typer

from flexswitch.cli.command import command
from flexswitch.cli.console import Console, size, table
from flexswitch.cli.options import Adapter, Jobs, LockTimeout, Memory, Output, Overwrite, Set, completing
from flexswitch.merging.methods.registry import method_names

_SHOWN = 20  # tasks; a zoo may have thousands


@command
def pack(
    console: Console,
    output: Output,
    artifacts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TASK=]ARTIFACT...",
            help="The artifacts (.fsw) to store; with --share any task vectors, as `merge` takes them.",
            show_default=False,
        ),
    ] = None,
    add: Annotated[bool, typer.Option("--add", help="Add the artifacts to a zoo that exists.")] = False,
    remove: Annotated[
        list[str] | None, typer.Option(metavar="TASK", help="Remove a task from the zoo; repeatable.")
    ] = None,
    share: Annotated[
        str | None,
        typer.Option(
            help="Store tasks as one vector that they share and a small part each, by: "
            f"{', '.join(method_names('shared'))}.",
            show_default=False,
            autocompletion=completing(method_names("shared")),
        ),
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="The base of the tasks, with --share.", show_default=False)
    ] = None,
    set_: Set = None,
    set_for: Annotated[
        list[str] | None,
        typer.Option(metavar="TASK:KEY=VALUE", help="A setting of one task, with --share; repeatable."),
    ] = None,
    codec: Annotated[
        str,
        typer.Option(
            help="auto takes the smallest form for each block of a tensor; a codec's name, as FORMAT.md "
            "lists them, uses that codec for all."
        ),
    ] = "auto",
    effort: Annotated[
        Literal["fast", "small"] | None,
        typer.Option(
            help="fast: the smallest form that decodes fast; small: the smallest of all.",
            show_default="each artifact's own; small with --share",
        ),
    ] = None,
    jobs: Jobs = None,
    memory: Memory = "1GB",
    adapter: Adapter = None,
    overwrite: Overwrite = False,
    lock_timeout: LockTimeout = None,
) -> dict[str, Any]:
    """Store tasks of one base in a zoo, add some to it, or remove some from it.

    Example: flexswitch pack sst2.fsw cola.fsw -o zoo

    Example: flexswitch pack sst2.fsw -o zoo --effort small

    Example: flexswitch pack -o zoo --add trec6.fsw --remove cola

    Example: flexswitch pack sst2 cola --share emr --base base -o zoo
    """
    from flexswitch.codecs.byte_size import parse_size
    from flexswitch.merging.commands.pack import pack
    from flexswitch.merging.commands.reporter import counted
    from flexswitch.merging.commands.results import packed
    from flexswitch.merging.methods.settings import parse_overrides, parse_settings

    zoo = pack(
        artifacts or [], output, add=add, remove=remove or (), share=share, base=base,
        settings=parse_settings(set_ or []), set_for=parse_overrides(set_for or []), codec=codec,
        effort=effort, adapter=adapter, jobs=jobs, memory=parse_size(memory), overwrite=overwrite,
        lock_timeout=lock_timeout, reporter=console,
    )  # fmt: skip
    document = packed(zoo)
    rows = table(
        f"{output}: {counted(len(zoo), 'task')}", "task", "method", "bytes", "bits per parameter", left=2
    )
    for task, row in islice(document["tasks"].items(), _SHOWN):
        rows.add_row(task, row["method"], f"{row['bytes']:,}", f"{row['bits_per_parameter']:.3f}")
    if (shared := document["shared"]) is not None:
        rows.add_row("shared by all", shared["method"], f"{shared['bytes']:,}",
                     f"{shared['bits_per_parameter']:.3f}")  # fmt: skip
    more = [f"and {len(zoo) - _SHOWN:,} more (flexswitch inspect)"] if len(zoo) > _SHOWN else []
    return console.result(document, rows, *more, f"total {size(document['bytes'])}")
