"""The fuzzing targets of models' configs, LoRA configs and checkpoints, for python benchmarks/fuzz/run.py."""

import io
import json
import random
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from documents import Change, mutate_json
from outcomes import FindingError
from reader import Reader
from safetensors.numpy import save, save_file
from safetensors.torch import save_file as save_tensors

from flexswitch.codecs.errors import InputError
from flexswitch.merging.checkpoints.architecture import ADAPTERS
from flexswitch.merging.checkpoints.checkpoint import TensorInfo
from flexswitch.merging.checkpoints.config import read_json_object
from flexswitch.merging.checkpoints.opening import locate, open_checkpoint
from flexswitch.merging.models.adapters import get_adapter
from flexswitch.merging.task_vectors.lora import LoraVector
from flexswitch.merging.task_vectors.open_vector import open_finetuned

# Configs of models


def config_seeds(work: Path) -> Iterator[bytes]:
    """Yields configs of tiny models of several kinds; the folder gets a base of the first."""
    import transformers
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    layers: dict[str, Any] = {
        "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8,
    }  # fmt: skip
    tiny: dict[str, Any] = layers | {"vocab_size": 12, "max_position_embeddings": 16}
    picture: dict[str, Any] = layers | {"image_size": 8, "patch_size": 4}
    folder = work / "model"
    bert = transformers.BertConfig(**tiny, architectures=["BertModel"])
    transformers.BertModel(bert).save_pretrained(folder)
    words = {word: number for number, word in enumerate(["[PAD]", "[UNK]", *"abcdefghij"])}
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=16
    ).save_pretrained(folder)
    configs = [
        bert, transformers.GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=12, n_positions=16),
        transformers.LlamaConfig(**tiny, num_key_value_heads=2), transformers.RobertaConfig(**tiny),
        transformers.ViTConfig(**picture),
        transformers.MixtralConfig(**tiny, num_key_value_heads=2, num_local_experts=2),
        transformers.LlavaConfig(
            text_config=tiny | {"model_type": "llama"},
            vision_config=picture | {"model_type": "clip_vision_model"},
        ),
    ]  # fmt: skip
    for config in configs:
        yield json.dumps(config.to_dict()).encode()


CONFIG_WORDS = (
    "model_type", "bert", "gpt2", "llama", "vit", "architectures", "auto_map", "attn_implementation",
    "_attn_implementation", "_attn_implementation_internal", "experts_implementation", "quantization_config",
    "torch_dtype", "dtype", "float16", "num_labels", "id2label", "label2id", "problem_type", "regression",
    "hidden_size", "num_hidden_layers", "rope_parameters", "rope_scaling", "hidden_act", "gelu",
    "text_config",
    "is_decoder", "pad_token_id", "vocab_size", "layer_types", "torchscript", "return_dict", "use_cache",
    "tie_word_embeddings", "pruned_heads", "chunk_size_feed_forward", "_name_or_path", "transformers_version",
    "kernels-community/flash-attn", "a/b", "flash_attention_2", "configuration--modeling.Model",
)  # fmt: skip


def read_a_config(data: bytes, work: Path) -> None:
    """Makes the model of a config by one of the adapters, as the base's own or as a task's changes to it."""
    folder = work / "model"
    kept = work / "own-config.json"
    if not kept.exists():
        shutil.copyfile(folder / "config.json", kept)
    choice = zlib.crc32(data)
    name, is_base = ADAPTERS[choice % len(ADAPTERS)], choice >> 8 & 1
    extras = {"head.weight": TensorInfo("F32", (3, 8)), "classifier.weight": TensorInfo("F32", (3, 8))}
    (work / "task.json").write_bytes(data)
    shutil.copyfile(work / "task.json" if is_base else kept, folder / "config.json")
    try:
        base = open_checkpoint(folder)
        changes = {} if is_base else read_json_object(work / "task.json")
        adapter = get_adapter(base, None, name)
        adapter.model(changes, extras)
        if is_base:
            adapter.encoder()
    except InputError as error:
        if "memory" in str(error):
            raise FindingError(f"it took memory before it was refused: {error}") from error
        raise


# Adapters


def adapter_seeds(work: Path) -> Iterator[bytes]:
    """Yields configs of a LoRA, whose weights and base are written to the folder first."""
    draw = torch.Generator().manual_seed(0)
    (work / "lora").mkdir(exist_ok=True)
    (work / "plain").mkdir(exist_ok=True)
    weights = {
        "block.q.weight": torch.randn(8, 6, generator=draw),
        "head.weight": torch.randn(3, 8, generator=draw),
    }
    save_tensors(weights, work / "plain" / "model.safetensors")
    factors = {"A": torch.randn(2, 6, generator=draw), "B": torch.randn(8, 2, generator=draw)}
    prefix = "base_model.model.block.q.lora_"
    save_tensors({f"{prefix}{part}.weight": each for part, each in factors.items()},
                 work / "lora" / "adapter_model.safetensors")  # fmt: skip
    plain = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q"], "bias": "none"}
    yield json.dumps(plain).encode()
    patterns = {"rank_pattern": {"block.q": 2, r".*\.\d+.q": 3}, "alpha_pattern": {"q$": 1.5},
                "use_rslora": True,
                "modules_to_save": ["head"], "task_type": "SEQ_CLS", "auto_mapping": None, "use_dora": False,
                "init_lora_weights": True, "fan_in_fan_out": False}  # fmt: skip
    yield json.dumps(plain | patterns).encode()


ADAPTER_WORDS = (
    "peft_type", "LORA", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "(a+)+$", "(.*)*", "(a|a)*b",
    "q(?=x)",
    "block.q", "use_rslora", "use_dora", "modules_to_save", "task_type", "auto_mapping", "megatron_config",
    "layers_to_transform", "init_lora_weights", "pissa", "target_modules", "bias", "all", "fan_in_fan_out",
    2, 4,
)  # fmt: skip


def read_an_adapter(data: bytes, work: Path) -> None:
    """Opens a LoRA and expands it."""
    (work / "lora" / "adapter_config.json").write_bytes(data)
    vector = LoraVector(open_checkpoint(work / "plain"), locate(str(work / "lora")))
    for name in vector.tensors:
        for _ in vector.blocks(name):
            pass


# Checkpoints


def checkpoint_seeds(work: Path) -> Iterator[bytes]:
    """Yields safetensors files, shard indexes and files of torch.save; the first byte says which."""
    (work / "sharded").mkdir(exist_ok=True)
    weights = {"a.w": np.ones((3, 4), np.float32), "b": np.zeros(2, np.float16)}
    save_file({"a.w": weights["a.w"]}, work / "sharded" / "model-1.safetensors")
    save_file({"b": weights["b"]}, work / "sharded" / "model-2.safetensors")
    yield b"\0" + save(weights, {"format": "pt"})
    index = {
        "metadata": {"total_size": 52},
        "weight_map": {"a.w": "model-1.safetensors", "b": "model-2.safetensors"},
    }
    yield b"\1" + json.dumps(index).encode()
    state = {
        "a.w": torch.ones(3, 4),
        "b": torch.zeros(2, dtype=torch.float16),
        "tied": torch.ones(2).expand(3, 2),
    }
    for is_zip in (True, False):
        file = io.BytesIO()
        torch.save(state, file, _use_new_zipfile_serialization=is_zip)
        yield b"\2" + file.getvalue()


def mutate_checkpoint(data: bytes, draw: random.Random, change: Change) -> bytes:
    """Returns a changed file; of a safetensors file the header is changed, and its length fits."""
    kind, body = data[:1], data[1:]
    if kind == b"\0" and draw.random() < 0.8:
        length = int.from_bytes(body[:8], "little")
        head = mutate_json(
            body[8 : 8 + length], ("dtype", "shape", "data_offsets", "F32", 4, "a.w"), draw, change
        )
        return kind + len(head).to_bytes(8, "little") + head + body[8 + length :]
    if kind == b"\1":
        return kind + mutate_json(
            body, ("weight_map", "model-1.safetensors", "../x", "metadata"), draw, change
        )
    return kind + change(body)


def read_a_checkpoint(data: bytes, work: Path) -> None:
    """Opens a checkpoint and reads all its tensors, by itself and against the sharded one."""
    kind = data[0] % 3 if data else 0
    names = ("fuzzed.safetensors", "sharded/model.safetensors.index.json", "fuzzed.pt")
    path = work / names[kind]
    path.write_bytes(data[1:])
    checkpoint = open_checkpoint(work / "sharded" if kind == 1 else path)
    for name in checkpoint.tensors:
        checkpoint.read(name)
    if kind != 1:
        open_finetuned(str(path), open_checkpoint(path))


MODEL_READERS = {
    "config": Reader("config.json", config_seeds, read_a_config, CONFIG_WORDS),
    "adapter": Reader("adapter_config.json", adapter_seeds, read_an_adapter, ADAPTER_WORDS),
    "checkpoint": Reader("a checkpoint", checkpoint_seeds, read_a_checkpoint, own_mutate=mutate_checkpoint),
}  # fmt: skip
