"""Detects from config.json and tensor names which adapter runs a checkpoint."""

from collections.abc import Iterable, Mapping

ADAPTERS = (
    "hf-sequence-classification",
    "hf-image-classification",
    "hf-encoder",
    "hf-causal-lm",
    "hf-seq2seq-lm",
)
# Encoder-decoders that read texts; others with such names read speech or pictures.
_TEXT_TO_TEXT = [
    f"{name}ForConditionalGeneration"
    for name in (
        "Bart", "BigBirdPegasus", "Blenderbot", "BlenderbotSmall", "LED", "LongT5", "M2M100", "MBart", "MT5",
        "Mvp", "NllbMoe", "Pegasus", "PegasusX", "PLBart", "SwitchTransformers", "T5", "UMT5",
    )
] + ["MarianMTModel"]  # fmt: skip
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
    names = architectures if isinstance(architectures, list) else []
    if any(str(name).endswith("ForSequenceClassification") for name in names):
        return "hf-sequence-classification"
    if any(str(name).endswith("ForImageClassification") for name in names):
        return "hf-image-classification"
    has_task_head = any(part in TASK_HEADS for name in own for part in name.split("."))
    if any(str(name).endswith(("ForCausalLM", "LMHeadModel")) for name in names) and not has_task_head:
        return "hf-causal-lm"
    if any(name in _TEXT_TO_TEXT for name in names) and not has_task_head:
        return "hf-seq2seq-lm"
    return "hf-encoder" if HEAD_WEIGHT in own else None
