"""Tasks as sparse adapters, which peft loads, and as patches, which put the restored weights into the base."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.commands import Runner
from support.loras import PEFT_WARNINGS
from support.situations import TOKENS
from support.tiny_models import make_artifact, save_text_base, save_text_classifier
from torch import Tensor

from flexswitch.codecs.errors import InputError, UsageError
from flexswitch.codecs.format.container import open_artifact
from flexswitch.merging.commands.export import export
from flexswitch.merging.task_vectors.restore import restore

pytestmark = [PEFT_WARNINGS, pytest.mark.filterwarnings("ignore:Sparse invariant checks")]  # peft's


@pytest.fixture
def task(tmp_path: Path) -> tuple[Path, Path]:
    """A base and an artifact that keeps a tenth of a classifier's change."""
    base = save_text_base(tmp_path / "base")
    tuned = save_text_classifier(base, tmp_path / "tuned", classes=3, seed=1)
    return base, make_artifact(base, tuned, tmp_path / "task.fsw", "t-switch", ["drop=0.9"]).path


def classifier(base: Path) -> Any:
    """Returns the base with a new head."""
    from transformers import AutoModelForSequenceClassification

    return AutoModelForSequenceClassification.from_pretrained(base, num_labels=3).eval()


def weights_under(base: Path, adapter: Path) -> dict[str, Tensor]:
    from peft import PeftModel

    model = PeftModel.from_pretrained(classifier(base), adapter)
    found: dict[str, Tensor] = model.merge_and_unload().state_dict()
    return found


def test_a_sparse_adapter_changes_every_linear_layer_as_the_task_does(
    tmp_path: Path, task: tuple[Path, Path]
) -> None:
    base, artifact = task
    made = export([artifact], tmp_path / "shira", base=base, task="task", to="shira").adapter
    assert made is not None
    expected, changed = restore(base, open_artifact(artifact)), 0
    found = weights_under(base, tmp_path / "shira")
    before = load_file(base / "model.safetensors")
    for name, tensor in expected.items():
        own = name.removeprefix("bert.")
        if own in made.left_out:
            assert torch.equal(found[name], before[own])
        elif made.errors.get(own) == 0:
            torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-7)
            changed += 1
        else:  # unchanged, or a head that is saved whole
            assert torch.equal(found[name], tensor)
    assert changed == 2 * 6 + 1  # of each of two blocks, and the pooler
    assert any(name.endswith("LayerNorm.weight") for name in made.left_out)
    assert all(made.errors[name] == 1 for name in made.left_out)
    settings = json.loads((tmp_path / "shira" / "adapter_config.json").read_text())
    assert (settings["peft_type"], settings["modules_to_save"]) == ("SHIRA", ["classifier"])


def test_a_sparse_adapter_answers_in_peft(tmp_path: Path, task: tuple[Path, Path]) -> None:
    from peft import PeftModel

    base, artifact = task
    export([artifact], tmp_path / "shira", base=base, task="task", to="shira")
    adapted = PeftModel.from_pretrained(classifier(base), tmp_path / "shira").eval()
    plain = classifier(base)
    plain.load_state_dict(weights_under(base, tmp_path / "shira"))
    with torch.inference_mode():
        torch.testing.assert_close(
            adapted(input_ids=TOKENS).logits, plain(input_ids=TOKENS).logits, rtol=0, atol=1e-5
        )


def test_layers_that_changed_in_too_many_entries_are_left_out(tmp_path: Path) -> None:
    base = save_text_base(tmp_path / "base")
    tuned = save_text_classifier(base, tmp_path / "tuned", classes=3, seed=1)
    made = export([f"task={tuned}"], tmp_path / "dense", base=base, task="task", to="shira").adapter
    assert made is not None
    assert any(error == 0 for error in made.errors.values())  # square layers hold all their entries
    assert any("intermediate" in name for name in made.left_out)
    with pytest.raises(UsageError, match="only a LoRA has one"):
        export([tuned], tmp_path / "other", base=base, task="tuned", to="shira", rank=4)


def patched(base: dict[str, Tensor], file: Path) -> dict[str, Tensor]:
    """Returns the base's weights after a patch, as a server applies it."""
    found = {name: tensor.clone() for name, tensor in base.items()}
    with safe_open(file, "pt") as patch:
        stored = set(patch.keys())
        for name, shape in json.loads(patch.metadata()["full_shapes"]).items():
            values = patch.get_tensor(f"{name}.values")
            if f"{name}.indices" not in stored:
                found[name] = values
                continue
            indices = patch.get_tensor(f"{name}.indices")
            assert (indices.dtype, list(found[name].shape)) == (torch.int32, shape)
            found[name].view(-1)[indices.long()] = values
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_patch_makes_the_restored_model_of_the_base(tmp_path: Path, dtype: torch.dtype) -> None:
    base = save_text_base(tmp_path / "base")
    state = {name: tensor.to(dtype) for name, tensor in load_file(base / "model.safetensors").items()}
    save_file(state, base / "model.safetensors", {"format": "pt"})
    tuned = save_text_classifier(base, tmp_path / "tuned", classes=3, seed=1)
    artifact = make_artifact(base, tuned, tmp_path / "task.fsw", "t-switch", ["drop=0.9"]).path
    made = export([artifact], tmp_path / "patch", base=base, task="task", to="vllm-patch")
    assert made.adapter is None
    found = patched(state, tmp_path / "patch" / "patch.safetensors")
    expected = restore(base, open_artifact(artifact))
    assert set(found) == {name.removeprefix("bert.") for name in expected}
    for name, tensor in expected.items():
        assert torch.equal(found[name.removeprefix("bert.")], tensor)
    with safe_open(tmp_path / "patch" / "patch.safetensors", "pt") as patch:
        entries = sum(patch.get_tensor(name).numel() for name in patch.keys() if "values" in name)  # noqa: SIM118
    assert entries < 0.2 * sum(tensor.numel() for tensor in state.values())


def test_a_patch_of_an_unchanged_model_is_empty(tmp_path: Path, models: Path) -> None:
    export(["base.safetensors"], tmp_path / "patch", base="base.safetensors", task="base", to="vllm-patch")
    with safe_open(tmp_path / "patch" / "patch.safetensors", "pt") as patch:
        assert (list(patch.keys()), patch.metadata()["full_shapes"]) == ([], "{}")


def test_the_command_writes_a_patch_and_refuses_another_base(zoo: Path, flexswitch: Runner) -> None:
    words = ("export", "zoo", "--task", "red", "--to", "vllm-patch", "-o", "patch", "--base")
    refused = flexswitch(*words, "blue.safetensors")
    assert (refused.status, (zoo / "patch").exists()) == (1, False)
    outcome = flexswitch(*words, "base.safetensors", "--json")
    document: dict[str, Any] = json.loads(outcome.out)
    assert (outcome.status, document["to"], document["task"]) == (0, "vllm-patch", "red")
    assert flexswitch(*words, "base.safetensors").status == 1
    assert flexswitch(*words, "base.safetensors", "--overwrite").status == 0


def test_a_model_that_transformers_does_not_know_gives_a_patch_and_no_adapter(zoo: Path) -> None:
    with pytest.raises(InputError, match="its layers are not known"):
        export(["red.fsw"], zoo / "shira", base="base.safetensors", task="red", to="shira")
