"""Verifies what flexswitch wrote: every checksum, every count, and on request the whole base."""

from collections import deque
from collections.abc import Callable
from pathlib import Path

from flexswitch.codecs.errors import ArtifactError, FlexswitchError, InputError
from flexswitch.codecs.format.container import Artifact, open_artifact
from flexswitch.codecs.format.records import BaseIdentity
from flexswitch.codecs.format.zoo import ZOO_FILE, open_zoo
from flexswitch.merging.checkpoints.fingerprint import check_base
from flexswitch.merging.checkpoints.opening import open_checkpoint
from flexswitch.merging.routing.query_set import read_query_set
from flexswitch.merging.task_vectors.task_vector_file import SUFFIX, TaskVectorFile


def verify(path: Path, base: str | None, on_item: Callable[[str], None]) -> list[str]:
    """Verifies an artifact, zoo or task vector and returns what was checked, a line each.

    Raises: InputError where it is none of these; ArtifactError listing everything that is damaged.
    """
    problems: list[str] = []
    if (path / ZOO_FILE).is_file():
        lines, identity = _verify_zoo(path, problems, on_item)
    elif path.name.endswith(SUFFIX):
        vector = TaskVectorFile(path)
        _verify_task_vector(vector, problems, on_item)
        count = len(vector.tensors) + len(vector.extras)
        lines, identity = [f"{path}: {count} tensors, checksums fit, all finite"], vector.identity()
    elif path.suffix == ".fsw" or path.is_file():
        artifact = open_artifact(path)
        _verify_artifact(artifact, problems, on_item)
        count = len(artifact.header.tensors) + len(artifact.header.extras)
        lines, identity = [f"{path}: {count} tensors, checksums and counts fit"], artifact.header.base
    else:
        raise InputError(f"{path}: expected an artifact (.fsw), a zoo folder or a task vector (*{SUFFIX})")
    if problems:
        raise ArtifactError("\n".join(problems))
    if base is not None:
        checkpoint = open_checkpoint(base)
        check_base(checkpoint, identity, str(path), full=True)
        lines.append(f"{base}: is the base, every byte of it (fingerprint {identity.fingerprint[:12]})")
    return lines


def _verify_task_vector(vector: TaskVectorFile, problems: list[str], on_item: Callable[[str], None]) -> None:
    def read_unit(unit: str) -> None:
        vector.exact(unit)
        deque(vector.blocks(unit), maxlen=0)

    reads: list[tuple[str, Callable[[str], object]]] = [(name, vector.extra) for name in vector.extras]
    reads += [(unit, read_unit) for unit in vector.tensors]
    _try_all(reads, problems, on_item)


def _verify_zoo(
    path: Path, problems: list[str], on_item: Callable[[str], None]
) -> tuple[list[str], BaseIdentity]:
    """Verifies each task and the query index; a damaged task still has its tensors named."""
    zoo = open_zoo(path)
    for task in zoo:
        before = len(problems)
        try:
            artifact = open_artifact(zoo.task_file(task))
            _verify_artifact(artifact, problems, on_item)
        except FlexswitchError as error:
            problems.append(str(error))
        if len(problems) == before:
            try:
                zoo[task]
            except ArtifactError as error:
                problems.append(str(error))
    lines = [f"{path}: {len(zoo)} tasks, hashes, checksums and counts fit"]
    if zoo.record.index is not None:
        try:
            exemplars = len(read_query_set(zoo).task_ids)
            lines.append(f"{path}: query index of {exemplars} exemplars, its hash fits")
        except ArtifactError as error:
            problems.append(str(error))
    return lines, zoo.record.base


def _verify_artifact(artifact: Artifact, problems: list[str], on_item: Callable[[str], None]) -> None:
    reads: list[tuple[str, Callable[[str], object]]] = [
        (name, artifact.extra) for name in artifact.header.extras
    ]
    reads += [(name, artifact.check) for name in artifact.header.tensors]
    _try_all(reads, problems, on_item)


def _try_all(
    reads: list[tuple[str, Callable[[str], object]]], problems: list[str], on_item: Callable[[str], None]
) -> None:
    """Reads every tensor, which checks it, and adds what is damaged to the problems."""
    for name, read in reads:
        on_item(name)
        try:
            read(name)
        except ArtifactError as error:
            problems.append(str(error))
