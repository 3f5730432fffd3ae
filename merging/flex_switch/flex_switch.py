"""FlexSwitch: thresholds, scales and bit-widths learned on a few exemplars, at the size asked for.

Source: Gao et al. 2026, "Auto-FlexSwitch" (arXiv 2604.28109), LGS, BAS and SASS; methods, §4.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from flexswitch.codecs.errors import InputError, UsageError
from flexswitch.codecs.format.records import ArtifactHeader
from flexswitch.codecs.threads import parallel_map
from flexswitch.merging.compression.delta import Compressed, Delta, assemble
from flexswitch.merging.compression.plan import Job, Plan
from flexswitch.merging.flex_switch.compression_task import CompressionTask, read_compression_task
from flexswitch.merging.flex_switch.delta_rows import Quantisation, sparse_tensor
from flexswitch.merging.flex_switch.finalisation import TrainingSettings
from flexswitch.merging.flex_switch.size_target import target_bytes
from flexswitch.merging.flex_switch.training import data_free, learned
from flexswitch.merging.flex_switch.training_checkpoint import TrainingCheckpoint, run_identity
from flexswitch.merging.flex_switch.training_data import TrainingData, open_training_data, read_exemplars
from flexswitch.merging.task_vectors.task_vector import TaskVector

_DEFAULT_TARGET = "0.5%"
_FLOAT_BITS = 32
# Without data: the power that is near the best on every text task of benchmarks/flexswitch, 50 to 435 kB.
_GROWTH = 0.7


def flexswitch(
    vector: TaskVector,
    job: Job,
    *,
    objective: Literal["kl", "mse", "task", "none"] = "kl",
    target_size: str | None = None,
    lambda_: float | None = None,
    steps: int = 500,
    bits: str = "1,2,4,8",
    granularity: Literal["tensor", "rows"] = "tensor",
    gates: Literal["learned", "uniform", "allocated"] | None = None,
    growth: float | None = None,
    batch: int = 16,
    shards: int = 2,
    refit: int = 20,
    least: int = 32,
    crossings: int = 3,
    precision: Literal["float32", "bfloat16"] = "float32",
    effort: Literal["fast", "small"] = "small",
    seed: int = 0,
) -> Plan:
    """Returns what is kept of every tensor, learned so that the model's answers stay the fine-tuned one's.

    objective: `kl` or `mse`, the divergence of answers or of pooled features from the fine-tuned model's;
    `task`, the loss on labels; `none`, no data. target_size: 400KB,
    0.5% of float32, or 0.16bpp (bits a parameter), for the whole artifact; 0.5% without it and without
    `lambda_`, which weighs the share of float32 instead. bits: candidates of a kept value's bit-width.
    granularity: a threshold a tensor or a row. gates: `learned`; `uniform`, the same share of every tensor,
    which is what there is without data; or then `allocated`, the least squared error at the size. growth:
    without data, the power of Σ |τ| over that of what is kept by which scales are larger than those of least
    squared error: 0.7, and 0 where shares are allocated; learning finds its own. batch: exemplars a step,
    worked on in so many shards, a thread each. refit: steps that fit the scales anew at the end. crossings:
    inputs made of two exemplars, for each one (not for `task`). least: exemplars without which nothing is
    learned. precision: of the products of a step; bfloat16 is several times as fast where the processor has
    it. effort: how small the blocks are stored. Raises: UsageError on a setting outside its range; InputError
    where the size can't be met, exemplars are too few, or the divergence does not fall.
    """
    least_values = {"steps": steps, "batch": batch, "shards": shards, "least": least}
    for name, value in least_values.items():
        if value < 1:
            raise UsageError(f"{name}={value}: expected at least 1")
    if min(refit, crossings, seed) < 0:
        raise UsageError(f"refit={refit}, crossings={crossings}, seed={seed}: expected numbers of at least 0")
    if lambda_ is not None and (target_size is not None or objective == "none" or lambda_ <= 0):
        raise UsageError(f"lambda={lambda_}: expected a number above 0, an objective, and no target size")
    if growth is not None and (objective != "none" or not 0 <= growth <= 1):
        raise UsageError(f"growth={growth}: expected 0 to 1, and objective=none: learning finds its own")
    if gates == ("learned" if objective == "none" else "allocated"):
        known = "uniform or allocated" if objective == "none" else "learned or uniform"
        raise UsageError(f"gates={gates}: expected {known} with objective={objective}")
    widths = _bit_widths(bits)
    training, inputs = job.training, job.training.inputs
    if objective != "none" and inputs is None:
        raise UsageError(
            "flexswitch learns from examples: give --exemplars DIR and --base BASE, or --set objective=none"
        )
    if objective != "none" and inputs is not None:
        read_exemplars(job.task, inputs, objective, least)  # to hear of too few before long work
    header = job.header(vector)
    with parallel_map(job.jobs) as each:
        problem = read_compression_task(vector, header, widths, effort, each)
        target = None if lambda_ is not None else _target(problem, target_size or _DEFAULT_TARGET)
        if objective == "none" or inputs is None:
            if target is None:
                raise ValueError("the data-free allocation takes a target")
            same_share = gates != "allocated"
            growth = _GROWTH * same_share if growth is None else growth
            kept = data_free(problem, target, same_share, growth, training.on_note)
            return Plan(_compressor(problem, kept), effort)
        lesson = open_training_data(
            vector, job.task, inputs, objective, seed, least, crossings, precision, each
        )
        multiplier = 0.0 if lambda_ is None else lambda_ / (_FLOAT_BITS * max(1, vector.parameters))
        course = TrainingSettings(
            target, multiplier, steps, granularity == "rows", gates == "uniform", batch, shards, refit, seed
        )
        run = run_identity(header.method.settings, _inputs(vector, header, lesson))
        file = training.checkpoint
        saving = None if file is None else TrainingCheckpoint(file.path, file.every, run)
        kept, record = learned(problem, lesson, course, saving, training.on_step, training.on_note)
        return Plan(_compressor(problem, kept), effort, record)


def _inputs(vector: TaskVector, header: ArtifactHeader, lesson: TrainingData) -> dict[str, object]:
    """Returns what a learning depends on beside its settings; of a fine-tune's files, sizes and times."""
    labels, stats = lesson.exemplars.examples.labels, [file.stat() for file in vector.files]
    return {
        "task": header.name,
        "base": header.base.fingerprint,
        "finetuned": [(stat.st_size, stat.st_mtime_ns) for stat in stats],
        "exemplars": lesson.digest,
        "labels": None if labels is None else labels.tolist(),
    }


def _bit_widths(text: str) -> NDArray[np.int64]:
    try:
        widths = sorted({int(part) for part in text.split(",")})
    except ValueError:
        widths = []
    if not widths or not set(widths) <= set(range(1, 9)):
        raise UsageError(f"bits={text}: expected bit-widths from 1 to 8, joined by commas, such as 1,2,4,8")
    return np.array(widths, np.int64)


def _target(problem: CompressionTask, text: str) -> int:
    vector = problem.vector
    target, empty = target_bytes(text, vector.parameters), problem.packer().empty_size()
    if target <= empty:
        raise InputError(
            f"{vector.source}: target size {text} is {target:,} bytes, and the task's own tensors (its head) "
            f"with the header take {empty:,} of them; ask for more than that"
        )
    return target


def _compressor(problem: CompressionTask, hardened: Sequence[Quantisation]) -> Callable[[Delta], Compressed]:
    by_name = {unit.name: (unit, kept) for unit, kept in zip(problem.units, hardened, strict=True)}

    def compress(delta: Delta) -> Compressed:
        if delta.name not in by_name:
            empty = np.zeros(-(-math.prod(delta.shape) // 8), np.uint8)
            return Compressed(assemble(delta.shape, [empty], [], bits=1), 0.0)
        unit, kept = by_name[delta.name]
        return Compressed(sparse_tensor(unit, kept), kept.scale)

    return compress
