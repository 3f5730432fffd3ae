"""`flexswitch index`: the query set that chooses tasks per sample."""

from pathlib import Path
from typing import Annotated, Any

import typer

from flexswitch.cli.console import Console, size
from flexswitch.cli.options import Adapter, Debug, Json, Overwrite, Quiet


def index(
    zoo: Annotated[Path, typer.Argument(help="The zoo to index.")],
    base: Annotated[str, typer.Option(help="Its base.", show_default=False)],
    exemplars: Annotated[
        Path, typer.Option(help="Folder of <task>.train.* files; labels are not used.", show_default=False)
    ],
    per_task: Annotated[int, typer.Option(min=1, help="Exemplars a task.")] = 100,
    features: Annotated[
        str, typer.Option(help="pooled, layer:N, or a .safetensors file of <task>.train and <task>.test.")
    ] = "pooled",
    metric: Annotated[str, typer.Option(help="euclidean.")] = "euclidean",
    seed: Annotated[int, typer.Option(help="Draws the exemplars.")] = 0,
    adapter: Adapter = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> dict[str, Any]:
    """Store features of a few exemplars of every task in the zoo.

    Example: flexswitch index zoo --base models/base --exemplars data
    """
    from flexswitch.cli.arguments import choice
    from flexswitch.codecs.errors import InputError
    from flexswitch.codecs.zoo import open_zoo
    from flexswitch.merging.checkpoint import open_checkpoint
    from flexswitch.merging.fingerprint import check_base
    from flexswitch.merging.routing.build import build_index, read_exemplars
    from flexswitch.merging.routing.features import feature_source

    console = Console(quiet, json)
    choice("--metric", metric, ("euclidean",))
    opened = open_zoo(zoo)
    if opened.record.index is not None and not overwrite:
        raise InputError(f"{zoo}: has a query index already; --overwrite replaces it")
    examples = read_exemplars(opened, exemplars)
    checkpoint = open_checkpoint(base)
    check_base(checkpoint, opened.record.base, str(zoo))
    source = feature_source(
        features, checkpoint, adapter or opened.record.adapter, adapter is not None, device
    )
    with console.progress(f"indexing {len(examples)} tasks of {zoo}", len(examples)) as step:
        record, notes = build_index(opened, examples, per_task, seed, source, step)
    for note in notes:
        console.note(note)
    document = {"zoo": str(zoo), **record.model_dump()}
    return console.result(
        document, f"{zoo}: query index of {len(examples)} tasks, features {source.kind}, {size(record.size)}"
    )
