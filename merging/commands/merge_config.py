"""Merges models as a configuration file of mergekit says."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from flexswitch.codecs.errors import InputError, UsageError
from flexswitch.codecs.format.atomic import check_output
from flexswitch.codecs.threads import DEFAULT_JOBS, DEFAULT_MEMORY
from flexswitch.merging.checkpoints.fingerprint import fingerprint
from flexswitch.merging.checkpoints.opening import open_checkpoint
from flexswitch.merging.checkpoints.pairing import EVERYTHING, Resize
from flexswitch.merging.commands.arguments import Bytes, Input, Output, Positive, check_inputs_stay, checked
from flexswitch.merging.commands.common_vocabulary import CommonVocabulary, common_vocabulary
from flexswitch.merging.commands.merge import SHARD_BYTES, Merged, merge
from flexswitch.merging.commands.merge_exemplars import ExemplarOptions, Merger
from flexswitch.merging.commands.merge_sources import left_out, refuse_resized, rounded
from flexswitch.merging.commands.passthrough import read_stack
from flexswitch.merging.commands.peer_config import PeerMerge, read_document, read_peer_config
from flexswitch.merging.commands.reporter import SILENT, Reporter
from flexswitch.merging.methods.registry import get_method
from flexswitch.merging.static.tensor_settings import MergeSettings, Override
from flexswitch.merging.task_vectors.checkpoint_pair import CheckpointPair
from flexswitch.merging.task_vectors.model_directory import model_card, write_model_directory
from flexswitch.merging.task_vectors.restore import tied_outputs
from flexswitch.merging.task_vectors.task_name import task_name


@checked
def merge_config(
    config: Input,
    output: Output,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    on_resize: Resize = "refuse",
    max_shard_size: Bytes = SHARD_BYTES,
    jobs: Positive | None = None,
    memory: Bytes = DEFAULT_MEMORY,
    overwrite: bool = False,
    reporter: Reporter = SILENT,
) -> Merged:
    """Writes the merge that a configuration describes; paths in it are relative to the working directory.

    include, exclude, on_resize: as for `merge`, and not where rows of tokens are matched or layers stacked.
    Raises: FlexswitchError, by name on all that is not handled.
    """
    document = read_document(Path(config))
    selects = bool(include or exclude or on_resize != "refuse")
    if document.get("merge_method") == "passthrough":
        _refuse_selection(config, "merge_method: passthrough", selects)
        return _stacked(Path(config), document, Path(output), max_shard_size, overwrite, reporter)
    asked = read_peer_config(Path(config), document)
    asked.drop_unmatched(open_checkpoint(asked.base).tensors)
    for note in dict.fromkeys(asked.notes):
        reporter.note(note)
    if asked.tokenizer is not None:
        _refuse_selection(config, "tokenizer or tokenizer_source", selects)
        base = asked.base if document.get("base_model") is not None else None
        vocabulary = common_vocabulary(Path(config), asked.tokenizer, list(asked.paths.values()), base)
        with _named(Path(config)):
            return _with_vocabulary(
                asked, vocabulary, Path(output), max_shard_size, jobs, memory, overwrite, reporter
            )
    with _named(Path(config)):
        return merge(
            asked.sources, output, base=asked.base, method=asked.method, settings=asked.settings,
            weights=asked.weights, set_for=asked.set_for, include=include, exclude=exclude,
            on_resize=on_resize, dtype=asked.dtype, max_shard_size=max_shard_size,
            jobs=jobs, memory=memory, overwrite=overwrite, reporter=reporter,
        )  # fmt: skip


_OPTIONS = ("--include", "--exclude", "--on-resize")  # of the command, beside the file


@contextmanager
def _named(config: Path) -> Iterator[None]:
    """Names the file where a setting that it gives is refused. Raises: InputError."""
    try:
        yield
    except UsageError as reason:
        if str(reason).startswith(_OPTIONS):
            raise
        raise InputError(f"{config}: {reason}") from reason


def _refuse_selection(config: str | Path, what: str, selects: bool) -> None:
    """Raises: UsageError where tensors are selected in a merge that takes all of them."""
    if selects:
        raise UsageError(
            f"{config}: a merge with {what} takes all tensors; leave out --include, --exclude, --on-resize"
        )


def _with_vocabulary(
    asked: PeerMerge,
    vocabulary: CommonVocabulary,
    output: Path,
    shard_size: int,
    jobs: int | None,
    memory: int,
    overwrite: bool,
    reporter: Reporter,
) -> Merged:
    """Writes a merge of models whose rows of tokens are matched. Raises: InputError, UsageError."""
    overrides = [Override(pattern, values) for pattern, values in asked.set_for]
    given = MergeSettings(get_method(asked.method, "merge"), asked.settings, asked.weights, overrides)
    given.check_values()
    check_inputs_stay(output, [*vocabulary.tensors])
    check_output(output, overwrite)
    dtype = None if asked.dtype is None else getattr(torch, asked.dtype)
    views = vocabulary.checkpoints([*vocabulary.tensors], dtype)
    base = views[vocabulary.main]
    apart = replace(EVERYTHING, on_resize="extra")  # refused below, with what a merge can do instead
    vectors = {task: CheckpointPair(base, views[path], apart) for task, path in asked.paths.items()}
    refuse_resized(
        vectors, base, EVERYTHING, "only rows of tokens are matched, so give models of the same other shapes"
    )
    merger = Merger(
        base, vectors, EVERYTHING, ExemplarOptions(), jobs or DEFAULT_JOBS, memory, output, reporter
    )
    outputs, _, _ = merger.outputs(given, dtype)
    outputs |= tied_outputs(base, outputs)
    changes = vocabulary.config_changes() | ({} if asked.dtype is None else {"dtype": asked.dtype})
    vocabulary.check(outputs, changes)
    notes = [*vocabulary.notes, *left_out(vectors), *rounded(given.method, vectors)]
    for note in [*base.notes, *notes]:
        reporter.note(note)

    def card() -> str:
        own = vocabulary.tensors[vocabulary.main].checkpoint
        lines = {
            "base": f"{own.hub_id or 'local'}, fingerprint {fingerprint(own)}",
            "models": ", ".join(vectors),
            "method": given.method.name,
            "settings": ", ".join(given.described()) or "none",
            **vocabulary.card_lines(),
            **({"left out": "; ".join(notes)} if notes else {}),
        }
        return model_card(", ".join(vectors), lines, f"flexswitch merge --config {vocabulary.path} -o OUT")

    with reporter.progress(f"writing {len(outputs)} tensors to {output}", len(outputs)) as on_tensor:
        write_model_directory(
            output, outputs, base, changes, card, shard_size, overwrite, on_tensor, vocabulary.files(),
            reporter.note,
        )  # fmt: skip
    return Merged(output, list(vectors), given.method.name, len(outputs), {})


def _stacked(
    config: Path,
    document: Mapping[str, Any],
    output: Path,
    shard_size: int,
    overwrite: bool,
    reporter: Reporter,
) -> Merged:
    """Writes a model made of the layers of others. Raises: InputError."""
    stack = read_stack(config, document)
    check_inputs_stay(output, [each.model.source for each in stack.slices])
    check_output(output, overwrite)
    outputs, vocabulary = stack.outputs(), stack.vocabulary
    if vocabulary is not None:
        vocabulary.check(outputs, stack.config_changes())
    for note in () if vocabulary is None else vocabulary.notes:
        reporter.note(note)
    parts = [f"{each.model.source}, layers {each.start} to {each.stop - 1}" for each in stack.slices]

    lines = {"slices": "; ".join(parts)} | ({} if vocabulary is None else vocabulary.card_lines())

    def card() -> str:
        return model_card("passthrough", lines, f"flexswitch merge --config {config} -o OUT")

    with reporter.progress(f"writing {len(outputs)} tensors to {output}", len(outputs)) as on_tensor:
        write_model_directory(
            output, outputs, stack.first, stack.config_changes(), card, shard_size, overwrite, on_tensor,
            {} if vocabulary is None else vocabulary.files(), reporter.note,
        )  # fmt: skip
    names = list(dict.fromkeys(task_name(each.model.source) for each in stack.slices))
    return Merged(output, names, "passthrough", len(outputs), {})
