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
from flexswitch.merging.flex_switch.training_step import Schedule, TrainingState, learn

Doubles = NDArray[np.float64]

_PACES = (1.0, 0.1, 0.03)  # a start that is nearly right already is spoilt by long steps
_AS_GOOD = 1.05  # times the loss of the start, which had the room that the record of a learning takes
_UNWEIGHED_SHARE = 0.005  # of float32: where a learning without a target starts


def data_free(
    problem: CompressionTask, target: int, same_share: bool, growth: float, on_note: Callable[[str], None]
) -> list[Quantisation]:
    """Returns what is kept at a size in bytes without data. Source: methods, §4.

    It is the allocation of least squared error, or the `same_share` of every unit; growth: the power of
    `compensate_norm` by which scales are larger than those of least error.
    """
    packer, bits = problem.packer(), problem.payload_bits(target)
    kept, factors = allocated(problem.units, problem.choices, bits, packer)
    if same_share:
        kept = uniform(problem.units, problem.choices, problem.bits, bits, factors)
    kept = compensate_norm(problem.choices, kept, growth)
    fitted, found = problem.fill(kept, packer, target)
    _note_missed(found, target, on_note)
    return fitted


def learned(
    problem: CompressionTask,
    lesson: TrainingData,
    course: TrainingSettings,
    saving: TrainingCheckpoint | None,
    on_step: Callable[[Progress], None],
    on_note: Callable[[str], None],
) -> tuple[list[Quantisation], TrainingRecord]:
    """Returns what is kept, and the record of how it was learned.

    Where nothing better than the start is found, that is kept, and told. Raises: InputError where the loss on
    the exemplars is then higher by more than the record of the learning, which takes room too, accounts for.
    """
    study = TrainingRun(
        problem, lesson, GatedModel(lesson.model, problem.units, lesson.names, course.shards), course
    )
    packer = problem.packer()
    size = course.target or round(_UNWEIGHED_SHARE * 4 * problem.vector.parameters) + packer.empty_size()
    start, factors = _best_start(study, size)
    start = problem.fill(start, packer, size)[0]
    loss_before = study.loss(start)
    loss, found, after = _led_from(study, start, factors, size, saving, on_step, on_note)
    if loss > _AS_GOOD * loss_before:
        if saving is not None:
            saving.remove()  # the same steps would lead here again
        raise InputError(
            f"{problem.vector.source}: learning did not help: the loss on the exemplars is {loss:.4g}, and "
            f"was {loss_before:.4g} before; take more steps or exemplars, or the data-free allocation with "
            "--set objective=none"
        )
    if course.target is not None:
        _note_missed(problem.packer(after).size(found), course.target, on_note)
    return found, after


def _led_from(
    study: TrainingRun,
    start: list[Quantisation],
    factors: Doubles,
    size: int,
    saving: TrainingCheckpoint | None,
    on_step: Callable[[Progress], None],
    on_note: Callable[[str], None],
) -> tuple[float, list[Quantisation], TrainingRecord]:
    """Returns where steps lead from a start, the loss first; by shorter steps where those lead away from it.

    Where all do, scales alone are learned.
    """
    problem, course = study.problem, study.course
    loss_before, before = study.loss(start), quality(study.lesson, problem.each)
    target = None if course.target is None else problem.payload_bits(size)
    schedule = Schedule(course.steps, target, course.multiplier, gates_move=not course.uniform)
    measure = problem.packer().factors

    def beginner(pace: float) -> TrainingState:
        first = initial_parameters(problem.units, problem.choices, start, problem.bits, course.by_rows)
        return TrainingState(first, factors.copy(), Adam(groups={"rows": first.starts}), pace)

    def stepped(progress: Progress) -> None:
        on_step(progress)
        if saving is not None:
            saving.save(learner)

    learner = beginner(_PACES[0])
    if saving is not None:
        saving.restore(learner)
    while True:
        learn(learner, problem.units, study.student, study.batches, schedule, measure, problem.each, stepped)
        record = training_record(study.lesson, before, before, learner.history, problem.vector.parameters)
        loss, found, after = study.finished(learner.parameters.hardened(problem.units), record)
        if loss < loss_before:
            return loss, found, after
        told = f"{course.steps} steps lead to a loss of {loss:.4g} on the exemplars, from {loss_before:.4g}: "
        shorter = [pace for pace in _PACES if pace < learner.pace]
        if not shorter:
            on_note(told + "what is kept is that of the start, and scales alone are learned; take more steps")
            return study.finished(start, record)
        on_note(told + f"learning begins again, by steps {shorter[0]:g} times as long")
        learner = beginner(shorter[0])


def _best_start(study: TrainingRun, size: int) -> tuple[list[Quantisation], Doubles]:
    """Returns the start nearest to the fine-tuned model on the exemplars, and its factors.

    Starts are the same share of every unit, or the allocation by errors, in units of each one's mean square
    or as they are.
    """
    problem = study.problem
    packer, bits, units = problem.packer(), problem.payload_bits(size), problem.units
    choices = relative(units, problem.choices)
    kept, factors = allocated(units, choices, bits, packer)
    starts = [uniform(units, choices, problem.bits, bits, factors)]
    if not study.course.uniform:
        starts += [kept, allocated(units, problem.choices, bits, packer)[0]]
    found = [best_norm_compensation(choices, start, study.loss) for start in starts]
    return min(found, key=lambda each: each[0])[1], factors


def _note_missed(found: int, target: int, on_note: Callable[[str], None]) -> None:
    """Says so where a size is not the target as it is promised."""
    if not meets_target(found, target):
        on_note(
            f"the artifact takes {found:,} bytes, {found / target:.1%} of the {target:,} asked for: nothing "
            "more has changed, or whole rows of it are equal"
        )
