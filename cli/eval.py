"""`flexswitch eval`: every method's score on every task, and what it stores."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from flexswitch.cli.command import command
from flexswitch.cli.console import Console, percent, size, table
from flexswitch.cli.options import (
    Adapter,
    Device,
    Features,
    MaxLength,
    Mix,
    Neighbours,
    Overwrite,
    Snap,
    Vote,
)
from flexswitch.cli.table import Table
from flexswitch.merging.methods.registry import EVALUATED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flexswitch.merging.evaluation.scores import Score

_PERPLEXITY = "perplexity"
_MOST_COLUMNS = 10  # tasks beside each other


@command
def evaluate(
    console: Console,
    zoo: Annotated[Path, typer.Argument(help="The zoo to score.")],
    base: Annotated[str, typer.Option(help="Its base.", show_default=False)],
    data: Annotated[Path, typer.Option(help="Folder of <task>.test.* files.", show_default=False)],
    finetuned: Annotated[
        list[str] | None,
        typer.Option(metavar="TASK=CHECKPOINT", help="A task's checkpoint; give one for each task."),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TASK=NAME",
            help="A task's metric. Of classes: accuracy, f1, matthews; of several labels: f1, accuracy; of "
            "values: pearson, spearman; of words: token-f1, accuracy; of answers in a text: token-f1, "
            "exact-match; of a language model: perplexity, exact-match (of the likeliest answers); of "
            "embeddings: spearman (of scored pairs), cosine (to the fine-tuned model's); of detectors: iou "
            "(with the fine-tuned model's boxes).",
            show_default="the first of its outputs' kind",
        ),
    ] = None,
    heads: Annotated[
        Path | None,
        typer.Option(
            help="Folder of heads, for models that have none: <task>.safetensors with 'weight' [classes, "
            "width], or <task>.txt with the text of a class on each line.",
            show_default=False,
        ),
    ] = None,
    methods: Annotated[
        str,
        typer.Option(
            help=f"Methods, joined by commas: {', '.join(EVALUATED)}; of the compression methods, the one by "
            "which the zoo was compressed."
        ),
    ] = "base,t-switch",
    merged: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=MODEL",
            help="A model that was merged from the tasks, to score with each task's head; repeatable.",
        ),
    ] = None,
    routing: Annotated[
        str,
        typer.Option(help="How to score routed methods, joined by commas: per-sample, batch-mean, oracle."),
    ] = "per-sample",
    neighbours: Neighbours = None,
    vote: Vote = "uniform",
    snap: Snap = 0.0,
    mix: Mix = "share",
    engine: Annotated[
        Literal["auto", "fused", "merged", "grouped"],
        typer.Option(help="How a batch with several mixtures of weights is computed."),
    ] = "auto",
    features: Features = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use the first N test examples of a task.")] = None,
    max_length: MaxLength = None,
    adapter: Adapter = None,
    device: Device = "cpu",
    plot: Annotated[
        Path | None, typer.Option(help="Draw the scores against stored bytes, as a PNG.", show_default=False)
    ] = None,
    overwrite: Overwrite = False,
) -> dict[str, Any]:
    """Score methods on the tasks' test examples, per task and on average.

    A language model is scored on its answers: "completion" after "prompt", "target" of "source", the
    assistant's of "messages", or a whole "text".

    Example: flexswitch eval zoo --base base --data data --plot scores.png
    """
    from flexswitch.merging.commands.evaluate import evaluate
    from flexswitch.merging.commands.results import evaluated

    made = evaluate(
        zoo, base=base, data=data, finetuned=finetuned or (), metric=metric or (), heads=heads,
        methods=methods, merged=merged or (), routing=routing, neighbours=neighbours, vote=vote, snap=snap,
        mix=mix, engine=engine, features=features, limit=limit, max_length=max_length, adapter=adapter,
        device=device, plot=plot, overwrite=overwrite, reporter=console,
    )  # fmt: skip
    scores, document = made.scores, evaluated(made)
    note = f"{_metrics(made.metrics)}; bytes a task beside the base; time a sample over one forward pass of "
    note += "the base"
    if any(score.routing is not None for score in scores):
        note += "; routed methods answer one mixed stream, each sample under the head of its own task, and "
        note += "their time is over the base's forward pass of the same batches"
    return console.result(document, *score_tables(document), note, *_confusions(scores))


def _metrics(metrics: dict[str, str]) -> str:
    """Returns which metric scores which tasks, and what the averages are of."""
    tasks: dict[str, list[str]] = {}
    for task, metric in metrics.items():
        tasks.setdefault(metric, []).append(task)
    if list(tasks) == [_PERPLEXITY]:
        return "perplexity, of which less is better, and on average the geometric mean"
    if len(tasks) == 1:
        return f"{next(iter(tasks))} in %"
    parts = "; ".join(f"{metric} of {', '.join(own)}" for metric, own in tasks.items())
    if _PERPLEXITY in tasks:
        return f"{parts}, all but perplexity in %, so that there is no average"
    return f"{parts}, in %; the average is over different metrics"


def _confusions(scores: "Sequence[Score]") -> list[str]:
    """Returns a line on the largest confusions and the entropy of each routed row."""
    from flexswitch.merging.routing.confusion import mistakes

    lines = []
    for score in scores:
        if score.routing is not None:
            found = mistakes(score.routing.counts, list(score.values), 3)
            parts = [f"{each.task} → {each.routed} {percent(each.share, 0)}" for each in found]
            snapped = f", {score.routing.snapped:.1f} % of them snapped" if score.routing.snapped else ""
            lines.append(
                f"{score.method}: weights of {score.routing.entropy:.2f} bits{snapped}; "
                f"largest confusions: {', '.join(parts) or 'none'}"
            )
    return lines


def _value(value: float, metric: str) -> str:
    return f"{value:.2f}" if metric == _PERPLEXITY else f"{value:.1f}"


def score_tables(document: dict[str, Any]) -> list[Table]:
    """Returns a row for each method, with the score of each task; of many tasks in a table of their own."""
    tasks, methods = document["metrics"], document["methods"]
    few = len(tasks) <= _MOST_COLUMNS
    rows = table(
        "", "method", *(tasks if few else ()), "average", "of individual", "bytes a task", "routing", "time"
    )
    for method, row in methods.items():
        share, routing = row["share_of_individual"], row["routing_accuracy"]
        rows.add_row(
            method,
            *(_value(row["scores"][task], metric) for task, metric in tasks.items() if few),
            "–" if row["average"] is None else f"{row['average']:.2f}",
            "–" if share is None else percent(share),
            size(round(row["bytes_per_task"])),
            "–" if routing is None else f"{routing:.1f}",
            f"{row['time_over_base']:.2f}×" if "time_over_base" in row else "–",
        )
    if few:
        return [rows]
    each = table("", "task", *methods)
    for task, metric in tasks.items():
        each.add_row(task, *(_value(row["scores"][task], metric) for row in methods.values()))
    return [each, rows]
