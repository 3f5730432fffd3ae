"""Packs artifacts into a zoo."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from flexswitch.codecs.errors import UsageError
from flexswitch.codecs.format.zoo import Zoo
from flexswitch.codecs.format.zoo_writer import Wait
from flexswitch.codecs.registry import get_codec
from flexswitch.codecs.storage import check_effort
from flexswitch.codecs.threads import DEFAULT_JOBS, DEFAULT_MEMORY
from flexswitch.merging.commands.arguments import Access, Bytes, NotNegative, Positive, checked_with
from flexswitch.merging.commands.reporter import SILENT, Reporter, counted
from flexswitch.merging.zoos.pack import Form, change_zoo, create_zoo


def _check(
    artifacts: Sequence[str | Path], add: bool, remove: Sequence[str], codec: str, effort: str | None
) -> None:
    """Raises: UsageError."""
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

    artifacts: files; `TASK=FILE` gives a file's task another name. effort: "fast" or "small"; None keeps
    each artifact's own. jobs: threads; None is one for each core. memory: bytes that tensors in progress may
    take. lock_timeout: seconds to wait for another writer of the zoo; None waits until it ends. Raises:
    FlexswitchError.
    """
    output, files = Path(output), list(artifacts)
    form, wait = Form(codec, effort, jobs or DEFAULT_JOBS, memory), Wait(lock_timeout, reporter.note)
    with reporter.progress(f"packing {counted(len(files), 'artifact')} into {output}", len(files)) as on_file:
        if add or remove:
            zoo, notes = change_zoo(output, files, remove, form, adapter, overwrite, on_file, wait)
        else:
            zoo, notes = create_zoo(output, files, form, adapter, overwrite, on_file, wait)
    for note in notes:
        reporter.note(note)
    return zoo
