"""ComPEFT, which looks at all tensors first, against docs/methods.md §6.18, written anew on the flat vector."""

import math
from decimal import ROUND_FLOOR, Decimal
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.checkpoints import (
    State,
    compressed,
    extracted,
    file_pair,
    job,
    memory_pair,
    message,
    use_small_blocks,
)
from support.deltas import Floats, delta, marked, normal
from support.sparse_tensors import LAWS

from flexswitch.codecs.errors import UsageError
from flexswitch.merging.compression import compeft as compeft_module
from flexswitch.merging.compression.compeft import compeft
from flexswitch.merging.compression.plan import Job, Plan
from flexswitch.merging.compression.t_switch import t_switch
from flexswitch.merging.task_vectors.artifact_vector import ArtifactVector
from flexswitch.merging.task_vectors.task_vector import TaskVector, delta_tensor

SHAPES = {"a": (30, 40), "b.weight": (17,), "c": (2, 3, 5), "d": (4, 4)}


def states(seed: int = 0) -> tuple[State, State]:
    """Returns a base of zeros and a fine-tuned state of ties, zeros and tensors of other spreads."""
    tuned = {}
    for place, (name, shape) in enumerate(SHAPES.items()):
        values = np.round(normal(shape, seed + place) * 8) / 8 * (place != 3)
        tuned[name] = torch.from_numpy(values * 10.0 ** (place - 1))
    return {name: torch.zeros(shape) for name, shape in SHAPES.items()}, tuned


def reference(tuned: State, density: str, alpha: float) -> dict[str, Floats]:
    """Returns alpha · std(τ) · sign of the largest entries of the concatenated vector, by sorting."""
    flat = np.concatenate([tuned[name].numpy().reshape(-1).astype(np.float64) for name in sorted(tuned)])
    count = int((Decimal(density) * len(flat)).to_integral_value(ROUND_FLOOR))
    least = np.sort(np.abs(flat))[::-1][count - 1] if count else math.inf
    scale = np.float32(alpha * np.std(flat))
    return {
        name: np.where(
            (np.abs(values.numpy()) >= least) & (values.numpy() != 0), scale * np.sign(values.numpy()), 0
        ).astype(np.float32)
        for name, values in tuned.items()
    }


@pytest.mark.parametrize("alpha", [1.0, 0.25, 7])
@pytest.mark.parametrize("density", ["0.0001", "0.01", "0.05", "0.3", "1"])
def test_the_flat_vector_is_cut_at_one_threshold(tmp_path: Path, density: str, alpha: float) -> None:
    base, tuned = states()
    artifact = compressed(
        memory_pair(base, tuned), tmp_path / "t.fsw", "compeft", density=density, alpha=alpha
    )
    vector = ArtifactVector(artifact)
    for name, expected in reference(tuned, density, alpha).items():
        if not expected.any():
            assert name not in vector.tensors
            continue
        found = delta_tensor(vector, name).numpy()
        assert np.sign(found).tolist() == np.sign(expected).tolist()
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert len({record.scale for record in artifact.header.tensors.values()}) <= 1


@LAWS
@given(seed=st.integers(0, 999), density=st.sampled_from(["0.02", "0.11", "0.5"]))
def test_the_histograms_find_what_sorting_finds(seed: int, density: str) -> None:
    base, tuned = states(seed)
    pair = memory_pair(base, tuned)
    plan = compeft(pair, job(), density=float(density))
    for name, expected in reference(tuned, density, 1.0).items():
        flat = tuned[name].numpy().reshape(-1)
        assert marked(plan.compress(delta(flat))).tolist() == (expected.reshape(-1) != 0).tolist()


@pytest.mark.parametrize("jobs", [1, 2, 3])
@pytest.mark.parametrize("block", [8, 64, 1 << 18])
def test_neither_threads_nor_blocks_change_the_plan(
    monkeypatch: pytest.MonkeyPatch, jobs: int, block: int
) -> None:
    use_small_blocks(monkeypatch, block)
    base = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    tuned = {name: torch.from_numpy(normal(shape)) for name, shape in SHAPES.items()}
    keywords = compeft(memory_pair(base, tuned), job(jobs=jobs)).compress.args  # type: ignore[attr-defined]
    monkeypatch.undo()
    assert keywords == compeft(memory_pair(base, tuned), job()).compress.args  # type: ignore[attr-defined]


def test_unchanged_tensors_count_whether_they_are_listed_or_not(tmp_path: Path) -> None:
    pair = file_pair(tmp_path, *states())
    through = extracted(pair, tmp_path / "t.tv.safetensors")
    straight = compressed(pair, tmp_path / "one.fsw", "compeft").path.read_bytes()
    assert compressed(through, tmp_path / "two.fsw", "compeft").path.read_bytes() == straight


@pytest.mark.parametrize("shape", [(5, 6), (0, 4)])
def test_a_task_vector_of_zeros_or_nothing_gives_nothing(tmp_path: Path, shape: tuple[int, ...]) -> None:
    state = {"w": torch.ones(shape)}
    assert not compressed(memory_pair(state, state), tmp_path / "t.fsw", "compeft").header.tensors


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ({"density": 0.0}, "setting density=0.0 of compeft: expected a number above 0 and of at most 1"),
        ({"density": 1.5}, "setting density=1.5 of compeft: expected a number above 0 and of at most 1"),
        ({"alpha": 0.0}, "setting alpha=0.0 of compeft: expected a number above 0"),
        ({"alpha": -1.0}, "setting alpha=-1.0 of compeft: expected a number above 0"),
    ],
)
def test_a_setting_outside_its_range_is_refused(tmp_path: Path, setting: dict[str, float], told: str) -> None:
    pair, path = memory_pair(*states()), tmp_path / "t.fsw"
    assert message(UsageError, lambda: compressed(pair, path, "compeft", **setting)) == told
    assert list(tmp_path.iterdir()) == []


def test_a_scale_beyond_float32_is_refused(tmp_path: Path) -> None:
    pair = memory_pair(*states())
    told = message(UsageError, lambda: compressed(pair, tmp_path / "t.fsw", "compeft", alpha=3e38))
    assert told.startswith("alpha=3e+38: times the deviation of ")
    assert told.endswith(" it is beyond float32")


def test_a_plan_says_with_which_effort_its_tensors_are_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = {"w": torch.zeros(400, 300)}
    pair = memory_pair(base, {"w": torch.from_numpy(normal((400, 300)) * (np.arange(300) % 9 == 0))})
    sizes = {}
    for effort in ("fast", "small"):

        def planned(vector: TaskVector, job: Job, effort: str = effort, **settings: float) -> Plan:
            assert (vector, job.task) == (pair, "task")
            return Plan(partial(t_switch, drop=0.5), effort)

        monkeypatch.setattr(compeft_module, "compeft", planned)
        sizes[effort] = compressed(pair, tmp_path / "t.fsw", "compeft").header.tensors["w"].size
    assert sizes["small"] < 0.9 * sizes["fast"]
