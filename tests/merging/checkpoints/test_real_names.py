"""Checkpoints whose names differ from their base's: of another release, of a running model, or of a wrapper."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.situations import TOKENS, Checkpoints, assert_right, loaded, text_answers
from support.tiny_models import (
    changed_state,
    save_image_base,
    save_text_base,
    save_text_classifier,
    vit_config,
)
from torch import Tensor

from flexswitch.merging.checkpoints.opening import open_checkpoint

State = dict[str, Tensor]
WEIGHTS = "model.safetensors"


def text_config(**changes: Any) -> dict[str, Any]:
    return {
        "vocab_size": 40, "hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "initializer_range": 0.4, "max_position_embeddings": 16,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    } | changes  # fmt: skip


def save_with(source: Path, folder: Path, rename: Callable[[str], str]) -> Path:
    """Writes a model directory with other tensor names."""
    shutil.copytree(source, folder)
    save_file(
        {rename(name): tensor for name, tensor in load_file(source / WEIGHTS).items()},
        folder / WEIGHTS,
        {"format": "pt"},
    )
    return folder


def save_running(model: Any, path: Path, rename: Callable[[str], str] = lambda name: name) -> Path:
    """Writes the state dict of a running model alone."""
    torch.save({rename(name): tensor for name, tensor in model.state_dict().items()}, path)
    return path


def tuned(model: Any, seed: int = 3) -> Any:
    model.load_state_dict(changed_state(model.state_dict(), seed, size=0.2))
    return model


def answers_of(
    model: Any, run: Callable[[Any], Tensor], answers: Callable[[Path], Tensor], task: Path
) -> Callable[[Path], Tensor]:
    """Returns what answers for a directory, and what a running model answers for a file of its weights."""
    with torch.inference_mode():
        expected = run(model.eval())
    return lambda path: expected if path == task else answers(path)


# --- norms, running models, and wrappers ------------------------------------------------------------------


def old_norms(name: str) -> str:
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")


def new_base_old_task(folder: Path) -> Checkpoints:
    base = save_text_base(folder / "base")
    task = save_text_classifier(base, folder / "new", 3, seed=1)
    save_with(task, folder / "task", old_norms)
    return Checkpoints(
        base, folder / "task", lambda path: text_answers(path, "AutoModelForSequenceClassification")
    )


def old_base_new_task(folder: Path) -> Checkpoints:
    base = save_text_base(folder / "new")
    task = save_text_classifier(base, folder / "task", 3, seed=1)
    save_with(base, folder / "base", old_norms)
    return Checkpoints(
        folder / "base", task, lambda path: text_answers(path, "AutoModelForSequenceClassification")
    )


def wrapped(rename: Callable[[str], str], more: Mapping[str, Tensor] = {}) -> Callable[[Path], Checkpoints]:
    """Returns what writes a base, and a state dict of a fine-tune with the names that a wrapper gives."""

    def save(folder: Path) -> Checkpoints:
        from transformers import BertModel

        base, task = save_text_base(folder / "base"), folder / "task.pt"
        model = tuned(BertModel.from_pretrained(base))
        torch.save({rename(name): tensor for name, tensor in model.state_dict().items()} | dict(more), task)
        return Checkpoints(base, task, answers_of(model, lambda model: model(TOKENS)[0], text_answers, task))

    return save


def running_classifier(folder: Path) -> Checkpoints:
    """Writes the state dict of a classifier of three classes, which no config.json counts."""
    from transformers import BertForSequenceClassification

    base, task = save_text_base(folder / "base"), folder / "task.pt"
    model = tuned(BertForSequenceClassification.from_pretrained(base, num_labels=3)).eval()
    answers = answers_of(
        model, lambda model: model(TOKENS)[0],
        lambda path: text_answers(path, "AutoModelForSequenceClassification"), task,
    )  # fmt: skip
    return Checkpoints(base, save_running(model, task), answers)


def in_a_layer(part: str) -> Callable[[str], str]:
    return lambda name: name.replace("encoder.layer.0.", f"encoder.layer.0.{part}.")


def wrapped_base(folder: Path) -> Checkpoints:
    base = save_text_base(folder / "plain")
    task = save_text_classifier(base, folder / "task", 3, seed=1)
    save_with(base, folder / "base", lambda name: f"_orig_mod.{name}")
    return Checkpoints(
        folder / "base", task, lambda path: text_answers(path, "AutoModelForSequenceClassification")
    )


def image_answers(path: Path, auto: str = "AutoModel") -> Tensor:
    return image_run(loaded(path, auto, **({"add_pooling_layer": False} if auto == "AutoModel" else {})))


def image_run(model: Any) -> Tensor:
    with torch.inference_mode():
        found: Tensor = model(torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8))[0]
    return found


def running_vit(folder: Path) -> Checkpoints:
    from transformers import ViTModel

    base, task = save_image_base(folder / "base"), folder / "task.pt"
    model = tuned(ViTModel.from_pretrained(base, add_pooling_layer=False))
    return Checkpoints(base, save_running(model, task), answers_of(model, image_run, image_answers, task))


def running_vit_with_a_head(folder: Path) -> Checkpoints:
    from transformers import ViTForImageClassification

    base, task = save_image_base(folder / "base"), folder / "task.pt"
    torch.manual_seed(4)
    model = tuned(ViTForImageClassification(vit_config(num_labels=2)))
    answers = answers_of(
        model, image_run, lambda path: image_answers(path, "AutoModelForImageClassification"), task
    )
    return Checkpoints(base, save_running(model, task), answers)


def directory_of_running_names(folder: Path) -> Checkpoints:
    from transformers import ViTForImageClassification

    base = save_image_base(folder / "base")
    torch.manual_seed(4)
    model = tuned(ViTForImageClassification(vit_config(num_labels=2)))
    model.save_pretrained(folder / "task")
    save_file(model.state_dict(), folder / "task" / WEIGHTS, {"format": "pt"})
    return Checkpoints(
        base, folder / "task", lambda path: image_answers(path, "AutoModelForImageClassification")
    )


# --- experts, weight norms, and parts of a model ----------------------------------------------------------


def causal(path: Path) -> Tensor:
    return text_answers(path, "AutoModelForCausalLM")


def mixture() -> Any:
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    return MixtralForCausalLM(MixtralConfig(**text_config(num_local_experts=3, num_experts_per_tok=2)))


def split_base_fused_task(folder: Path) -> Checkpoints:
    model = mixture()
    model.save_pretrained(folder / "base")
    assert "model.layers.0.block_sparse_moe.experts.2.w1.weight" in open_checkpoint(folder / "base").tensors
    task = save_running(tuned(model), folder / "task.pt")
    return Checkpoints(
        folder / "base", task, answers_of(model, lambda model: model(TOKENS).logits, causal, task)
    )


def fused_base_split_task(folder: Path) -> Checkpoints:
    model = mixture()
    model.save_pretrained(folder / "base")
    save_file(model.state_dict(), folder / "base" / WEIGHTS, {"format": "pt"})
    tuned(model).save_pretrained(folder / "task")
    return Checkpoints(folder / "base", folder / "task", causal)


def speech_answers(path: Path) -> Tensor:
    return speech_run(loaded(path))


def speech_run(model: Any) -> Tensor:
    with torch.inference_mode():
        found: Tensor = model(torch.linspace(-1, 1, 800).reshape(2, 400).sin())[0]
    return found


def weight_norms(folder: Path) -> Checkpoints:
    """Writes a base with the old names of weight norms, and a running model with parametrizations."""
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    config = Wav2Vec2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=20, conv_dim=(8, 8),
        conv_kernel=(10, 3), conv_stride=(5, 2), num_feat_extract_layers=2, num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2, mask_time_prob=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Wav2Vec2Model(config)
    model.save_pretrained(folder / "new")
    norm = "parametrizations.weight.original"
    base = save_with(
        folder / "new", folder / "base",
        lambda name: name.replace(f"{norm}0", "weight_g").replace(f"{norm}1", "weight_v"),
    )  # fmt: skip
    assert any(name.endswith("weight_g") for name in open_checkpoint(base).tensors)
    task = save_running(tuned(model), folder / "task.pt")
    return Checkpoints(base, task, answers_of(model, speech_run, speech_answers, task))


def old_names_of_a_vision_language_model(folder: Path) -> Checkpoints:
    """Writes a LLaVA with the names that releases before 4.52 gave, and a fine-tune with those of today."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    vision = {"model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 2,
              "num_attention_heads": 2, "image_size": 8, "patch_size": 4}  # fmt: skip
    config = LlavaConfig(
        text_config={"model_type": "llama", **text_config()},
        vision_config=vision,
        image_token_id=39,
        vision_feature_layer=-1,
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config)
    model.save_pretrained(folder / "base")
    assert "language_model.model.layers.0.mlp.up_proj.weight" in open_checkpoint(folder / "base").tensors
    state = tuned(model).state_dict()
    model.save_pretrained(folder / "task")
    save_file(state, folder / "task" / WEIGHTS, {"format": "pt"})
    return Checkpoints(
        folder / "base", folder / "task", lambda path: text_answers(path, "AutoModelForImageTextToText")
    )


SITUATIONS: dict[str, Callable[[Path], Checkpoints]] = {
    "a fine-tune with gamma and beta": new_base_old_task,
    "a base with gamma and beta": old_base_new_task,
    "a compiled model": wrapped(lambda name: f"_orig_mod.{name}"),
    "data-parallel training": wrapped(lambda name: f"module.{name}"),
    "compiled and data-parallel": wrapped(lambda name: f"module._orig_mod.{name}"),
    "fully sharded training": wrapped(
        lambda name: f"_fsdp_wrapped_module.{in_a_layer('_fsdp_wrapped_module')(name)}"
    ),
    "activation checkpointing": wrapped(in_a_layer("_checkpoint_wrapped_module")),
    "a layer compiled alone": wrapped(in_a_layer("_orig_mod")),
    "a layer trained data-parallel": wrapped(in_a_layer("module")),
    "Lightning": wrapped(lambda name: f"model.{name}"),
    "Lightning with a net and a loss": wrapped(
        lambda name: f"net.bert.{name}", {"loss.weight": torch.ones(3)}
    ),
    "a compiled base": wrapped_base,
    "a running model of another release's names": running_vit,
    "a running model with a head": running_vit_with_a_head,
    "a running classifier of three classes": running_classifier,
    "a directory with running names": directory_of_running_names,
    "a base of split experts and a fine-tune of fused ones": split_base_fused_task,
    "a base of fused experts and a fine-tune of split ones": fused_base_split_task,
    "weight norms": weight_norms,
    "old names of a vision-language model": old_names_of_a_vision_language_model,
}


@pytest.mark.parametrize("situation", SITUATIONS)
def test_a_restored_model_has_names_that_load_and_the_same_answers(tmp_path: Path, situation: str) -> None:
    assert_right(tmp_path, SITUATIONS[situation](tmp_path), tolerance=2e-5)
