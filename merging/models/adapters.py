"""Model adapters: they make a module of a checkpoint, and batches, logits and features of inputs."""

import importlib
from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor, nn

from flexswitch.codecs.errors import UsageError, unknown_name
from flexswitch.merging.checkpoints.architecture import ADAPTERS
from flexswitch.merging.checkpoints.checkpoint import Checkpoint, TensorInfo
from flexswitch.merging.models.examples import Batch, Inputs
from flexswitch.merging.models.image_adapters import ImageClassification
from flexswitch.merging.models.language_adapters import CausalLanguageModel, SequenceToSequence
from flexswitch.merging.models.text_adapters import EncoderWithHead, SequenceClassification


class Adapter(Protocol):
    """Runs the models of one family. `python:package.module:factory` names a function that returns one.

    neighbours: the default number of exemplars that vote (docs/methods.md §3).
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


_Known = type[
    SequenceClassification | ImageClassification | EncoderWithHead | CausalLanguageModel | SequenceToSequence
]

_CLASSES: dict[str, _Known] = {
    "hf-sequence-classification": SequenceClassification,
    "hf-image-classification": ImageClassification,
    "hf-encoder": EncoderWithHead,
    "hf-causal-lm": CausalLanguageModel,
    "hf-seq2seq-lm": SequenceToSequence,
}


def get_adapter(base: Checkpoint, recorded: str | None, given: str | None = None) -> Adapter:
    """Returns the adapter for a base: the one the user gave, otherwise the one recorded in a file.

    Only the user's may be `python:`, because it runs code. Raises: UsageError on an unknown name; InputError
    if the base has no config.json.
    """
    name = recorded if given is None else given
    if name is None:
        raise UsageError(
            f"no adapter is recorded for these models; give --adapter (known: {', '.join(ADAPTERS)})"
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


def default_neighbours(name: str | None) -> int:
    """Returns the default number of exemplars that vote with the named adapter, 5 if it is not built in."""
    return _CLASSES[name].neighbours if name in _CLASSES else 5


def _load_factory(name: str) -> Any:
    """Returns the function that `python:package.module:factory` names. Raises: UsageError."""
    module_name, _, function = name.removeprefix("python:").partition(":")
    try:
        return getattr(importlib.import_module(module_name), function)
    except (ImportError, AttributeError, ValueError) as reason:
        raise UsageError(f"--adapter {name}: {reason}; expected python:package.module:factory") from reason
