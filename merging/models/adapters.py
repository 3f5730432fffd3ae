"""Model adapters: they make a module of a checkpoint, and batches, logits and features of inputs."""

import importlib
from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol

from torch import Tensor, nn

from flexswitch.codecs.errors import InputError, UsageError, unknown_name
from flexswitch.merging.checkpoints.architecture import ADAPTERS, HEAD_WEIGHT, detect_adapter
from flexswitch.merging.checkpoints.checkpoint import Checkpoint, TensorInfo
from flexswitch.merging.checkpoints.config import read_config
from flexswitch.merging.models.clip_adapter import ClipVision
from flexswitch.merging.models.embedding_adapter import SentenceEmbedding
from flexswitch.merging.models.examples import Batch, Inputs
from flexswitch.merging.models.image_adapters import ImageClassification, ObjectDetection
from flexswitch.merging.models.language_adapters import CausalLanguageModel, SequenceToSequence
from flexswitch.merging.models.outputs import OutputKind, output_kind
from flexswitch.merging.models.text_adapters import EncoderWithHead, SequenceClassification, TextModel
from flexswitch.merging.models.token_adapters import (
    MaskedLanguageModel,
    QuestionAnswering,
    TokenClassification,
)


class Adapter(Protocol):
    """Runs the models of one family. `python:package.module:factory` names a function that returns one.

    neighbours: the default number of exemplars that vote (docs/methods.md §3). An adapter may have `kind`,
    the kind of its outputs where that does not depend on a task's config, and has to where they are neither
    classes, labels, values nor tokens; such a one may have `answers`, of logits, a batch and its inputs.
    """

    neighbours: int

    def encoder(self) -> nn.Module:
        """Returns the base model that computes features, in float32 with its weights loaded."""

    def model(self, config: Mapping[str, Any], extras: Mapping[str, TensorInfo]) -> nn.Module:
        """Returns a task's model before its weights are loaded.

        config: the entries of its config.json that differ from the base's; extras: the task's own tensors.
        """

    def parameter_name(self, finetuned_name: str) -> str:
        """Returns the name that a tensor of a fine-tuned checkpoint has in `model`."""

    def batch(self, inputs: Inputs) -> Batch:
        """Returns the tensors that the model takes for these inputs; the first dimension is the sample."""

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Returns (sample, class), or (sample, token, vocabulary) for a language model."""

    def features(self, encoder: nn.Module, batch: Batch, spec: str) -> Tensor:
        """Returns (sample, width): means over the tokens.

        spec: "pooled" for the last hidden state, "input" for the embeddings, "layer:N" for layer N, or
        "layers:A+B" for several layers, concatenated.
        """


_CLASSES: dict[str, Callable[[Checkpoint], Adapter]] = {
    "hf-sequence-classification": SequenceClassification,
    "hf-image-classification": ImageClassification,
    "hf-encoder": EncoderWithHead,
    "hf-causal-lm": CausalLanguageModel,
    "hf-seq2seq-lm": SequenceToSequence,
    "hf-token-classification": TokenClassification,
    "hf-question-answering": QuestionAnswering,
    "hf-masked-lm": MaskedLanguageModel,
    "hf-sentence-embedding": SentenceEmbedding,
    "hf-object-detection": ObjectDetection,
    "hf-clip-vision": ClipVision,
}
_OF_IMAGES = ("hf-image-classification", "hf-object-detection", "hf-clip-vision")


def get_adapter(
    base: Checkpoint, recorded: str | None, given: str | None = None, max_length: int | None = None
) -> Adapter:
    """Returns the adapter for a base: the one the user gave, the one recorded in a file, or the base's own.

    Only the user's may be `python:`, because it runs code. max_length: the number of tokens at which texts
    are cut, if it is less than the model's own. Raises: UsageError on an unknown name, or a max_length for a
    model that reads no texts; InputError if the base has no config.json, or its family no adapter.
    """
    adapter = _adapter(base, recorded, given)
    if max_length is not None:
        if not isinstance(adapter, TextModel):
            raise UsageError("--max-length: the adapter reads no texts that could be cut; leave it out")
        adapter.max_length = min(adapter.max_length, max_length)
    return adapter


def _adapter(base: Checkpoint, recorded: str | None, given: str | None) -> Adapter:
    name = given or recorded or detect_adapter(read_config(base), ())
    if name is None:
        family = read_config(base).get("model_type")
        raise InputError(
            f"{base.source}: no adapter runs {family or 'such'} models; extract, merge, compress by "
            "methods that need no exemplars, and SwitchedModel with weights work without one; otherwise give "
            f"--adapter ({', '.join(ADAPTERS)}, python:package.module:factory)"
        )
    if name.startswith("python:"):
        if given is None:
            raise UsageError(
                f"the zoo names the code '{name}' as its adapter; if you trust it, give it as --adapter"
            )
        adapter: Adapter = _load_factory(name)(base)
        return adapter
    if name not in _CLASSES:
        raise UsageError(unknown_name("adapter", name, _CLASSES))
    return _CLASSES[name](base)


def is_built_in(adapter: Adapter) -> bool:
    """Returns whether an adapter is one of flexswitch's own, and none of a user's, which may do anything."""
    return type(adapter) in _CLASSES.values()


def kind_of(
    adapter: Adapter, config: Mapping[str, Any], extras: Collection[str], logits: Tensor
) -> OutputKind:
    """Returns the kind of a model's outputs: the adapter's, or what config.json and their shape say.

    config: the base's with the task's changes; extras: the task's own tensors: a head answers where the model
    has features otherwise. Raises: InputError.
    """
    kind: OutputKind | None = getattr(adapter, "kind", None)
    if kind is None or (kind == "features" and not gives_features(adapter, extras)):
        return output_kind(config, logits)
    return kind


def gives_features(adapter: Adapter, extras: Collection[str]) -> bool:
    """Returns whether a task's model gives features, which are no answers that could be equal."""
    return getattr(adapter, "kind", None) == "features" and HEAD_WEIGHT not in extras


def default_neighbours(name: str | None) -> int:
    """Returns the default number of exemplars that vote with the named adapter, 5 if it is not built in."""
    return 10 if name in _OF_IMAGES else 5


def _load_factory(name: str) -> Any:
    """Returns the function that `python:package.module:factory` names. Raises: UsageError."""
    module_name, _, function = name.removeprefix("python:").partition(":")
    try:
        return getattr(importlib.import_module(module_name), function)
    except (ImportError, AttributeError, ValueError) as reason:
        raise UsageError(f"--adapter {name}: {reason}; expected python:package.module:factory") from reason
