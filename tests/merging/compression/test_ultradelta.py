"""UltraDelta against docs/methods.md §6.26, written anew in numpy and float64, entry by entry."""

import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from support import laws
from support.checkpoints import compressed, job, memory_pair, message
from support.deltas import BLOCKS, Floats, delta, dense, marked, normal

from flexswitch.codecs.errors import UsageError
from flexswitch.merging.compression.plan import Plan, plan
from flexswitch.merging.compression.ultradelta import drop_rates
from flexswitch.merging.task_vectors.artifact_vector import ArtifactVector
from flexswitch.merging.task_vectors.task_vector import delta_tensor


def made(changes: dict[str, Floats], **settings: Any) -> Plan:
    """Returns the plan for these changes of a base of zeros."""
    base = {name: torch.zeros(*change.shape) for name, change in changes.items()}
    pair = memory_pair(base, {name: torch.from_numpy(change) for name, change in changes.items()})
    found = plan("ultradelta", pair, job("ultradelta"), settings)
    assert isinstance(found, Plan)
    return found


def level_of(value: float, largest: float, bits: int) -> int:
    steps = 2**bits - 1
    return min(math.floor((value / largest * steps + steps) / 2 + 0.5), steps)


def reference_rates(changes: dict[str, Floats], drop: float, step: float, bits: int) -> dict[str, float]:
    """Returns the drop rate of each tensor, by the deviation of its changed entries on their levels."""
    steps, deviations = 2**bits - 1, {}
    for name, change in changes.items():
        flat = change[change != 0].astype(np.float64)
        largest = np.abs(flat).max()
        values = [largest * (2 * level_of(value, largest, bits) - steps) / steps for value in flat]
        deviations[name] = (float(np.std(values)), len(flat))
    total, passed, dropped, late, rates = sum(count for _, count in deviations.values()), 0, 0.0, [], {}
    for name, (_, count) in sorted(deviations.items(), key=lambda item: item[1][0]):
        passed += count
        if passed <= total / 3:
            rates[name] = min(1.0, drop + step)
        elif passed <= 2 * total / 3:
            rates[name] = drop
        else:
            late.append(name)
            continue
        dropped += rates[name] * count
    rest = sum(deviations[name][1] for name in late)
    for name in late:
        rates[name] = min(1.0, max(0.0, (drop * total - dropped) / rest))
    return rates


def reference_kept(change: Floats, name: str, rate: float, bits: int, seed: int) -> NDArray[np.bool_]:
    """Returns which entries stay: of each level a sample of n − round(n · rate), drawn in flat order."""
    flat = change.reshape(-1)
    largest = float(np.abs(flat).max())
    generator = np.random.PCG64(
        int.from_bytes(hashlib.sha256(f"{seed}\0task\0{name}".encode()).digest(), "little")
    )
    draws = [(int(generator.random_raw()) >> 11) / 2**53 for _ in flat]
    levels = [level_of(float(value), largest, bits) for value in flat]
    left = {
        level: sum(1 for each, value in zip(levels, flat, strict=True) if each == level and value)
        for level in levels
    }
    wanted = {level: count - round(count * rate) for level, count in left.items()}
    kept = np.zeros(len(flat), np.bool_)
    for index, (level, value, draw) in enumerate(zip(levels, flat, draws, strict=True)):
        if value:
            kept[index] = draw * left[level] < wanted[level]
            left[level] -= 1
            wanted[level] -= kept[index]
    return kept


def some_changes(seed: int) -> dict[str, Floats]:
    """Returns changes of three matrices, some entries 0."""
    found = {f"w{place}": normal((5 + place, 7), seed + place) * np.float32(place + 1) for place in range(3)}
    for change in found.values():
        change[change < -1.2] = 0
    return found


@laws.settings(40)
@given(
    drop=st.sampled_from([0.0, 0.3, 0.5, 0.9, 0.97]), step=st.sampled_from([0.0, 0.01, 0.2]),
    bits=st.integers(1, 8), seed=st.integers(0, 50), block=BLOCKS,
)  # fmt: skip
def test_every_level_keeps_its_share_of_the_entries(
    drop: float, step: float, bits: int, seed: int, block: int
) -> None:
    changes = some_changes(seed)
    chosen, rates = (
        made(changes, drop=drop, step=step, bits=bits, seed=seed),
        reference_rates(changes, drop, step, bits),
    )
    for name, change in changes.items():
        found = chosen.compress(delta(change, block, name))
        kept, largest = reference_kept(change, name, rates[name], bits, seed), float(np.abs(change).max())
        assert marked(found).tolist() == kept.tolist()
        steps = 2**bits - 1
        values = [(2 * level_of(float(value), largest, bits) - steps) / steps for value in change.reshape(-1)]
        expected = np.where(kept, np.array(values) * largest / (1 - drop), 0)
        np.testing.assert_allclose(dense(found), expected, rtol=1e-6)


def test_as_much_is_dropped_as_asked_and_the_mean_is_kept() -> None:
    generator = np.random.default_rng(0)
    changes = {
        f"w{place}": (np.abs(generator.normal(size=(200, 150))) * (place + 1)).astype(np.float32)
        for place in range(6)
    }
    chosen = made(changes, drop=0.9, step=0.05)
    kept, sums = 0, np.zeros(2)
    for name, change in changes.items():
        found = chosen.compress(delta(change, name=name))
        kept += int(marked(found).sum())
        sums += dense(found).sum(), change.sum()
    assert kept == pytest.approx(0.1 * 6 * 30_000, rel=2e-3)
    assert sums[0] == pytest.approx(sums[1], rel=0.3)  # the third of largest variance keeps more
    shares = [marked(chosen.compress(delta(change, name=name))).mean() for name, change in changes.items()]
    np.testing.assert_allclose(shares, [0.05, 0.05, 0.1, 0.1, 0.15, 0.15], atol=2e-3)


@pytest.mark.parametrize(
    ("tensors", "drop", "step", "expected"),
    [
        ({}, 0.9, 0.01, {}),
        ({"a": (1.0, 9)}, 0.9, 0.01, {"a": 0.9}),
        ({"a": (2.0, 1), "b": (1.0, 1), "c": (3.0, 1)}, 0.9, 0.05, {"b": 0.95, "a": 0.9, "c": 0.85}),
        ({"a": (1.0, 1), "b": (1.0, 1), "c": (1.0, 1)}, 0.5, 0.1, {"a": 0.6, "b": 0.5, "c": 0.4}),
        ({"a": (1.0, 1), "b": (2.0, 1), "c": (3.0, 1)}, 0.99, 0.5, {"a": 1.0, "b": 0.99, "c": 0.98}),
        ({"a": (1.0, 1), "b": (2.0, 1), "c": (3.0, 1)}, 0.1, 0.5, {"a": 0.6, "b": 0.1, "c": 0.0}),
        ({"a": (1.0, 8), "b": (2.0, 1)}, 0.5, 0.1, {"a": 0.5, "b": 0.5}),
    ],
)
def test_rates_by_rising_deviation(
    tensors: dict[str, tuple[float, int]], drop: float, step: float, expected: dict[str, float]
) -> None:
    assert drop_rates(tensors, drop, step) == pytest.approx(expected)


def test_gamma_makes_every_value_smaller(tmp_path: Path) -> None:
    base, tuned = {"w": torch.zeros(30, 40)}, {"w": torch.from_numpy(normal((30, 40)))}
    whole, half = (
        delta_tensor(
            ArtifactVector(
                compressed(memory_pair(base, tuned), tmp_path / f"{gamma}.fsw", "ultradelta", gamma=gamma)
            ),
            "w",
        )
        for gamma in (1.0, 0.5)
    )
    torch.testing.assert_close(half, 0.5 * whole)


@pytest.mark.parametrize("others", ["keep", "drop"])
def test_vectors_are_kept_or_left_out_and_unchanged_matrices_stay(others: str) -> None:
    changes = {"bias": normal((6,)), "w": np.zeros((4, 5), np.float32), "conv": normal((3, 4, 5))}
    chosen = made(changes, others=others, drop=0.5)
    bias = dense(chosen.compress(delta(changes["bias"], name="bias")))
    rounded = torch.from_numpy(changes["bias"]).to(torch.bfloat16).float().tolist()
    assert bias.tolist() == (rounded if others == "keep" else [0] * 6)
    assert not dense(chosen.compress(delta(changes["w"], name="w"))).any()
    assert chosen.compress(delta(changes["conv"], name="conv")).sparse.bits == 4


def test_a_value_that_grows_beyond_float32_is_refused() -> None:
    changes = {"w": np.full((2, 2), 1e38, np.float32)}
    told = message(UsageError, lambda: made(changes, drop=0.9))
    assert told.endswith(
        ": tensor 'w': its change of 1e+38, enlarged by gamma=1 / (1 − drop=0.9), is beyond float32; lower drop "
        "or gamma"
    )
    made(changes, drop=0.9, gamma=0.3)
