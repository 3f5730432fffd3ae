"""T-Switch and P-Discard against methods, §2, written anew by sorting; and compression from end to end."""

import json
import math
import threading
from collections.abc import Iterator
from decimal import ROUND_FLOOR, Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import (
    State,
    assert_same_state,
    compressed,
    extracted,
    file_pair,
    job,
    law_settings,
    memory_pair,
    message,
    save_model,
    use_small_blocks,
)
from deltas import TINY, Floats, delta, dense, normal
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from flexswitch.codecs.container import open_artifact
from flexswitch.codecs.errors import InputError, UsageError
from flexswitch.codecs.records import METADATA_KEY
from flexswitch.codecs.safetensors_file import read_header
from flexswitch.merging.checkpoint import open_checkpoint
from flexswitch.merging.checkpoint_pair import CheckpointPair
from flexswitch.merging.compression import compress as compress_module
from flexswitch.merging.compression.compress import compress
from flexswitch.merging.compression.compressed import Compressed
from flexswitch.merging.compression.magnitude import kept_count
from flexswitch.merging.compression.registry import METHODS, NAMES, get_method, plan
from flexswitch.merging.settings import parse_settings
from flexswitch.merging.task_vector import ArtifactVector, delta_tensor, restore

DROPS = ["0", "0.4", "0.6", "0.7", "0.93", "0.97"]


def reference_mask(values: Floats, drop: str) -> NDArray[np.bool_]:
    """Returns which entries are kept: of each sign the ⌊(1 − α)·n⌋ largest, and all that equal the last."""
    flat = [float(value) for value in values.reshape(-1)]
    kept = np.zeros(len(flat), np.bool_)
    for side in ([v if v > 0 else 0.0 for v in flat], [-v if v < 0 else 0.0 for v in flat]):
        ranked = sorted((magnitude for magnitude in side if magnitude), reverse=True)
        count = int(((1 - Decimal(drop)) * len(ranked)).to_integral_value(ROUND_FLOOR))
        if count:
            kept |= np.array(side) >= ranked[count - 1]
    return kept


def reference_scale(kept_values: Floats) -> np.float32:
    """Returns ‖kept‖₂ / √(number kept) in float64, rounded once."""
    if not len(kept_values):
        return np.float32(0)
    norm = math.sqrt(math.fsum(float(value) ** 2 for value in kept_values))
    return np.float32(norm / math.sqrt(len(kept_values)))


def run(method: str, values: Floats, drop: str, block: int = 1 << 20) -> Compressed:
    before = values.copy()
    given_settings = parse_settings(method, METHODS[method], [f"drop={drop}"])
    found = METHODS[method](delta(values, block), **given_settings)
    np.testing.assert_array_equal(values, before)
    return found


def check(values: Floats, drop: str, block: int = 1 << 20) -> None:
    """Checks mask, signs, values and scale of both methods."""
    flat, kept = values.reshape(-1), reference_mask(values, drop)
    mask = np.packbits(kept, bitorder="little")
    switch, discard = run("t-switch", values, drop, block), run("p-discard", values, drop, block)
    for found in (switch, discard):
        assert found.sparse.shape == values.shape
        np.testing.assert_array_equal(found.sparse.mask, mask)
    assert switch.sparse.bits == 1
    np.testing.assert_array_equal(switch.sparse.levels, (flat[kept] > 0).astype(np.uint8))
    assert switch.scale == reference_scale(flat[kept])
    assert (discard.sparse.bits, discard.scale) == (32, 1)
    np.testing.assert_array_equal(discard.sparse.levels, flat[kept].view(np.uint32))
    signs = np.where(kept, np.sign(flat), 0).astype(np.float32)
    np.testing.assert_array_equal(dense(switch), np.float32(switch.scale) * signs)
    np.testing.assert_array_equal(dense(discard), np.where(kept, flat, np.float32(0)))


@pytest.mark.parametrize("drop", DROPS)
@pytest.mark.parametrize("shape", [(1,), (3,), (7, 11), (1, 1, 1), (2, 3, 5, 7), (100,), (64, 8), (0, 4)])
def test_any_shape_agrees_with_the_text(shape: tuple[int, ...], drop: str) -> None:
    check(normal(shape, seed=len(drop)), drop)


@pytest.mark.parametrize("drop", DROPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_deltas_of_any_dtype_agree_with_the_text(drop: str, dtype: torch.dtype) -> None:
    base = torch.from_numpy(normal((37, 29))).to(dtype)
    finetuned = base + torch.from_numpy(normal((37, 29), seed=1) * 0.01).to(dtype)
    delta = delta_tensor(memory_pair({"w": base}, {"w": finetuned}), "w").numpy()
    assert len(np.unique(delta)) < delta.size or dtype == torch.float32  # ties and zeros, from rounding
    check(delta, drop)


@pytest.mark.parametrize("drop", DROPS)
@pytest.mark.parametrize(
    "values",
    [
        [0.0] * 9,
        [-0.0] * 9,
        [2.0, 1.0, 3.0, 0.0, 5.0, 4.0],
        [-2.0, -1.0, -3.0, -0.0, -5.0, -4.0],
        [1.0] * 20 + [-1.0] * 7,
        [1.0] * 10 + [2.0] + [-3.0, 0.0, -0.0],
        [TINY, 2 * TINY, -TINY, 3 * TINY, 0.0],
        [1e-39, -1e-39, 1.1754944e-38, -1.1754944e-38, 3e38, -3e38, 1.0],
        [1.0, 1.0000001, 1.0000002, 1.0000004, -1.0, -1.0000001],
    ],
)
def test_ties_zeros_one_sided_and_extreme_deltas_agree_with_the_text(values: list[float], drop: str) -> None:
    check(np.array(values, np.float32), drop)


FEW_VALUES = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1.0000001, 0.5, -0.5, TINY, -TINY, 1e-38, 3e38, -3e38])
ANY_FLOAT = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(deadline=None, max_examples=100)
@given(
    st.one_of(
        arrays(np.float32, array_shapes(max_dims=3, max_side=9), elements=elements, fill=st.nothing())
        for elements in (FEW_VALUES, ANY_FLOAT)
    ),
    st.sampled_from(DROPS) | st.decimals(0, "0.999", places=3).map(str),
    st.sampled_from([8, 16, 1 << 20]),
)
@example(np.array([3e38, -3e38, TINY], np.float32), "0", 8)
def test_any_array_agrees_with_the_text(values: Floats, drop: str, block: int) -> None:
    check(values, drop, block)


@pytest.mark.parametrize("block", [8, 24, 64])
def test_the_borders_of_blocks_change_nothing(block: int) -> None:
    values = np.round(normal((13, 17)), 1)  # ties on both sides of borders
    for drop in DROPS:
        check(values, drop, block)


@pytest.mark.parametrize(
    ("drop", "count", "kept"),
    [("0.93", 100, 7), ("0.97", 100, 3), ("0.97", 300, 9), ("0.9", 10, 1), ("0.7", 10, 3), ("0.6", 5, 2),
     ("0", 7, 7), ("0.99", 99, 0), ("1e-05", 100_000, 99_999)],
)  # fmt: skip
def test_a_drop_rate_is_read_as_a_decimal(drop: str, count: int, kept: int) -> None:
    assert kept_count(float(drop), count) == kept
    values = np.arange(1, min(count, 300) + 1, dtype=np.float32)
    if count <= 300:
        assert int(reference_mask(values, drop).sum()) == kept
        assert len(run("t-switch", values, drop).sparse.levels) == kept
        assert len(run("t-switch", -values, drop).sparse.levels) == kept


def test_each_sign_keeps_its_own_largest() -> None:
    values = np.array([9.0, 8.0, 7.0, 6.0, 0.0, -0.1, -0.2, -0.3, -0.4], np.float32)
    found = run("t-switch", values, "0.5")
    expected = np.sqrt(np.float64(9**2 + 8**2 + np.float64(values[7]) ** 2 + np.float64(values[8]) ** 2) / 4)
    assert found.scale == np.float32(expected)
    assert dense(found).tolist() == [found.scale, found.scale, 0, 0, 0, 0, 0, -found.scale, -found.scale]


def test_a_side_too_small_to_keep_anything_keeps_nothing() -> None:
    values = np.array([5.0, -1.0, -2.0, -3.0, -4.0], np.float32)
    assert dense(run("p-discard", values, "0.6")).tolist() == [0, 0, 0, 0, -4]


def test_all_entries_that_equal_the_threshold_are_kept() -> None:
    values = np.array([3.0, 2.0, 2.0, 2.0, 1.0], np.float32)
    assert dense(run("p-discard", values, "0.6")).tolist() == [3, 2, 2, 2, 0]


def test_a_binarised_delta_has_the_norm_of_what_was_kept() -> None:
    values = normal((40, 25))
    switch, discard = dense(run("t-switch", values, "0.6")), dense(run("p-discard", values, "0.6"))
    np.testing.assert_allclose(np.linalg.norm(switch), np.linalg.norm(discard), rtol=1e-6)


@pytest.mark.parametrize("method", ["t-switch", "p-discard", "bin-discard", "dare"])
@pytest.mark.parametrize("drop", [1.0, -0.1, 1.5])
def test_a_drop_rate_outside_its_range_is_refused(tmp_path: Path, method: str, drop: float) -> None:
    path = tmp_path / "t.fsw"
    pair = memory_pair({"w": torch.zeros(3)}, {"w": torch.ones(3)})
    found = message(UsageError, lambda: compress(pair, path, "t", method, {"drop": drop}, False))
    assert found == f"drop={drop}: expected a share of at least 0 and below 1"
    assert not path.exists()


def test_an_unknown_method_is_refused_with_the_nearest() -> None:
    assert message(UsageError, lambda: get_method("tswitch")) == (
        f"no compression method is named 'tswitch'; did you mean 't-switch'? (known: {', '.join(NAMES)})"
    )


STATE: State = {
    "a.weight": torch.from_numpy(normal((9, 13))),
    "b.weight": torch.from_numpy(normal((40,), 1)).to(torch.bfloat16),
    "c.unchanged": torch.ones(5),
    "n": torch.tensor([1, 2]),
}
TUNED: State = {
    "a.weight": STATE["a.weight"] + torch.from_numpy(normal((9, 13), 2)) * 0.1,
    "b.weight": STATE["b.weight"] + torch.from_numpy(normal((40,), 3)).to(torch.bfloat16),
    "c.unchanged": torch.ones(5),
    "n": torch.tensor([1, 3]),
    "head": torch.from_numpy(normal((3, 13), 4)).to(torch.float16),
}


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("small_blocks", [False, True])
@pytest.mark.parametrize("method", ["t-switch", "p-discard"])
@pytest.mark.parametrize("drop", [0.0, 0.6])
def test_an_artifact_gives_back_base_plus_the_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_blocks: bool, method: str, drop: float
) -> None:
    if small_blocks:
        use_small_blocks(monkeypatch)
        monkeypatch.setattr(compress_module, "_CACHED_ENTRIES", 20)
    pair = file_pair(tmp_path, STATE, TUNED)
    restored = restore(
        str(tmp_path / "base.safetensors"), compressed(pair, tmp_path / "t.fsw", method, drop=drop)
    )
    expected = dict(TUNED)
    for name in ("a.weight", "b.weight"):
        delta = (TUNED[name].float() - STATE[name].float()).numpy()
        kept = reference_mask(delta, str(drop)).reshape(delta.shape)
        values = np.sign(delta) * reference_scale(delta[kept]) if method == "t-switch" else delta
        kept_delta = torch.from_numpy(np.where(kept, values, 0).astype(np.float32))
        expected[name] = (STATE[name].float() + kept_delta).to(STATE[name].dtype)
    assert_same_state(restored, expected)


@pytest.mark.parametrize("method", NAMES)
def test_a_restored_model_is_the_base_plus_what_the_method_keeps(tmp_path: Path, method: str) -> None:
    pair = file_pair(tmp_path, STATE, TUNED)
    artifact = compressed(pair, tmp_path / "t.fsw", method)
    chosen = plan(method, pair, job(), artifact.header.method.settings)
    expected = dict(TUNED)
    for name in ("a.weight", "b.weight"):
        change = (TUNED[name].float() - STATE[name].float()).numpy()
        added = torch.from_numpy(dense(chosen.compress(delta(change, name=name)))).reshape(change.shape)
        expected[name] = (STATE[name].float() + added).to(STATE[name].dtype)
    assert_same_state(restore(str(tmp_path / "base.safetensors"), artifact), expected)


def test_p_discard_that_drops_nothing_gives_bfloat16_weights_back(tmp_path: Path) -> None:
    state = {"w": STATE["b.weight"]}
    pair = file_pair(tmp_path, state, {"w": TUNED["b.weight"]})
    artifact = compressed(pair, tmp_path / "t.fsw", "p-discard", drop=0.0)
    assert_same_state(restore(str(tmp_path / "base.safetensors"), artifact), {"w": TUNED["b.weight"]})


def test_lambda_scales_what_an_artifact_decodes_to(tmp_path: Path) -> None:
    pair = file_pair(tmp_path, STATE, TUNED)
    artifact = compressed(pair, tmp_path / "t.fsw")
    delta = delta_tensor(ArtifactVector(artifact), "a.weight")
    restored = restore(str(tmp_path / "base.safetensors"), artifact, lambda_=-0.5)
    assert torch.equal(restored["a.weight"], STATE["a.weight"] + -0.5 * delta)
    assert torch.equal(restored["head"], TUNED["head"])


@pytest.mark.parametrize("method", NAMES)
def test_a_task_vector_file_and_two_checkpoints_give_the_same_bytes(tmp_path: Path, method: str) -> None:
    config = {"model_type": "bert", "limit": 1.0}
    base = save_model(tmp_path / "base", STATE, config)
    tuned = {f"bert.{name}": tensor for name, tensor in TUNED.items()}
    task = save_model(tmp_path / "task", tuned, config | {"limit": math.inf, "title": "ü"}, shards=2)
    pair = CheckpointPair(open_checkpoint(str(base)), open_checkpoint(str(task)))
    straight = compressed(pair, tmp_path / "one.fsw", method)
    through = compressed(extracted(pair, tmp_path / "t.tv.safetensors"), tmp_path / "two.fsw", method)
    assert straight.path.read_bytes() == through.path.read_bytes()
    assert straight.header.model.config == {"limit": math.inf, "title": "ü"}


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("method", NAMES)
def test_the_number_of_threads_and_the_blocks_do_not_change_the_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    base, tuned = ({"w": torch.from_numpy(normal((300, 301), seed))} for seed in (0, 1))
    pair = memory_pair(base, tuned)
    two = compressed(pair, tmp_path / "two.fsw", method).path.read_bytes()
    torch.set_num_threads(1)
    assert compressed(pair, tmp_path / "one.fsw", method).path.read_bytes() == two
    use_small_blocks(monkeypatch, 4096)
    monkeypatch.setattr(compress_module, "_CACHED_ENTRIES", 0)
    assert compressed(pair, tmp_path / "blocks.fsw", method).path.read_bytes() == two


@pytest.mark.parametrize("memory", [0, 1000, 1 << 30])
@pytest.mark.parametrize("jobs", [1, 2, 3])
@pytest.mark.parametrize("method", NAMES)
def test_jobs_and_memory_do_not_change_the_bytes(tmp_path: Path, method: str, jobs: int, memory: int) -> None:
    base = {f"{place}.weight": torch.from_numpy(normal((20 * place, 7), place)) for place in range(1, 9)}
    tuned = {name: tensor * 1.5 for name, tensor in base.items()} | {"3.weight": base["3.weight"]}
    pair, heard = file_pair(tmp_path, base, tuned), []
    alone = compressed(pair, tmp_path / "alone.fsw", method)
    given_settings = law_settings(method)
    compress(pair, tmp_path / "t.fsw", "task", method, given_settings, False, heard.append, jobs, memory)
    assert (tmp_path / "t.fsw").read_bytes() == alone.path.read_bytes()
    assert heard == sorted(base)
    assert list(alone.header.tensors) == [name for name in sorted(base) if name != "3.weight"]


def test_a_failing_tensor_ends_the_threads_and_leaves_nothing(tmp_path: Path) -> None:
    base = {name: torch.zeros(9) for name in "abcdefgh"}
    pair = memory_pair(base, base | {"a": torch.ones(9), "e": torch.ones(9) * math.inf})
    before, path = threading.active_count(), tmp_path / "t.fsw"
    message(InputError, lambda: compress(pair, path, "t", "t-switch", {"drop": 0.6}, False, jobs=3))
    assert threading.active_count() == before
    assert list(tmp_path.iterdir()) == []


def test_the_header_says_how_an_artifact_was_made(tmp_path: Path) -> None:
    pair = file_pair(tmp_path, STATE, TUNED)
    heard: list[str] = []
    compress(pair, tmp_path / "t.fsw", "news", "t-switch", {"drop": 0.7}, False, heard.append)
    header = open_artifact(tmp_path / "t.fsw").header
    assert (header.name, header.base, header.parameters) == ("news", pair.identity(), 162)
    assert (header.method.name, header.method.settings) == ("t-switch", {"drop": 0.7})
    assert list(header.tensors) == ["a.weight", "b.weight"]
    assert (header.tensors["b.weight"].dtype, header.tensors["b.weight"].bits) == ("BF16", 1)
    assert sorted(header.extras) == ["head", "n"]
    assert heard == ["a.weight", "b.weight", "c.unchanged"]
    document: dict[str, Any] = json.loads(read_header(tmp_path / "t.fsw", InputError).metadata[METADATA_KEY])
    assert str(tmp_path) not in json.dumps(document)


def test_an_existing_artifact_is_kept_unless_it_may_be_replaced(tmp_path: Path) -> None:
    pair, path = memory_pair(STATE, TUNED), tmp_path / "t.fsw"
    path.write_text("mine")
    found = message(InputError, lambda: compress(pair, path, "t", "t-switch", {"drop": 0.6}, overwrite=False))
    assert found == f"{path}: exists already; give another output, or --overwrite to replace it"
    assert path.read_text() == "mine"


def test_weights_that_are_not_finite_leave_no_artifact(tmp_path: Path) -> None:
    pair = memory_pair(
        {"v": torch.zeros(3), "w": torch.zeros(3)}, {"v": torch.ones(3), "w": torch.ones(3) * math.nan}
    )
    path = tmp_path / "t.fsw"
    found = message(InputError, lambda: compress(pair, path, "t", "t-switch", {"drop": 0.6}, False))
    assert found.startswith("finetuned: tensor 'w' minus the base's is not finite near entry 0; ")
    assert list(tmp_path.iterdir()) == []
