"""Makes a zoo of artifacts, adds tasks to it and removes tasks from it."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flexswitch.codecs.errors import InputError, unknown_name
from flexswitch.codecs.format.artifact_writer import PackedTensor, packed_sum, packed_tensor
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
from flexswitch.merging.methods.registry import method_names
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
    check_needs(artifacts, None)
    chosen, notes = choose_adapter({each.header.model.adapter for each in artifacts}, adapter, None)
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
    with zoo_writer(path, wait) as writer:
        zoo = open_zoo(path)
        check_change(zoo, [artifact.header.name for artifact in artifacts], removed, overwrite)
        _check_base(artifacts, zoo.record.base, str(zoo.path))
        check_needs(artifacts, zoo.record.shared)
        chosen, notes = choose_adapter({each.header.model.adapter for each in artifacts}, adapter, zoo)
        added = _pack_all(artifacts, writer, form, on_file)
        return commit_change(zoo, writer, removed, added, chosen, notes)


def commit_change(
    zoo: Zoo,
    writer: ZooWriter,
    removed: Sequence[str],
    added: Mapping[str, TaskRecord],
    adapter: str | None,
    notes: list[str],
) -> tuple[Zoo, list[str]]:
    """Replaces `zoo.json` by one without the removed tasks and with those added; returns the zoo and notes.

    The shared vector stays as long as a task is of a method that shares one.
    """
    tasks = {name: record for name, record in zoo.record.tasks.items() if name not in removed} | dict(added)
    shares = any(record.method in method_names("shared") for record in tasks.values())
    index = without_tasks(zoo, set(removed) | (set(added) & set(zoo.record.tasks)), writer)
    record = ZooRecord(
        base=zoo.record.base,
        adapter=adapter,
        tasks=tasks,
        shared=zoo.record.shared if shares else None,
        index=index,
    )
    writer.commit(record)
    return Zoo(zoo.path, record), notes + _index_notes(zoo, record, set(added))


def check_change(zoo: Zoo, added: Sequence[str], removed: Sequence[str], overwrite: bool) -> None:
    """Raises: InputError if tasks of these names cannot be removed, or others cannot be added."""
    for task in removed:
        if task not in zoo.record.tasks:
            raise InputError(f"{zoo.path}: {unknown_name('task', task, zoo)}")
    for name in added:
        if name in zoo.record.tasks and name not in removed and not overwrite:
            raise InputError(f"{zoo.path}: already has a task '{name}'; give --overwrite to replace it")


def check_needs(artifacts: Sequence[Artifact], shared: TaskRecord | None) -> None:
    """Raises: InputError where an artifact needs a shared vector that is not the zoo's."""
    for artifact in artifacts:
        needed = artifact.header.shared
        if needed is not None and (shared is None or needed.sha256 != shared.sha256):
            raise InputError(
                f"{artifact.path}: its values are computed by the shared vector of another zoo; pack its "
                f"fine-tuned model with --share {artifact.header.method.name}, or an artifact of its own"
            )


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
        packed = []
        for number, part in enumerate(artifact.header.tensors[name].parts):
            sparse = artifact.sparse(name, number)
            stored = store(sparse, form.codec, effort)
            shape = None if part.rank is None else tuple(part.shape)
            packed.append(
                packed_tensor(sparse, stored, part.scale, part.dtype, part.zero, shape, part.weights)
            )
        return packed_sum(packed, artifact.header.tensors[name].base_factor)

    def cost(name: str) -> int:
        parts = artifact.header.tensors[name].parts
        return sum(part.layout.entries for part in parts) * WORKING_BYTES

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


def choose_adapter(
    named: Collection[str | None], given: str | None, zoo: Zoo | None
) -> tuple[str | None, list[str]]:
    """Returns the zoo's adapter, and notes for the user. named: the adapters that the artifacts name.

    The adapter is the given one, otherwise the zoo's own, otherwise the one that all artifacts name.
    """
    if given is not None:
        return given, []
    if zoo is not None and zoo.record.adapter is not None:
        return zoo.record.adapter, []
    if len(named) <= 1:
        return next(iter(named), None), []
    listed = ", ".join(sorted(map(str, named)))
    return None, [f"the artifacts name different adapters ({listed}); give one with --adapter"]
