"""How a task vector's tensors are compressed: the plan that a method returns, and what it is given."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial as bind
from pathlib import Path
from typing import Any, NamedTuple

from flexswitch.codecs.format.exact_forms import PackedExact
from flexswitch.codecs.format.extra_forms import PackedExtra
from flexswitch.codecs.format.quality_records import ErrorRecord, TrainingRecord
from flexswitch.codecs.format.records import ArtifactHeader, MethodRecord, SharedRecord
from flexswitch.codecs.format.training_file import CheckpointFile
from flexswitch.codecs.threads import DEFAULT_MEMORY, WORKING_BYTES
from flexswitch.merging.checkpoints.checkpoint import Checkpoint, TensorInfo
from flexswitch.merging.compression.delta import Compressed, Delta
from flexswitch.merging.compression.extras import Extras
from flexswitch.merging.methods.registry import get_method
from flexswitch.merging.methods.settings import check_settings
from flexswitch.merging.task_vectors.task_vector import TaskVector

SVD_BYTES = 48  # of an entry: the matrix, its copy and its vectors in float64, and the factors


class Progress(NamedTuple):
    """How far the training of one task has come. bits: the estimated size of all tensors."""

    step: int
    loss: float
    bits: float


@dataclass(frozen=True)
class TrainingInputs:
    """What a learned method is trained on.

    exemplars: folder of <task>.train.* files, of which `per_task` are used. adapter: how the model is run,
    None where the checkpoint says it. max_length: the number of tokens at which texts are cut, None for the
    model's own.
    """

    base: Checkpoint
    exemplars: Path
    per_task: int = 100
    adapter: str | None = None
    device: str = "cpu"
    max_length: int | None = None


@dataclass(frozen=True)
class Training:
    """What a learned method is given beside the task vector.

    base: that of the task vector, where it is at hand. on_step and on_note are called after each step, and
    with what the user should know.
    """

    inputs: TrainingInputs | None = None
    checkpoint: CheckpointFile | None = None
    on_step: Callable[[Progress], None] = lambda progress: None
    on_note: Callable[[str], None] = lambda note: None
    base: Checkpoint | None = None


NO_TRAINING = Training()


@dataclass(frozen=True)
class Job:
    """What a method is given besides the task vector.

    task: the task's name. method: the record of the method. jobs: number of threads; no result may depend
    on it. extras: how the task's own tensors are stored. shared: the vector that the tensors are computed by.
    memory: bytes that tensors in progress may take.
    """

    task: str
    method: MethodRecord
    jobs: int = 1
    training: Training = NO_TRAINING
    extras: Extras = "exact"
    shared: SharedRecord | None = None
    memory: int = DEFAULT_MEMORY

    def header(
        self, vector: TaskVector, record: TrainingRecord | None = None, error: ErrorRecord | None = None
    ) -> ArtifactHeader:
        """Returns the artifact's header. Hashes the tensors of the base that have not been read yet."""
        return ArtifactHeader(
            name=self.task,
            base=vector.identity(),
            model=vector.model,
            method=self.method,
            shared=self.shared,
            parameters=vector.parameters,
            training=record,
            error=error,
        )


@dataclass(frozen=True)
class Plan:
    """How to compress each tensor of one task vector, and with which effort to store it (see `store`).

    training: the record of a training, which the artifact is to carry. extras: the task's own tensors as they
    are stored, if the method chooses it. entry_bytes: memory for each entry of a tensor in progress.
    one_thread: whether torch computes on one thread, so that sums do not depend on their number.
    """

    compress: Callable[[Delta], Compressed]
    effort: str = "fast"
    training: TrainingRecord | None = None
    extras: Mapping[str, PackedExtra] | None = None
    entry_bytes: int = WORKING_BYTES
    one_thread: bool = False


@dataclass(frozen=True)
class ExactPlan:
    """How to store the tensors of one task vector exactly.

    tensors: those that are coded given the base's, by base name. extras: the task's own tensors, as stored.
    pack: returns a tensor's stored form, None if it is the base's.
    """

    tensors: Mapping[str, TensorInfo]
    extras: Mapping[str, PackedExtra]
    pack: Callable[[str], PackedExact | None]
    training: TrainingRecord | None = None
    entry_bytes: int = WORKING_BYTES


def plan(name: str, vector: TaskVector, job: Job, settings: Mapping[str, Any]) -> Plan | ExactPlan:
    """Returns how the method of that name compresses a task vector's tensors. Raises: UsageError."""
    method = get_method(name, "compression")
    function, arguments = method.load(), dict(check_settings(method, settings))
    if "a tensor's delta" in method.needs:
        compress = bind(function, **arguments)
        if "whole tensors" in method.needs:
            return Plan(compress, entry_bytes=SVD_BYTES, one_thread=True)
        return Plan(compress)
    made: Plan | ExactPlan = function(vector, job, **arguments)
    return made
