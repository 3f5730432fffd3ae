"""Detects from config.json and tensor names which adapter runs a checkpoint."""

from collections.abc import Iterable, Mapping

# Encoder-decoders that read texts; others with such names read speech or pictures.
_TEXT_TO_TEXT = [
    f"{name}ForConditionalGeneration"
    for name in (
        "Bart", "BigBirdPegasus", "Blenderbot", "BlenderbotSmall", "LED", "LongT5", "M2M100", "MBart", "MT5",
        "Mvp", "NllbMoe", "Pegasus", "PegasusX", "PLBart", "SwitchTransformers", "T5", "UMT5",
    )
] + ["MarianMTModel"]  # fmt: skip
# The end of an architecture's name → the adapter that runs it.
_ENDINGS = {
    "ForSequenceClassification": "hf-sequence-classification",
    "ForImageClassification": "hf-image-classification",
    "ForTokenClassification": "hf-token-classification",
    "ForQuestionAnswering": "hf-question-answering",
    "ForMaskedLM": "hf-masked-lm",
    "ForObjectDetection": "hf-object-detection",
    "CLIPModel": "hf-clip-vision",
    "CLIPVisionModel": "hf-clip-vision",
    "CLIPVisionModelWithProjection": "hf-clip-vision",
}
_LANGUAGE_MODEL = ("ForCausalLM", "LMHeadModel")
ADAPTERS = (
    "hf-sequence-classification", "hf-image-classification", "hf-encoder", "hf-causal-lm", "hf-seq2seq-lm",
    "hf-token-classification", "hf-question-answering", "hf-masked-lm", "hf-sentence-embedding",
    "hf-object-detection", "hf-clip-vision",
)  # fmt: skip
HEAD_WEIGHT, HEAD_BIAS = "head.weight", "head.bias"
TASK_HEADS = ("classifier", "score", "qa_outputs")  # the names of task heads in transformers


def detect_adapter(config: Mapping[str, object], extras: Iterable[str]) -> str | None:
    """Returns the adapter's name, None if the checkpoint does not determine it.

    A model without a head of its own that carries the extras `head.weight` and `head.bias` is an
    encoder with a linear head. A LoRA for a task on a language model has the base's config.json and
    carries a head, so it is not taken for a language model.
    """
    own = set(extras)
    architectures = config.get("architectures")
    names = [str(name) for name in architectures] if isinstance(architectures, list) else []
    for ending, adapter in _ENDINGS.items():
        if any(name.endswith(ending) for name in names):
            return adapter
    has_task_head = any(part in TASK_HEADS for name in own for part in name.split("."))
    if any(name.endswith(_LANGUAGE_MODEL) for name in names) and not has_task_head:
        return "hf-causal-lm"
    if any(name in _TEXT_TO_TEXT for name in names) and not has_task_head:
        return "hf-seq2seq-lm"
    if HEAD_WEIGHT in own:
        return "hf-encoder"
    is_text = isinstance(config.get("vocab_size"), int) and not has_task_head
    return "hf-sentence-embedding" if is_text and any(name.endswith("Model") for name in names) else None
