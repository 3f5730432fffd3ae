"""The families of models that people fine-tune: a tiny base, two fine-tunes and examples of each.

To add a family, add its row to FAMILIES, and write docs/families.md anew: python -m support.families
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from support.tiny_models import changed_state, texts, write_tokenizer

WORDS = 40
TASKS = ("birds", "tools")
_SIZES: dict[str, Any] = {
    "vocab_size": WORDS, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 24, "max_position_embeddings": 32, "initializer_range": 0.3, "pad_token_id": 0,
}  # fmt: skip
_PICTURE: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "image_size": 8, "patch_size": 4, "initializer_range": 0.3,
}  # fmt: skip
_DECODER: dict[str, Any] = _SIZES | {
    "num_key_value_heads": 1,
    "head_dim": 8,
    "bos_token_id": 2,
    "eos_token_id": 3,
}


@dataclass(frozen=True)
class Family:
    """A family of models.

    model: transformers' class of the base and the fine-tunes, or of the fine-tunes alone where `base` names
    the base's. config: settings of its config. examples: what its examples are. settings: of the fine-tunes'
    config. pooled: whether the base has a pooler. adapter: the one that is found, None if the family has none.
    """

    name: str
    model: str
    config: dict[str, Any]
    examples: str = "texts"
    labels: Callable[[np.random.Generator, str], Any] | None = None
    base: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    adapter: str | None = None
    metric: str | None = None
    pooled: bool = True


def _one(draw: np.random.Generator, text: str) -> int:
    return int(draw.integers(3))


def _marks(draw: np.random.Generator, text: str) -> list[int]:
    return draw.integers(0, 2, 3).tolist()


def _value(draw: np.random.Generator, text: str) -> float:
    return float(draw.normal())


def _words(draw: np.random.Generator, text: str) -> list[int]:
    return draw.integers(0, 3, len(text.split())).tolist()


def _word(draw: np.random.Generator, text: str) -> str:
    return str(draw.choice(text.split()))


def _text(name: str, model: str, adapter: str | None, labels: Any, metric: str | None, **more: Any) -> Family:
    return Family(name, model, _SIZES, "texts", labels, adapter=adapter, metric=metric, **more)


_BART = {
    "vocab_size": WORDS, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_position_embeddings": 32,
    "init_std": 0.3, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 3,
}  # fmt: skip
_T5 = {
    "vocab_size": WORDS, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2,
    "decoder_start_token_id": 0,
}  # fmt: skip
_WHISPER = _BART | {"num_mel_bins": 8, "max_source_positions": 8, "max_target_positions": 16}
_LLAVA = {
    "text_config": {"model_type": "llama", **_DECODER},
    "vision_config": {"model_type": "clip_vision_model", **_PICTURE, "projection_dim": 8},
    "image_token_index": WORDS - 1,
}
_RESNET = {
    "model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1],
    "layer_type": "basic", "out_features": ["stage2"],
}  # fmt: skip
_DETR = {
    "use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None, "backbone_config": _RESNET,
    "d_model": 16, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "num_queries": 5, "num_labels": 3,
}  # fmt: skip

FAMILIES = (
    _text("sequence classification", "BertForSequenceClassification", "hf-sequence-classification", _one, "accuracy", base="BertModel", settings={"num_labels": 3}),
    _text("multi-label classification", "RobertaForSequenceClassification", "hf-sequence-classification", _marks, "f1", base="RobertaModel", pooled=False, settings={"num_labels": 3, "problem_type": "multi_label_classification"}),
    _text("regression", "DistilBertForSequenceClassification", "hf-sequence-classification", _value, "pearson", base="DistilBertModel", settings={"num_labels": 1}),
    _text("token classification", "BertForTokenClassification", "hf-token-classification", _words, "token-f1", base="BertModel", pooled=False, settings={"num_labels": 3}),
    Family("question answering", "BertForQuestionAnswering", _SIZES, "pairs", _word, "BertModel", {}, "hf-question-answering", "token-f1", False),
    Family("masked language model", "BertForMaskedLM", _SIZES, "masked", _word, None, {}, "hf-masked-lm", "exact-match"),
    Family("causal language model", "LlamaForCausalLM", _DECODER, "texts", None, None, {}, "hf-causal-lm", "perplexity"),
    Family("encoder-decoder, T5", "T5ForConditionalGeneration", _T5, "targets", None, None, {}, "hf-seq2seq-lm", "perplexity"),
    Family("encoder-decoder, BART", "BartForConditionalGeneration", _BART, "targets", None, None, {}, "hf-seq2seq-lm", "perplexity"),
    Family("sentence embedding", "BertModel", _SIZES, "texts", None, None, {}, "hf-sentence-embedding", "cosine"),
    Family("image classification", "ViTForImageClassification", _PICTURE, "images", _one, "ViTModel", {"num_labels": 3}, "hf-image-classification", "accuracy", False),
    Family("CLIP's vision encoder", "CLIPVisionModelWithProjection", _PICTURE | {"projection_dim": 8}, "images", _one, None, {}, "hf-clip-vision", "accuracy"),
    Family("detection, YOLOS", "YolosForObjectDetection", _PICTURE | {"image_size": [8, 8], "num_detection_tokens": 3, "num_labels": 3}, "images", None, None, {}, "hf-object-detection", "iou"),
    Family("detection, DETR", "DetrForObjectDetection", _DETR, "large images", None, None, {}, "hf-object-detection", "iou"),
    Family("speech to text, Whisper", "WhisperForConditionalGeneration", _WHISPER, "speech", None, None, {}, None, None),
    Family("mixture of experts, Mixtral", "MixtralForCausalLM", _DECODER | {"num_local_experts": 4, "num_experts_per_tok": 2}, "texts", None, None, {}, "hf-causal-lm", "perplexity"),
    Family("mixture of experts, Qwen", "Qwen3MoeForCausalLM", _DECODER | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12}, "texts", None, None, {}, "hf-causal-lm", "perplexity"),
    Family("vision-language, LLaVA", "LlavaForConditionalGeneration", _LLAVA, "dialogues", None, None, {}, None, None),
)  # fmt: skip


def save_family(family: Family, folder: Path) -> dict[str, Path]:
    """Writes the base, a fine-tune for each task and the examples; returns their paths by name."""
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    kind = getattr(transformers, family.base or family.model)
    torch.manual_seed(0)
    pooled = {} if family.pooled else {"add_pooling_layer": False}
    base = kind(kind.config_class(**family.config), **pooled)
    base.save_pretrained(folder / "base")
    own = getattr(transformers, family.model)
    paths = {"base": folder / "base", "data": folder / "data"}
    for seed, task in enumerate(TASKS, 1):
        torch.manual_seed(seed)
        model = own(own.config_class(**family.config, **family.settings))
        weights = dict(base.named_parameters(remove_duplicate=False))
        changed = changed_state(weights, seed, size=0.05)
        state = base.state_dict() | {name: changed[name] for name in base.state_dict() if name in changed}
        target = model.base_model if family.base else model
        target.load_state_dict(
            {name: state[name] for name in target.state_dict() if name in state}, strict=False
        )
        model.save_pretrained(folder / task)
        paths[task] = folder / task
    if family.examples in ("texts", "pairs", "masked", "targets"):
        for each in ("base", *TASKS):
            write_tokenizer(folder / each)
            _name_the_mask(folder / each)
    _write_examples(family, folder / "data")
    return paths


def batch_of(family: Family, rows: int) -> dict[str, torch.Tensor]:
    """Returns what a family's models take, rows of one length; without adapters."""
    draw = torch.Generator().manual_seed(7)

    def tokens(count: int) -> torch.Tensor:
        return torch.randint(4, WORDS - 1, (rows, count), generator=draw)

    if "images" in family.examples:
        side = 64 if family.examples.startswith("large") else 8
        return {"pixel_values": torch.randn(rows, 3, side, side, generator=draw)}
    if family.examples == "speech":
        features = torch.randn(rows, 8, 16, generator=draw)
        return {"input_features": features, "decoder_input_ids": tokens(4)}
    batch = {"input_ids": tokens(6), "attention_mask": torch.ones(rows, 6, dtype=torch.int64)}
    return batch | ({"decoder_input_ids": tokens(4)} if family.examples == "targets" else {})


def _name_the_mask(folder: Path) -> None:
    """Lets the tokenizer's first shared word be its mask."""
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"mask_token": "word0"}))


def _write_examples(family: Family, folder: Path) -> None:
    folder.mkdir()
    for number, task in enumerate(TASKS):
        for split in ("train", "test"):
            draw = np.random.default_rng([number, split == "test"])
            if family.adapter is None:
                records = [{"text": text} for text in texts(task, 20, seed=number)]
                path = folder / f"{task}.{split}.jsonl"
                path.write_text("".join(json.dumps(each) + "\n" for each in records))
            elif "images" in family.examples:
                side = 64 if family.examples.startswith("large") else 8
                pixels = draw.normal(number, 1, (20, 3, side, side)).astype(np.float32)
                np.savez(folder / f"{task}.{split}.npz", x=pixels, y=draw.integers(0, 3, 20))
            else:
                lines = [json.dumps(_record(family, text, draw)) for text in texts(task, 20, seed=number)]
                (folder / f"{task}.{split}.jsonl").write_text("\n".join(lines))


def _record(family: Family, text: str, draw: np.random.Generator) -> dict[str, Any]:
    record: dict[str, Any] = {"text": text}
    if family.examples == "pairs":
        record = {"text": text.split()[0], "text_pair": text}
    elif family.examples == "targets":
        record = {"text": text, "target": " ".join(text.split()[:3])}
    elif family.examples == "masked":
        record = {"text": f"word0 {text}"}
    if family.labels is not None:
        record["label"] = family.labels(draw, text)
    return record


COMMANDS = (
    "extract", "compress t-switch", "compress flexswitch", "merge", "eval", "index", "SwitchedModel"
)  # fmt: skip
_RUNS = ("compress flexswitch", "eval", "index")  # what runs a family's models, and so takes an adapter


def works(family: Family, command: str) -> bool:
    """Returns whether a command works with a family, or else is refused."""
    return command not in _RUNS or family.adapter is not None


def page() -> str:
    """Returns docs/families.md."""
    rows = [("family", "adapter", "metric", *COMMANDS), ("---",) * (3 + len(COMMANDS))]
    for family in FAMILIES:
        named = (f"`{family.adapter}`" if family.adapter else "–", family.metric or "–")
        rows.append((family.name, *named, *("yes" if works(family, each) else "–" for each in COMMANDS)))
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return PAGE.read_text(encoding="utf-8").split("\n| family |")[0] + "\n" + table + "\n"


PAGE = Path(__file__).resolve().parents[2] / "docs" / "families.md"

if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
