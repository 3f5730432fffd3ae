"""Verifies the checksums and counts of artifacts, zoos and task vectors, and on request the whole base."""

from collections import deque
from collections.abc import Callable, Iterable
from functools import partial as bind
from pathlib import Path
from typing import TYPE_CHECKING

from flexswitch.codecs.errors import ArtifactError, FlexswitchError, InputError
from flexswitch.codecs.format.container import Artifact, open_artifact
from flexswitch.codecs.format.index_record import IndexRecord
from flexswitch.codecs.format.records import BaseIdentity
from flexswitch.codecs.format.zoo import ZOO_FILE, StoredFile, Zoo, check_record, read_zoo
from flexswitch.merging.routing.query_set import index_record, read_query_set
from flexswitch.merging.task_vectors.task_name import SUFFIX

if TYPE_CHECKING:
    from flexswitch.merging.task_vectors.task_vector_file import TaskVectorFile


def verify(path: Path, base: str | None, on_item: Callable[[str], None]) -> list[str]:
    """Verifies an artifact, zoo or task vector and returns one line for each thing that was checked.

    base: a checkpoint whose bytes are all compared with the recorded fingerprint; on_item: called with the
    name of each tensor before it is read. Raises: InputError if the path is none of the three, or another
    base is given; ArtifactError with one line for each damaged tensor or file.
    """
    problems: list[str] = []
    if (path / ZOO_FILE).is_file():
        lines, identity = read_zoo(path, lambda zoo: _verify_zoo(zoo, on_item))
    elif path.name.endswith(SUFFIX):
        from flexswitch.merging.task_vectors.task_vector_file import TaskVectorFile

        vector = TaskVectorFile(path)
        _verify_task_vector(vector, problems, on_item)
        count = len(vector.tensors) + len(vector.extras)
        lines, identity = (
            [f"{path}: {count} tensors, all checksums match, all values are finite"],
            vector.identity(),
        )
    elif path.suffix == ".fsw" or path.is_file():
        artifact = open_artifact(path)
        _verify_artifact(artifact, problems, on_item)
        header = artifact.header
        count = len(header.tensors) + len(header.exact) + len(header.extras)
        lines, identity = [f"{path}: {count} tensors, all checksums and counts match"], artifact.header.base
    else:
        raise InputError(f"{path}: expected an artifact (.fsw), a zoo folder or a task vector (*{SUFFIX})")
    if problems:
        raise ArtifactError("\n".join(problems))
    if base is not None:
        _check_base(base, identity, path)
        lines.append(f"{base}: is the base; all its bytes match the fingerprint {identity.fingerprint[:12]}")
    return lines


def _check_base(base: str, identity: BaseIdentity, path: Path) -> None:
    from flexswitch.merging.checkpoints.fingerprint import check_base
    from flexswitch.merging.checkpoints.hashing import HashingCheckpoint
    from flexswitch.merging.checkpoints.opening import open_checkpoint

    check_base(HashingCheckpoint(open_checkpoint(base), remembers=False), identity, str(path))


def _verify_task_vector(
    vector: "TaskVectorFile", problems: list[str], on_item: Callable[[str], None]
) -> None:
    def read_tensor(name: str) -> None:
        vector.exact(name)
        deque(vector.blocks(name), maxlen=0)

    _read_all(vector.extras, vector.extra, problems, on_item)
    _read_all(vector.tensors, read_tensor, problems, on_item)


def _verify_zoo(zoo: Zoo, on_item: Callable[[str], None]) -> tuple[list[str], BaseIdentity]:
    """Verifies the tasks, the shared vector and the query index; all tensors of a damaged file are read."""
    problems: list[str] = []
    opening: dict[Path, Callable[[], object]] = {
        zoo.task_file(task): bind(zoo.open_task, task) for task in zoo
    }
    if zoo.record.shared is not None:
        opening = {zoo.path / zoo.record.shared.file: zoo.shared, **opening}
    for file, open_it in opening.items():
        before = len(problems)
        try:
            _verify_artifact(open_artifact(file), problems, on_item)
            if len(problems) == before:
                open_it()  # raises if it is not the file that zoo.json describes
        except FlexswitchError as error:
            problems.append(str(error))
    lines = [f"{zoo.path}: {len(zoo)} tasks, all hashes, checksums and counts match"]
    if zoo.record.index is not None:
        try:
            lines.append(_verify_index(zoo, zoo.record.index))
        except ArtifactError as error:
            problems.append(str(error))
    if problems:
        raise ArtifactError("\n".join(dict.fromkeys(problems)))  # each task names a damaged shared vector
    return lines, zoo.record.base


def _verify_index(zoo: Zoo, record: IndexRecord) -> str:
    """Returns a line on the query index. Raises: ArtifactError if it is not as zoo.json describes it."""
    query_set = read_query_set(zoo)
    own = index_record(query_set, StoredFile(record.file, record.size, record.sha256))
    check_record(zoo.path, "index", record, own, "index the zoo again")
    return f"{zoo.path}: query index of {len(query_set.task_ids)} exemplars, its hash matches"


def _verify_artifact(artifact: Artifact, problems: list[str], on_item: Callable[[str], None]) -> None:
    _read_all(artifact.header.extras, artifact.extra, problems, on_item)
    _read_all(artifact.header.tensors, artifact.check, problems, on_item)
    _read_all(artifact.header.exact, artifact.packed_exact, problems, on_item)


def _read_all(
    names: Iterable[str],
    read: Callable[[str], object],
    problems: list[str],
    on_item: Callable[[str], None],
) -> None:
    """Reads the named tensors, which checks them, and appends a line to `problems` for each damaged one."""
    for name in names:
        on_item(name)
        try:
            read(name)
        except ArtifactError as error:
            problems.append(str(error))
