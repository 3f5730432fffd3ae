"""Packs artifacts into a zoo."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from flexswitch.codecs.errors import UnusedOptionError, UsageError
from flexswitch.codecs.format.zoo import Zoo
from flexswitch.codecs.format.zoo_writer import Wait
from flexswitch.codecs.registry import get_codec
from flexswitch.codecs.storage import check_effort
from flexswitch.codecs.threads import DEFAULT_JOBS, DEFAULT_MEMORY
from flexswitch.merging.commands.arguments import (
    Access,
    Bytes,
    Input,
    NotNegative,
    Overrides,
    Positive,
    check_inputs_stay,
    checked_with,
)
from flexswitch.merging.commands.reporter import SILENT, Reporter, counted
from flexswitch.merging.zoos.pack import Form, change_zoo, create_zoo

if TYPE_CHECKING:
    from flexswitch.merging.shared.build import Sharing


def _check(
    artifacts: Sequence[str | Path],
    add: bool,
    remove: Sequence[str],
    share: str | None,
    base: str | Path | None,
    settings: Mapping[str, Any] | None,
    set_for: Sequence[tuple[str, Mapping[str, Any]]],
    codec: str,
    effort: str | None,
) -> None:
    """Raises: UsageError."""
    if share is not None:
        if base is None:
            raise UsageError("--share needs --base BASE, the model that the tasks were made from")
        if codec != "auto":
            raise UsageError(f"--codec {codec}: with --share the smallest form is taken; leave it out")
        if not artifacts:
            raise UsageError("no task is given; name checkpoints, task vectors, LoRAs or artifacts")
        _sharing(share, settings, set_for).check()
    elif base is not None:
        raise UnusedOptionError(["base"], "it is for --share, as artifacts name their base; leave it out")
    elif settings or set_for:
        raise UsageError("--set and --set-for are for --share; artifacts are packed as they are")
    if codec != "auto":
        get_codec(codec)
    if effort is not None:
        check_effort(effort)
    if artifacts and remove and not add:
        raise UsageError("artifacts beside --remove need --add")
    if not artifacts and not (add or remove):
        raise UsageError("no artifact is given; name at least one .fsw file")


@checked_with(_check)
def pack(
    artifacts: Sequence[Annotated[str | Path, Access("reads", named=True)]],
    output: Annotated[str | Path, Access("writes", changed_with=("add", "remove"))],
    *,
    add: bool = False,
    remove: Sequence[str] = (),
    share: str | None = None,
    base: Input | None = None,
    settings: Mapping[str, Any] | None = None,
    set_for: Overrides = (),
    codec: str = "auto",
    effort: str | None = None,
    adapter: str | None = None,
    jobs: Positive | None = None,
    memory: Bytes = DEFAULT_MEMORY,
    overwrite: bool = False,
    lock_timeout: NotNegative | None = None,
    reporter: Reporter = SILENT,
) -> Zoo:
    """Writes a zoo of artifacts, or adds tasks to one and removes others; returns it opened.

    artifacts: files; `TASK=FILE` gives a file's task another name. share: a shared method, by which tasks of
    `base` are stored as one vector and a small part each; then artifacts are task vectors of any kind.
    settings: of that method; set_for: (task, values) pairs of single tasks. effort: "fast" or "small"; None
    keeps each artifact's own, and with `share` is "small". jobs: threads; None is one for each core. memory:
    bytes that tensors in progress may take. lock_timeout: seconds to wait for another writer of the zoo; None
    waits until it ends. Raises: FlexswitchError.
    """
    output, wait = Path(output), Wait(lock_timeout, reporter.note)
    if share is not None and base is not None:
        sharing = _sharing(share, settings, set_for)
        sharing = replace(sharing, effort=effort or "small", jobs=jobs or DEFAULT_JOBS, memory=memory)
        sources = [str(source) for source in artifacts]
        return _share(sources, output, base, add, remove, sharing, adapter, overwrite, wait, reporter)
    files, form = list(artifacts), Form(codec, effort, jobs or DEFAULT_JOBS, memory)
    with reporter.progress(f"packing {counted(len(files), 'artifact')} into {output}", len(files)) as on_file:
        if add or remove:
            zoo, notes = change_zoo(output, files, remove, form, adapter, overwrite, on_file, wait)
        else:
            zoo, notes = create_zoo(output, files, form, adapter, overwrite, on_file, wait)
    for note in notes:
        reporter.note(note)
    return zoo


def _sharing(
    share: str, settings: Mapping[str, Any] | None, set_for: Sequence[tuple[str, Mapping[str, Any]]]
) -> "Sharing":
    """Returns how tasks are stored by a shared vector; the last value of a task's setting counts."""
    from flexswitch.merging.shared.build import Sharing  # it loads torch, which other packing needs not

    by_task: dict[str, dict[str, Any]] = {}
    for task, values in set_for:
        by_task.setdefault(task, {}).update(values)
    return Sharing(share, settings or {}, by_task)


def _share(
    sources: Sequence[str],
    output: Path,
    base: str | Path,
    add: bool,
    remove: Sequence[str],
    sharing: "Sharing",
    adapter: str | None,
    overwrite: bool,
    wait: Wait,
    reporter: Reporter,
) -> Zoo:
    """Writes a zoo of tasks that share a vector, or adds tasks to one and removes others."""
    from flexswitch.merging.checkpoints.hashing import open_base
    from flexswitch.merging.checkpoints.pairing import EVERYTHING
    from flexswitch.merging.commands.merge_sources import check_stored, open_whole
    from flexswitch.merging.zoos.share import add_shared, create_shared_zoo

    check_inputs_stay(output, (base, *([] if add else sources)))
    checkpoint = open_base(base)
    vectors = open_whole(sources, checkpoint)
    check_stored(vectors, checkpoint, EVERYTHING)
    sharing.check(list(vectors))
    for note in checkpoint.notes:
        reporter.note(note)
    tensors = sum(len(vector.tensors) for vector in vectors.values())
    with reporter.progress(f"packing {counted(len(vectors), 'task')} into {output}", tensors) as on_tensor:
        if add:
            zoo, notes = add_shared(
                output, checkpoint, vectors, remove, sharing, adapter, overwrite, on_tensor, wait
            )
        else:
            zoo, notes = create_shared_zoo(
                output, checkpoint, vectors, sharing, adapter, overwrite, on_tensor, wait
            )
    for note in notes:
        reporter.note(note)
    return zoo
