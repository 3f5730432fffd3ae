"""`flexswitch index`: the query set that chooses tasks per sample."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from flexswitch.cli.command import command, given_options
from flexswitch.cli.console import Console, size
from flexswitch.cli.options import Adapter, Device, LockTimeout, MaxLength, Overwrite
from flexswitch.cli.table import Table

if TYPE_CHECKING:
    from flexswitch.codecs.format.index_record import IndexRecord

_OF_A_NEW_INDEX = (
    "--per-task", "--features", "--feature-dtype", "--normalise", "--metric", "--rank", "--seed",
    "--overwrite",
)  # fmt: skip
_OF_BUILDING = ("--base", "--exemplars", "--add", "--lock-timeout", *_OF_A_NEW_INDEX[:-1])


@command
def index(
    console: Console,
    context: typer.Context,
    zoo: Annotated[Path, typer.Argument(help="The zoo to index.")],
    base: Annotated[str | None, typer.Option(help="Its base.", show_default=False)] = None,
    exemplars: Annotated[
        Path | None,
        typer.Option(
            help="Folder of <task>.train.* files; without their labels, and of chats the prompts.",
            show_default=False,
        ),
    ] = None,
    add: Annotated[
        bool, typer.Option("--add", help="Add the tasks that the index lacks, under the index's settings.")
    ] = False,
    per_task: Annotated[int, typer.Option(min=1, help="Number of exemplars of a task.")] = 100,
    features: Annotated[
        str,
        typer.Option(
            help="auto (the earliest layer within a point of the best), pooled, input, layer:N, layers:A+B, "
            "average:SPEC (of the tasks' average), shape+SPEC (with the spelling of the texts, as "
            "shape+auto), or a .safetensors file of <task>.train and <task>.test.",
        ),
    ] = "auto",
    feature_dtype: Annotated[
        Literal["float32", "bfloat16"],
        typer.Option(help="Type that the features of routed samples are computed in."),
    ] = "float32",
    normalise: Annotated[
        Literal["none", "centred", "standardised"], typer.Option(help="How features are normalised.")
    ] = "centred",
    metric: Annotated[
        Literal["learned", "euclidean"], typer.Option(help="Metric of the search.")
    ] = "learned",
    rank: Annotated[int, typer.Option(min=1, help="Rank of the learned metric.")] = 32,
    seed: Annotated[int, typer.Option(help="Seed of the draw of exemplars.")] = 0,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.png",
            help="Report and draw which tasks are confused; without --base, of the existing index.",
            show_default=False,
        ),
    ] = None,
    max_length: MaxLength = None,
    adapter: Adapter = None,
    device: Device = "cpu",
    overwrite: Overwrite = False,
    lock_timeout: LockTimeout = None,
) -> dict[str, Any]:
    """Store a few exemplars of every task in the zoo, to choose tasks for each input.

    Example: flexswitch index zoo --base models/base --exemplars data

    Example: flexswitch index zoo --base models/base --exemplars data --add

    Example: flexswitch index zoo --report confusion.png
    """
    from flexswitch.cli.index_report import index_report
    from flexswitch.codecs.format.zoo import open_zoo
    from flexswitch.merging.commands.arguments import check_picture
    from flexswitch.merging.commands.index import index
    from flexswitch.merging.commands.results import indexed

    if report is not None:
        check_picture("--report", report, overwrite)
    given = given_options(context)
    if base is None or exemplars is None:
        building = [option for option in given if option in _OF_BUILDING]
        return _report_alone(console, zoo, report, building, overwrite, device)
    _check_given(given, features, add, metric)
    made = index(
        zoo, base=base, exemplars=exemplars, add=add, per_task=per_task,
        features=features if "--features" in given else None, feature_dtype=feature_dtype,
        normalise=normalise, metric=metric, rank=rank, seed=seed, max_length=max_length, adapter=adapter,
        device=device, overwrite=overwrite, lock_timeout=lock_timeout, reporter=console,
    )  # fmt: skip
    document = indexed(made)
    parts: list[Table | str] = [*_lines(zoo, len(open_zoo(zoo)), made.record, made.added)]
    if report is not None:
        document["report"], shown = index_report(zoo, report, overwrite, device)
        parts += shown
    return console.result(document, *parts)


def _check_given(given: list[str], features: str, add: bool, metric: str) -> None:
    """Raises: UsageError where an option is given that would do nothing."""
    from flexswitch.codecs.errors import UsageError
    from flexswitch.merging.models.feature_spec import is_file

    if add:
        of_new = [
            option
            for option in given
            if option in _OF_A_NEW_INDEX and not (option == "--features" and is_file(features))
        ]
        if of_new:
            raise UsageError(
                f"{of_new[0]} beside --add: tasks are added under the index's own settings; leave it out"
            )
    if metric == "euclidean" and "--rank" in given:
        raise UsageError("--rank: is the learned metric's, and --metric euclidean has none; leave one out")


def _report_alone(
    console: Console, zoo: Path, report: Path | None, building: list[str], overwrite: bool, device: str
) -> dict[str, Any]:
    """Prints the report of the existing index. Raises: UsageError where an index is to be built."""
    from flexswitch.cli.index_report import index_report
    from flexswitch.codecs.errors import UsageError
    from flexswitch.merging.models.device import check_device

    if report is None or building:
        missing = [each for each in ("--base", "--exemplars") if each not in building]
        what = f"{building[0]}: " if building else ""
        what = f"{missing[0]} is missing: " if len(missing) == 1 else what
        raise UsageError(
            f"{what}building an index takes --base BASE and --exemplars DIR; --report FILE.png alone "
            "describes the present one"
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
            "with one exemplar left out of the search only (the learned metric was trained on all of them): "
            f"Euclidean {found.euclidean_loo:.1f} %, learned {found.learned_loo:.1f} %"
        )
    return lines
