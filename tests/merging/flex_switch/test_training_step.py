"""How far a step of learning goes, and what holds the size."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.training_cases import TrainingCase, text_case

from flexswitch.merging.flex_switch import training as course
from flexswitch.merging.flex_switch.delta_rows import DeltaRows
from flexswitch.merging.flex_switch.gated_tensor import GateGradients
from flexswitch.merging.flex_switch.parameters import Parameters
from flexswitch.merging.flex_switch.rate import rate_of
from flexswitch.merging.flex_switch.training_step import Schedule, TrainingState, _gates, _move, _shift


@pytest.fixture(scope="module")
def school(tmp_path_factory: pytest.TempPathFactory) -> TrainingCase:
    return text_case(tmp_path_factory.mktemp("school"))


def test_at_a_tenth_of_the_pace_a_step_goes_a_tenth_as_far(
    school: TrainingCase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, moves = course.run_steps, []

    def learn(learner: TrainingState, *given: Any) -> None:
        before = learner.parameters.log_scales.copy()
        plain(learner, *given)
        moves.append(learner.parameters.log_scales - before)

    monkeypatch.setattr(course, "run_steps", learn)
    for pace in (1.0, 0.1):
        monkeypatch.setattr(course, "_STEP_SIZES", (pace,))
        school.learn(tmp_path / "birds.fsw", "steps=1")
    assert np.abs(moves[0]).max() > 0
    assert moves[1] == pytest.approx(moves[0] / 10, rel=1e-9)


@pytest.mark.parametrize(
    ("bits", "slope", "expected"),
    [(90, -100, -0.05), (110, -100, 0.05), (0, -1, -0.1), (900, -1, 0.1), (90, 0, 0), (90, 40, 0)],
)
def test_thresholds_are_shifted_half_way_to_the_size_where_that_is_had_by_it(
    bits: float, slope: float, expected: float
) -> None:
    assert _shift(bits, 100, slope) == pytest.approx(expected)


@pytest.mark.parametrize(("share", "weighed"), [(1.0, True), (0.96, True), (0.94, False), (0.1, False)])
def test_bits_are_not_saved_where_fewer_than_wanted_are_used(share: float, weighed: bool) -> None:
    rows, columns = 4, 32
    delta = np.random.default_rng(0).normal(size=rows * columns).astype(np.float32)
    unit = DeltaRows("w", (rows, columns), "float32", np.arange(rows), columns, delta, 1.0)
    bits, none = np.array([1, 2]), np.zeros(0)
    parameters = Parameters(bits, np.array([0, rows]), np.ones(1), none, np.zeros((1, 2)), np.zeros((1, 2)))
    gates = _gates(parameters, unit, 0, 0.0)
    rate = rate_of(np.full(rows, 5), np.ones(rows), columns, bits, np.array([0.5, 0.5]), 1.0)
    slopes = GateGradients(
        np.ones(rows), np.zeros(2), np.zeros(2)
    )  # to keep less is a loss; the width is none
    schedule = Schedule(steps=100, target=rate.bits / share, multiplier=0.0)
    _move(TrainingState(parameters, np.ones(1)), [unit], [gates], [slopes], [rate], schedule)
    assert (parameters.logits[0, 0] > parameters.logits[0, 1]) == weighed
    assert weighed or parameters.logits.tolist() == [[0, 0]]
