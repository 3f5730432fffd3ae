"""The whole of a learned compression: start, steps, the size met, scales fitted anew, a record of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from flexswitch.codecs.errors import InputError
from flexswitch.codecs.records import ArtifactHeader, LearningRecord
from flexswitch.merging.learning.forecast import forecast
from flexswitch.merging.learning.harden import fit_to_size, is_met
from flexswitch.merging.learning.learn import Learner, Progress, Schedule, hard_gates, learn, set_gates
from flexswitch.merging.learning.lesson import Lesson, batch_rows
from flexswitch.merging.learning.packing import Packer
from flexswitch.merging.learning.parameters import Adam
from flexswitch.merging.learning.profile import Choices, choices_of
from flexswitch.merging.learning.refit import RATES, refit_scales
from flexswitch.merging.learning.report import learning_record, quality
from flexswitch.merging.learning.saved import Saving
from flexswitch.merging.learning.start import (
    allocated,
    best_growth,
    first_parameters,
    made_up,
    relative,
    scale_at,
    uniform,
)
from flexswitch.merging.learning.student import Loss, Student
from flexswitch.merging.learning.unit import Hardened, Unit, read_unit
from flexswitch.merging.learning.workers import Each
from flexswitch.merging.task_vector import TaskVector

Doubles = NDArray[np.float64]

_PACES = (1.0, 0.1)  # a start that is nearly right already is spoilt by long steps
_SETTLING = 8  # tries to meet the target with the record of the end
_SPARE = 16  # bytes by which to aim lower, beyond what was too much
_UNWEIGHED_SHARE = 0.005  # of float32: where a learning without a target starts


@dataclass(frozen=True, eq=False)
class Problem:
    """A task vector to be compressed. bits: (candidate,). effort: how its blocks are stored."""

    vector: TaskVector
    header: ArtifactHeader
    units: list[Unit]
    choices: list[Choices]
    bits: NDArray[np.int64]
    effort: str
    each: Each

    def packer(self, learning: LearningRecord | None = None) -> Packer:
        """Returns what packs the artifact, with that record in it."""
        header = self.header.model_copy(update={"learning": learning})
        return Packer(self.vector, header, self.units, self.effort, self.each)

    def fit(self, hardened: list[Hardened], packer: Packer, target: int) -> tuple[list[Hardened], int]:
        """Returns what is kept at a size in bytes, and that size; the widths of levels stay."""
        ahead = forecast(self.units, self.choices, hardened)
        return fit_to_size(hardened, packer.size, ahead, packer.empty_size(), target)


@dataclass(frozen=True)
class Course:
    """How to learn. target: bytes of the artifact; without one `multiplier` weighs them, in loss a bit."""

    target: int | None
    multiplier: float
    steps: int
    by_rows: bool
    uniform: bool
    batch: int
    shards: int
    refit: int
    seed: int


def read_problem(
    vector: TaskVector, header: ArtifactHeader, bits: NDArray[np.int64], effort: str, each: Each
) -> Problem:
    """Returns a problem, its deltas read and its choices of density and bit-width counted."""
    units = [unit for unit in (read_unit(vector, name) for name in vector.units) if unit is not None]
    choices = each(lambda number: choices_of(units[number].delta, bits), len(units))
    return Problem(vector, header, units, choices, bits, effort, each)


def data_free(
    problem: Problem, target: int, same_share: bool, growth: float, on_note: Callable[[str], None]
) -> list[Hardened]:
    """Returns what is kept at a size in bytes without data. Source: methods, §4.

    It is the allocation of least squared error, or the `same_share` of every unit; growth: the power of
    `made_up` by which scales are larger than those of least error.
    """
    packer = problem.packer()
    bits = _payload_bits(packer, target)
    kept, factors = allocated(problem.units, problem.choices, bits, packer)
    if same_share:
        kept = uniform(problem.units, problem.choices, problem.bits, bits, factors)
    kept = made_up(problem.choices, kept, growth)
    fitted, found = _fitted(problem, kept, packer, target)
    _note_missed(found, target, on_note)
    return fitted


def learned(
    problem: Problem,
    lesson: Lesson,
    course: Course,
    saving: Saving | None,
    on_step: Callable[[Progress], None],
    on_note: Callable[[str], None],
) -> tuple[list[Hardened], LearningRecord]:
    """Returns what is kept, and the record of how it was learned.

    Raises: InputError where the loss on the exemplars does not fall.
    """
    each, units = problem.each, problem.units
    packer = problem.packer()
    size = course.target or round(_UNWEIGHED_SHARE * 4 * problem.vector.parameters) + packer.empty_size()
    student = Student(lesson.model, units, lesson.names, course.shards)
    kept, factors = _best_start(problem, lesson, student, course, packer, size)
    kept = _fitted(problem, kept, packer, size)[0]
    set_gates(student, hard_gates(units, kept), each)
    before, loss_before = quality(lesson, each), lesson.loss(each)
    schedule = Schedule(
        course.steps,
        None if course.target is None else _payload_bits(packer, size),
        course.multiplier,
        gates_move=not course.uniform,
    )

    def beginner(pace: float) -> Learner:
        first = first_parameters(units, problem.choices, kept, problem.bits, course.by_rows)
        return Learner(first, factors.copy(), Adam(groups={"rows": first.starts}), pace)

    def stepped(progress: Progress) -> None:
        on_step(progress)
        if saving is not None:
            saving.save(learner)

    learner = beginner(_PACES[0])
    if saving is not None:
        saving.restore(learner)
    while True:
        learn(learner, units, student, _batches(lesson, course), schedule, packer.factors, each, stepped)
        record = learning_record(lesson, before, before, learner.history, problem.vector.parameters)
        ends = learner.parameters.hardened(units)
        loss, found, after = _finished(problem, lesson, student, course, ends, record)
        if loss < loss_before:
            break
        slower = [pace for pace in _PACES if pace < learner.pace]
        told = f"{course.steps} steps lead to a loss of {loss:.4g} on the exemplars, from {loss_before:.4g}: "
        if not slower:
            on_note(told + "what is kept is that of the start, and scales alone are learned; take more steps")
            loss, found, after = _finished(problem, lesson, student, course, kept, record)
            break
        on_note(told + f"learning begins again, by steps {slower[0]:g} times as long")
        learner = beginner(slower[0])
    if loss >= loss_before:
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


def _finished(
    problem: Problem,
    lesson: Lesson,
    student: Student,
    course: Course,
    hardened: list[Hardened],
    record: LearningRecord,
) -> tuple[float, list[Hardened], LearningRecord]:
    """Returns the loss of what is kept at the size, scales fitted anew; that, and the record of it."""
    if course.target is not None:
        hardened = _fitted(problem, hardened, problem.packer(record), course.target)[0]
    refitted = _refitted(problem, lesson, student, course, hardened)
    found, after = _settled(problem, lesson, student, refitted, record, course.target)
    return lesson.loss(problem.each), found, after


def _refitted(
    problem: Problem, lesson: Lesson, student: Student, course: Course, hardened: list[Hardened]
) -> list[Hardened]:
    """Returns the same with scales fitted anew, at the first rate that lowers the loss, or as they are."""
    batches, each = _batches(lesson, course), problem.each

    def loss(kept: list[Hardened]) -> float:
        set_gates(student, hard_gates(problem.units, kept), each)
        return lesson.loss(each)

    before = loss(hardened)
    for rate in RATES if course.refit else ():
        found = refit_scales(
            problem.units,
            hardened,
            student,
            lambda step: batches(course.steps + step),
            course.refit,
            rate,
            each,
        )
        if loss(found) < before:
            return found
    return hardened


def _fitted(
    problem: Problem, hardened: list[Hardened], packer: Packer, target: int
) -> tuple[list[Hardened], int]:
    """Returns what is kept at a size, and that size; in wider levels where those given do not fill it.

    Each unit then takes the next bit-width, with its best scale at the threshold it has, as many times larger
    as the one it had is than its own best.
    """
    fitted, found = problem.fit(hardened, packer, target)
    for width in problem.bits.tolist()[1:]:
        everything = [replace(kept, thresholds=np.zeros_like(kept.thresholds)) for kept in fitted]
        if is_met(found, target) or packer.size(everything) >= target:
            break
        hardened = [
            kept if kept.bits >= width else _widened(choices, kept, width)
            for choices, kept in zip(problem.choices, hardened, strict=True)
        ]
        fitted, found = problem.fit(hardened, packer, target)
    return fitted, found


def _widened(choices: Choices, kept: Hardened, width: int) -> Hardened:
    threshold = float(np.median(kept.thresholds))
    growth = kept.scale / scale_at(choices, threshold, kept.bits)
    return replace(kept, bits=width, scale=float(np.float32(growth * scale_at(choices, threshold, width))))


def _settled(
    problem: Problem,
    lesson: Lesson,
    student: Student,
    hardened: list[Hardened],
    record: LearningRecord,
    target: int | None,
) -> tuple[list[Hardened], LearningRecord]:
    """Returns what is kept with the record of it, in at most the target together; the student holds it.

    The record says what is kept is worth, and scales fitted anew are other numbers than those before, so
    the file may have grown by some bytes; levels wider than signs are others too, by a new scale.
    """
    aim = target or 0
    for tried in range(_SETTLING):
        set_gates(student, hard_gates(problem.units, hardened), problem.each)
        settled = record.model_copy(update={"after": quality(lesson, problem.each)})
        packer = problem.packer(settled)
        found = 0 if target is None else packer.size(hardened)
        if target is None or (found <= target and (tried or is_met(found, target))):
            return hardened, settled
        aim -= max(0, found - target + _SPARE)
        if aim <= packer.empty_size():
            break
        hardened = problem.fit(hardened, packer, aim)[0]
    raise InputError(
        f"{problem.vector.source}: no thresholds bring the artifact to {target:,} bytes; ask for more"
    )


def _best_start(
    problem: Problem, lesson: Lesson, student: Student, course: Course, packer: Packer, size: int
) -> tuple[list[Hardened], Doubles]:
    """Returns the start nearest to the fine-tuned model on the exemplars, and its factors.

    Starts are the same share of every unit, or the allocation by errors, in units of each one's mean square
    or as they are.
    """
    bits, units = _payload_bits(packer, size), problem.units
    choices = relative(units, problem.choices)
    kept, factors = allocated(units, choices, bits, packer)
    starts = [uniform(units, choices, problem.bits, bits, factors)]
    if not course.uniform:
        starts += [kept, allocated(units, problem.choices, bits, packer)[0]]

    def loss(hardened: Sequence[Hardened]) -> float:
        set_gates(student, hard_gates(units, hardened), problem.each)
        return lesson.loss(problem.each)

    found = [best_growth(choices, start, loss) for start in starts]
    return min(found, key=lambda each: each[0])[1], factors


def _payload_bits(packer: Packer, target: int) -> float:
    return 8.0 * (target - packer.empty_size())


def _note_missed(found: int, target: int, on_note: Callable[[str], None]) -> None:
    """Says so where a size is not the target as it is promised."""
    if not is_met(found, target):
        on_note(
            f"the artifact takes {found:,} bytes, {found / target:.1%} of the {target:,} asked for: nothing "
            "more has changed, or whole rows of it are equal"
        )


def _batches(lesson: Lesson, course: Course) -> Callable[[int], Sequence[Loss]]:
    def losses(step: int) -> Sequence[Loss]:
        return lesson.losses(batch_rows(step, course.batch, len(lesson.lessons), course.seed), course.shards)

    return losses
