"""`flexswitch route`: the weights that samples get."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flexswitch.cli.console import Console
from flexswitch.cli.options import Adapter, Debug, Json, Mix, Neighbours, Quiet, Snap, Vote

if TYPE_CHECKING:
    from flexswitch.merging.routing.query_index import RoutingResult


def route(
    zoo: Annotated[Path, typer.Argument(help="The zoo, indexed.")],
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
            help="The feature file, where the zoo was indexed with one; it holds NAME.test for NAME.jsonl.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Route the first N samples.")] = None,
    adapter: Adapter = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> dict[str, Any]:
    """Print the weights that each sample's tasks get, and which samples are like no exemplar.

    Example: flexswitch route zoo --base models/base --input samples.jsonl
    """
    from flexswitch.codecs.format.zoo import open_zoo
    from flexswitch.merging.checkpoints.fingerprint import check_base
    from flexswitch.merging.checkpoints.opening import open_checkpoint
    from flexswitch.merging.models.adapters import get_adapter
    from flexswitch.merging.models.device import check_device
    from flexswitch.merging.routing.mixing import check_mix, check_snap
    from flexswitch.merging.routing.router import chunk_count, open_router, read_samples, route_file
    from flexswitch.merging.routing.vote import check_vote

    console = Console(quiet, json)
    check_device(device)
    check_vote(vote)
    check_snap(snap)
    check_mix(mix)
    opened = open_zoo(zoo)
    opened.index_file()
    examples = read_samples(input_, limit)
    checkpoint = open_checkpoint(base)
    check_base(checkpoint, opened.record.base, str(zoo))
    model = get_adapter(checkpoint, opened.record.adapter, adapter)
    router = open_router(opened, model, features, neighbours, vote, device)
    with console.progress(f"routing {len(examples):,} samples of {input_}", chunk_count(examples)) as step:
        routed = route_file(router, input_, examples, snap, mix, step)
    if router.index.recall < 1:
        console.note(
            f"of that many exemplars the search finds {router.index.recall:.1%} of the nearest, "
            "measured on the exemplars"
        )
    samples = _samples(routed, router.index.tasks)
    far = int(routed.far.sum())
    document = {
        "zoo": str(zoo),
        "input": str(input_),
        "neighbours": router.index.neighbours,
        "vote": vote,
        "snap": snap,
        "mix": mix,
        "far_from": router.index.far_from,
        "recall": router.index.recall,
        "out_of_scope": far,
        "samples": samples,
    }
    return console.result(document, "\n".join(_lines(samples)), _note(far, len(samples)))


def _samples(routed: "RoutingResult", tasks: list[str]) -> list[dict[str, Any]]:
    """Returns an entry a sample; its weights without zeros, the leading task first, then by size."""
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
