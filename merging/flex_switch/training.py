"""Compression to a size, with and without training: initialisation, training steps, finalisation."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flexswitch.codecs.format.quality_records import TrainingRecord
from flexswitch.merging.compression.plan import Progress
from flexswitch.merging.flex_switch.compression_task import CompressionTask
from flexswitch.merging.flex_switch.delta_rows import Quantisation
from flexswitch.merging.flex_switch.finalisation import TrainingRun, TrainingSettings
from flexswitch.merging.flex_switch.fit_to_size import meets_target
from flexswitch.merging.flex_switch.gated_model import GatedModel
from flexswitch.merging.flex_switch.initialisation import (
    allocated,
    best_norm_compensation,
    compensate_norm,
    initial_parameters,
    relative,
    uniform,
)
from flexswitch.merging.flex_switch.parameters import Adam
from flexswitch.merging.flex_switch.training_checkpoint import TrainingCheckpoint
from flexswitch.merging.flex_switch.training_data import TrainingData
from flexswitch.merging.flex_switch.training_record import quality, training_record
from flexswitch.merging.flex_switch.training_step import Schedule, TrainingState, check_finite, run_steps

Doubles = NDArray[np.float64]

_STEP_SIZES = (1.0, 0.1, 0.03)  # tried in turn: long steps move away from an initialisation that is good
RECORD_SPARE = 64  # bytes by which a training record may be longer than the likely one
_UNTARGETED_SHARE = 0.005  # initial size as a share of float32, for training without a target


def data_free(
    task: CompressionTask, target: int, same_share: bool, power: float, on_note: Callable[[str], None]
) -> list[Quantisation]:
    """Returns the quantisation of each tensor for an artifact of `target` bytes, without data.

    same_share: keep the same share of every tensor instead of the allocation of least squared error. power:
    exponent of `compensate_norm`. Source: docs/methods.md §4.
    """
    sizer, bits = task.sizer(), task.payload_bits(target)
    kept, factors = allocated(task.tensors, task.tables, bits, sizer)
    if same_share:
        kept = uniform(task.tensors, task.tables, task.bits, bits, factors)
    kept = compensate_norm(task.tables, kept, power)
    fitted, found = task.fill(kept, sizer, target)
    _note_missed(found, target, on_note)
    return fitted


class Start(NamedTuple):
    """A training before its first step.

    size: the bytes of the artifact. factors: the tensors' rate factors, (tensor,). loss: on the exemplars.
    """

    run: TrainingRun
    size: int
    initial: list[Quantisation]
    factors: Doubles
    loss: float


def started(task: CompressionTask, data: TrainingData, settings: TrainingSettings) -> Start:
    """Returns a training with the best initialisation. Raises: InputError if its loss is not finite."""
    run = TrainingRun(
        task, data, GatedModel(data.model, task.tensors, data.places, settings.shards), settings
    )
    sizer = task.sizer()
    size = settings.target or round(_UNTARGETED_SHARE * 4 * task.vector.parameters) + sizer.empty_size()
    initial, factors = _best_initialisation(run, size)
    check_finite(run.loss(initial), "before the first step")
    initial = task.fill(initial, task.sizer(likely_record(run)), size - RECORD_SPARE)[0]
    return Start(run, size, initial, factors, run.loss(initial))


def train(
    start: Start,
    checkpoint: TrainingCheckpoint | None,
    on_step: Callable[[Progress], None],
    on_note: Callable[[str], None],
) -> tuple[list[Quantisation], TrainingRecord]:
    """Returns the trained quantisation of each tensor, and the record of the training.

    If training finds nothing better than the initialisation, that is returned, with a note.

    Raises: InputError if the loss is not finite.
    """
    found, record = _train_from(start, checkpoint, on_step, on_note)
    target = start.run.settings.target
    if target is not None:
        _note_missed(start.run.task.sizer(record).size(found), target, on_note)
    return found, record


def likely_record(run: TrainingRun) -> TrainingRecord:
    """Returns a record about as long as that of the training, for the quality of the model's weights."""
    found = quality(run.data, run.task.parallel_map)
    history = [
        Progress(step, 0.1234, 0.1234 * run.task.vector.parameters) for step in range(run.settings.steps)
    ]
    return training_record(run.data, found, found, history, run.task.vector.parameters)


def _train_from(
    start: Start,
    checkpoint: TrainingCheckpoint | None,
    on_step: Callable[[Progress], None],
    on_note: Callable[[str], None],
) -> tuple[list[Quantisation], TrainingRecord]:
    """Returns the quantisation and the record after training from an initialisation.

    If the loss does not fall, training is repeated with shorter steps; at last only scales are trained.
    """
    run, size, initial, factors, loss_before = start
    before = quality(run.data, run.task.parallel_map)
    state = _initial_state(run, initial, factors, _STEP_SIZES[0])
    if checkpoint is not None:
        checkpoint.restore(state)
    while True:
        _run_all_steps(run, state, size, checkpoint, on_step)
        record = training_record(run.data, before, before, state.history, run.task.vector.parameters)
        loss, found, after = run.finished(state.parameters.quantised(run.task.tensors), record)
        if loss < loss_before:
            return found, after
        result = (
            f"{run.settings.steps} steps change the loss on the exemplars from {loss_before:.4g} to "
            f"{loss:.4g}: "
        )
        shorter = [step_size for step_size in _STEP_SIZES if step_size < state.step_size]
        if not shorter:
            on_note(result + "the initialisation is kept and only its scales are trained; use more steps")
            return run.recorded(initial, record)[1:]
        on_note(result + f"training starts again with steps {shorter[0]:g} times as long")
        state = _initial_state(run, initial, factors, shorter[0])


def _initial_state(
    run: TrainingRun, initial: list[Quantisation], factors: Doubles, step_size: float
) -> TrainingState:
    task = run.task
    parameters = initial_parameters(task.tensors, task.tables, initial, task.bits, run.settings.by_rows)
    return TrainingState(parameters, factors.copy(), Adam(groups={"rows": parameters.starts}), step_size)


def _run_all_steps(
    run: TrainingRun,
    state: TrainingState,
    size: int,
    checkpoint: TrainingCheckpoint | None,
    on_step: Callable[[Progress], None],
) -> None:
    """Runs the remaining steps, and saves the state after each step if its time has come."""
    task, settings = run.task, run.settings
    target = None if settings.target is None else task.payload_bits(size)
    schedule = Schedule(
        settings.steps,
        target,
        settings.multiplier,
        gates_move=not settings.uniform,
        settled_bits=task.settled_bits(),
    )

    def on_each(progress: Progress) -> None:
        on_step(progress)
        if checkpoint is not None:
            checkpoint.save(state)

    measure = task.sizer().factors
    run_steps(state, task.tensors, run.model, run.batches, schedule, measure, task.parallel_map, on_each)


def _best_initialisation(run: TrainingRun, size: int) -> tuple[list[Quantisation], Doubles]:
    """Returns the initialisation with the least loss on the exemplars, and the tensors' rate factors.

    Candidates are the same share of every tensor, and the allocations by squared error relative to each
    tensor's mean square and by squared error itself.
    """
    task = run.task
    sizer, bits, tensors = task.sizer(), task.payload_bits(size), task.tensors
    tables = relative(tensors, task.tables)
    kept, factors = allocated(tensors, tables, bits, sizer)
    candidates = [uniform(tensors, tables, task.bits, bits, factors)]
    if not run.settings.uniform:
        candidates += [kept, allocated(tensors, task.tables, bits, sizer)[0]]
    found = [best_norm_compensation(tables, candidate, run.loss) for candidate in candidates]
    return min(found, key=lambda pair: pair[0])[1], factors


def _note_missed(found: int, target: int, on_note: Callable[[str], None]) -> None:
    """Notes an artifact that is smaller than the target allows."""
    if not meets_target(found, target):
        on_note(
            f"the artifact takes {found:,} bytes, {found / target:.1%} of the {target:,} asked for: nothing "
            "more has changed, or whole rows of it are equal"
        )
