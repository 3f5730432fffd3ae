"""Scores methods on the test examples of a zoo's tasks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import BeforeValidator

from flexswitch.codecs.errors import UsageError
from flexswitch.merging.commands.arguments import Input, Output, Positive, check_picture, checked
from flexswitch.merging.commands.reporter import SILENT, Reporter, counted
from flexswitch.merging.evaluation.scores import Score

Engine = Literal["auto", "fused", "merged", "grouped"]

Names = Annotated[
    Sequence[str], BeforeValidator(lambda names: names.split(",") if isinstance(names, str) else names)
]


class Evaluated(NamedTuple):
    """The scores, a sample's seconds in the base's forward pass, and the bytes of the zoo's index.

    metrics: task → its metric's name.
    """

    scores: list[Score]
    forward_seconds: float
    index_bytes: int | None
    metrics: dict[str, str]


@checked
def evaluate(
    zoo: Input,
    *,
    base: Input,
    data: Input,
    finetuned: Mapping[str, Input] | Sequence[str] = (),
    metric: Mapping[str, str] | Sequence[str] = (),
    heads: Input | None = None,
    methods: Names = ("base", "t-switch"),
    merged: Mapping[str, Input] | Sequence[str] = (),
    routing: Names = ("per-sample",),
    neighbours: Positive | None = None,
    vote: str = "uniform",
    snap: float = 0.0,
    mix: str = "share",
    engine: Engine = "auto",
    features: Input | None = None,
    limit: Positive | None = None,
    max_length: Positive | None = None,
    adapter: str | None = None,
    device: str = "cpu",
    plot: Output | None = None,
    overwrite: bool = False,
    reporter: Reporter = SILENT,
) -> Evaluated:
    """Returns the scores of the methods that are asked for, and draws them where a plot is asked for.

    data: folder of <task>.test.* files. finetuned: task → checkpoint, or TASK=CHECKPOINT texts. metric: task
    → name, or TASK=NAME texts; others take the default of their outputs' kind. heads: folder of
    <task>.safetensors or <task>.txt files. methods, routing: names, or one text of names joined by commas.
    merged: name → merged model, or NAME=MODEL texts, scored beside the methods with each task's head.
    max_length: the number of tokens at which texts are cut [default: the model's own]. plot: a PNG.
    Raises: FlexswitchError.
    """
    from flexswitch.merging.checkpoints.hub_zoo import zoo_path
    from flexswitch.merging.evaluation.methods import score, score_merged
    from flexswitch.merging.evaluation.setup import Request, open_evaluation
    from flexswitch.merging.models.examples import ignored_files
    from flexswitch.merging.routing.voting_options import VotingOptions

    if plot is not None:
        check_picture("--plot", Path(plot), overwrite)
    request = Request(
        zoo_path(zoo), str(base), Path(data), _pairs(finetuned), _pairs(metric),
        None if heads is None else Path(heads), methods, routing,
        VotingOptions(neighbours, vote, snap, mix), None if features is None else Path(features), limit,
        max_length, adapter, device, engine, _pairs(merged),
    )  # fmt: skip
    evaluation = open_evaluation(request)
    metrics = {task: measure.metric for task, measure in evaluation.task_models.measures.items()}
    if plot is not None and evaluation.task_models.unit is None:
        raise UsageError("--plot: draws averages, and the tasks' metrics have different units; leave it out")
    for note in ignored_files(request.data, "test", evaluation.zoo):
        reporter.note(note)
    count = len(request.methods) + len(evaluation.merged)
    scores = []
    with reporter.progress(f"scoring {counted(count, 'method')} on {request.zoo}", count) as on_method:
        for method in request.methods:
            scores += score(evaluation, method, request.modes)
            on_method(method)
        for name in evaluation.merged:
            scores.append(score_merged(evaluation, name))
            on_method(name)
    if plot is not None:
        from flexswitch.merging.evaluation.chart import draw_chart

        draw_chart(scores, Path(plot), overwrite)
    index = evaluation.zoo.record.index
    names = {task: metric.name for task, metric in metrics.items()}
    size = None if index is None else index.size
    return Evaluated(scores, evaluation.base_score.seconds, size, names)


def _pairs(finetuned: Mapping[str, str | Path] | Sequence[str]) -> Sequence[str]:
    if isinstance(finetuned, Mapping):
        return [f"{task}={path}" for task, path in finetuned.items()]
    return finetuned
