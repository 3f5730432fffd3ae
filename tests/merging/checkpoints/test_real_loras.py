"""PEFT adapters of models whose files have other names than the running model, and adapters that fit nowhere."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.loras import PEFT_WARNINGS, edit_weights, save_adapter
from support.situations import Checkpoints, assert_right, loaded, refusal, text_answers
from support.tiny_models import save_image_base, save_text_base
from torch import Tensor

pytestmark = PEFT_WARNINGS

IMAGES = torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)


def image_answers(path: Path, auto: str = "AutoModel") -> Tensor:
    options = {"add_pooling_layer": False} if auto == "AutoModel" else {}
    with torch.inference_mode():
        found: Tensor = loaded(path, auto, **options)(IMAGES)[0]
    return found


def merged_beside(
    folder: Path, model: Any, answers: Callable[[Path], Tensor], **settings: Any
) -> Checkpoints:
    """Writes an adapter of a model, and the model that peft merges it into, which says what is right."""
    adapted = save_adapter(model, folder / "task", **settings)
    adapted.merge_and_unload().save_pretrained(folder / "merged")
    return Checkpoints(
        folder / "base",
        folder / "task",
        lambda path: answers(folder / "merged" if path.name == "task" else path),
    )


def vit(folder: Path) -> Checkpoints:
    from transformers import ViTModel

    base = save_image_base(folder / "base")
    model = ViTModel.from_pretrained(base, add_pooling_layer=False)
    patterns = {"rank_pattern": {"layers.1.attention.q_proj": 3}, "alpha_pattern": {"fc1": 5}}
    return merged_beside(folder, model, image_answers, r=2, target_modules=["q_proj", "fc1"], **patterns)


def vit_classifier(folder: Path) -> Checkpoints:
    """Writes a base without a head, and an adapter of a classifier with a new head."""
    from transformers import ViTForImageClassification

    base = save_image_base(folder / "base")
    torch.manual_seed(2)
    model = ViTForImageClassification.from_pretrained(base, num_labels=3)
    case = merged_beside(
        folder, model, lambda path: image_answers(path, "AutoModelForImageClassification"),
        r=2, target_modules=["v_proj"], modules_to_save=["classifier"],
    )  # fmt: skip
    model.config.save_pretrained(folder / "task")  # says how many classes there are
    return case


def names_without_a_root(folder: Path) -> Checkpoints:
    from transformers import BertModel

    base = save_text_base(folder / "base")
    case = merged_beside(folder, BertModel.from_pretrained(base), text_answers, r=2, target_modules=["query"])
    root = "base_model.model."
    weights = load_file(folder / "task" / "adapter_model.safetensors")
    plain = {name.removeprefix(root): tensor for name, tensor in weights.items()}
    save_file(plain, folder / "task" / "adapter_model.safetensors")
    return case


def compiled_model(folder: Path) -> Checkpoints:
    case = names_without_a_root(folder)
    edit_weights(
        folder / "task",
        lambda held: [
            held.update({f"base_model.model._orig_mod.{name}": held.pop(name)}) for name in list(held)
        ],
    )
    return case


def classifier_without_a_config(folder: Path) -> Checkpoints:
    """Writes an adapter as peft does, beside which no config.json says how many classes there are."""
    from transformers import BertForSequenceClassification

    model = BertForSequenceClassification.from_pretrained(save_text_base(folder / "base"), num_labels=5)
    return merged_beside(
        folder, model, lambda path: text_answers(path, "AutoModelForSequenceClassification"),
        r=2, target_modules=["query"], task_type="SEQ_CLS",
    )  # fmt: skip


def more_classes_than_the_base(folder: Path) -> Checkpoints:
    from transformers import BertForSequenceClassification

    text_model = BertForSequenceClassification.from_pretrained(save_text_base(folder / "bert"), num_labels=4)
    text_model.save_pretrained(folder / "base")
    more = {"num_labels": 3, "ignore_mismatched_sizes": True}
    model = BertForSequenceClassification.from_pretrained(folder / "base", **more)
    case = merged_beside(
        folder, model, lambda path: text_answers(path, "AutoModelForSequenceClassification"),
        r=2, target_modules=["query"], task_type="SEQ_CLS",
    )  # fmt: skip
    return case._replace(options={"on_resize": "extra"})


def added_tokens(folder: Path) -> Checkpoints:
    from transformers import LlamaForCausalLM

    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "initializer_range": 0.4, "tie_word_embeddings": False}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaForCausalLM.config_class(**sizes, **heads))
    model.save_pretrained(folder / "base")
    model.resize_token_embeddings(43, mean_resizing=False)
    case = merged_beside(
        folder, model, lambda path: text_answers(path, "AutoModelForCausalLM"),
        r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"],
    )  # fmt: skip
    return case._replace(options={"on_resize": "extra"})


SITUATIONS: dict[str, Callable[[Path], Checkpoints]] = {
    "a plain ViT": vit,
    "a ViT with a head": vit_classifier,
    "names without peft's root": names_without_a_root,
    "a compiled model": compiled_model,
    "a classifier without a config": classifier_without_a_config,
    "more classes than the base": more_classes_than_the_base,
    "added tokens": added_tokens,
}


@pytest.mark.parametrize("situation", SITUATIONS)
def test_an_adapter_gives_what_peft_merges(tmp_path: Path, situation: str) -> None:
    assert_right(tmp_path, SITUATIONS[situation](tmp_path), tolerance=2e-5)


def save_clip(folder: Path) -> Path:
    from transformers import CLIPConfig, CLIPModel

    tower = {"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = tower | {"vocab_size": 40, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    torch.manual_seed(0)
    CLIPModel(
        CLIPConfig(
            text_config=text, vision_config=tower | {"image_size": 8, "patch_size": 4}, projection_dim=8
        )
    ).save_pretrained(folder)
    return folder


def test_an_adapter_of_one_tower_is_refused_on_both_and_right_on_its_own(tmp_path: Path) -> None:
    from transformers import CLIPTextModel

    base = save_clip(tmp_path / "clip")
    model = CLIPTextModel.from_pretrained(base)
    case = merged_beside(tmp_path, model, lambda path: text_answers(path), r=2, target_modules=["q_proj"])
    assert refusal(tmp_path, base, case.finetuned) == (
        "TASK: its names fit the base's both under 'vision_model.' and under 'text_model.'; give as the base "
        "the part that it was made from, as a model of its own"
    )
    CLIPTextModel.from_pretrained(base).save_pretrained(tmp_path / "base")  # as the message says
    assert_right(tmp_path, case, tolerance=2e-5)


def test_an_adapter_of_fused_experts_is_refused_and_right_when_merged_with_peft(tmp_path: Path) -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=40, hidden_size=16, intermediate_size=20, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=2, num_experts_per_tok=1, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = MixtralForCausalLM(config)
    model.save_pretrained(tmp_path / "base")
    parameters = {"target_parameters": ["mlp.experts.gate_up_proj"]}
    adapted = save_adapter(model, tmp_path / "task", r=2, target_modules=["q_proj"], **parameters)
    assert refusal(tmp_path, tmp_path / "base", tmp_path / "task") == (
        "TASK: adapter_config.json has 'target_parameters': [\"mlp.experts.gate_up_proj\"], which is not handled; "
        "merge the adapter into its base with peft and give the merged model"
    )
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    answers = partial(text_answers, auto="AutoModelForCausalLM")
    assert_right(tmp_path, Checkpoints(tmp_path / "base", tmp_path / "merged", answers), tolerance=2e-5)
