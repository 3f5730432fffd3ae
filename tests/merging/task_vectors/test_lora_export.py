"""A task exported as a LoRA: peft loads it, and its answers are those of the base plus the told approximation."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.commands import Runner
from support.loras import PEFT_WARNINGS
from support.situations import TOKENS, loaded
from support.tiny_models import (
    changed_state,
    save_text_base,
    save_text_classifier,
    vit_config,
)
from torch import Tensor

from flexswitch.merging.commands.export import Exported, export
from flexswitch.merging.task_vectors.peft_adapter import Adapter

pytestmark = PEFT_WARNINGS


def text(model: Any) -> Tensor:
    with torch.inference_mode():
        found: Tensor = model(input_ids=TOKENS).logits
    return found


def image(model: Any) -> Tensor:
    with torch.inference_mode():
        found: Tensor = model(torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)).logits
    return found


def save_gpt2(folder: Path) -> tuple[Path, Path]:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=40,
        n_positions=16,
        n_embd=16,
        n_layer=2,
        n_head=2,
        initializer_range=0.4,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )
    model = GPT2LMHeadModel(config)
    model.save_pretrained(folder / "base")
    state = changed_state(model.state_dict(), 1, size=0.1)
    model.load_state_dict(
        {
            name: state[name] if state[name].dim() == 2 else tensor
            for name, tensor in model.state_dict().items()
        }
    )
    model.save_pretrained(folder / "task")
    return folder / "base", folder / "task"


def save_vit(folder: Path) -> tuple[Path, Path]:
    from transformers import ViTForImageClassification

    torch.manual_seed(0)
    model = ViTForImageClassification(vit_config(num_labels=3))
    model.save_pretrained(folder / "base")
    layers = [name for name, tensor in model.state_dict().items() if tensor.dim() == 2]
    state = changed_state(model.state_dict(), 1, size=0.1)
    model.load_state_dict(model.state_dict() | {name: state[name] for name in layers})
    model.save_pretrained(folder / "task")
    return folder / "base", folder / "task"


MODELS: dict[str, tuple[Callable[[Path], tuple[Path, Path]], str, Callable[[Any], Tensor]]] = {
    "GPT-2, whose layers are stored transposed": (save_gpt2, "AutoModelForCausalLM", text),
    "ViT, whose files have other names": (save_vit, "AutoModelForImageClassification", image),
}


def adapter_of(made: Exported) -> Adapter:
    assert made.adapter is not None
    return made.adapter


def adapted(base: Path, adapter: Path, auto: str, **options: Any) -> Any:
    from peft import PeftModel

    return PeftModel.from_pretrained(loaded(base, auto, **options), adapter).eval()


@pytest.mark.parametrize("kind", MODELS)
def test_a_lora_of_full_rank_answers_as_the_fine_tuned_model(tmp_path: Path, kind: str) -> None:
    save, auto, answers = MODELS[kind]
    base, task = save(tmp_path)
    made = export([task], tmp_path / "lora", base=base, task="task", to="lora", rank=48)
    assert adapter_of(made).total_error < 1e-6
    assert adapter_of(made).left_out == []
    found = answers(adapted(base, tmp_path / "lora", auto))
    torch.testing.assert_close(found, answers(loaded(task, auto)), rtol=0, atol=1e-4)


@pytest.mark.parametrize("rank", [1, 4])
def test_the_told_errors_are_those_of_the_merged_weights(tmp_path: Path, rank: int) -> None:
    base, task = save_vit(tmp_path)
    made = export([task], tmp_path / "lora", base=base, task="task", to="lora", rank=rank)
    merged = adapted(base, tmp_path / "lora", "AutoModelForImageClassification").merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    weights = [load_file(tmp_path / each / "model.safetensors") for each in ("base", "task", "merged")]
    missed, changed = 0.0, 0.0
    for name, before in weights[0].items():
        after, found = (each[name].to(torch.float64) - before.to(torch.float64) for each in weights[1:])
        if not after.any():
            continue
        values = np.linalg.svd(after.numpy(), compute_uv=False)
        expected = np.sqrt((values[rank:] ** 2).sum()) / np.linalg.norm(values)
        assert float((after - found).norm() / after.norm()) == pytest.approx(expected, abs=1e-5)
        assert adapter_of(made).errors[name] == pytest.approx(expected, abs=1e-6)
        missed, changed = (
            missed + float((after - found).square().sum()),
            changed + float(after.square().sum()),
        )
    assert adapter_of(made).total_error == pytest.approx((missed / changed) ** 0.5, abs=1e-5)


def test_a_new_head_is_saved_whole_and_what_no_lora_changes_is_named(tmp_path: Path) -> None:
    base = save_text_base(tmp_path / "base")
    task = save_text_classifier(base, tmp_path / "task", classes=3, seed=1)
    made = export([task], tmp_path / "lora", base=base, task="task", to="lora", rank=16)
    assert "embeddings.LayerNorm.bias" in adapter_of(made).left_out
    assert all(adapter_of(made).errors[name] == 1 for name in adapter_of(made).left_out)
    settings = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert (settings["modules_to_save"], settings["task_type"]) == (["classifier"], "SEQ_CLS")
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    from peft import PeftModel

    merged = PeftModel.from_pretrained(model, tmp_path / "lora").merge_and_unload().state_dict()
    expected = load_file(task / "model.safetensors")
    for name, tensor in expected.items():
        if tensor.dim() == 2:
            torch.testing.assert_close(merged[name], tensor, rtol=0, atol=1e-5)


def test_auto_takes_the_least_rank_with_an_error_of_a_tenth(tmp_path: Path) -> None:
    from support.loras import save_adapter

    base, _ = save_vit(tmp_path)
    model = loaded(base, "AutoModelForImageClassification")
    save_adapter(model, tmp_path / "adapter", r=3, target_modules=["q_proj", "fc1"])

    def made(rank: Any, folder: str) -> Exported:
        return export(
            [f"task={tmp_path / 'adapter'}"], tmp_path / folder, base=base, task="task", to="lora", rank=rank
        )

    chosen = adapter_of(made("auto", "lora"))
    assert chosen.rank in (2, 4)
    assert chosen.total_error <= 0.1
    assert adapter_of(made(chosen.rank // 2, "less")).total_error > 0.1


def test_the_command_prints_the_errors_and_refuses_what_it_does_not_know(
    tmp_path: Path, flexswitch: Runner, models: Path
) -> None:
    base, task = save_vit(tmp_path / "vit")
    words = ("export", task, "--base", base, "--task", "task", "--to", "lora", "-o", tmp_path / "lora")
    outcome = flexswitch(*words, "--rank", "2", "--json")
    document = json.loads(outcome.out)
    assert (outcome.status, document["rank"], document["task"]) == (0, 2, "task")
    assert 0 < document["error"] < 1
    assert flexswitch(*words, "--rank", "two", "--overwrite").status == 2
    assert flexswitch(*words, "--rank", "0", "--overwrite").status == 2
    unknown = flexswitch(
        "export",
        "red.safetensors",
        "--base",
        "base.safetensors",
        "--task",
        "red",
        "--to",
        "lora",
        "-o",
        "other",
    )
    assert unknown.status == 1
    assert "its layers are not known" in unknown.error
