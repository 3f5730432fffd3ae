"""`flexswitch index`: the query set that chooses tasks per sample."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from flexswitch.cli.console import Console, size
from flexswitch.cli.options import Adapter, Debug, Json, Overwrite, Quiet

if TYPE_CHECKING:
    from flexswitch.codecs.format.zoo import IndexRecord


def index(
    zoo: Annotated[Path, typer.Argument(help="The zoo to index.")],
    base: Annotated[str | None, typer.Option(help="Its base.", show_default=False)] = None,
    exemplars: Annotated[
        Path | None,
        typer.Option(help="Folder of <task>.train.* files; labels are not used.", show_default=False),
    ] = None,
    add: Annotated[
        bool, typer.Option("--add", help="Add the tasks that the index lacks, all else as it is.")
    ] = False,
    per_task: Annotated[
        int | None, typer.Option(min=1, help="Exemplars a task; 100 without it.", show_default=False)
    ] = None,
    features: Annotated[
        str | None,
        typer.Option(
            help="auto (the default: the earliest layer within a point of the best), pooled, input, layer:N, "
            "layers:A+B, average:SPEC (of the tasks' average), shape+SPEC (the spelling of the texts too, as "
            "shape+auto), or a .safetensors file of <task>.train and <task>.test.",
            show_default=False,
        ),
    ] = None,
    feature_dtype: Annotated[
        str | None,
        typer.Option(help="float32 (the default) or bfloat16, of inputs too.", show_default=False),
    ] = None,
    normalise: Annotated[
        str | None, typer.Option(help="centred (the default), standardised or none.", show_default=False)
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="learned (the default) or euclidean.", show_default=False)
    ] = None,
    rank: Annotated[
        int | None, typer.Option(min=1, help="Of the learned metric; 32 without it.", show_default=False)
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Draws the exemplars; 0 without it.", show_default=False)
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.png",
            help="Tell which tasks are taken for which, and draw it; alone, of the index that there is.",
            show_default=False,
        ),
    ] = None,
    adapter: Adapter = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> dict[str, Any]:
    """Store a few exemplars of every task in the zoo, to choose tasks for each input.

    Example: flexswitch index zoo --base models/base --exemplars data

    Example: flexswitch index zoo --base models/base --exemplars data --add

    Example: flexswitch index zoo --report confusion.png
    """
    from flexswitch.cli.arguments import choice
    from flexswitch.cli.index_options import index_settings, refuse_beside_add
    from flexswitch.cli.index_report import index_report
    from flexswitch.codecs.format.atomic import check_output
    from flexswitch.codecs.format.zoo import open_zoo
    from flexswitch.merging.models.feature_spec import is_file
    from flexswitch.merging.routing.features import FEATURE_DTYPES
    from flexswitch.merging.routing.indexing import Request, add_to_index, index_zoo

    console = Console(quiet, json)
    if report is not None:
        check_output(report, overwrite)
    own = {"--per-task": per_task, "--feature-dtype": feature_dtype, "--normalise": normalise,
           "--metric": metric, "--rank": rank, "--seed": seed, "--overwrite": overwrite or None}  # fmt: skip
    if features is not None and not is_file(features):
        own["--features"] = features
    given = [option for option, value in own.items() if value is not None]
    if base is None or exemplars is None:
        others = {"--base": base, "--exemplars": exemplars, "--features": features, "--add": add or None}
        building = [*given, *(option for option, value in others.items() if value is not None)]
        return _report_alone(
            console, zoo, report, [each for each in building if each != "--overwrite"], overwrite, device
        )
    if add:
        refuse_beside_add(given)
    settings = index_settings(per_task, seed, normalise, metric, rank)
    dtype = choice("--feature-dtype", feature_dtype or "float32", FEATURE_DTYPES)
    request = Request(zoo, base, exemplars, features or "auto", dtype, settings, adapter, device)
    count = len(open_zoo(zoo))
    with console.progress(f"{'adding to' if add else 'making'} the index of {zoo}", count) as step:
        if add:
            record, added, notes = add_to_index(request, Path(features) if features else None, step)
        else:
            (record, notes), added = index_zoo(request, overwrite, step), []
    for note in notes:
        console.note(note)
    document = {"zoo": str(zoo), **record.model_dump(), "added": added, "notes": notes}
    parts: list[Table | str] = [*_lines(zoo, count, record, added)]
    if report is not None:
        document["report"], shown = index_report(zoo, report, overwrite, device)
        parts += shown
    return console.result(document, *parts)


def _report_alone(
    console: Console, zoo: Path, report: Path | None, building: list[str], overwrite: bool, device: str
) -> dict[str, Any]:
    """Prints the report of the index that there is. Raises: UsageError where an index is to be built."""
    from flexswitch.cli.index_report import index_report
    from flexswitch.codecs.errors import UsageError
    from flexswitch.merging.models.device import check_device

    if report is None or building:
        what = f"{building[0]}: building an index takes" if building else "building an index takes"
        raise UsageError(
            f"{what} --base BASE and --exemplars DIR; --report FILE.png alone tells of the one there is"
        )
    check_device(device)
    document, parts = index_report(zoo, report, overwrite, device)
    return console.result({"zoo": str(zoo), "report": document}, *parts)


def _lines(zoo: Path, count: int, record: "IndexRecord", added: list[str]) -> list[str]:
    """Returns what is said of an index, a line each."""
    rank = "" if record.rank is None else f" of rank {record.rank}"
    lines = [
        f"{zoo}: query index of {count} tasks, features {record.features} "
        f"({record.dtype}, {record.normalise}), "
        f"{record.metric} metric{rank}, {size(record.size)}"
    ]
    if added:
        lines.append(f"added: {', '.join(added)}")
    if (found := record.accuracy) is not None and not added:
        lines.append(
            "exemplars routed to their own task, a fifth held out from the metric and the search: "
            f"Euclidean {found.euclidean_held_out:.1f} %, learned {found.learned_held_out:.1f} %"
        )
        lines.append(
            "the same, one left out from the search alone (too good for the learned one, which saw it): "
            f"Euclidean {found.euclidean_loo:.1f} %, learned {found.learned_loo:.1f} %"
        )
    return lines
