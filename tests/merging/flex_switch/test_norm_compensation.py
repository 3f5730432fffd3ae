"""How far a model moved decides how much its kept entries make up for the others."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from support.checkpoints import State, compressed, extracted, file_pair, memory_pair
from torch import Tensor

from flexswitch.merging.flex_switch.norm_compensation import default_power
from flexswitch.merging.task_vectors.relative_change import change_against
from flexswitch.merging.task_vectors.task_vector import TaskVector

GENERATOR = torch.Generator().manual_seed(3)


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=GENERATOR)


BASE: State = {"a": normal(160, 150), "b": normal(140, 150), "huge": 1000 * normal(30, 30)}


def moved(factor: float) -> State:
    """Returns weights that moved by about so much of their norm, one tensor not at all."""
    return {name: BASE[name] + factor * normal(*BASE[name].shape) for name in "ab"} | {"huge": BASE["huge"]}


def norm(*arrays: Tensor) -> float:
    return float(np.linalg.norm(np.concatenate([array.double().numpy().ravel() for array in arrays])))


def change_of(base: State, tuned: State) -> float:
    pair = memory_pair(base, tuned)
    return change_against(pair.base, pair)


@pytest.mark.parametrize("factor", [0.01, 0.3, 2.0])
def test_the_change_is_that_of_the_tensors_that_moved(factor: float) -> None:
    tuned = moved(factor)
    expected = norm(*(tuned[name] - BASE[name] for name in "ab")) / norm(BASE["a"], BASE["b"])
    assert change_of(BASE, tuned) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("base", "tuned", "expected"),
    [
        pytest.param([1.0, 2.0], [1.0, 2.0], 0, id="nothing moved"),
        pytest.param([0.0, 0.0], [3.0, 4.0], 1e38, id="weights that were 0"),
        pytest.param([math.inf, 3.0, 4.0], [math.inf, 3.0, 3.0], 0.2, id="a weight that is infinite"),
        pytest.param([1e30, 0.0], [1e30, 1e20], 1e-10, id="squares beyond float32"),
    ],
)
def test_the_change_of_extreme_weights(base: list[float], tuned: list[float], expected: float) -> None:
    states: list[State] = [{"a": torch.tensor(values)} for values in (base, tuned)]
    assert change_of(*states) == pytest.approx(expected, rel=1e-3)


def test_the_power_falls_with_the_change_and_a_file_knows_it(tmp_path: Path) -> None:
    powers = []
    for number, factor in enumerate((0.0005, 0.005, 0.1, 0.3, 1.0)):
        pair = memory_pair(BASE, moved(factor))
        file = extracted(pair, tmp_path / f"{number}.tv.safetensors")
        assert file.header.relative_change == change_against(pair.base, pair)
        assert default_power(file) == default_power(pair)
        powers.append(default_power(pair))
    assert powers == sorted(powers, reverse=True)
    assert powers[0] == pytest.approx(0.7, rel=1e-3)
    assert powers[-1] < 1e-4


def test_a_far_change_is_compressed_no_further_off_than_the_base(tmp_path: Path) -> None:
    settings = {"objective": "none", "target_size": "2KB"}

    def error(vector: TaskVector, name: str, **more: object) -> float:
        record = compressed(vector, tmp_path / name, "flexswitch", **settings, **more).header.error
        return record.relative

    pair = file_pair(tmp_path, BASE, moved(1.0))
    assert error(pair, "default.fsw") < 1 < error(pair, "as near.fsw", norm_compensation=0.7)
    file = extracted(pair, tmp_path / "far.tv.safetensors")
    compressed(file, tmp_path / "file.fsw", "flexswitch", **settings)
    assert (tmp_path / "file.fsw").read_bytes() == (tmp_path / "default.fsw").read_bytes()
