"""Stores tasks in a zoo as one shared vector and a small part each."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial as bind
from typing import Any

from flexswitch.codecs.errors import UsageError, unknown_name
from flexswitch.codecs.format.container import Artifact, open_artifact
from flexswitch.codecs.format.records import MethodRecord, SharedRecord
from flexswitch.codecs.format.zoo import SHARED_STEM, TaskRecord, task_record
from flexswitch.codecs.format.zoo_writer import ZooWriter
from flexswitch.codecs.threads import DEFAULT_JOBS, DEFAULT_MEMORY, one_torch_thread
from flexswitch.merging.checkpoints.checkpoint import Checkpoint
from flexswitch.merging.compression.compress import write_artifact
from flexswitch.merging.compression.plan import Job, Plan
from flexswitch.merging.methods.registry import get_method
from flexswitch.merging.methods.settings import by_task_settings, check_settings, recorded
from flexswitch.merging.shared.form import SharedForm
from flexswitch.merging.shared.unified_vector import OffsetVector, UnifiedVector
from flexswitch.merging.static.task_deltas import ModelDeltas
from flexswitch.merging.task_vectors.artifact_vector import ArtifactVector
from flexswitch.merging.task_vectors.task_vector import TaskVector

OnTensor = Callable[[str], None]


@dataclass(frozen=True)
class Sharing:
    """Which form tasks are stored in. settings: for all tasks; by_task: task → those that it has of its own.

    effort: as in `store`. jobs: number of threads; memory: bytes that they may use together.
    """

    method: str
    settings: Mapping[str, Any]
    by_task: Mapping[str, Mapping[str, Any]]
    effort: str = "small"
    jobs: int = DEFAULT_JOBS
    memory: int = DEFAULT_MEMORY

    def check(self, tasks: Sequence[str] | None = None) -> None:
        """Raises: UsageError on a wrong setting, or one of a task that is not among those given."""
        method = get_method(self.method, "shared")
        check_settings(method, self.settings)
        for task, values in self.by_task.items():
            if tasks is not None and task not in tasks:
                raise UsageError(f"--set-for {task}: {unknown_name('task', task, tasks)}")
            check_settings(method, {**self.settings, **values})
            if whole := sorted(values.keys() - by_task_settings(method)):
                raise UsageError(f"--set-for {task}: {whole[0]} of {self.method} is the same for all tasks")

    def form(self, task: str | None = None) -> SharedForm:
        """Returns the form of the shared vector, or of a task."""
        found: SharedForm = get_method(self.method, "shared").load()(**dict(self._checked(task)))
        return found

    def record(self, task: str | None = None) -> MethodRecord:
        """Returns what an artifact records of it."""
        return MethodRecord(name=self.method, settings=recorded(self._checked(task)))

    def _checked(self, task: str | None) -> Any:
        own = self.by_task.get(task, {}) if task is not None else {}
        return check_settings(get_method(self.method, "shared"), {**self.settings, **own})


def store_shared(
    base: Checkpoint, vectors: Mapping[str, TaskVector], sharing: Sharing, writer: ZooWriter, step: OnTensor
) -> tuple[TaskRecord, dict[str, TaskRecord]]:
    """Stores the vector that tasks share, then each task; returns their records. Raises: InputError."""
    form = sharing.form()
    deltas = ModelDeltas(base, vectors, list(base.tensors), sharing.jobs, sharing.memory, sharing.method)
    unified = UnifiedVector(deltas, form.unify)
    with one_torch_thread():  # singular vectors are the same whatever the number of jobs
        job, plan = Job("shared", sharing.record(), sharing.jobs), Plan(form.compress_shared, sharing.effort)
        write = bind(write_artifact, unified, job=job, chosen=plan, memory=sharing.memory, on_tensor=step)
        stored = writer.put("shared", SHARED_STEM, write)
    artifact = open_artifact(writer.root / stored.file)
    record = task_record(artifact.header, stored)
    reference = None if form.corrects else unified
    return record, store_tasks(vectors, sharing, artifact, stored.sha256, writer, step, reference)


def store_tasks(
    vectors: Mapping[str, TaskVector],
    sharing: Sharing,
    shared: Artifact,
    sha256: str,
    writer: ZooWriter,
    step: OnTensor,
    reference: TaskVector | None = None,
) -> dict[str, TaskRecord]:
    """Stores tasks by a shared vector, whose file has the given hash; returns their records.

    reference: what is subtracted from the tasks; None for the shared vector as it is stored.
    """
    decoded, records = ArtifactVector(shared), {}
    for task, vector in vectors.items():
        form = sharing.form(task)
        if form.rule == "sum":
            vector = OffsetVector(vector, reference or decoded)
        with one_torch_thread():
            plan = Plan(form.own(vector, decoded, sharing.jobs), sharing.effort, entry_bytes=form.entry_bytes)
            by = SharedRecord(sha256=sha256, rule=form.rule)
            job = Job(task, sharing.record(task), sharing.jobs, shared=by)
            write = bind(write_artifact, vector, job=job, chosen=plan, memory=sharing.memory, on_tensor=step)
            stored = writer.put("tasks", task, write)
        records[task] = task_record(open_artifact(writer.root / stored.file).header, stored)
    return records
