"""The adapters of text models."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from torch import Tensor, nn

from flexswitch.codecs.errors import InputError
from flexswitch.merging.checkpoints.architecture import HEAD_BIAS, HEAD_WEIGHT
from flexswitch.merging.checkpoints.checkpoint import Checkpoint, TensorInfo
from flexswitch.merging.models.conversations import Pair, Text
from flexswitch.merging.models.examples import Batch, Inputs
from flexswitch.merging.models.hidden_states import mean_pool
from flexswitch.merging.models.huggingface import HuggingFace
from flexswitch.merging.models.outputs import OutputKind
from flexswitch.merging.models.tokenizers import load_tokenizer, tokenizer_errors


class TextModel(HuggingFace):
    """A model of texts, with its tokenizer."""

    neighbours = 5
    kind: OutputKind | None = None
    truncation: str | bool = True

    def __init__(self, base: Checkpoint) -> None:
        super().__init__(base)
        self._tokenizer = self._load_tokenizer()
        positions = (self.config.get(key) for key in ("max_position_embeddings", "n_positions"))
        longest = next((count for count in positions if type(count) is int and count > 0), 512)
        if "roberta" in self.config["model_type"]:
            # its positions start after the padding token's number
            longest -= self._tokenizer.pad_token_id + 1
        limit = self._tokenizer.model_max_length
        if not isinstance(limit, int | float) or min(limit, longest) < 1:
            raise InputError(
                f"{base.source}: its tokenizer's model_max_length is {limit!r} and the model has {longest} "
                "positions, expected numbers of at least 1"
            )
        self.max_length = int(min(limit, longest))

    def _load_tokenizer(self) -> Any:
        tokenizer = load_tokenizer(self.directory, self.base.source)
        self._make_padding(tokenizer)
        return tokenizer

    def _tokenizer_errors(self, problem: str) -> AbstractContextManager[None]:
        """Raises: InputError, which names the tokenizer's file, for whatever its libraries raise."""
        return tokenizer_errors(self.directory, self.base.source, problem)

    def _make_padding(self, tokenizer: Any) -> None:
        """Makes sure that the tokenizer can pad. Raises: InputError if it cannot."""
        if tokenizer.pad_token is None:
            raise InputError(
                f"{self.base.source}: its tokenizer has no pad_token; set one in its tokenizer_config.json"
            )

    def batch(self, inputs: Inputs) -> Batch:
        """Returns token tensors, padded to the longest text and cut at `max_length` tokens."""
        found = dict(self.encoded(inputs, return_tensors="pt"))
        self._check_tokens(found["input_ids"])
        return found

    def encoded(self, inputs: Inputs, **options: Any) -> Any:
        """Returns what the tokenizer makes of texts and pairs of texts. Raises: InputError."""
        texts = [(text.first, text.second) if isinstance(text, Pair) else text for text in self.texts(inputs)]
        if not all(isinstance(text, str | tuple) for text in texts):
            raise InputError("the examples are conversations, expected texts: a field 'text'")
        options |= {"padding": True, "truncation": self.truncation, "max_length": self.max_length}
        with self._tokenizer_errors("its tokenizer fails on the texts"):
            return self._tokenizer(texts, **options)

    def texts(self, inputs: Inputs) -> Sequence[Text]:
        """Returns the inputs. Raises: InputError unless they are texts or conversations."""
        if isinstance(inputs, np.ndarray):
            raise InputError(f"the examples are an array of shape {inputs.shape}, expected texts")
        return inputs

    def _check_tokens(self, tokens: Tensor) -> None:
        """Raises: InputError where a token is none of the model's."""
        words = self.config.get("vocab_size")
        if type(words) is int and tokens.numel() and int(tokens.max()) >= words:
            raise InputError(
                f"{self.base.source}: its tokenizer gives the token {int(tokens.max())}, and the model has "
                f"{words} tokens; copy the model's own tokenizer files to it"
            )


class SequenceClassification(TextModel):
    """`hf-sequence-classification`: AutoModelForSequenceClassification on texts."""

    def model(self, config: Mapping[str, Any], extras: Mapping[str, TensorInfo]) -> nn.Module:
        """Returns the classifier with the number of labels in the config."""
        return self.untrained("AutoModelForSequenceClassification", config, extras)


class EncoderWithHead(TextModel):
    """`hf-encoder`: an encoder with mean pooling and a linear head, which is among the extras."""

    def model(self, config: Mapping[str, Any], extras: Mapping[str, TensorInfo]) -> nn.Module:
        """Returns the encoder and a head of the stored shape. Raises: InputError if there is no head."""
        if HEAD_WEIGHT not in extras:
            raise InputError(
                f"adapter hf-encoder: the task has no '{HEAD_WEIGHT}' (it has: {', '.join(extras)})"
            )
        shape = extras[HEAD_WEIGHT].shape
        encoder = self.headless(config)
        classes, width = shape if len(shape) == 2 else (0, 0)
        hidden = getattr(encoder.config, "hidden_size", width)
        if not classes or width != hidden:
            raise InputError(
                f"adapter hf-encoder: the task's '{HEAD_WEIGHT}' has the shape {list(shape)}, expected a row "
                f"of {hidden} for each class"
            )
        return nn.ModuleDict(
            {"encoder": encoder, "head": nn.Linear(width, classes, bias=HEAD_BIAS in extras)}
        ).eval()

    def parameter_name(self, finetuned_name: str) -> str:
        """Returns the name in the module that holds encoder and head."""
        return finetuned_name if finetuned_name in (HEAD_WEIGHT, HEAD_BIAS) else f"encoder.{finetuned_name}"

    def _logits(self, model: nn.Module, batch: Batch) -> Tensor:
        modules = dict(model.named_children())
        hidden = modules["encoder"](**batch).last_hidden_state
        logits: Tensor = modules["head"](mean_pool(hidden, batch.get("attention_mask")))
        return logits
