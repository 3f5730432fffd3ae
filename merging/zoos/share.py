"""Makes a zoo whose tasks share one vector, and adds tasks to it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from flexswitch.codecs.errors import InputError, UsageError
from flexswitch.codecs.format.atomic import check_output
from flexswitch.codecs.format.container import Artifact
from flexswitch.codecs.format.records import BaseIdentity
from flexswitch.codecs.format.zoo import Zoo, ZooRecord, open_zoo
from flexswitch.codecs.format.zoo_writer import NO_LIMIT, Wait, new_zoo_writer, zoo_writer
from flexswitch.merging.checkpoints.checkpoint import Checkpoint
from flexswitch.merging.checkpoints.fingerprint import check_base, identify
from flexswitch.merging.shared.build import Sharing, store_shared, store_tasks
from flexswitch.merging.task_vectors.task_vector import TaskVector
from flexswitch.merging.zoos.pack import check_change, choose_adapter, commit_change

OnTensor = Callable[[str], None]


def create_shared_zoo(
    path: Path,
    base: Checkpoint,
    vectors: Mapping[str, TaskVector],
    sharing: Sharing,
    adapter: str | None,
    overwrite: bool,
    step: OnTensor,
    wait: Wait = NO_LIMIT,
) -> tuple[Zoo, list[str]]:
    """Writes a new zoo of tasks that share one vector; returns it and notes for the user.

    step: called with the name of each tensor that is stored. Raises: FlexswitchError.
    """
    check_output(path, overwrite)
    chosen, notes = choose_adapter({vector.model.adapter for vector in vectors.values()}, adapter, None)
    with new_zoo_writer(path, overwrite, wait) as writer:
        shared, tasks = store_shared(base, vectors, sharing, writer, step)
        record = ZooRecord(base=_checked_base(base, vectors), adapter=chosen, tasks=tasks, shared=shared)
        writer.commit(record)
    return Zoo(path, record), notes


def add_shared(
    path: Path,
    base: Checkpoint,
    vectors: Mapping[str, TaskVector],
    removed: Sequence[str],
    sharing: Sharing,
    adapter: str | None,
    overwrite: bool,
    step: OnTensor,
    wait: Wait = NO_LIMIT,
) -> tuple[Zoo, list[str]]:
    """Adds tasks to a zoo by the vector that its tasks share, which stays as it is, and removes others.

    Returns the zoo and notes for the user. Raises: FlexswitchError.
    """
    with zoo_writer(path, wait) as writer:
        zoo = open_zoo(path)
        check_change(zoo, list(vectors), removed, overwrite)
        shared, sharing = _shared_of(zoo, sharing)
        chosen, notes = choose_adapter({vector.model.adapter for vector in vectors.values()}, adapter, zoo)
        listed = zoo.record.shared
        sha256 = listed.sha256 if listed is not None else ""
        added = store_tasks(vectors, sharing, shared, sha256, writer, step)
        check_base(base, zoo.record.base, str(zoo.path))
        _checked_base(base, vectors)
        names = ", ".join(sorted(added))
        notes = [
            f"the shared vector was made without {names}; pack all tasks again to change it",
            *notes,
        ]
        return commit_change(zoo, writer, removed, added, chosen, notes)


def _shared_of(zoo: Zoo, sharing: Sharing) -> tuple[Artifact, Sharing]:
    """Returns a zoo's shared vector, and how it was made. Raises: InputError, UsageError."""
    shared = zoo.shared()
    if shared is None or shared.header.method.name != sharing.method:
        found = "shares no vector" if shared is None else f"shares a vector of {shared.header.method.name}"
        raise InputError(f"{zoo.path}: {found}, expected one of {sharing.method}; pack a new zoo")
    if sharing.settings:
        raise UsageError("--set: the settings of a shared vector are those that its zoo was packed with")
    if not sharing.form().is_open:
        raise InputError(
            f"{zoo.path}: another task would change the vector that tasks of {sharing.method} share; pack "
            "all of them again, or compress it by itself and add that artifact without --share"
        )
    return shared, replace(sharing, settings=shared.header.method.settings)


def _checked_base(base: Checkpoint, vectors: Mapping[str, TaskVector]) -> BaseIdentity:
    """Returns the base's identity. Raises: InputError where a task vector belongs to another."""
    for vector in vectors.values():
        check_base(base, vector.identity(), vector.source)
    return identify(base)
