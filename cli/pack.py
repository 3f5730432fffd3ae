"""`flexswitch pack`: artifacts into a zoo, each tensor in its smallest stored form."""

from pathlib import Path
from typing import Annotated, Any

import typer

from flexswitch.cli.console import Console, size, table
from flexswitch.cli.options import Adapter, Debug, Jobs, Json, Memory, Output, Overwrite, Quiet


def pack(
    output: Output,
    artifacts: Annotated[
        list[Path] | None, typer.Argument(help="The artifacts (.fsw) to store.", show_default=False)
    ] = None,
    add: Annotated[bool, typer.Option("--add", help="Add the artifacts to a zoo that exists.")] = False,
    remove: Annotated[
        list[str] | None, typer.Option(metavar="TASK", help="Remove a task from the zoo; repeatable.")
    ] = None,
    codec: Annotated[
        str,
        typer.Option(
            help="auto takes the smallest form for each block of a tensor; or one for all: bitmask, "
            "bitmask-zstd, gaps-zstd, rice, context, grouped-coo, flag4, raw."
        ),
    ] = "auto",
    effort: Annotated[
        str | None,
        typer.Option(
            help="fast: the smallest form that decodes fast; small: the smallest of all. Without it each "
            "artifact's as it was compressed, which is fast unless its settings say small.",
            show_default=False,
        ),
    ] = None,
    jobs: Jobs = None,
    memory: Memory = "1GB",
    adapter: Adapter = None,
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> dict[str, Any]:
    """Store artifacts of one base in a zoo, add some to it, or remove some from it.

    Example: flexswitch pack sst2.fsw cola.fsw -o zoo

    Example: flexswitch pack sst2.fsw -o zoo --effort small

    Example: flexswitch pack -o zoo --add trec6.fsw --remove cola
    """
    from flexswitch.codecs.errors import UsageError
    from flexswitch.codecs.format.zoo import open_zoo
    from flexswitch.codecs.registry import get_codec
    from flexswitch.codecs.storage import check_effort
    from flexswitch.codecs.threads import DEFAULT_JOBS
    from flexswitch.merging.task_vectors.model_directory import parse_size
    from flexswitch.merging.zoos.pack import Form, change_zoo, create_zoo

    console = Console(quiet, json)
    files, removed = artifacts or [], remove or []
    if codec != "auto":
        get_codec(codec)
    if effort is not None:
        check_effort(effort)
    form = Form(codec, effort, jobs or DEFAULT_JOBS, parse_size(memory))
    with console.progress(f"packing {len(files)} artifacts into {output}", len(files)) as step:
        if add or removed:
            if files and not add:
                raise UsageError("artifacts beside --remove need --add")
            notes = change_zoo(output, files, removed, form, adapter, overwrite, step)
        elif not files:
            raise UsageError("no artifact is given; name at least one .fsw file")
        else:
            notes = create_zoo(output, files, form, adapter, overwrite, step)
    for note in notes:
        console.note(note)
    zoo = open_zoo(output)
    rows = table(f"{output}: {len(zoo)} tasks", "task", "method", "bytes", "bits a parameter", left=2)
    tasks = {}
    for task, record in zoo.record.tasks.items():
        bits = 8 * record.size / max(1, record.parameters)
        tasks[task] = {"method": record.method, "bytes": record.size, "bits_per_parameter": bits}
        rows.add_row(task, record.method, f"{record.size:,}", f"{bits:.3f}")
    total = sum(record.size for record in zoo.record.tasks.values())
    return console.result(
        {"output": str(output), "tasks": tasks, "bytes": total}, rows, f"total {size(total)}"
    )
