"""Embeddings that a head shares, by config or by value, and those that a fine-tune has trained apart."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.loras import PEFT_WARNINGS, save_adapter
from support.situations import Checkpoints, assert_right, refusal, text_answers
from support.tiny_models import changed_state
from torch import Tensor

from flexswitch.codecs.format.container import open_artifact

TEXT = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "initializer_range": 0.4, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def text_model(tied: bool) -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    return Qwen2ForCausalLM(Qwen2Config(**TEXT, tie_word_embeddings=tied))


def vision_language_model(tied: bool) -> Any:
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    vision = {"model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 1,
              "num_attention_heads": 2, "image_size": 8, "patch_size": 4}  # fmt: skip
    text = {"model_type": "qwen2", **TEXT, "tie_word_embeddings": tied}
    torch.manual_seed(0)
    config = LlavaConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=39,
        vision_feature_layer=-1,
        tie_word_embeddings=tied,
    )
    return LlavaForConditionalGeneration(config)


MODELS = {
    "text": (text_model, "AutoModelForCausalLM"),
    "vision": (vision_language_model, "AutoModelForImageTextToText"),
}


def answers(kind: str) -> Any:
    return lambda path: text_answers(path, MODELS[kind][1])


def save_tuned(model: Any, folder: Path) -> Path:
    model.load_state_dict(changed_state(model.state_dict(), 5, size=0.2))
    model.save_pretrained(folder)
    return folder


def stored(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("kind", MODELS)
def test_a_fine_tune_that_stores_the_tied_head_twice_takes_no_room_for_it(tmp_path: Path, kind: str) -> None:
    model = MODELS[kind][0](True)
    model.save_pretrained(tmp_path / "base")
    task = save_tuned(model, tmp_path / "task")
    name = next(name for name in stored(task) if name.endswith("embed_tokens.weight"))
    head = name.replace("model.embed_tokens", "lm_head")
    save_file(stored(task) | {head: stored(task)[name].clone()}, task / "model.safetensors", {"format": "pt"})
    assert_right(tmp_path, Checkpoints(tmp_path / "base", task, answers(kind)))
    assert not open_artifact(tmp_path / "task.fsw").header.extras


@pytest.mark.parametrize("kind", MODELS)
def test_a_head_that_was_trained_apart_is_restored_apart(tmp_path: Path, kind: str) -> None:
    MODELS[kind][0](True).save_pretrained(tmp_path / "base")
    task = save_tuned(MODELS[kind][0](False), tmp_path / "task")
    assert any("lm_head" in name for name in stored(task))
    assert_right(tmp_path, Checkpoints(tmp_path / "base", task, answers(kind)))


@pytest.mark.parametrize("kind", MODELS)
def test_a_fine_tune_that_ties_the_head_of_an_untied_base_has_its_change_in_both(
    tmp_path: Path, kind: str
) -> None:
    MODELS[kind][0](False).save_pretrained(tmp_path / "base")
    task = save_tuned(MODELS[kind][0](True), tmp_path / "task")
    assert not any("lm_head" in name for name in stored(task))
    assert_right(tmp_path, Checkpoints(tmp_path / "base", task, answers(kind)))


def test_a_tied_base_with_another_head_in_its_file_gets_the_tied_one(tmp_path: Path) -> None:
    model = text_model(True)
    model.save_pretrained(tmp_path / "base")
    state = stored(tmp_path / "base")
    other = state["model.embed_tokens.weight"].flip(0)
    save_file(state | {"lm_head.weight": other}, tmp_path / "base" / "model.safetensors", {"format": "pt"})
    task = save_tuned(model, tmp_path / "task")
    assert_right(tmp_path, Checkpoints(tmp_path / "base", task, answers("text")))


@pytest.mark.parametrize("kind", ["Bert", "Roberta"])
def test_a_bias_that_only_the_base_stores_under_both_tied_names_is_tied(tmp_path: Path, kind: str) -> None:
    import transformers

    sizes = {
        key: TEXT[key] for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    }
    config = getattr(transformers, f"{kind}Config")(**sizes, num_attention_heads=2, initializer_range=0.4)
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForMaskedLM")(config)
    model.save_pretrained(tmp_path / "base")
    copies = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert sum(name.endswith("decoder.bias") for name in copies) == 1
    save_file(copies, tmp_path / "base" / "model.safetensors", {"format": "pt"})
    task = save_tuned(model, tmp_path / "task")
    assert not any(name.endswith("decoder.bias") for name in stored(task))
    assert_right(
        tmp_path,
        Checkpoints(tmp_path / "base", task, lambda path: text_answers(path, "AutoModelForMaskedLM")),
    )


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_a_tied_base_in_either_kind_of_file_restores_the_same(tmp_path: Path, kind: str, file: str) -> None:
    model = MODELS[kind][0](True)
    model.save_pretrained(tmp_path / "base")
    if file.endswith(".bin"):
        state = model.state_dict()
        (tmp_path / "base" / "model.safetensors").unlink()
        torch.save(state, tmp_path / "base" / file)
    task = save_tuned(model, tmp_path / "task")
    assert_right(tmp_path, Checkpoints(tmp_path / "base", task, answers(kind)))


@PEFT_WARNINGS
@pytest.mark.filterwarnings("ignore::UserWarning:peft")
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("settings", [{"target_modules": ["embed_tokens"]}, {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}])  # fmt: skip
def test_an_adapter_that_changes_one_side_of_a_tie_is_refused(
    tmp_path: Path, kind: str, settings: dict[str, Any]
) -> None:
    model = MODELS[kind][0](True)
    model.save_pretrained(tmp_path / "base")
    save_adapter(model, tmp_path / "task", r=2, task_type="CAUSAL_LM", **settings)
    assert "which the base BASE ties to" in refusal(tmp_path, tmp_path / "base", tmp_path / "task")
