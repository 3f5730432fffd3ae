"""How far a step moves the parameters, and how it holds the size."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from support.places import whole
from support.straight_through import Floats, delta_rows
from torch import Tensor, nn

from flexswitch.codecs.threads import parallel_map
from flexswitch.merging.compression.plan import Progress
from flexswitch.merging.flex_switch.delta_rows import DeltaRows
from flexswitch.merging.flex_switch.gated_model import GatedModel
from flexswitch.merging.flex_switch.parameters import Parameters, inverse_softplus
from flexswitch.merging.flex_switch.training_step import Schedule, TrainingState, run_steps

ROWS, COLUMNS = 8, 1024


class OneTensor(nn.Module):
    """A model of one tensor of zeros, whose output is that tensor."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(shape))

    def forward(self) -> Tensor:
        return self.w


def normal_delta() -> Floats:
    return np.random.default_rng(0).normal(size=(ROWS, COLUMNS)).astype(np.float32)


def initial_state(
    tensor: DeltaRows, bits: list[int], threshold: float, step_size: float = 1
) -> TrainingState:
    """Returns a state with this threshold, in units of the root mean square, and a scale of 1."""
    tables = np.zeros((1, len(bits))), np.zeros((1, len(bits)))
    free = np.array([inverse_softplus(threshold)])
    parameters = Parameters(np.array(bits), np.array([0, len(tensor.rows)]), free, np.zeros(0), *tables)
    return TrainingState(parameters, np.ones(1), step_size=step_size)


def steps(
    tensor: DeltaRows,
    state: TrainingState,
    loss: Callable[[Tensor], Tensor],
    target: float | None = None,
    count: int = 1,
) -> list[Progress]:
    """Takes steps down a loss of the weights; returns the progress after each."""
    model = GatedModel(OneTensor(tensor.shape), [tensor], whole(OneTensor(tensor.shape), {"w": "w"}), 1)
    found: list[Progress] = []
    with parallel_map(1) as each:
        run_steps(
            state,
            [tensor],
            model,
            lambda step: [lambda model: loss(model())],
            Schedule(count, target, multiplier=0.0),
            lambda quantised, factors: factors,
            each,
            found.append,
        )
    return found


def flat(weights: Tensor) -> Tensor:
    """A loss that no weight changes."""
    return 0 * weights.sum()


def test_a_step_of_a_tenth_of_the_size_moves_a_tenth_as_far() -> None:
    tensor, moves = delta_rows(normal_delta()), []
    for step_size in (1.0, 0.1):
        state = initial_state(tensor, [1, 2], 1.0, step_size)
        steps(tensor, state, lambda weights: (weights - 1).square().sum())
        moves.append(state.parameters.log_scales)
    assert np.abs(moves[0]).max() > 0
    assert moves[1] == pytest.approx(moves[0] / 10, rel=1e-9)


@pytest.mark.parametrize("wanted", [0.95, 1.05])
def test_a_step_moves_the_size_half_way_to_a_target_that_is_near(wanted: float) -> None:
    tensor = delta_rows(normal_delta())
    (first,) = steps(tensor, initial_state(tensor, [1], 1.0), flat)
    target = wanted * first.bits
    before, after = steps(tensor, initial_state(tensor, [1], 1.0), flat, target, count=2)
    assert before.bits == first.bits
    assert (after.bits - before.bits) / (target - before.bits) == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(("wanted", "shift"), [(0.1, 0.1), (2.0, -0.1)])
def test_a_step_moves_thresholds_no_further_than_a_tenth(wanted: float, shift: float) -> None:
    tensor = delta_rows(normal_delta())
    (first,) = steps(tensor, initial_state(tensor, [1], 1.0), flat)
    state = initial_state(tensor, [1], 1.0)
    before = state.parameters.free.copy()
    steps(tensor, state, flat, wanted * first.bits)
    assert state.parameters.free - before == pytest.approx(shift)


@pytest.mark.parametrize("wanted", [0.5, 2.0])
def test_thresholds_stay_where_keeping_more_would_take_fewer_bits(wanted: float) -> None:
    tensor = delta_rows(normal_delta())
    state = initial_state(tensor, [1], 0.05)  # keeps 96 % of the entries
    (first,) = steps(tensor, initial_state(tensor, [1], 0.05), flat)
    before = state.parameters.free.copy()
    steps(tensor, state, flat, wanted * first.bits)
    assert state.parameters.free.tolist() == before.tolist()


@pytest.mark.parametrize(("share", "weighed"), [(1.0, True), (0.96, True), (0.94, False), (0.1, False)])
def test_bits_are_not_saved_where_the_size_is_far_below_the_target(share: float, weighed: bool) -> None:
    signs = np.where(np.arange(COLUMNS) % 2, 1, -1) * np.ones((ROWS, 1))
    delta = np.where(np.arange(COLUMNS) % 4 < 2, signs, 0).astype(np.float32)
    tensor, direction = delta_rows(delta), torch.from_numpy(delta)

    def loss(weights: Tensor) -> Tensor:
        """Rises where less is kept; both bit-widths give the same weights."""
        return -(weights * direction).sum()

    (first,) = steps(tensor, initial_state(tensor, [1, 2], 0.5), loss)
    state = initial_state(tensor, [1, 2], 0.5)
    steps(tensor, state, loss, first.bits / share)
    logits = state.parameters.logits
    assert (logits[0, 0] > logits[0, 1]) == weighed
    assert weighed or logits.tolist() == [[0, 0]]
