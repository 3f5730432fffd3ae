"""The adapters of text models."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flexswitch.codecs.errors import InputError
from flexswitch.merging.checkpoints.architecture import HEAD_BIAS, HEAD_WEIGHT
from flexswitch.merging.checkpoints.checkpoint import Checkpoint, TensorInfo
from flexswitch.merging.models.examples import Batch, Inputs
from flexswitch.merging.models.hidden_states import mean_pool
from flexswitch.merging.models.huggingface import HuggingFace


class _Text(HuggingFace):
    neighbours = 5

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
        self._max_length = int(min(limit, longest))

    def _load_tokenizer(self) -> Any:
        with self._tokenizer_errors("its tokenizer cannot be loaded"):
            tokenizer = self.transformers.AutoTokenizer.from_pretrained(
                self.directory, trust_remote_code=False, local_files_only=True
            )
        if len(tokenizer) <= len(
            tokenizer.all_special_tokens
        ):  # what transformers returns if there are no files
            raise InputError(f"{self.base.source}: has no tokenizer; copy the model's tokenizer.json to it")
        self._make_padding(tokenizer)
        return tokenizer

    @contextmanager
    def _tokenizer_errors(self, problem: str) -> Iterator[None]:
        """Raises: InputError, which names the tokenizer's file, for whatever its libraries raise."""
        try:
            yield
        except BaseException as reason:
            # a panic in Rust is a BaseException, of a class that cannot be imported
            if not isinstance(reason, Exception) and type(reason).__name__ != "PanicException":
                raise
            file = self.directory / "tokenizer.json"
            source = file if file.is_file() else self.base.source
            found = " ".join(str(reason).split())[:200]
            raise InputError(f"{source}: {problem} ({found})") from reason

    def _make_padding(self, tokenizer: Any) -> None:
        """Makes sure that the tokenizer can pad. Raises: InputError if it cannot."""
        if tokenizer.pad_token is None:
            raise InputError(
                f"{self.base.source}: its tokenizer has no pad_token; set one in its tokenizer_config.json"
            )

    def batch(self, inputs: Inputs) -> Batch:
        """Returns token tensors, padded to the longest text and cut at the tokenizer's model_max_length."""
        if isinstance(inputs, np.ndarray):
            raise InputError(f"the examples are an array of shape {inputs.shape}, expected texts")
        options = {"padding": True, "truncation": True, "max_length": self._max_length}
        with self._tokenizer_errors("its tokenizer fails on the texts"):
            found = dict(self._tokenizer(list(inputs), **options, return_tensors="pt"))
        words, ids = self.config.get("vocab_size"), found["input_ids"]
        if type(words) is int and ids.numel() and int(ids.max()) >= words:
            raise InputError(
                f"{self.base.source}: its tokenizer gives the token {int(ids.max())}, and the model has "
                f"{words} tokens; copy the model's own tokenizer files to it"
            )
        return found


class SequenceClassification(_Text):
    """`hf-sequence-classification`: AutoModelForSequenceClassification on texts."""

    def model(self, config: Mapping[str, Any], extras: Mapping[str, TensorInfo]) -> nn.Module:
        """Returns the classifier with the number of labels in the config."""
        return self.untrained("AutoModelForSequenceClassification", config, extras)


class EncoderWithHead(_Text):
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


class CausalLanguageModel(_Text):
    """`hf-causal-lm`: AutoModelForCausalLM on texts, padded on the right.

    A token does not attend to later tokens, so padding on the right does not change a text's logits. If the
    tokenizer has no padding token, the end-of-text token is used; the attention mask marks the padding.
    """

    def __init__(self, base: Checkpoint) -> None:
        super().__init__(base)
        self.config = {**self.config, "use_cache": False}  # no text is generated

    def _make_padding(self, tokenizer: Any) -> None:
        tokenizer.padding_side = "right"
        if tokenizer.pad_token is None and tokenizer.eos_token is None:
            raise InputError(
                f"{self.base.source}: its tokenizer has neither a pad_token nor an eos_token; "
                "set one in its tokenizer_config.json"
            )
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token

    def model(self, config: Mapping[str, Any], extras: Mapping[str, TensorInfo]) -> nn.Module:
        """Returns the language model."""
        return self.untrained("AutoModelForCausalLM", config, extras)

    def batch(self, inputs: Inputs) -> Batch:
        """Returns input_ids and attention_mask, (sample, token), of at least one token, perhaps padding."""
        found = super().batch(inputs)
        ids, mask = found["input_ids"], found["attention_mask"]
        if not ids.shape[1]:  # some tokenizers add no tokens to an empty text
            ids, mask = torch.full((len(ids), 1), self._tokenizer.pad_token_id), torch.zeros(len(ids), 1)
        return {"input_ids": ids.long(), "attention_mask": mask.long()}
