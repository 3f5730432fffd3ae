"""The adapter of models whose outputs are embeddings of texts, such as those of sentence-transformers."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from flexswitch.codecs.errors import InputError
from flexswitch.merging.checkpoints.checkpoint import Checkpoint, TensorInfo
from flexswitch.merging.checkpoints.config import read_json_object
from flexswitch.merging.models.conversations import Pair
from flexswitch.merging.models.examples import Batch, Inputs
from flexswitch.merging.models.hidden_states import mean_pool
from flexswitch.merging.models.outputs import OutputKind
from flexswitch.merging.models.text_adapters import TextModel

_POOLING = "1_Pooling/config.json"  # where sentence-transformers says how tokens are pooled


class SentenceEmbedding(TextModel):
    """`hf-sentence-embedding`: AutoModel on texts; its outputs are the hidden states, pooled over tokens.

    They are the mean over tokens, or the first or last token's where the folder's pooling says so. Modules
    after the pooling are not run.
    """

    kind: OutputKind = "features"

    def __init__(self, base: Checkpoint) -> None:
        super().__init__(base)
        path = self.directory / _POOLING
        self._pooling = read_json_object(path) if path.is_file() else {}

    def model(self, config: Mapping[str, Any], extras: Mapping[str, TensorInfo]) -> nn.Module:
        """Returns the model without a head."""
        return self.headless(config)

    def encoded(self, inputs: Inputs, **options: Any) -> Any:
        """Returns what the tokenizer makes of texts. Raises: InputError."""
        if any(isinstance(text, Pair) for text in self.texts(inputs)):
            raise InputError(
                "the examples are pairs of texts, which the model embeds apart: only `eval` takes them; "
                "otherwise give each text as an example of its own"
            )
        return super().encoded(inputs, **options)

    def _logits(self, model: nn.Module, batch: Batch) -> Tensor:
        hidden: Tensor = model(**batch).last_hidden_state
        marks = batch["attention_mask"]
        if self._pooling.get("pooling_mode_cls_token") or self._pooling.get("pooling_mode") == "cls":
            return hidden[torch.arange(len(hidden)), (marks != 0).int().argmax(1)]
        if self._pooling.get("pooling_mode_lasttoken") or self._pooling.get("pooling_mode") == "lasttoken":
            last = marks.shape[1] - 1 - (marks != 0).flip(1).int().argmax(1)
            return hidden[torch.arange(len(hidden)), last]
        return mean_pool(hidden, marks)
