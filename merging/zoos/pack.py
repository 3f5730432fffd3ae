"""Makes a zoo from artifacts, and adds tasks to it or removes them."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from flexswitch.codecs.errors import InputError, unknown_name
from flexswitch.codecs.format.artifact_writer import PackedTensor, packed_tensor
from flexswitch.codecs.format.atomic import atomic_directory, check_output
from flexswitch.codecs.format.container import Artifact, open_artifact
from flexswitch.codecs.format.records import BaseIdentity
from flexswitch.codecs.format.zoo import (
    ZOO_FILE,
    TaskRecord,
    Zoo,
    ZooRecord,
    open_zoo,
    pack_task,
    remove_unlisted,
    write_zoo,
)
from flexswitch.codecs.storage import EFFORTS, store
from flexswitch.codecs.threads import DEFAULT_JOBS, DEFAULT_MEMORY, WORKING_BYTES, map_in_order
from flexswitch.merging.routing.query_set import without_tasks


@dataclass(frozen=True)
class Form:
    """How tensors are stored: by a codec or `auto`, with an effort (see `store`), on so many threads.

    Without an effort each artifact's own is taken, so that one made to a size keeps it.
    """

    codec: str = "auto"
    effort: str | None = None
    jobs: int = DEFAULT_JOBS
    memory: int = DEFAULT_MEMORY


def create_zoo(
    path: Path,
    files: Sequence[Path],
    form: Form,
    adapter: str | None,
    overwrite: bool,
    on_file: Callable[[str], None],
) -> list[str]:
    """Writes a new zoo; returns what the user should know.

    Raises: InputError where two artifacts share a task, or belong to two bases.
    """
    check_output(path, overwrite)
    artifacts = _open_all(files)
    base = artifacts[0].header.base
    _check_base(artifacts, base, str(artifacts[0].path))
    chosen, notes = _adapter(artifacts, adapter, None)
    with atomic_directory(path, overwrite, holds=ZOO_FILE) as partial:
        tasks = {}
        for artifact in artifacts:
            on_file(artifact.header.name)
            tasks[artifact.header.name] = _pack(artifact, partial, form)
        write_zoo(partial, ZooRecord(base=base, adapter=chosen, tasks=tasks))
    return notes


def change_zoo(
    path: Path,
    files: Sequence[Path],
    removed: Sequence[str],
    form: Form,
    adapter: str | None,
    overwrite: bool,
    on_file: Callable[[str], None],
) -> list[str]:
    """Removes tasks from a zoo and adds others; touches nothing but their files, the index, `zoo.json`.

    Returns what the user should know. Raises: InputError where a task is there already (and
    `overwrite` is not given), is not there, or belongs to another base.
    """
    zoo = open_zoo(path)
    for task in removed:
        if task not in zoo.record.tasks:
            raise InputError(f"{path}: {unknown_name('task', task, zoo)}")
    artifacts = _open_all(files)
    _check_base(artifacts, zoo.record.base, str(path))
    for artifact in artifacts:
        name = artifact.header.name
        if name in zoo.record.tasks and name not in removed and not overwrite:
            raise InputError(f"{path}: has a task '{name}' already; --overwrite replaces it")
    chosen, notes = _adapter(artifacts, adapter, zoo)
    tasks = {name: record for name, record in zoo.record.tasks.items() if name not in removed}
    replaced = {artifact.header.name for artifact in artifacts}
    with tempfile.TemporaryDirectory(prefix=".pack.", suffix=".partial", dir=path) as partial:
        for artifact in artifacts:
            on_file(artifact.header.name)
            tasks[artifact.header.name] = _pack(artifact, Path(partial), form)
        index = without_tasks(zoo, set(removed) | (replaced & set(zoo.record.tasks)))
        record = ZooRecord(base=zoo.record.base, adapter=chosen, tasks=tasks, index=index)
        (path / "tasks").mkdir(exist_ok=True)
        for name in replaced:
            (Path(partial) / tasks[name].file).replace(path / tasks[name].file)
        write_zoo(path, record)
    remove_unlisted(path, record)
    if index is None and zoo.record.index is not None and tasks:
        notes.append(
            f"the query index went with the tasks it was made of; run `flexswitch index {path}` again"
        )
    if index is not None and replaced:
        notes.append(
            f"the query index lacks {', '.join(sorted(replaced))}; run `flexswitch index {path} --add`"
        )
    return notes


def _pack(artifact: Artifact, zoo: Path, form: Form) -> TaskRecord:
    """Stores an artifact in the zoo's folder, each tensor in its new form."""
    effort = form.effort or _own_effort(artifact)

    def work(name: str) -> PackedTensor:
        sparse, record = artifact.sparse(name), artifact.header.tensors[name]
        stored = store(sparse, form.codec, effort)
        return packed_tensor(sparse, stored, record.scale, record.dtype, record.zero)

    def cost(name: str) -> int:
        return artifact.header.tensors[name].layout.entries * WORKING_BYTES

    return pack_task(artifact, zoo, map_in_order(work, artifact.header.tensors, form.jobs, cost, form.memory))


def _own_effort(artifact: Artifact) -> str:
    """Returns the effort with which an artifact was compressed."""
    found = artifact.header.method.settings.get("effort")
    return found if isinstance(found, str) and found in EFFORTS else "fast"


def _open_all(files: Sequence[Path]) -> list[Artifact]:
    artifacts = [open_artifact(file) for file in files]
    seen: dict[str, Path] = {}
    for artifact in artifacts:
        name = artifact.header.name
        if name in seen:
            raise InputError(
                f"{artifact.path}: holds the task '{name}', as {seen[name]} does; rename one (--name)"
            )
        seen[name] = artifact.path
    return artifacts


def _check_base(artifacts: Sequence[Artifact], base: BaseIdentity, owner: str) -> None:
    for artifact in artifacts:
        found = artifact.header.base
        if found.fingerprint != base.fingerprint:
            raise InputError(
                f"{artifact.path}: belongs to the base {found.fingerprint[:12]}, and {owner} to "
                f"{base.fingerprint[:12]}; all tasks of a zoo share one base"
            )


def _adapter(
    artifacts: Sequence[Artifact], given: str | None, zoo: Zoo | None
) -> tuple[str | None, list[str]]:
    """Returns the zoo's adapter: the one given, the zoo's own, or the one all artifacts name."""
    if given is not None:
        return given, []
    if zoo is not None and zoo.record.adapter is not None:
        return zoo.record.adapter, []
    named = {artifact.header.model.adapter for artifact in artifacts}
    if len(named) <= 1:
        return next(iter(named), None), []
    listed = ", ".join(sorted(map(str, named)))
    return None, [f"the artifacts name different adapters ({listed}); give one with --adapter"]
