"""The options that several subcommands share."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Literal

import typer

from flexswitch.merging.checkpoints.architecture import ADAPTERS


def completing(names: Iterable[str]) -> Callable[[str], list[str]]:
    """Returns a function that completes what is typed to one of the names, for the shell."""
    known = list(names)

    def complete(incomplete: str) -> list[str]:  # typer goes by the argument's name
        return [name for name in known if name.startswith(incomplete)]

    return complete


Output = Annotated[Path, typer.Option("--output", "-o", help="Where to write.", show_default=False)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")]
Name = Annotated[str | None, typer.Option(help="The task's name.", show_default="the output's stem")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="A setting of the method, as `flexswitch methods NAME` lists them; repeatable.",
    ),
]
Include = Annotated[
    list[str] | None,
    typer.Option(metavar="GLOB", help="Take only the base's tensors with these names; repeatable."),
]
Exclude = Annotated[
    list[str] | None, typer.Option(metavar="GLOB", help="Leave out tensors with these names; repeatable.")
]
OnResize = Annotated[
    Literal["refuse", "extra", "rows"],
    typer.Option(help="For a tensor of another shape: refuse, store it whole, or take the overlapping rows."),
]
Key = Annotated[
    str | None,
    typer.Option(
        help="The state dict to take from a fine-tuned .pt or .pth.tar file that holds several, such as "
        "model.state_dict.",
        show_default="the only one",
    ),
]
Neighbours = Annotated[
    int | None,
    typer.Option(min=1, help="Number of exemplars that vote.", show_default="5 for text, 10 for images"),
]
Vote = Annotated[
    Literal["uniform", "kernel"],
    typer.Option(help="How neighbours vote: all alike, or nearer ones with more weight."),
]
Snap = Annotated[
    float,
    typer.Option(help="Drop shares up to this one and rescale the others; at 0.05, 0.96 becomes 1."),
]
Mix = Annotated[
    Literal["share", "root"],
    typer.Option(
        help="The weight of a task vector: its task's share of the votes, or the square root of the share, "
        "which keeps more of each task where the votes are split."
    ),
]
Features = Annotated[
    Path | None,
    typer.Option(help="The feature file, if the zoo was indexed with one.", show_default=False),
]
LockTimeout = Annotated[
    float | None,
    typer.Option(
        min=0,
        metavar="SECONDS",
        help="How long to wait for another writer of the zoo.",
        show_default="no limit",
    ),
]
Jobs = Annotated[int | None, typer.Option(min=1, help="Number of threads.", show_default="all cores")]
Memory = Annotated[
    str, typer.Option(metavar="SIZE", help="Memory that tensors in progress may take: 1GB, 500MB.")
]
Adapter = Annotated[
    str | None,
    typer.Option(
        help=f"How to run the models: {', '.join(ADAPTERS)}, python:package.module:factory.",
        show_default="as config.json says",
    ),
]
MaxLength = Annotated[
    int | None,
    typer.Option(
        min=1, metavar="TOKENS", help="Where a longer text is cut.", show_default="the model's own length"
    ),
]
Device = Annotated[str, typer.Option(help="Where the model runs: cpu or cuda.")]
