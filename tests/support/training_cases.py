"""Compressions of tiny models with FlexSwitch, for its tests."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import tiny_models
from support.tiny_models import save_text_base, save_text_classifier, texts, write_jsonl

from flexswitch.codecs.format.container import Artifact, open_artifact
from flexswitch.codecs.format.quality_records import QualityRecord
from flexswitch.codecs.threads import DEFAULT_MEMORY, parallel_map
from flexswitch.merging.checkpoints.opening import open_checkpoint
from flexswitch.merging.checkpoints.pairing import Selection
from flexswitch.merging.compression.compress import compress
from flexswitch.merging.compression.plan import Progress, Training, TrainingInputs
from flexswitch.merging.flex_switch.objective import Goal
from flexswitch.merging.flex_switch.training_checkpoint import TrainingCheckpoint
from flexswitch.merging.flex_switch.training_data import DataSettings, open_training_data
from flexswitch.merging.flex_switch.training_record import quality
from flexswitch.merging.methods.settings import parse_settings
from flexswitch.merging.models.loading import load_weights
from flexswitch.merging.task_vectors.open_vector import open_finetuned
from flexswitch.merging.task_vectors.restore import restore
from flexswitch.merging.task_vectors.task_name import SUFFIX
from flexswitch.merging.task_vectors.task_vector import TaskVector
from flexswitch.merging.task_vectors.task_vector_file import TaskVectorFile

FEW = ("target_size=7KB", "steps=16", "scale_refit_steps=4", "batch=8", "min_exemplars=8")


@dataclass
class Reports:
    """What a training reports while it runs."""

    steps: list[Progress] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class TrainingCase:
    """A base, a fine-tune of it, and a folder with the exemplars of its task; settings over FEW."""

    base: Path
    finetuned: Path
    data: Path
    per_task: int = 24
    adapter: str | None = None
    exclude: tuple[str, ...] = ()

    def vector(self) -> TaskVector:
        """Returns the task vector, opened anew."""
        if self.finetuned.name.endswith(SUFFIX):
            return TaskVectorFile(self.finetuned)
        selection = Selection(exclude=self.exclude)
        return open_finetuned(str(self.finetuned), open_checkpoint(str(self.base)), selection)

    def inputs(self) -> TrainingInputs:
        """Returns the inputs of the training."""
        return TrainingInputs(open_checkpoint(str(self.base)), self.data, self.per_task, self.adapter)

    def train(self, path: Path, *given: str, reports: Reports | None = None, **more: Any) -> Artifact:
        """Compresses into `path`, the task being its stem. more: checkpoint, jobs, on_step, memory, and base,
        whether multiples of it and singular vectors are stored.
        """
        reports = reports or Reports()
        checkpoint: TrainingCheckpoint | None = more.get("checkpoint")
        on_step: Callable[[Progress], None] = more.get("on_step", reports.steps.append)
        inputs = self.inputs()
        base = inputs.base if more.get("base") else None
        training = Training(inputs, checkpoint, on_step, reports.notes.append, base)
        settings = {text.split("=")[0]: text for text in (*FEW, *given)}
        if "lambda" in settings:
            del settings["target_size"]
        parsed = parse_settings(list(settings.values()))
        path.parent.mkdir(exist_ok=True, parents=True)
        compress(
            self.vector(), path, path.stem, "flexswitch", parsed, overwrite=True, jobs=more.get("jobs", 1),
            training=training, memory=more.get("memory", DEFAULT_MEMORY),
        )  # fmt: skip
        return open_artifact(path)


def text_case(
    folder: Path, task: str = "birds", classes: int = 3, count: int = 40, seed: int = 1
) -> TrainingCase:
    """Makes a text classifier's, so wide that most of an artifact's bytes are for entries."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_models, "WIDTH", 64)
        base = save_text_base(folder / "base")
        finetuned = save_text_classifier(base, folder / "model", classes, seed)
    data = folder / "data"
    data.mkdir()
    labels = np.random.default_rng(seed).integers(0, classes, count).tolist()
    write_jsonl(data / f"{task}.train.jsonl", texts(task, count, seed), labels)
    return TrainingCase(base, finetuned, data)


def measured(case: TrainingCase, artifact: Artifact, goal: Goal = "kl") -> QualityRecord:
    """Returns how the model that an artifact gives back compares with the fine-tuned one."""
    with parallel_map(1) as each:
        vector = case.vector()
        settings = DataSettings(artifact.header.name, case.inputs(), goal, 0, 1, 0, "float32")
        data = open_training_data(vector, settings, each)
        inside = (lambda name: name) if goal == "mse" else data.objective.adapter.parameter_name
        state = restore(open_checkpoint(str(case.base)), artifact)
        load_weights(data.model, {inside(name): state[name] for name in state}, "restored")
        return quality(data, each)
