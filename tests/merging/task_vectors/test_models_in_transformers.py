"""Restored and merged models give the same logits in transformers."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.checkpoints import (
    assert_same_state,
    compressed,
    extracted,
)
from support.task_vectors import write_restored
from support.tiny_models import bert_config, save_text_base, save_text_classifier
from torch import Tensor

from flexswitch.merging.checkpoints.opening import open_checkpoint
from flexswitch.merging.checkpoints.pairing import Selection
from flexswitch.merging.task_vectors.artifact_vector import ArtifactVector
from flexswitch.merging.task_vectors.checkpoint_pair import CheckpointPair
from flexswitch.merging.task_vectors.model_directory import write_model_directory
from flexswitch.merging.task_vectors.task_vector import TaskVector

TOKENS = torch.tensor([[2, 5, 9, 3], [2, 7, 3, 0]])


def logits(path: Path) -> Tensor:
    from transformers import AutoModelForSequenceClassification

    model, loading = AutoModelForSequenceClassification.from_pretrained(
        path, local_files_only=True, output_loading_info=True
    )
    assert not any(loading.values()), loading
    with torch.inference_mode():
        found: Tensor = model.eval()(TOKENS, attention_mask=(TOKENS != 0).long()).logits
    return found


@pytest.fixture(scope="module")
def berts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("berts")
    base = save_text_base(folder / "base")
    return base, save_text_classifier(base, folder / "task", classes=3, seed=1)


def restored(tmp_path: Path, base: Path, vector: TaskVector, **options: Any) -> Path:
    return write_restored(tmp_path / "out", open_checkpoint(str(base)), vector, **options)


def pair_of(base: Path, task: Path, selection: Selection = Selection()) -> CheckpointPair:  # noqa: B008
    return CheckpointPair(open_checkpoint(str(base)), open_checkpoint(str(task)), selection)


def test_transformers_loads_a_restored_task_vector_with_the_same_logits(
    tmp_path: Path, berts: tuple[Path, Path]
) -> None:
    vector = extracted(pair_of(*berts), tmp_path / "t.tv.safetensors")
    path = restored(tmp_path, berts[0], vector, shard_bytes=4000)
    assert len(list(path.glob("*.safetensors"))) > 1
    assert torch.equal(logits(path), logits(berts[1]))
    assert not torch.equal(logits(path)[0], logits(path)[1])
    assert (path / "tokenizer.json").read_bytes() == (berts[0] / "tokenizer.json").read_bytes()


def test_transformers_loads_a_restored_artifact_with_nearly_the_same_logits(
    tmp_path: Path, berts: tuple[Path, Path]
) -> None:
    artifact = compressed(pair_of(*berts), tmp_path / "t.fsw", "p-discard", drop=0.0)
    path = restored(tmp_path, berts[0], ArtifactVector(artifact))
    torch.testing.assert_close(logits(path), logits(berts[1]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", ["t-switch", "p-discard"])
def test_transformers_loads_what_was_compressed_with_loss(
    tmp_path: Path, berts: tuple[Path, Path], method: str
) -> None:
    artifact = compressed(pair_of(*berts), tmp_path / "t.fsw", method, drop=0.6)
    found = logits(restored(tmp_path, berts[0], ArtifactVector(artifact)))
    assert found.shape == (2, 3)
    assert not torch.equal(found, logits(berts[1]))


def test_a_base_in_bfloat16_restores_a_task_in_bfloat16(tmp_path: Path, berts: tuple[Path, Path]) -> None:
    from transformers import AutoModel, AutoModelForSequenceClassification

    for auto, source, target in zip(
        (AutoModel, AutoModelForSequenceClassification), berts, ("base", "task"), strict=True
    ):
        auto.from_pretrained(source, dtype=torch.bfloat16).save_pretrained(tmp_path / target)
    pair = pair_of(tmp_path / "base", tmp_path / "task")
    artifact = compressed(pair, tmp_path / "t.fsw", "p-discard", drop=0.0)
    path = restored(tmp_path, tmp_path / "base", ArtifactVector(artifact))
    assert_same_state(
        load_file(path / "model.safetensors"), load_file(tmp_path / "task" / "model.safetensors")
    )
    assert torch.equal(logits(path), logits(tmp_path / "task"))


@pytest.mark.parametrize("on_resize", ["extra", "rows"])
def test_transformers_loads_a_model_of_a_resized_vocabulary(
    tmp_path: Path, berts: tuple[Path, Path], on_resize: Any
) -> None:
    from transformers import BertForSequenceClassification

    task = BertForSequenceClassification.from_pretrained(berts[1])
    task.resize_token_embeddings(43, mean_resizing=False)
    task.save_pretrained(tmp_path / "task")
    pair = pair_of(berts[0], tmp_path / "task", Selection(on_resize=on_resize))
    path = restored(tmp_path, berts[0], extracted(pair, tmp_path / "t.tv.safetensors"))
    assert torch.equal(logits(path), logits(tmp_path / "task"))
    rows = {"extra": 43, "rows": bert_config().vocab_size}[on_resize]
    assert json.loads((path / "config.json").read_text())["vocab_size"] == rows


def test_code_of_a_base_is_neither_copied_nor_run(tmp_path: Path, berts: tuple[Path, Path]) -> None:
    base = tmp_path / "base"
    shutil.copytree(berts[0], base)
    (base / "modeling_own.py").write_text("raise SystemExit('code has run')")
    path = restored(tmp_path, base, pair_of(base, berts[1]))
    assert not list(path.glob("*.py"))
    assert logits(path).shape == (2, 3)


def test_the_weights_of_a_merge_load_by_the_base_s_names(tmp_path: Path, berts: tuple[Path, Path]) -> None:
    from transformers import AutoModel

    from flexswitch.merging.methods.registry import get_method
    from flexswitch.merging.static.merge import merged_tensors
    from flexswitch.merging.static.tensor_settings import MergeSettings

    base = open_checkpoint(str(berts[0]))
    outputs = merged_tensors(
        base,
        {"a": pair_of(*berts), "b": pair_of(*berts)},
        MergeSettings(get_method("average", "merge"), {}, {}),
        None,
    )
    write_model_directory(tmp_path / "out", outputs, base, {}, lambda: "# card\n", 10**9, overwrite=False)
    found = AutoModel.from_pretrained(tmp_path / "out", local_files_only=True).state_dict()
    expected = {
        re.sub(r"^bert\.", "", name): tensor
        for name, tensor in load_file(berts[1] / "model.safetensors").items()
        if name.startswith("bert.")
    }
    assert sorted(found) == sorted(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor)
