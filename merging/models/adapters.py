"""Model adapters: how a checkpoint becomes a module, and inputs become batches, logits and features."""

import importlib
from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor, nn

from flexswitch.codecs.errors import UsageError, unknown_name
from flexswitch.merging.checkpoints.architecture import ADAPTERS
from flexswitch.merging.checkpoints.checkpoint import Checkpoint, TensorInfo
from flexswitch.merging.models.examples import Batch, Inputs
from flexswitch.merging.models.image_adapters import ImageClassification
from flexswitch.merging.models.text_adapters import (
    CausalLanguageModel,
    EncoderWithHead,
    SequenceClassification,
)


class Adapter(Protocol):
    """How models of one family are run. `python:package.module:factory` names a function that returns one.

    neighbours: how many exemplars vote where the user does not say (docs/methods.md §3).
    """

    neighbours: int

    def encoder(self) -> nn.Module:
        """Returns the base model as the feature extractor, in float32, its weights loaded."""

    def model(self, config: Mapping[str, Any], extras: Mapping[str, TensorInfo]) -> nn.Module:
        """Returns a task's model, its weights still to be loaded.

        config: the entries in which its config.json differs from the base's; extras: its own tensors.
        """

    def parameter_name(self, finetuned_name: str) -> str:
        """Returns the name that a tensor of a fine-tuned checkpoint has in `model`."""

    def batch(self, inputs: Inputs) -> Batch:
        """Returns inputs as the tensors the model takes, the first dimension over samples."""

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Returns (sample, class), or (sample, token, vocabulary) of a language model."""

    def features(self, encoder: nn.Module, batch: Batch, spec: str) -> Tensor:
        """Returns (sample, width): "pooled" is the mean of the last hidden state's tokens, "input" of the
        embeddings, "layer:N" of layer N, "layers:A+B" those of several, one behind the other.
        """


_Known = type[SequenceClassification | ImageClassification | EncoderWithHead | CausalLanguageModel]

CLASSES: dict[str, _Known] = {
    "hf-sequence-classification": SequenceClassification,
    "hf-image-classification": ImageClassification,
    "hf-encoder": EncoderWithHead,
    "hf-causal-lm": CausalLanguageModel,
}


def get_adapter(base: Checkpoint, recorded: str | None, given: str | None = None) -> Adapter:
    """Returns the adapter that runs a base: the one the user gave, or the one recorded in a file.

    Only a name that the user gave may name code.
    Raises: UsageError on an unknown name; InputError if the base has no config.json.
    """
    name = recorded if given is None else given
    if name is None:
        raise UsageError(
            f"nothing says how the models are run; give --adapter (known: {', '.join(ADAPTERS)})"
        )
    if name.startswith("python:"):
        if given is None:
            raise UsageError(f"the zoo asks for the code '{name}'; if you trust it, give it as --adapter")
        adapter: Adapter = _load_factory(name)(base)
        return adapter
    if name not in CLASSES:
        raise UsageError(unknown_name("adapter", name, CLASSES))
    return CLASSES[name](base)


def _load_factory(name: str) -> Any:
    """Returns the function that `python:package.module:factory` names. Raises: UsageError."""
    module_name, _, function = name.removeprefix("python:").partition(":")
    try:
        return getattr(importlib.import_module(module_name), function)
    except (ImportError, AttributeError, ValueError) as reason:
        raise UsageError(f"--adapter {name}: {reason}; expected python:package.module:factory") from reason
