"""FlexSwitch: trains thresholds, scales and bit-widths on a few exemplars, for an artifact of a given size.

Source: Gao et al. 2026, "Auto-FlexSwitch" (arXiv 2604.28109), LGS, BAS and SASS; docs/methods.md §4.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial as bind
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from flexswitch.codecs.errors import TargetSizeError, UsageError
from flexswitch.codecs.format.extra_forms import PackedExtra
from flexswitch.codecs.format.records import ArtifactHeader
from flexswitch.codecs.format.training_file import run_identity
from flexswitch.codecs.threads import parallel_map
from flexswitch.merging.compression.delta import Compressed
from flexswitch.merging.compression.extras import pack_extras
from flexswitch.merging.compression.plan import Job, Plan, Training
from flexswitch.merging.flex_switch.compression_task import CompressionTask, read_compression_task
from flexswitch.merging.flex_switch.finalisation import TrainingSettings
from flexswitch.merging.flex_switch.form_choice import forms_beside_entries, with_low_rank
from flexswitch.merging.flex_switch.norm_compensation import default_power
from flexswitch.merging.flex_switch.size_target import target_bytes
from flexswitch.merging.flex_switch.training import Start, data_free, started, train
from flexswitch.merging.flex_switch.training_checkpoint import TrainingCheckpoint
from flexswitch.merging.flex_switch.training_data import (
    DataSettings,
    TrainingData,
    open_training_data,
    read_training_examples,
)
from flexswitch.merging.flex_switch.weight_decay import RestVector, fitted_factors
from flexswitch.merging.task_vectors.task_vector import TaskVector

_DEFAULT_TARGET = "0.5%"
_FLOAT_BITS = 32
_HELD_BYTES = 12  # of a parameter: its delta, the base's weight and the trained one


def flexswitch(
    vector: TaskVector,
    job: Job,
    *,
    objective: Annotated[
        Literal["kl", "mse", "task", "none"],
        Field(
            description="What training minimises: kl, the divergence of the answers from the fine-tuned "
            "model's; mse, that of the pooled features; task, the loss on labels; none, no data."
        ),
    ] = "kl",
    target_size: Annotated[
        str | None,
        Field(
            description="Size of the whole artifact: bytes (400KB), a share of float32 (0.5%) or bits a "
            "parameter (0.16bpp); 0.5% where neither this nor lambda is given."
        ),
    ] = None,
    lambda_: Annotated[
        float | None,
        Field(gt=0, description="Weight of the size as a share of float32, without a target size."),
    ] = None,
    steps: Annotated[int, Field(ge=1, description="Training steps.")] = 500,
    bits: Annotated[
        str, Field(description="Candidate bit-widths of a kept value, from 1 to 8, joined by commas.")
    ] = "1,2,4,8",
    granularity: Annotated[
        Literal["tensor", "rows"], Field(description="Train one threshold per tensor or one per row.")
    ] = "tensor",
    densities: Annotated[
        Literal["learned", "uniform", "allocated"] | None,
        Field(
            description="How densities are chosen: learned (the default with data); uniform, the same in "
            "every tensor (the default without data); allocated, of least squared error (only without data)."
        ),
    ] = None,
    form: Annotated[
        Literal["auto", "sparse"] | None,
        Field(
            description="Store matrices by their singular vectors where these come nearer than the largest "
            "entries, with data beside trained entries (auto), or never (sparse); by default auto where "
            "neither lambda, densities nor norm_compensation are given."
        ),
    ] = None,
    norm_compensation: Annotated[
        float | None,
        Field(
            ge=0,
            le=1,
            description="Without data: exponent of Σ|τ| over the kept Σ|τ| by which scales are enlarged; "
            "by default 0.7 for small changes and less for larger ones, and 0 for allocated densities.",
        ),
    ] = None,
    batch: Annotated[int, Field(ge=1, description="Training examples per step.")] = 16,
    shards: Annotated[
        int, Field(ge=1, description="Parts of a batch that are computed at the same time.")
    ] = 2,
    scale_refit_steps: Annotated[
        int, Field(ge=0, description="Steps that train the scales alone once the thresholds are fixed.")
    ] = 20,
    min_exemplars: Annotated[int, Field(ge=1, description="Fewer exemplars than this are refused.")] = 32,
    augmentations: Annotated[
        int, Field(ge=0, description="Inputs mixed from two exemplars, per exemplar; not for objective=task.")
    ] = 3,
    precision: Annotated[
        Literal["float32", "bfloat16"], Field(description="Precision of the matrix products of a step.")
    ] = "float32",
    effort: Annotated[
        Literal["fast", "small"], Field(description="Store blocks quickly, or in the fewest bytes.")
    ] = "small",
    weight_decay: Annotated[
        bool,
        Field(
            description="Store one factor for each matrix that weight decay has shrunk, and compress what is "
            "left; of two checkpoints, not of a task vector file without a base."
        ),
    ] = True,
    seed: Annotated[int, Field(ge=0, description="Seed of the exemplars' choice and order.")] = 0,
) -> Plan:
    """Returns the plan that compresses every tensor, trained to keep the fine-tuned model's answers.

    Raises: UsageError if settings conflict; InputError if the size can't be met, exemplars are too few, or
    the loss is not finite.
    """
    _check_conflicts(objective, target_size, lambda_, densities, form, norm_compensation)
    widths, training, data_settings = _bit_widths(bits), job.training, None
    if objective != "none":
        if training.inputs is None:
            raise UsageError(
                "flexswitch learns from examples: give --exemplars DIR and --base BASE, or --set "
                "objective=none"
            )
        data_settings = DataSettings(
            job.task, training.inputs, objective, seed, min_exemplars, augmentations, precision
        )
        read_training_examples(data_settings)  # refuse too few before long work
    header, wanted = job.header(vector), target_bytes(target_size or _DEFAULT_TARGET, vector.parameters)
    extras = pack_extras(vector, vector.extras, job.extras, None if lambda_ is not None else wanted)
    factors = fitted_factors(training.base, vector) if weight_decay and training.base is not None else {}
    rest = RestVector(training.base, vector, factors) if training.base is not None and factors else vector
    by_vectors = form == "auto" or (form, lambda_, densities, norm_compensation) == (None,) * 4
    needed = vector.parameters * _HELD_BYTES
    held = needed <= job.memory
    with parallel_map(job.jobs) as in_parallel:

        def read_task(left: TaskVector) -> CompressionTask:
            return read_compression_task(left, header, widths, effort, in_parallel, extras, factors, held)

        task = read_task(rest)
        if data_settings is None:
            same_share = densities != "allocated"
            target, power = _target(task, target_size), norm_compensation
            if by_vectors:
                task = with_low_rank(task, target)
            if power is None:
                power = default_power(rest) if same_share and not task.given else 0.0
            kept = data_free(task, target, same_share, power, training.on_note)
            return Plan(task.compressor(kept), effort, extras=extras)
        if not held:
            training.on_note(
                f"training holds {needed / 1e6:,.1f} MB at once, more than --memory allows: weights are made "
                f"anew for each use; --memory {math.ceil(needed / 1e6)}MB gives the same file sooner"
            )
        settings = TrainingSettings(
            target=None if lambda_ is not None else _target(task, target_size),
            multiplier=0.0 if lambda_ is None else lambda_ / (_FLOAT_BITS * max(1, vector.parameters)),
            steps=steps,
            by_rows=granularity == "rows",
            uniform=densities == "uniform",
            batch=batch,
            shards=shards,
            refit_steps=scale_refit_steps,
            seed=seed,
        )
        data_settings = replace(data_settings, streamed=not held)
        open_data = bind(open_training_data, vector, data_settings, in_parallel, extras, factors)

        def start(parts: Mapping[str, Compressed]) -> Start:
            """Returns the training beside settled parts."""
            whole = task
            if parts and training.base is not None:
                whole = read_task(RestVector(training.base, vector, factors, parts)).with_given(parts)
            return started(whole, open_data(parts), settings)

        by_vectors &= training.base is not None
        given = forms_beside_entries(task, _target(task, target_size)) if by_vectors else {}
        best = _best_start(start, given)
        checkpoint = _checkpoint(training, vector, header, best.run.data, extras)
        kept, record = train(best, checkpoint, training.on_step, training.on_note)
        return Plan(best.run.task.compressor(kept), effort, record, extras)


def _best_start(start: Callable[[Mapping[str, Compressed]], Start], given: Mapping[str, Compressed]) -> Start:
    """Returns the start beside the given parts if its loss is less than that of entries alone."""
    alone = start({}).loss if given else math.inf  # one at a time, since each holds a model
    found = start(given)
    return found if found.loss < alone else start({})


def _check_conflicts(
    objective: str,
    target_size: str | None,
    lambda_: float | None,
    densities: str | None,
    form: str | None,
    norm_compensation: float | None,
) -> None:
    """Raises: UsageError if settings exclude each other."""
    if lambda_ is not None and (target_size is not None or objective == "none"):
        raise UsageError(f"lambda={lambda_}: give an objective with data, and no target size")
    if norm_compensation is not None and objective != "none":
        raise UsageError(
            f"norm_compensation={norm_compensation}: needs objective=none; training fits the scales"
        )
    if form == "auto" and lambda_ is not None:
        raise UsageError(f"form=auto: give a target size in place of lambda={lambda_}")
    if form == "auto" and densities == "allocated":
        raise UsageError("form=auto: densities=allocated keeps entries alone; leave one of the two out")
    if densities == ("learned" if objective == "none" else "allocated"):
        known = "uniform or allocated" if objective == "none" else "learned or uniform"
        raise UsageError(f"densities={densities}: expected {known} with objective={objective}")


def _checkpoint(
    training: Training,
    vector: TaskVector,
    header: ArtifactHeader,
    data: TrainingData,
    extras: Mapping[str, PackedExtra],
) -> TrainingCheckpoint | None:
    file = training.checkpoint
    if file is None or training.inputs is None:
        return None
    return TrainingCheckpoint(
        file.path,
        file.every,
        run_identity(
            header.method.settings,
            {**_inputs(vector, header, data, extras), "max_length": training.inputs.max_length},
        ),
    )


def _inputs(
    vector: TaskVector, header: ArtifactHeader, data: TrainingData, extras: Mapping[str, PackedExtra]
) -> dict[str, object]:
    """Returns what a training depends on besides its settings; files count by their sizes and times."""
    labels = data.exemplars.examples.labels
    return {
        "task": header.name,
        "base": header.base.fingerprint,
        "finetuned": vector.hints.file_stamps(),
        "exemplars": data.digest,
        "extras": {name: each.record.form.model_dump() for name, each in extras.items()},
        "labels": None if labels is None else list(labels),
    }


def _bit_widths(text: str) -> NDArray[np.int64]:
    try:
        widths = sorted({int(part) for part in text.split(",")})
    except ValueError:
        widths = []
    if not widths or not set(widths) <= set(range(1, 9)):
        raise UsageError(f"bits={text}: expected bit-widths from 1 to 8, joined by commas, such as 1,2,4,8")
    return np.array(widths, np.int64)


def _target(task: CompressionTask, target_size: str | None) -> int:
    vector, text = task.vector, target_size or _DEFAULT_TARGET
    target, empty = target_bytes(text, vector.parameters), task.sizer().empty_size()
    if target <= empty:
        raise TargetSizeError(
            f"{vector.source}: target size {text} is {target:,} bytes, and the task's own tensors (its head) "
            f"with the header take {empty:,} of them; ask for more than that"
        )
    return target
