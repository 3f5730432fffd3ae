"""`flexswitch pack`: artifacts into a zoo, each tensor in its smallest stored form."""

from itertools import islice
from typing import Annotated, Any, Literal

import typer

from flexswitch.cli.command import command
from flexswitch.cli.console import Console, size, table
from flexswitch.cli.options import Adapter, Jobs, LockTimeout, Memory, Output, Overwrite

_SHOWN = 20  # tasks; a zoo may have thousands


@command
def pack(
    console: Console,
    output: Output,
    artifacts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TASK=]ARTIFACT...", help="The artifacts (.fsw) to store.", show_default=False
        ),
    ] = None,
    add: Annotated[bool, typer.Option("--add", help="Add the artifacts to a zoo that exists.")] = False,
    remove: Annotated[
        list[str] | None, typer.Option(metavar="TASK", help="Remove a task from the zoo; repeatable.")
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
            show_default="each artifact's own",
        ),
    ] = None,
    jobs: Jobs = None,
    memory: Memory = "1GB",
    adapter: Adapter = None,
    overwrite: Overwrite = False,
    lock_timeout: LockTimeout = None,
) -> dict[str, Any]:
    """Store artifacts of one base in a zoo, add some to it, or remove some from it.

    Example: flexswitch pack sst2.fsw cola.fsw -o zoo

    Example: flexswitch pack sst2.fsw -o zoo --effort small

    Example: flexswitch pack -o zoo --add trec6.fsw --remove cola
    """
    from flexswitch.codecs.byte_size import parse_size
    from flexswitch.merging.commands.pack import pack
    from flexswitch.merging.commands.reporter import counted
    from flexswitch.merging.commands.results import packed

    zoo = pack(
        artifacts or [], output, add=add, remove=remove or (), codec=codec, effort=effort, adapter=adapter,
        jobs=jobs, memory=parse_size(memory), overwrite=overwrite, lock_timeout=lock_timeout,
        reporter=console,
    )  # fmt: skip
    document = packed(zoo)
    rows = table(
        f"{output}: {counted(len(zoo), 'task')}", "task", "method", "bytes", "bits per parameter", left=2
    )
    for task, row in islice(document["tasks"].items(), _SHOWN):
        rows.add_row(task, row["method"], f"{row['bytes']:,}", f"{row['bits_per_parameter']:.3f}")
    more = [f"and {len(zoo) - _SHOWN:,} more (flexswitch inspect)"] if len(zoo) > _SHOWN else []
    return console.result(document, rows, *more, f"total {size(document['bytes'])}")
