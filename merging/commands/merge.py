"""Restores one task's model, or merges several tasks into one, as a complete model directory."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import Field

from flexswitch.codecs.errors import UsageError, check_choice
from flexswitch.codecs.format.atomic import check_output
from flexswitch.codecs.format.training_file import CheckpointFile
from flexswitch.codecs.threads import DEFAULT_JOBS, DEFAULT_MEMORY
from flexswitch.merging.checkpoints.checkpoint import Checkpoint
from flexswitch.merging.checkpoints.config import read_config
from flexswitch.merging.checkpoints.fingerprint import fingerprint
from flexswitch.merging.checkpoints.hashing import open_base
from flexswitch.merging.checkpoints.model_config import written_changes
from flexswitch.merging.checkpoints.pairing import Resize
from flexswitch.merging.commands.arguments import (
    Access,
    Bytes,
    Input,
    Output,
    OutputDtype,
    Overrides,
    Positive,
    check_inputs_stay,
    checked_with,
    selection,
)
from flexswitch.merging.commands.merge_exemplars import PER_TASK, ExemplarOptions, Merger
from flexswitch.merging.commands.merge_report import report_lines, score_table
from flexswitch.merging.commands.merge_sources import (
    check_bases,
    check_stored,
    left_out,
    open_sources,
    refuse_resized,
    rounded,
)
from flexswitch.merging.commands.merge_tuning import Grid, tuned
from flexswitch.merging.commands.reporter import SILENT, Reporter
from flexswitch.merging.methods.registry import Method, get_method
from flexswitch.merging.methods.settings import check_settings, recorded
from flexswitch.merging.static.tensor_settings import MergeSettings, Override
from flexswitch.merging.task_vectors.model_directory import model_card, write_model_directory
from flexswitch.merging.task_vectors.restore import restored_tensors, tied_outputs
from flexswitch.merging.task_vectors.task_vector import TaskVector

SHARD_BYTES = 5_000_000_000


class Merged(NamedTuple):
    """The model directory, the tasks in it, how they were merged, and its number of tensors.

    report: what was learned from examples, if anything.
    """

    path: Path
    tasks: list[str]
    method: str
    tensors: int
    report: dict[str, Any]


def restored(*, lambda_: Annotated[float, Field(description="Scale of the task vector.")] = 1.0) -> None:
    """Carries the settings of restoring one task."""


_RESTORED = Method("restored", "merge", f"{__name__}:restored", ("the task vector",), "")


def _check(
    task: str | None,
    method: str | None,
    settings: Mapping[str, Any] | None,
    weights: Mapping[str, float | str] | None,
    set_for: Sequence[tuple[str, Mapping[str, Any]]],
    exemplars: str | Path | None,
    per_task: int,
    adapter: str | None,
    device: str,
    max_length: int | None,
    checkpoint_every: int | None,
    tune: Mapping[str, Any] | None,
    data: str | Path | None,
) -> tuple[MergeSettings, ExemplarOptions, Grid]:
    """Returns the settings of a merge, the options of examples and the grid, checked. Raises: UsageError."""
    if (task is None) == (method is None):
        raise UsageError("give one of --task NAME and --method NAME")
    chosen = get_method(method, "merge") if method else _RESTORED
    overrides = [Override(pattern, values) for pattern, values in set_for]
    given = MergeSettings(chosen, settings or {}, weights or {}, overrides)
    given.check_values()
    grid = Grid(tune or {}, data)
    grid.check(given, merges=task is None)
    options = ExemplarOptions(exemplars, per_task, adapter, device, max_length, checkpoint_every)
    options.check(given, tunes=bool(tune))
    return given, options, grid


@checked_with(_check)
def merge(
    sources: Sequence[Annotated[str | Path, Access("reads", named=True)]],
    output: Output,
    *,
    base: Input,
    task: str | None = None,
    method: str | None = None,
    settings: Mapping[str, Any] | None = None,
    weights: Mapping[str, float | str] | None = None,
    set_for: Overrides = (),
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    on_resize: Resize = "refuse",
    key: str | None = None,
    exemplars: Input | None = None,
    per_task: Positive = PER_TASK,
    adapter: str | None = None,
    device: str = "cpu",
    max_length: Positive | None = None,
    checkpoint_every: Positive | None = None,
    tune: Mapping[str, Any] | None = None,
    data: Input | None = None,
    dtype: OutputDtype | None = None,
    max_shard_size: Bytes = SHARD_BYTES,
    jobs: Positive | None = None,
    memory: Bytes = DEFAULT_MEMORY,
    overwrite: bool = False,
    reporter: Reporter = SILENT,
) -> Merged:
    """Writes one task's model, or all tasks merged by a method.

    sources: zoos, artifacts, task vector files, LoRAs and fine-tuned checkpoints, each as `PATH` or
    `TASK=PATH`. weights: of tasks, 1 where one has none. set_for: (tensor pattern, values) pairs, the pattern
    as `PATTERN` or `TASK:PATTERN`, the values those of settings or of `weight`; the last match counts. A
    tensor that is not selected stays the base's. key: of the state dict in fine-tuned .pt files that hold
    several, such as "model.state_dict". exemplars: folder of <task>.train files, for methods that learn from
    `per_task` of each. tune: settings → values to try ("0.1,0.5", "0.1:1.0" for ten), scored on `per_task`
    labelled examples of each task's train file in the folder `data`. max_length: the number of tokens at
    which these are cut; None is the model's own. dtype: None is the base's. max_shard_size: bytes of the
    largest weight file. memory: bytes that the blocks in progress may take. Raises: FlexswitchError.
    """
    output, chosen_tensors = Path(output), selection(include, exclude, on_resize, key)
    if dtype is not None:
        check_choice("--dtype", dtype, OutputDtype)
    given, options, grid = _check(
        task, method, settings, weights, set_for, exemplars, per_task, adapter, device, max_length,
        checkpoint_every, tune, data,
    )  # fmt: skip
    check_inputs_stay(output, (base, *sources, exemplars, data))
    check_output(output, overwrite)
    checkpoint = open_base(base)
    opened = chosen_tensors
    if method is not None and on_resize == "refuse":  # below, with what a merge can do instead
        opened = replace(chosen_tensors, on_resize="extra")
    vectors = open_sources([str(source) for source in sources], checkpoint, opened, task)
    as_dtype: torch.dtype | None = None if dtype is None else getattr(torch, dtype)
    for note in checkpoint.notes:
        reporter.note(note)
    notes: list[str] = []
    report: dict[str, Any] = {}
    training: CheckpointFile | None = None
    if task is not None:
        check_stored(vectors, checkpoint, chosen_tensors)
        lambda_ = _restored_lambda(given)
        outputs = restored_tensors(checkpoint, vectors[task], lambda_, as_dtype)
    else:
        check_stored(vectors, checkpoint, selection((), (), "refuse", key))
        refuse_resized(vectors, checkpoint, chosen_tensors)
        notes = left_out(vectors)
        merger = Merger(
            checkpoint, vectors, chosen_tensors, options, jobs or DEFAULT_JOBS, memory, output, reporter
        )
        if grid.values or given.method.needs_exemplars:
            check_bases(vectors, checkpoint)  # before long work
        if grid.values:
            given, report = tuned(merger, given, grid)
        outputs, learned, training = merger.outputs(given, as_dtype)
        report |= learned
        outputs |= tied_outputs(checkpoint, outputs)
    for note in (*notes, *rounded(given.method, vectors)):
        reporter.note(note)
    files = {} if task is None else vectors[task].files
    changes = _config_changes(checkpoint, vectors[task], reporter) if task else {}
    changes |= {"dtype": dtype} if dtype else {}

    def card() -> str:
        check_bases(vectors, checkpoint)  # last, because writing has read and hashed all of it
        return _card(checkpoint, list(vectors), given, notes, task, report)

    with reporter.progress(f"writing {len(outputs)} tensors to {output}", len(outputs)) as on_tensor:
        write_model_directory(
            output,
            outputs,
            checkpoint,
            changes,
            card,
            max_shard_size,
            overwrite,
            on_tensor,
            files,
            reporter.note,
        )
    if training is not None:
        training.remove()
    return Merged(output, list(vectors), given.method.name, len(outputs), report)


def _config_changes(base: Checkpoint, vector: TaskVector, reporter: Reporter) -> dict[str, Any]:
    """Returns the task's entries of config.json that are written, and notes those that are not."""
    kept = written_changes(read_config(base), vector.model.config)
    if dropped := sorted(vector.model.config.keys() - kept.keys()):
        reporter.note(
            f"left out of config.json, because the model has no such settings: {', '.join(dropped)}"
        )
    return kept


def _restored_lambda(given: MergeSettings) -> float:
    """Returns the scale of a restored task vector. Raises: UsageError."""
    if given.weights or given.overrides:
        raise UsageError("--weight and --set-for are for --method; with --task give --set lambda=VALUE")
    lambda_: float = recorded(check_settings(_RESTORED, given.values))["lambda"]
    return lambda_


def _card(
    base: Checkpoint,
    tasks: Sequence[str],
    given: MergeSettings,
    notes: Sequence[str],
    task: str | None,
    report: Mapping[str, Any],
) -> str:
    options = given.described()
    lines = {
        "base": f"{base.hub_id or 'local'}, fingerprint {fingerprint(base)}",
        "tasks": ", ".join(tasks),
        "method": given.method.name,
        "settings": ", ".join(option.removeprefix("--set ").removeprefix("--") for option in options)
        or "none",
    }
    lines |= {"left out": "; ".join(notes)} if notes else {}
    lines |= report_lines(report)
    choice = f"--method {given.method.name}" if task is None else f"--task {task}"
    choice += " --exemplars DIR" if given.method.needs_exemplars else ""
    command = " ".join(["flexswitch merge TASKS --base BASE -o OUT", choice, *options])
    return model_card(", ".join(tasks), lines, command) + score_table(report)
