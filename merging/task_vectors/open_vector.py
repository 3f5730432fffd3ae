"""Opens task vectors from any source: an artifact, a task vector file, a checkpoint, a LoRA, a zoo."""

from collections.abc import Callable
from functools import partial as bind
from pathlib import Path

from flexswitch.codecs.format.container import open_artifact
from flexswitch.codecs.format.hub_id import is_hub_id
from flexswitch.codecs.format.zoo import ZOO_FILE, Zoo, read_zoo
from flexswitch.merging.checkpoints.checkpoint import Checkpoint
from flexswitch.merging.checkpoints.hub_zoo import hub_zoo
from flexswitch.merging.checkpoints.opening import locate, open_checkpoint
from flexswitch.merging.checkpoints.pairing import EVERYTHING, Selection
from flexswitch.merging.task_vectors.checkpoint_pair import CheckpointPair
from flexswitch.merging.task_vectors.lora import LoraVector
from flexswitch.merging.task_vectors.shared_vector import artifact_vector
from flexswitch.merging.task_vectors.task_name import SUFFIX, task_name
from flexswitch.merging.task_vectors.task_vector import TaskVector
from flexswitch.merging.task_vectors.task_vector_file import TaskVectorFile


def task_vector_openers(
    source: str, base: Checkpoint, selection: Selection = EVERYTHING, only: str | None = None
) -> dict[str, Callable[[], TaskVector]]:
    """Returns by task the functions that open what a zoo, artifact, task vector file or checkpoint holds.

    selection: of a checkpoint's tensors. only: the one task of a zoo that will be opened, None for all.
    Raises: InputError if it is none of these.
    """
    path = Path(source)
    if not path.exists() and is_hub_id(source):
        path = hub_zoo(source) or path
    if (path / ZOO_FILE).is_file():
        return read_zoo(path, lambda zoo: _zoo_openers(zoo, base, only))
    if source.endswith(".fsw"):
        artifact = open_artifact(path)
        return {artifact.header.name: bind(artifact_vector, artifact, base)}
    if source.endswith(SUFFIX):
        vector = TaskVectorFile(path)
        return {vector.header.name: lambda: vector}
    return {task_name(source): bind(open_finetuned, source, base, selection)}


def _zoo_openers(zoo: Zoo, base: Checkpoint, only: str | None) -> dict[str, Callable[[], TaskVector]]:
    """Opens the tasks at once, as another process may change the zoo; returns the functions for all."""
    for task in zoo:
        if only in (task, None):
            zoo[task]
    return {task: lambda task=task: artifact_vector(zoo[task], base) for task in zoo}  # type: ignore[misc]


def open_finetuned(
    source: str, base: Checkpoint, selection: Selection = EVERYTHING
) -> CheckpointPair | LoraVector:
    """Returns the task vector of a fine-tuned checkpoint or a PEFT LoRA against its base.

    Raises: InputError if the two do not fit.
    """
    place = locate(source)
    if place.is_adapter and selection.key is None:
        return LoraVector(base, place, selection)
    return CheckpointPair(base, open_checkpoint(place, selection.key), selection)
