"""Merges models as a configuration file of mergekit says."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flexswitch.codecs.format.atomic import check_output
from flexswitch.codecs.threads import DEFAULT_MEMORY
from flexswitch.merging.commands.arguments import Bytes, Input, Output, Positive, check_inputs_stay, checked
from flexswitch.merging.commands.merge import SHARD_BYTES, Merged, merge
from flexswitch.merging.commands.passthrough import read_stack
from flexswitch.merging.commands.peer_config import read_document, read_peer_config
from flexswitch.merging.commands.reporter import SILENT, Reporter
from flexswitch.merging.task_vectors.model_directory import model_card, write_model_directory
from flexswitch.merging.task_vectors.task_name import task_name


@checked
def merge_config(
    config: Input,
    output: Output,
    *,
    max_shard_size: Bytes = SHARD_BYTES,
    jobs: Positive | None = None,
    memory: Bytes = DEFAULT_MEMORY,
    overwrite: bool = False,
    reporter: Reporter = SILENT,
) -> Merged:
    """Writes the merge that a configuration describes; paths in it are relative to the working directory.

    Raises: FlexswitchError, by name on all that is not handled.
    """
    document = read_document(Path(config))
    if document.get("merge_method") == "passthrough":
        return _stacked(Path(config), document, Path(output), max_shard_size, overwrite, reporter)
    asked = read_peer_config(Path(config), document)
    for note in dict.fromkeys(asked.notes):
        reporter.note(note)
    return merge(
        asked.sources, output, base=asked.base, method=asked.method, settings=asked.settings,
        weights=asked.weights, set_for=asked.set_for, dtype=asked.dtype, max_shard_size=max_shard_size,
        jobs=jobs, memory=memory, overwrite=overwrite, reporter=reporter,
    )  # fmt: skip


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
    outputs = stack.outputs()
    parts = [f"{each.model.source}, layers {each.start} to {each.stop - 1}" for each in stack.slices]

    def card() -> str:
        return model_card(
            "passthrough", {"slices": "; ".join(parts)}, f"flexswitch merge --config {config} -o OUT"
        )

    with reporter.progress(f"writing {len(outputs)} tensors to {output}", len(outputs)) as on_tensor:
        write_model_directory(
            output, outputs, stack.first, stack.config_changes(), card, shard_size, overwrite, on_tensor,
            on_note=reporter.note,
        )  # fmt: skip
    names = list(dict.fromkeys(task_name(each.model.source) for each in stack.slices))
    return Merged(output, names, "passthrough", len(outputs), {})
