"""Makes a zoo of artifacts, adds tasks to it and removes tasks from it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from flexswitch.codecs.errors import InputError, unknown_name
from flexswitch.codecs.format.artifact_writer import PackedTensor, packed_tensor
from flexswitch.codecs.format.atomic import check_output
from flexswitch.codecs.format.container import Artifact, open_artifact
from flexswitch.codecs.format.named_path import split_named_path
from flexswitch.codecs.format.records import BaseIdentity
from flexswitch.codecs.format.zoo import TaskRecord, Zoo, ZooRecord, open_zoo
from flexswitch.codecs.format.zoo_writer import (
    NO_LIMIT,
    Wait,
    ZooWriter,
    new_zoo_writer,
    pack_task,
    zoo_writer,
)
from flexswitch.codecs.storage import EFFORTS, store
from flexswitch.codecs.threads import DEFAULT_JOBS, DEFAULT_MEMORY, WORKING_BYTES, map_in_order
from flexswitch.merging.routing.query_set import without_tasks


@dataclass(frozen=True)
class Form:
    """How the tensors are stored.

    codec: a codec's name, or "auto" for the smallest; effort: as in `store`, None for the effort each
    artifact was compressed with; jobs: number of threads; memory: bytes that they may use together.
    """

    codec: str = "auto"
    effort: str | None = None
    jobs: int = DEFAULT_JOBS
    memory: int = DEFAULT_MEMORY


def create_zoo(
    path: Path,
    files: Sequence[str | Path],
    form: Form,
    adapter: str | None,
    overwrite: bool,
    on_file: Callable[[str], None],
    wait: Wait = NO_LIMIT,
) -> tuple[Zoo, list[str]]:
    """Writes a new zoo; returns it and notes for the user.

    Raises: InputError if two artifacts hold the same task or belong to different bases.
    """
    check_output(path, overwrite)
    artifacts = _open_all(files)
    base = artifacts[0].header.base
    _check_base(artifacts, base, str(artifacts[0].path))
    chosen, notes = _adapter(artifacts, adapter, None)
    with new_zoo_writer(path, overwrite, wait) as writer:
        tasks = _pack_all(artifacts, writer, form, on_file)
        record = ZooRecord(base=base, adapter=chosen, tasks=tasks)
        writer.commit(record)
    return Zoo(path, record), notes


def change_zoo(
    path: Path,
    files: Sequence[str | Path],
    removed: Sequence[str],
    form: Form,
    adapter: str | None,
    overwrite: bool,
    on_file: Callable[[str], None],
    wait: Wait = NO_LIMIT,
) -> tuple[Zoo, list[str]]:
    """Removes tasks from a zoo and adds others; returns it and notes for the user.

    The files of all other tasks stay as they are. Raises: InputError if a task to remove is not in the zoo,
    a task to add is in it (and `overwrite` is false), or an artifact belongs to another base.
    """
    artifacts = _open_all(files)
    added = {artifact.header.name for artifact in artifacts}
    with zoo_writer(path, wait) as writer:
        zoo = open_zoo(path)
        _check_change(zoo, artifacts, removed, overwrite)
        chosen, notes = _adapter(artifacts, adapter, zoo)
        tasks = {name: record for name, record in zoo.record.tasks.items() if name not in removed}
        tasks |= _pack_all(artifacts, writer, form, on_file)
        index = without_tasks(zoo, set(removed) | (added & set(zoo.record.tasks)), writer)
        record = ZooRecord(base=zoo.record.base, adapter=chosen, tasks=tasks, index=index)
        writer.commit(record)
    return Zoo(path, record), notes + _index_notes(zoo, record, added)


def _check_change(zoo: Zoo, artifacts: Sequence[Artifact], removed: Sequence[str], overwrite: bool) -> None:
    """Raises: InputError if tasks cannot be removed, or artifacts cannot be added."""
    for task in removed:
        if task not in zoo.record.tasks:
            raise InputError(f"{zoo.path}: {unknown_name('task', task, zoo)}")
    _check_base(artifacts, zoo.record.base, str(zoo.path))
    for artifact in artifacts:
        name = artifact.header.name
        if name in zoo.record.tasks and name not in removed and not overwrite:
            raise InputError(f"{zoo.path}: already has a task '{name}'; give --overwrite to replace it")


def _index_notes(before: Zoo, record: ZooRecord, added: set[str]) -> list[str]:
    """Returns how to complete the query index after a change."""
    if record.index is not None and added:
        names = ", ".join(sorted(added))
        return [
            f"the query index lacks {names}; add them: flexswitch index {before.path} --add --base BASE "
            "--exemplars DIR"
        ]
    if record.index is None and before.record.index is not None and record.tasks:
        return [
            "the query index was removed with the last of its tasks; "
            f"build it again: flexswitch index {before.path} --base BASE --exemplars DIR"
        ]
    return []


def _pack_all(
    artifacts: Sequence[Artifact], writer: ZooWriter, form: Form, on_file: Callable[[str], None]
) -> dict[str, TaskRecord]:
    """Stores artifacts in a zoo and returns their records, by task."""
    tasks = {}
    for artifact in artifacts:
        on_file(artifact.header.name)
        tasks[artifact.header.name] = _pack(artifact, writer, form)
    return tasks


def _pack(artifact: Artifact, writer: ZooWriter, form: Form) -> TaskRecord:
    """Stores an artifact in a zoo, with its tensors in the given form."""
    effort = form.effort or _own_effort(artifact)

    def work(name: str) -> PackedTensor:
        sparse, record = artifact.sparse(name), artifact.header.tensors[name]
        stored = store(sparse, form.codec, effort)
        return packed_tensor(sparse, stored, record.scale, record.dtype, record.zero)

    def cost(name: str) -> int:
        return artifact.header.tensors[name].layout.entries * WORKING_BYTES

    return pack_task(
        artifact, writer, map_in_order(work, artifact.header.tensors, form.jobs, cost, form.memory)
    )


def _own_effort(artifact: Artifact) -> str:
    """Returns the effort that an artifact was compressed with, or "fast" if it records none."""
    found = artifact.header.method.settings.get("effort")
    return found if isinstance(found, str) and found in EFFORTS else "fast"


def _open_all(files: Sequence[str | Path]) -> list[Artifact]:
    artifacts = [_open(file) for file in files]
    seen: dict[str, Path] = {}
    for artifact in artifacts:
        name = artifact.header.name
        if name in seen:
            raise InputError(
                f"{artifact.path}: holds the same task '{name}' as {seen[name]}; "
                f"give it another name: NAME={artifact.path}"
            )
        seen[name] = artifact.path
    return artifacts


def _open(file: str | Path) -> Artifact:
    """Returns the artifact of `PATH`, or that of `TASK=PATH` with its task's name replaced."""
    name, path = split_named_path(file)
    artifact = open_artifact(path)
    return artifact if name is None else artifact.renamed(name)


def _check_base(artifacts: Sequence[Artifact], base: BaseIdentity, owner: str) -> None:
    for artifact in artifacts:
        found = artifact.header.base
        if found.fingerprint != base.fingerprint:
            raise InputError(
                f"{artifact.path}: belongs to the base {found.fingerprint[:12]}, but {owner} belongs to "
                f"{base.fingerprint[:12]}; all tasks of a zoo must share one base"
            )


def _adapter(
    artifacts: Sequence[Artifact], given: str | None, zoo: Zoo | None
) -> tuple[str | None, list[str]]:
    """Returns the zoo's adapter, and notes for the user.

    The adapter is the given one, otherwise the zoo's own, otherwise the one that all artifacts name.
    """
    if given is not None:
        return given, []
    if zoo is not None and zoo.record.adapter is not None:
        return zoo.record.adapter, []
    named = {artifact.header.model.adapter for artifact in artifacts}
    if len(named) <= 1:
        return next(iter(named), None), []
    listed = ", ".join(sorted(map(str, named)))
    return None, [f"the artifacts name different adapters ({listed}); give one with --adapter"]
