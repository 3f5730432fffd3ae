"""Model adapters: how a checkpoint becomes a module, and inputs become batches, logits and features."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from flexswitch.codecs.errors import InputError, UsageError, unknown_name
from flexswitch.merging.architecture import ADAPTERS, HEAD_BIAS, HEAD_WEIGHT
from flexswitch.merging.checkpoint import Checkpoint, TensorInfo, read_config, read_json_object
from flexswitch.merging.evaluation.data import Inputs
from flexswitch.merging.loading import load_weights

Batch = dict[str, Tensor]


class Adapter(Protocol):
    """How models of one family are run. `python:package.module:factory` names a function that returns one.

    neighbours: how many exemplars vote where the user does not say (methods, §3).
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
        """Returns (sample, class)."""

    def features(self, encoder: nn.Module, batch: Batch, kind: str) -> Tensor:
        """Returns (sample, width): "pooled" is the mean of the last layer's tokens, "layer:N" of layer N."""


def get_adapter(name: str | None, base: Checkpoint, trusted: bool) -> Adapter:
    """Returns the adapter of that name for a base.

    `trusted` says that the name comes from the user, not from a file: only then may it name code.
    Raises: UsageError on an unknown name; InputError where the base has no config.json.
    """
    if name is None:
        raise UsageError(
            f"nothing says how the models are run; give --adapter (known: {', '.join(ADAPTERS)})"
        )
    if name.startswith("python:"):
        if not trusted:
            raise UsageError(f"the zoo asks for the code '{name}'; if you trust it, give it as --adapter")
        made: Adapter = _load_factory(name)(base)
        return made
    classes: dict[str, Callable[[Checkpoint], Adapter]] = {
        "hf-sequence-classification": SequenceClassification,
        "hf-image-classification": ImageClassification,
        "hf-encoder": EncoderWithHead,
    }
    if name not in classes:
        raise UsageError(unknown_name("adapter", name, classes))
    return classes[name](base)


class _HuggingFace:
    """What the transformers adapters share: a base directory and mean-pooled hidden states."""

    neighbours: int

    def __init__(self, base: Checkpoint) -> None:
        try:
            import transformers
        except ImportError as reason:
            raise InputError("running models takes transformers; pip install 'flexswitch[eval]'") from reason
        self._config = read_config(base)
        if base.directory is None or "model_type" not in self._config:
            raise InputError(f"{base.source}: has no config.json with a 'model_type'; give a model directory")
        if self._config["model_type"] not in transformers.CONFIG_MAPPING:
            raise InputError(
                f"{base.source}: transformers {transformers.__version__} has no model type "
                f"'{self._config['model_type']}'; give --adapter python:package.module:factory"
            )
        self._base = base
        self._directory = base.directory
        self._transformers = transformers

    def encoder(self) -> nn.Module:
        """Returns the base without its head."""
        module = self._headless({})
        state = {name: self._base.read(name).view(info.shape) for name, info in self._base.tensors.items()}
        load_weights(module, state, self._base.source)
        return module

    def parameter_name(self, finetuned_name: str) -> str:
        """Returns the name unchanged; `load_weights` knows under which names transformers saves."""
        return finetuned_name

    def features(self, encoder: nn.Module, batch: Batch, kind: str) -> Tensor:
        """Returns the mean over the tokens that are not padding, (sample, width)."""
        output = encoder(**batch, output_hidden_states=kind != "pooled")
        hidden = output.last_hidden_state if kind == "pooled" else self._layer(output.hidden_states, kind)
        return mean_pool(hidden, batch.get("attention_mask"))

    def _layer(self, layers: Sequence[Tensor], kind: str) -> Tensor:
        number = kind.removeprefix("layer:")
        if not number.isdecimal() or int(number) >= len(layers):
            raise UsageError(
                f"features '{kind}': the base has layer:0 (embeddings) … layer:{len(layers) - 1}"
            )
        return layers[int(number)]

    def _headless(self, changes: Mapping[str, Any]) -> nn.Module:
        """Returns the model without a head, and without a pooler: features are means over tokens."""
        module = self._untrained("AutoModel", changes)
        if isinstance(getattr(module, "pooler", None), nn.Module):
            module.register_module("pooler", None)  # as transformers does with add_pooling_layer=False
        return module

    def _untrained(self, kind: str, changes: Mapping[str, Any]) -> nn.Module:
        """Returns a model of one of transformers' Auto classes. Raises: InputError where it makes none."""
        entries = {**self._config, **changes}
        try:
            config = self._transformers.CONFIG_MAPPING[entries["model_type"]].from_dict(entries)
            config.dtype = torch.float32
            module: nn.Module = getattr(self._transformers, kind).from_config(config).float().eval()
        except Exception as reason:  # a config may be wrong in any way
            found = " ".join(str(reason).split())[:200]
            raise InputError(
                f"{self._base.source}: transformers makes no {kind} of its config.json ({found})"
            ) from reason
        return module


class _Text(_HuggingFace):
    neighbours = 5

    def __init__(self, base: Checkpoint) -> None:
        super().__init__(base)
        self._tokenizer = self._load_tokenizer()
        longest = self._config.get("max_position_embeddings", 512)
        if "roberta" in self._config["model_type"]:
            longest -= self._tokenizer.pad_token_id + 1  # its positions start behind the padding's number
        self._max_length = min(self._tokenizer.model_max_length, longest)

    def _load_tokenizer(self) -> Any:
        try:
            tokenizer = self._transformers.AutoTokenizer.from_pretrained(
                self._directory, trust_remote_code=False
            )
        except Exception as reason:  # its libraries raise what they like
            found = " ".join(str(reason).split())[:200]
            raise InputError(f"{self._base.source}: its tokenizer does not load ({found})") from reason
        if len(tokenizer) <= len(tokenizer.all_special_tokens):  # what it makes where there are no files
            raise InputError(f"{self._base.source}: has no tokenizer; copy its tokenizer.json there")
        if tokenizer.pad_token is None:
            raise InputError(
                f"{self._base.source}: its tokenizer has no pad_token; name one in its tokenizer_config.json"
            )
        return tokenizer

    def batch(self, inputs: Inputs) -> Batch:
        """Returns token tensors, padded to the longest text, cut at the tokenizer's model_max_length."""
        if isinstance(inputs, np.ndarray):
            raise InputError(f"the examples are an array of shape {inputs.shape}, expected texts")
        return dict(
            self._tokenizer(
                list(inputs), padding=True, truncation=True, max_length=self._max_length, return_tensors="pt"
            )
        )


class SequenceClassification(_Text):
    """`hf-sequence-classification`: AutoModelForSequenceClassification on texts."""

    def model(self, config: Mapping[str, Any], extras: Mapping[str, TensorInfo]) -> nn.Module:
        """Returns the classifier with the config's label count."""
        return self._untrained("AutoModelForSequenceClassification", config)

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Returns (sample, class)."""
        logits: Tensor = model(**batch).logits
        return logits


class EncoderWithHead(_Text):
    """`hf-encoder`: mean-pooled features under a linear head kept among the extras."""

    def model(self, config: Mapping[str, Any], extras: Mapping[str, TensorInfo]) -> nn.Module:
        """Returns the encoder and a head of the stored shape. Raises: InputError where there is no head."""
        if HEAD_WEIGHT not in extras:
            raise InputError(
                f"adapter hf-encoder: the task has no '{HEAD_WEIGHT}' (it has: {', '.join(extras)})"
            )
        encoder = self._headless(config)
        classes, width = extras[HEAD_WEIGHT].shape
        return nn.ModuleDict(
            {"encoder": encoder, "head": nn.Linear(width, classes, bias=HEAD_BIAS in extras)}
        ).eval()

    def parameter_name(self, finetuned_name: str) -> str:
        """Returns the name inside the module of encoder and head."""
        return finetuned_name if finetuned_name in (HEAD_WEIGHT, HEAD_BIAS) else f"encoder.{finetuned_name}"

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Returns (sample, class)."""
        modules = dict(model.named_children())
        hidden = modules["encoder"](**batch).last_hidden_state
        logits: Tensor = modules["head"](mean_pool(hidden, batch.get("attention_mask")))
        return logits


class ImageClassification(_HuggingFace):
    """`hf-image-classification`: AutoModelForImageClassification on pixel arrays.

    Floating arrays are taken as pixel_values as they are; uint8 ones are rescaled and normalised as the
    base's preprocessor_config.json says.
    """

    neighbours = 10

    def model(self, config: Mapping[str, Any], extras: Mapping[str, TensorInfo]) -> nn.Module:
        """Returns the classifier with the config's label count."""
        return self._untrained("AutoModelForImageClassification", config)

    def batch(self, inputs: Inputs) -> Batch:
        """Returns pixel_values, (sample, channel, height, width) float32."""
        pixels = np.asarray(inputs)
        if pixels.ndim != 4:
            raise InputError(
                f"images have the shape {pixels.shape}, expected (sample, channel, height, width)"
            )
        if pixels.dtype == np.uint8:
            return {"pixel_values": self._normalised(torch.from_numpy(pixels).float())}
        return {"pixel_values": torch.from_numpy(pixels.astype(np.float32))}

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Returns (sample, class)."""
        logits: Tensor = model(**batch).logits
        return logits

    def _normalised(self, pixels: Tensor) -> Tensor:
        path = self._directory / "preprocessor_config.json"
        if not path.is_file():
            raise InputError(
                f"{path}: missing; it says how uint8 images are normalised, or give float images"
            )
        settings = read_json_object(path)
        if settings.get("do_rescale", True):
            pixels = pixels * settings.get("rescale_factor", 1 / 255)
        if not settings.get("do_normalize", True):
            return pixels
        moments = [settings.get(key) for key in ("image_mean", "image_std")]
        if any(not isinstance(each, list) or len(each) != pixels.shape[1] for each in moments):
            raise InputError(
                f"{path}: has the image_mean {moments[0]} and image_std {moments[1]}, "
                f"expected a number for each of {pixels.shape[1]} channels"
            )
        mean, deviation = (torch.tensor(each).view(1, -1, 1, 1) for each in moments)
        return (pixels - mean) / deviation


def mean_pool(hidden: Tensor, mask: Tensor | None) -> Tensor:
    """Returns the mean over the tokens that `mask` (sample, token) marks, (sample, width)."""
    if mask is None:
        return hidden.mean(1)
    weights = mask.unsqueeze(-1).to(hidden.dtype)  # (sample, token, 1)
    return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)  # a text may have no tokens


def _load_factory(name: str) -> Any:
    """Returns the function that `python:package.module:factory` names. Raises: UsageError."""
    module_name, _, function = name.removeprefix("python:").partition(":")
    try:
        return getattr(importlib.import_module(module_name), function)
    except (ImportError, AttributeError, ValueError) as reason:
        raise UsageError(f"--adapter {name}: {reason}; expected python:package.module:factory") from reason
