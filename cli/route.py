"""`flexswitch route`: the weights that samples get."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flexswitch.cli.command import command
from flexswitch.cli.console import Console
from flexswitch.cli.options import Adapter, Device, MaxLength, Mix, Neighbours, Snap, Vote

if TYPE_CHECKING:
    from flexswitch.merging.routing.query_index import RoutingResult


@command
def route(
    console: Console,
    zoo: Annotated[Path, typer.Argument(help="The indexed zoo.")],
    base: Annotated[str, typer.Option(help="Its base.", show_default=False)],
    input_: Annotated[
        Path,
        typer.Option(
            "--input",
            help="The samples: .jsonl(.gz), .csv, .parquet with a field 'text', or .npz with an array 'x'.",
            show_default=False,
        ),
    ],
    neighbours: Neighbours = None,
    vote: Vote = "uniform",
    snap: Snap = 0.0,
    mix: Mix = "share",
    features: Annotated[
        Path | None,
        typer.Option(
            help="The feature file, if the zoo was indexed with one; it holds NAME.test for NAME.jsonl.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Route the first N samples.")] = None,
    max_length: MaxLength = None,
    adapter: Adapter = None,
    device: Device = "cpu",
) -> dict[str, Any]:
    """Print the weights that each sample's tasks get, and mark samples that resemble no exemplar.

    Example: flexswitch route zoo --base models/base --input samples.jsonl
    """
    from flexswitch.merging.commands.route import route
    from flexswitch.merging.routing.voting_options import VotingOptions

    result, index = route(
        zoo, base=base, samples=input_, voting=VotingOptions(neighbours, vote, snap, mix),
        features=features, limit=limit, max_length=max_length, adapter=adapter, device=device,
        reporter=console,
    )  # fmt: skip
    samples = _samples(result, index.tasks)
    far = int(result.far.sum())
    document = {
        "zoo": str(zoo),
        "input": str(input_),
        "neighbours": index.neighbours,
        "vote": vote,
        "snap": snap,
        "mix": mix,
        "far_from": index.far_from,
        "recall": index.recall,
        "out_of_scope": far,
        "samples": samples,
    }
    return console.result(document, *_lines(samples), _note(far, len(samples)))


def _samples(routed: "RoutingResult", tasks: list[str]) -> list[dict[str, Any]]:
    """Returns an entry for each sample: its weights above zero, the largest and the leading task's first."""
    found = []
    rows = zip(*(part.tolist() for part in routed), strict=True)
    for weights, leading, distance, far in rows:
        order = sorted(range(len(tasks)), key=lambda task: (-weights[task], task != leading, tasks[task]))
        shares = {tasks[task]: weights[task] for task in order if weights[task] > 0}
        found.append({"task": tasks[leading], "weights": shares, "distance": distance, "out_of_scope": far})
    return found


def _lines(samples: list[dict[str, Any]]) -> list[str]:
    width = len(str(len(samples)))
    shares = ["  ".join(f"{task} {share:.3g}" for task, share in each["weights"].items()) for each in samples]
    return [
        f"{number:>{width}}  {text}{'  ! out of scope' if each['out_of_scope'] else ''}"
        for number, (text, each) in enumerate(zip(shares, samples, strict=True), 1)
    ]


def _note(far: int, count: int) -> str:
    if not far:
        return f"none of {count:,} samples is out of scope"
    return (
        f"{far:,} of {count:,} samples {'is' if far == 1 else 'are'} out of scope: farther from every "
        "exemplar than 99 % of the exemplars are from the nearest other one"
    )
