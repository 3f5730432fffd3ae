"""The options that several subcommands share."""

from pathlib import Path
from typing import Annotated

import typer

Output = Annotated[Path, typer.Option("--output", "-o", help="Where the output goes.", show_default=False)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")]
Json = Annotated[bool, typer.Option("--json", help="Print a JSON document on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print no progress and no notes.")]
Debug = Annotated[bool, typer.Option("--debug", help="On an error print the traceback too.")]
Name = Annotated[
    str | None, typer.Option(help="The task's name; the output's stem without it.", show_default=False)
]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of the method; repeatable.")
]
Include = Annotated[
    list[str] | None,
    typer.Option(metavar="GLOB", help="Take only the base's tensors of these names; repeatable."),
]
Exclude = Annotated[
    list[str] | None, typer.Option(metavar="GLOB", help="Leave out tensors of these names; repeatable.")
]
OnResize = Annotated[
    str,
    typer.Option(
        help="A tensor of another shape: 'refuse', store it whole as an 'extra', take the overlapping 'rows'."
    ),
]
Neighbours = Annotated[
    int | None, typer.Option(min=1, help="Exemplars that vote; 5 for text and 10 for images without it.")
]
Vote = Annotated[
    str, typer.Option(help="uniform: each neighbour has the same vote; kernel: nearer ones have more of it.")
]
Snap = Annotated[
    float, typer.Option(help="Drop shares of at most this, and scale the others; 0.05: 0.96 becomes 1.")
]
Mix = Annotated[
    str,
    typer.Option(
        help="share: a task vector's weight is its task's share of the votes; root: its square root, so that "
        "undecided samples keep more of each."
    ),
]
Jobs = Annotated[int | None, typer.Option(min=1, help="Threads; all cores without it.", show_default=False)]
Memory = Annotated[
    str, typer.Option(metavar="SIZE", help="What the tensors in the making may take: 1GB, 500MB.")
]
Adapter = Annotated[
    str | None,
    typer.Option(
        help="How the models are run, where config.json does not say: hf-sequence-classification, "
        "hf-image-classification, hf-encoder, hf-causal-lm, python:package.module:factory.",
        show_default=False,
    ),
]
