"""Quantised checkpoints, on either side and under a LoRA: dequantised, or refused by the name of their format."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.loras import PEFT_WARNINGS, save_adapter
from support.situations import Checkpoints, assert_right, refusal, text_answers
from support.tiny_models import changed_state
from torch import Tensor

from flexswitch.merging.checkpoints.opening import open_checkpoint

State = dict[str, Tensor]
FP8 = torch.float8_e4m3fn


def causal(path: Path) -> Tensor:
    return text_answers(path, "AutoModelForCausalLM")


def save_llama(folder: Path) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=20, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, initializer_range=0.4, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def in_blocks(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the scales of blocks of 8 × 8 and the same for each entry."""
    rows, columns = -(-weight.shape[0] // 8), -(-weight.shape[1] // 8)
    scales = torch.empty(rows, columns)
    for row in range(rows):
        for column in range(columns):
            block = weight[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
            scales[row, column] = block.abs().max() / 448
    each = scales.repeat_interleave(8, 0).repeat_interleave(8, 1)
    return scales, each[: weight.shape[0], : weight.shape[1]]


def by_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    scales = weight.abs().amax(1, keepdim=True) / 448
    return scales, scales.expand_as(weight)


def by_tensor(weight: Tensor) -> tuple[Tensor, Tensor]:
    scale = weight.abs().max() / 448
    return scale, scale.expand_as(weight)


FORMS: dict[str, tuple[Callable[[Tensor], tuple[Tensor, Tensor]], str, dict[str, Any]]] = {
    "FP8 by blocks": (in_blocks, "_scale_inv", {"quant_method": "fp8", "weight_block_size": [8, 8]}),
    "FP8 by rows": (by_rows, "_scale", {"quant_method": "fbgemm_fp8"}),
    "FP8 by tensor": (
        by_tensor,
        "_scale",
        {"quant_method": "compressed-tensors", "format": "float-quantized"},
    ),
    "FP8 without a config": (by_tensor, "_scale", {}),
}


def quantise(source: Path, folder: Path, form: str) -> tuple[Path, Path]:
    """Writes the FP8 form of a model, and beside it the weights that it stands for, in bfloat16."""
    scale, ending, settings = FORMS[form]
    plain = folder.with_name(f"{folder.name}-plain")
    shutil.copytree(source, folder)
    shutil.copytree(source, plain)
    stored: State = {}
    weights = load_file(source / "model.safetensors")
    for name, weight in list(weights.items()):
        if "_proj" not in name:
            stored[name] = weight
            continue
        scales, each = scale(weight.to(torch.float32))
        stored[name] = (weight.to(torch.float32) / each).to(FP8)
        stored[name + ending] = scales
        stored[name.removesuffix("weight") + "input_scale"] = torch.tensor(1.0)
        weights[name] = (stored[name].to(torch.float32) * each).to(torch.bfloat16)
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    save_file(weights, plain / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config |= {"quantization_config": settings} if settings else {}
    (folder / "config.json").write_text(json.dumps(config))
    return folder, plain


def save_finetuned(source: Path, folder: Path, seed: int) -> Path:
    shutil.copytree(source, folder)
    state = changed_state(load_file(source / "model.safetensors"), seed, size=0.1)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("llama") / "llama")


@pytest.mark.parametrize("form", FORMS)
def test_an_fp8_base_and_an_fp8_fine_tune_are_dequantised(tmp_path: Path, llama: Path, form: str) -> None:
    base, _ = quantise(llama, tmp_path / "base", form)
    task, plain = quantise(save_finetuned(llama, tmp_path / "tuned", 1), tmp_path / "task", form)
    case = Checkpoints(base, task, lambda path: causal(plain if path == task else path))
    path = assert_right(tmp_path, case)
    written = load_file(path / "model.safetensors")
    assert {tensor.dtype for tensor in written.values()} == {torch.bfloat16}
    assert sorted(written) == sorted(load_file(llama / "model.safetensors"))
    assert "quantization_config" not in json.loads((path / "config.json").read_text())


def test_a_fine_tune_in_bfloat16_of_an_fp8_base_is_exact(tmp_path: Path, llama: Path) -> None:
    base, plain = quantise(llama, tmp_path / "base", "FP8 by blocks")
    assert_right(tmp_path, Checkpoints(base, save_finetuned(plain, tmp_path / "task", 2), causal))


@PEFT_WARNINGS
def test_a_lora_on_an_fp8_base_is_added_to_the_weights(tmp_path: Path, llama: Path) -> None:
    from transformers import AutoModelForCausalLM

    base, plain = quantise(llama, tmp_path / "base", "FP8 by blocks")
    model = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32)
    merged = save_adapter(
        model, tmp_path / "task", r=2, target_modules=["q_proj", "down_proj"]
    ).merge_and_unload()
    rounded = merged.to(torch.bfloat16)
    rounded.save_pretrained(tmp_path / "merged")
    case = Checkpoints(
        base, tmp_path / "task", lambda path: causal(tmp_path / "merged" if path.name == "task" else path)
    )
    assert_right(tmp_path, case)


def test_any_range_of_a_dequantised_tensor_can_be_read(tmp_path: Path, llama: Path) -> None:
    for form in FORMS:
        folder, plain = quantise(llama, tmp_path / form, form)
        checkpoint, weights = open_checkpoint(folder), load_file(plain / "model.safetensors")
        assert list(checkpoint.tensors) == sorted(weights)
        assert checkpoint.notes == [f"{folder}: its FP8 weights are dequantised to bfloat16"]
        for name, weight in weights.items():
            flat = weight.reshape(-1)
            for start, stop in [
                (0, None),
                (0, 0),
                (3, 3),
                (5, 6),
                (len(flat) // 3, len(flat) // 2),
                (len(flat) - 1, len(flat)),
            ]:
                assert torch.equal(checkpoint.read(name, start, stop), flat[start:stop]), name


def codes(*names: str, dtype: torch.dtype = torch.int32) -> State:
    return {f"layer.{name}": torch.ones(4, 4).to(dtype) for name in names}


REFUSED = {
    "GPTQ": (codes("qweight", "qzeros", "scales", "g_idx"), {"quant_method": "gptq", "bits": 4}, "gptq"),
    "GPTQ without a config": (codes("qweight", "qzeros", "scales", "g_idx"), {}, "GPTQ"),
    "AWQ": (codes("qweight", "qzeros", "scales"), {"quant_method": "awq"}, "awq"),
    "bitsandbytes in 4 bits": (
        codes("weight", "weight.absmax", "weight.quant_map", dtype=torch.uint8),
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        "bitsandbytes",
    ),
    "bitsandbytes in 8 bits without a config": (codes("weight", "SCB", dtype=torch.int8), {}, "bitsandbytes"),
    "an unknown format": (codes("weight", dtype=torch.int8), {"quant_method": "newest"}, "newest"),
    "packed integers": (codes("weight_packed"), {"quant_method": "compressed-tensors"}, "compressed-tensors"),
    "NVFP4": (codes("weight", "weight_scale", "weight_scale_2", dtype=torch.uint8), {}, "NVFP4"),
    "FP8 with the scales of other software": (
        codes("weight", dtype=FP8) | codes("scale_weight", dtype=torch.float32),
        {}, "scales such as 'layer.scale_weight'",
    ),
    "quanto without a config": (
        codes("weight._data", dtype=torch.int8) | codes("weight._scale", dtype=torch.float32),
        {}, "scales such as 'layer.weight._scale'",
    ),
    "FP8 whose scales are missing": (codes("weight", dtype=FP8), {"quant_method": "fp8"}, "fp8"),
}  # fmt: skip


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("situation", REFUSED)
def test_codes_are_refused_by_the_name_of_their_format(tmp_path: Path, situation: str, nested: bool) -> None:
    state, settings, name = REFUSED[situation]
    (tmp_path / "codes").mkdir()
    (tmp_path / "weights").mkdir()
    save_file(state, tmp_path / "codes" / "model.safetensors")
    save_file({"layer.weight": torch.ones(4, 4)}, tmp_path / "weights" / "model.safetensors")
    config: dict[str, Any] = {"quantization_config": settings} if settings else {}
    (tmp_path / "codes" / "config.json").write_text(json.dumps({"text_config": config} if nested else config))
    reason = f"is quantised by {name}: its tensors hold codes, not weights; give the checkpoint from before it was quantised"
    assert refusal(tmp_path, tmp_path / "codes", tmp_path / "weights") == f"BASE: {reason}"
    assert refusal(tmp_path, tmp_path / "weights", tmp_path / "codes") == f"TASK: {reason}"


def test_scales_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    save_file({"w": torch.ones(4, 4).to(FP8), "w_scale": torch.ones(3, 2)}, tmp_path / "m.safetensors")
    found = refusal(tmp_path, tmp_path / "m.safetensors", tmp_path / "m.safetensors")
    assert found.endswith("expected one for the tensor, for each row, or for each block")


def test_a_quantisation_that_was_left_in_the_config_of_weights_is_not_written(
    tmp_path: Path, llama: Path
) -> None:
    base, task = shutil.copytree(llama, tmp_path / "base"), save_finetuned(llama, tmp_path / "task", 3)
    config = json.loads((base / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    for folder in (base, task):
        (folder / "config.json").write_text(json.dumps(config))
    plain = save_finetuned(llama, tmp_path / "plain", 3)
    assert_right(tmp_path, Checkpoints(base, task, lambda path: causal(plain if path == task else path)))
