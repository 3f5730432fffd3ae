"""Meeting a size: the search over thresholds, and whole artifacts of random fine-tunes, without exemplars."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.checkpoints import State, memory_pair, message
from support.sparse_tensors import LAWS

from flexswitch.codecs.errors import TargetSizeError, UsageError
from flexswitch.codecs.format.container import open_artifact
from flexswitch.codecs.format.zoo import open_zoo
from flexswitch.merging.compression.compress import compress
from flexswitch.merging.compression.plan import Training
from flexswitch.merging.flex_switch.delta_rows import Quantisation
from flexswitch.merging.flex_switch.fit_to_size import fit_to_size, meets_target, scaled
from flexswitch.merging.flex_switch.size_target import target_bytes
from flexswitch.merging.methods.settings import parse_settings
from flexswitch.merging.zoos.pack import Form, create_zoo

QUANTISED = [
    Quantisation(np.array([1, 2], np.float32), 1, 0.5),
    Quantisation(np.array([0.3], np.float32), 4, 2.0),
]


LEAST = 40  # bytes of an artifact that keeps nothing


def shift_of(quantised: Sequence[Quantisation]) -> float:
    """Returns by how much the thresholds of QUANTISED were moved."""
    return math.log(float(quantised[0].thresholds[0]))


# --- the search -------------------------------------------------------------------------------------------


@LAWS
@given(
    target=st.integers(300, 10**7),
    start=st.floats(0.05, 20),
    steepness=st.floats(0.5, 12),
    foreseen=st.floats(0.5, 12),
    wobble=st.sampled_from([0.0, 0.002]),
    phase=st.floats(0, 6),
)
def test_the_size_found_is_at_most_the_target_and_near_it(
    target: int, start: float, steepness: float, foreseen: float, wobble: float, phase: float
) -> None:
    def size(quantised: Sequence[Quantisation]) -> int:
        shift = shift_of(quantised)
        return LEAST + int(
            start * target * math.exp(-steepness * shift) * (1 + wobble * math.sin(90 * shift + phase))
        )

    found, reached = fit_to_size(QUANTISED, size, lambda shift: math.exp(-foreseen * shift), LEAST, target)
    assert reached == size(found)
    assert meets_target(reached, target)
    assert 0.97 * target <= reached <= target


@LAWS
@given(target=st.integers(300, 10**5), jump=st.floats(1.02, 50), place=st.floats(-2, 2))
def test_a_size_that_jumps_over_the_target_ends_below_it(target: int, jump: float, place: float) -> None:
    below = max(1, int(target / jump))

    def size(quantised: Sequence[Quantisation]) -> int:
        return below if shift_of(quantised) > place else target + 1 + below

    found, reached = fit_to_size(QUANTISED, size, lambda shift: math.exp(-5 * shift), 0, target)
    assert (reached, size(found)) == (below, below)


def test_a_right_forecast_leads_to_the_size_at_once() -> None:
    tried = []

    def foreseen(shift: float) -> float:
        return math.exp(-3 * shift) / (1 + math.exp(-3 * shift))

    def size(quantised: Sequence[Quantisation]) -> int:
        tried.append(shift_of(quantised))
        return LEAST + int(10_000 * foreseen(tried[-1]))

    _, reached = fit_to_size(QUANTISED, size, foreseen, LEAST, 1000)
    assert 990 <= reached <= 1000
    assert len(tried) == 2


def test_what_is_small_enough_with_everything_kept_is_left_at_that() -> None:
    found, reached = fit_to_size(QUANTISED, lambda quantised: 100, lambda shift: min(1, -shift), 0, 1000)
    assert reached == 100
    assert not meets_target(reached, 1000)
    assert found[0].thresholds.max() < 1e-3


@pytest.mark.parametrize("start", [-3.0, 0.0, 2.0])
def test_where_keeping_more_takes_less_the_search_ends_at_the_most(start: float) -> None:
    """Once all entries are kept no mask is stored: sizes rise to 1,000 and fall again."""
    tried = []

    def foreseen(shift: float) -> float:
        return 600 + 400 / (1 + max(shift + start, 0) ** 2)

    def size(quantised: Sequence[Quantisation]) -> int:
        tried.append(shift_of(quantised) + start)
        return int(600 + 400 / (1 + tried[-1] ** 2))

    found, reached = fit_to_size(QUANTISED, size, foreseen, 0, 1500)
    assert reached == max(int(600 + 400 / (1 + shift**2)) for shift in tried)
    assert reached == size(found)
    assert len(tried) <= 4
    if start >= 0:
        assert reached > 950


def test_only_thresholds_are_scaled_and_each_by_the_same_factor() -> None:
    found = scaled(QUANTISED, math.log(2))
    assert [each.thresholds.tolist() for each in found] == [[2, 4], [pytest.approx(0.6)]]
    assert [(each.bits, each.scale) for each in found] == [(each.bits, each.scale) for each in QUANTISED]
    assert QUANTISED[0].thresholds.tolist() == [1, 2]


# --- what is asked for ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("400KB", 400_000),
        ("1MB", 1_000_000),
        ("2.5KB", 2500),
        ("700", 700),
        ("0.5%", 20_000),
        (".5%", 20_000),
        ("0.16bpp", 20_000),
        ("2bpp", 250_000),
    ],
)
def test_a_size_is_bytes_a_share_of_float32_or_bits_a_parameter(text: str, expected: int) -> None:
    assert target_bytes(text, 1_000_000) == expected


@pytest.mark.parametrize("text", ["", "much", "-1%", "5 %", "%", "1e3bpp", "0.5", "KB"])
def test_another_size_is_refused(text: str) -> None:
    found_message = message(UsageError, lambda: target_bytes(text, 1000))
    assert found_message == (
        f"target size '{text}': expected bytes (400KB), a share of float32 (0.5%) or bits per parameter (0.16bpp)"
    )


# --- whole artifacts --------------------------------------------------------------------------------------


def random_pair(seed: int) -> tuple[State, State]:
    """Returns a base and a fine-tune of it: tensors of many sizes, their changes of many sizes and kinds."""
    generator = np.random.default_rng(seed)
    base: State = {}
    finetuned: State = {}
    for number in range(int(generator.integers(3, 8))):
        shape = tuple(generator.integers(3, 150, int(generator.choice([1, 2, 2, 2, 3], 1)[0])).tolist())
        shape = shape[:2] + tuple(min(side, 9) for side in shape[2:])
        change = generator.normal(size=shape) * 10 ** generator.uniform(-4, -1)
        if number % 3:
            change *= np.exp(generator.normal(size=shape))
        if number % 3 == 2:
            change[generator.random(shape[0]) < 0.5] = 0
        base[f"t{number}"] = torch.from_numpy(generator.normal(size=shape)).to(torch.float32)
        finetuned[f"t{number}"] = base[f"t{number}"] + torch.from_numpy(change).to(torch.float32)
    base["big"] = torch.from_numpy(generator.normal(size=(200, 160))).to(torch.float32)
    finetuned["big"] = base["big"] + 0.01 * torch.from_numpy(generator.normal(size=(200, 160))).to(
        torch.float32
    )
    if seed % 2:
        finetuned["head.weight"] = torch.ones(3, 5)
    return base, finetuned


def allocated(
    base: State,
    finetuned: State,
    path: Path,
    *settings: str,
    on_note: Callable[[str], None] = print,
    jobs: int = 1,
) -> int:
    """Compresses without exemplars; returns the bytes of the file."""
    parsed = parse_settings(["objective=none", *settings])
    training = Training(on_note=on_note)
    compress(
        memory_pair(base, finetuned),
        path,
        path.stem,
        "flexswitch",
        parsed,
        True,
        jobs=jobs,
        training=training,
    )
    return path.stat().st_size


@pytest.mark.parametrize("seed", range(10))
def test_an_artifact_is_at_most_the_size_asked_for_and_hardly_less(seed: int, tmp_path: Path) -> None:
    base, finetuned = random_pair(seed)
    parameters = sum(tensor.numel() for tensor in base.values())
    asked = ["4KB", "2%", "0.4bpp", "6KB", "1.2%"][seed % 5]
    target = target_bytes(asked, parameters)
    notes: list[str] = []
    gates = ["uniform", "allocated"][seed // 5]
    settings = [f"target_size={asked}", f"bits={['1', '1,2,4,8', '2,3'][seed % 3]}", f"densities={gates}"]
    found = allocated(base, finetuned, tmp_path / "task.fsw", *settings, on_note=notes.append)
    assert 0.97 * target <= found <= target
    assert notes == []
    create_zoo(
        tmp_path / "zoo", [tmp_path / "task.fsw"], Form(effort="small"), None, False, lambda task: None
    )
    packed = open_zoo(tmp_path / "zoo")["task"].path.stat().st_size
    assert 0.97 * target <= packed <= target


def test_without_data_the_same_share_may_be_kept_and_what_is_kept_stand_for_all(tmp_path: Path) -> None:
    base, finetuned = random_pair(2)
    settings = ("target_size=4KB", "bits=1", "norm_compensation=1")
    allocated(base, finetuned, tmp_path / "task.fsw", *settings)
    artifact = open_artifact(tmp_path / "task.fsw")
    shares, masses = [], []
    for name, record in artifact.header.tensors.items():
        delta = (finetuned[name] - base[name]).abs().double()
        if record.kept >= 100:
            shares.append(record.kept / int((delta > 0).sum()))
            masses.append(record.scale * record.kept / float(delta.sum()))
    assert len(shares) >= 3
    assert max(shares) < 1.2 * min(shares)
    assert masses == pytest.approx([1] * len(masses), rel=0.15)  # thresholds are tried in steps


def test_twice_the_size_leaves_less_error(tmp_path: Path) -> None:
    base, finetuned = random_pair(2)
    errors = []
    for asked in ("3KB", "6KB", "12KB"):
        allocated(base, finetuned, tmp_path / "task.fsw", f"target_size={asked}", "densities=allocated")
        artifact = open_artifact(tmp_path / "task.fsw")
        error = 0.0
        for name in base:
            delta = (finetuned[name] - base[name]).reshape(-1).double()
            if name in artifact.header.tensors:
                scale = artifact.header.tensors[name].scale
                delta -= torch.from_numpy(np.concatenate(list(artifact.sparse(name).dense_blocks(scale))))
            error += float(delta.square().sum())
        errors.append(error)
    assert errors[0] > 1.1 * errors[1] > 1.21 * errors[2]


def test_a_size_that_the_tasks_own_tensors_take_is_refused(tmp_path: Path) -> None:
    base, finetuned = random_pair(2)
    finetuned["head.weight"] = torch.randn(50, 50, generator=torch.Generator().manual_seed(3))
    found_message = message(
        TargetSizeError, lambda: allocated(base, finetuned, tmp_path / "a.fsw", "target_size=8KB")
    )
    assert found_message.startswith(
        "finetuned: target size 8KB is 8,000 bytes, and the task's own tensors (its head) with"
    )
    assert found_message.endswith("of them; ask for more than that")
    assert not (tmp_path / "a.fsw").exists()


@pytest.mark.parametrize("target", [2000, 3000, 4000])
def test_a_size_is_met_where_all_entries_are_equal(target: int, tmp_path: Path) -> None:
    signs = np.sign(np.random.default_rng(0).normal(size=(300, 100))).astype(np.float32)
    base, finetuned = {"w": torch.zeros(300, 100)}, {"w": torch.from_numpy(signs)}
    notes: list[str] = []
    settings = (f"target_size={target}", "bits=1")
    found = allocated(base, finetuned, tmp_path / "a.fsw", *settings, on_note=notes.append)
    assert 0.97 * target <= found <= target
    assert notes == []


def test_a_size_above_all_that_changed_is_said_to_be_missed(tmp_path: Path) -> None:
    base = {"w": torch.zeros(40, 30), "v": torch.zeros(9)}
    finetuned = {"w": torch.zeros(40, 30), "v": torch.zeros(9)}
    finetuned["w"][3, ::2] = 0.5
    notes: list[str] = []
    found = allocated(base, finetuned, tmp_path / "a.fsw", "target_size=20KB", on_note=notes.append)
    assert found < 2000
    (note,) = notes
    assert note.startswith(f"the artifact takes {found:,} bytes, ")
    assert "of the 20,000 asked for: nothing more has changed, or whole rows of it are equal" in note
    assert open_artifact(tmp_path / "a.fsw").header.tensors["w"].kept == 15


def test_a_fine_tune_without_any_change_has_an_artifact_too(tmp_path: Path) -> None:
    base = {"w": torch.ones(40, 30)}
    notes: list[str] = []
    allocated(base, {"w": torch.ones(40, 30)}, tmp_path / "a.fsw", "target_size=4KB", on_note=notes.append)
    assert open_artifact(tmp_path / "a.fsw").header.tensors == {}
    assert len(notes) == 1


@pytest.mark.parametrize("above", [1, 40, 120, 400])
def test_a_size_just_above_the_least_is_not_exceeded(above: int, tmp_path: Path) -> None:
    base, finetuned = random_pair(4)
    found_message = message(
        TargetSizeError, lambda: allocated(base, finetuned, tmp_path / "a.fsw", "target_size=300")
    )
    least = int(found_message.split("take ")[1].split(" of")[0].replace(",", ""))
    target = least + len(str(least)) + above
    assert allocated(base, finetuned, tmp_path / "a.fsw", f"target_size={target}") <= target


def test_the_bytes_do_not_depend_on_threads(tmp_path: Path) -> None:
    base, finetuned = random_pair(1)
    files = [tmp_path / str(jobs) / "task.fsw" for jobs in (1, 2, 3)]
    for jobs, file in enumerate(files, 1):
        file.parent.mkdir()
        allocated(base, finetuned, file, "target_size=5KB", jobs=jobs)
    assert len({file.read_bytes() for file in files}) == 1
