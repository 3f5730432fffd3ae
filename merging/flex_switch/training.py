"""The whole of a learned compression: the nearest start, steps from there, and the end at the size."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from flexswitch.codecs.errors import InputError
from flexswitch.codecs.format.records import TrainingRecord
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
from flexswitch.merging.flex_switch.training_step import Schedule, TrainingState, run_steps

Doubles = NDArray[np.float64]

_STEP_SIZES = (1.0, 0.1, 0.03)  # a start that is nearly right already is spoilt by long steps
_AS_GOOD = 1.05  # times the loss of the start, which had the room that the record of a learning takes
_UNWEIGHED_SHARE = 0.005  # of float32: where a learning without a target starts


def data_free(
    task: CompressionTask, target: int, same_share: bool, growth: float, on_note: Callable[[str], None]
) -> list[Quantisation]:
    """Returns what is kept at a size in bytes without data. Source: docs/methods.md §4.

    It is the allocation of least squared error, or the `same_share` of every unit; growth: the power of
    `compensate_norm` by which scales are larger than those of least error.
    """
    sizer, bits = task.sizer(), task.payload_bits(target)
    kept, factors = allocated(task.tensors, task.tables, bits, sizer)
    if same_share:
        kept = uniform(task.tensors, task.tables, task.bits, bits, factors)
    kept = compensate_norm(task.tables, kept, growth)
    fitted, found = task.fill(kept, sizer, target)
    _note_missed(found, target, on_note)
    return fitted


def train(
    task: CompressionTask,
    data: TrainingData,
    settings: TrainingSettings,
    checkpoint: TrainingCheckpoint | None,
    on_step: Callable[[Progress], None],
    on_note: Callable[[str], None],
) -> tuple[list[Quantisation], TrainingRecord]:
    """Returns what is kept, and the record of how it was learned.

    Where nothing better than the start is found, that is kept, and told. Raises: InputError where the loss on
    the exemplars is then higher by more than the record of the learning, which takes room too, accounts for.
    """
    run = TrainingRun(task, data, GatedModel(data.model, task.tensors, data.names, settings.shards), settings)
    sizer = task.sizer()
    size = settings.target or round(_UNWEIGHED_SHARE * 4 * task.vector.parameters) + sizer.empty_size()
    start, factors = _best_start(run, size)
    start = task.fill(start, sizer, size)[0]
    loss_before = run.loss(start)
    loss, found, after = _led_from(run, start, factors, size, checkpoint, on_step, on_note)
    if loss > _AS_GOOD * loss_before:
        if checkpoint is not None:
            checkpoint.remove()  # the same steps would lead here again
        raise InputError(
            f"{task.vector.source}: learning did not help: the loss on the exemplars is {loss:.4g}, and "
            f"was {loss_before:.4g} before; take more steps or exemplars, or the data-free allocation with "
            "--set objective=none"
        )
    if settings.target is not None:
        _note_missed(task.sizer(after).size(found), settings.target, on_note)
    return found, after


def _led_from(
    run: TrainingRun,
    start: list[Quantisation],
    factors: Doubles,
    size: int,
    checkpoint: TrainingCheckpoint | None,
    on_step: Callable[[Progress], None],
    on_note: Callable[[str], None],
) -> tuple[float, list[Quantisation], TrainingRecord]:
    """Returns where steps lead from a start, the loss first; by shorter steps where those lead away from it.

    Where all do, scales alone are learned.
    """
    task, settings = run.task, run.settings
    loss_before, before = run.loss(start), quality(run.data, task.parallel_map)
    target = None if settings.target is None else task.payload_bits(size)
    schedule = Schedule(settings.steps, target, settings.multiplier, gates_move=not settings.uniform)
    measure = task.sizer().factors

    def beginner(step_size: float) -> TrainingState:
        first = initial_parameters(task.tensors, task.tables, start, task.bits, settings.by_rows)
        return TrainingState(first, factors.copy(), Adam(groups={"rows": first.starts}), step_size)

    def stepped(progress: Progress) -> None:
        on_step(progress)
        if checkpoint is not None:
            checkpoint.save(state)

    state = beginner(_STEP_SIZES[0])
    if checkpoint is not None:
        checkpoint.restore(state)
    while True:
        run_steps(state, task.tensors, run.model, run.batches, schedule, measure, task.parallel_map, stepped)
        record = training_record(run.data, before, before, state.history, task.vector.parameters)
        loss, found, after = run.finished(state.parameters.quantised(task.tensors), record)
        if loss < loss_before:
            return loss, found, after
        told = (
            f"{settings.steps} steps lead to a loss of {loss:.4g} on the exemplars, from {loss_before:.4g}: "
        )
        shorter = [step_size for step_size in _STEP_SIZES if step_size < state.step_size]
        if not shorter:
            on_note(told + "what is kept is that of the start, and scales alone are learned; take more steps")
            return run.finished(start, record)
        on_note(told + f"learning begins again, by steps {shorter[0]:g} times as long")
        state = beginner(shorter[0])


def _best_start(run: TrainingRun, size: int) -> tuple[list[Quantisation], Doubles]:
    """Returns the start nearest to the fine-tuned model on the exemplars, and its factors.

    Starts are the same share of every unit, or the allocation by errors, in units of each one's mean square
    or as they are.
    """
    task = run.task
    sizer, bits, tensors = task.sizer(), task.payload_bits(size), task.tensors
    tables = relative(tensors, task.tables)
    kept, factors = allocated(tensors, tables, bits, sizer)
    starts = [uniform(tensors, tables, task.bits, bits, factors)]
    if not run.settings.uniform:
        starts += [kept, allocated(tensors, task.tables, bits, sizer)[0]]
    found = [best_norm_compensation(tables, start, run.loss) for start in starts]
    return min(found, key=lambda pair: pair[0])[1], factors


def _note_missed(found: int, target: int, on_note: Callable[[str], None]) -> None:
    """Says so where a size is not the target as it is promised."""
    if not meets_target(found, target):
        on_note(
            f"the artifact takes {found:,} bytes, {found / target:.1%} of the {target:,} asked for: nothing "
            "more has changed, or whole rows of it are equal"
        )
