"""Merges models as a configuration file of mergekit says."""

from pathlib import Path

from flexswitch.codecs.threads import DEFAULT_MEMORY
from flexswitch.merging.commands.arguments import Bytes, Input, Output, Positive, checked
from flexswitch.merging.commands.merge import SHARD_BYTES, Merged, merge
from flexswitch.merging.commands.peer_config import read_peer_config
from flexswitch.merging.commands.reporter import SILENT, Reporter


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
    asked = read_peer_config(Path(config))
    for note in dict.fromkeys(asked.notes):
        reporter.note(note)
    return merge(
        asked.sources, output, base=asked.base, method=asked.method, settings=asked.settings,
        weights=asked.weights, set_for=asked.set_for, dtype=asked.dtype, max_shard_size=max_shard_size,
        jobs=jobs, memory=memory, overwrite=overwrite, reporter=reporter,
    )  # fmt: skip
