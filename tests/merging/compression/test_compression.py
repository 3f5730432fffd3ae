"""Compression end to end: what an artifact decodes to, and that only its inputs determine its bytes."""

import json
import math
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.checkpoints import (
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
from support.deltas import delta, dense, normal
from support.plain_methods import reference_mask, reference_scale

from flexswitch.codecs.errors import InputError
from flexswitch.codecs.format.container import open_artifact
from flexswitch.codecs.format.records import METADATA_KEY
from flexswitch.codecs.format.safetensors_file import read_header
from flexswitch.merging.checkpoints.opening import open_checkpoint
from flexswitch.merging.compression import compress as compress_module
from flexswitch.merging.compression.compress import compress
from flexswitch.merging.compression.plan import plan
from flexswitch.merging.methods.registry import method_names
from flexswitch.merging.task_vectors.artifact_vector import ArtifactVector
from flexswitch.merging.task_vectors.checkpoint_pair import CheckpointPair
from flexswitch.merging.task_vectors.restore import restore
from flexswitch.merging.task_vectors.task_vector import delta_tensor

METHODS = [name for name in method_names("compression") if name != "lossless"]  # it has laws of its own
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
DEEP = pytest.param("flexswitch", marks=pytest.mark.deep)


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("small_blocks", [False, True])
@pytest.mark.parametrize("method", ["t-switch", "p-discard"])
@pytest.mark.parametrize("drop", [0.0, 0.6])
def test_an_artifact_restores_base_plus_the_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_blocks: bool, method: str, drop: float
) -> None:
    if small_blocks:
        use_small_blocks(monkeypatch)
        monkeypatch.setattr(compress_module, "CACHED_ENTRIES", 20)
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


@pytest.mark.parametrize("method", METHODS)
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


def test_p_discard_without_dropping_restores_bfloat16_weights(tmp_path: Path) -> None:
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


@pytest.mark.parametrize("method", METHODS)
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
@pytest.mark.parametrize("method", [DEEP if method == "flexswitch" else method for method in METHODS])
def test_the_number_of_threads_and_the_blocks_do_not_change_the_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    base, tuned = ({"w": torch.from_numpy(normal((300, 301), seed))} for seed in (0, 1))
    pair = memory_pair(base, tuned)
    two = compressed(pair, tmp_path / "two.fsw", method).path.read_bytes()
    torch.set_num_threads(1)
    assert compressed(pair, tmp_path / "one.fsw", method).path.read_bytes() == two
    use_small_blocks(monkeypatch, 4096)
    monkeypatch.setattr(compress_module, "CACHED_ENTRIES", 0)
    assert compressed(pair, tmp_path / "blocks.fsw", method).path.read_bytes() == two


@pytest.mark.parametrize("memory", [0, 1000, 1 << 30])
@pytest.mark.parametrize("jobs", [1, 2, 3])
@pytest.mark.parametrize("method", METHODS)
def test_jobs_and_memory_do_not_change_the_bytes(tmp_path: Path, method: str, jobs: int, memory: int) -> None:
    base = {f"{place}.weight": torch.from_numpy(normal((20 * place, 7), place)) for place in range(1, 9)}
    tuned = {name: tensor * 1.5 for name, tensor in base.items()} | {"3.weight": base["3.weight"]}
    pair, seen = file_pair(tmp_path, base, tuned), []
    alone = compressed(pair, tmp_path / "alone.fsw", method)
    given_settings = law_settings(method)
    compress(pair, tmp_path / "t.fsw", "task", method, given_settings, False, seen.append, jobs, memory)
    assert (tmp_path / "t.fsw").read_bytes() == alone.path.read_bytes()
    assert seen == sorted(base)
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
    seen: list[str] = []
    compress(pair, tmp_path / "t.fsw", "news", "t-switch", {"drop": 0.7}, False, seen.append)
    header = open_artifact(tmp_path / "t.fsw").header
    assert (header.name, header.base, header.parameters) == ("news", pair.identity(), 162)
    assert (header.method.name, header.method.settings) == ("t-switch", {"drop": 0.7})
    assert list(header.tensors) == ["a.weight", "b.weight"]
    assert (header.tensors["b.weight"].dtype, header.tensors["b.weight"].bits) == ("BF16", 1)
    assert sorted(header.extras) == ["head", "n"]
    assert seen == ["a.weight", "b.weight", "c.unchanged"]
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
