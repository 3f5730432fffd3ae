"""The adapters of models that answer each token of a text, or mark a part of it."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from flexswitch.codecs.errors import InputError
from flexswitch.merging.checkpoints.checkpoint import TensorInfo
from flexswitch.merging.models.conversations import Pair
from flexswitch.merging.models.examples import Batch, Inputs
from flexswitch.merging.models.outputs import OutputKind
from flexswitch.merging.models.text_adapters import TextModel

_LONGEST_SPAN = 30  # tokens


class TokenClassification(TextModel):
    """`hf-token-classification`: AutoModelForTokenClassification on texts.

    The words of a text are what spaces separate; the class of a word is that of its first token.
    """

    kind: OutputKind = "token-classes"

    def model(self, config: Mapping[str, Any], extras: Mapping[str, TensorInfo]) -> nn.Module:
        """Returns the classifier with the number of labels in the config."""
        return self.untrained("AutoModelForTokenClassification", config, extras)

    def answers(self, logits: Tensor, batch: Batch, inputs: Inputs) -> list[list[int | None]]:
        """Returns the class of each word of each text, None for a word that was cut off."""
        classes, places = logits.argmax(-1).tolist(), self.encoded(inputs)
        found = []
        for row, text in enumerate(inputs):
            starts = _word_starts(str(text))
            tokens = [places.char_to_token(row, start) for start in starts]
            found.append([None if token is None else classes[row][token] for token in tokens])
        return found


class MaskedLanguageModel(TextModel):
    """`hf-masked-lm`: AutoModelForMaskedLM on texts. Its answer is the token at a text's first mask."""

    kind: OutputKind = "masked-tokens"

    def model(self, config: Mapping[str, Any], extras: Mapping[str, TensorInfo]) -> nn.Module:
        """Returns the language model."""
        return self.untrained("AutoModelForMaskedLM", config, extras)

    def answers(self, logits: Tensor, batch: Batch, inputs: Inputs) -> list[str]:
        """Returns the token at the first mask of each text. Raises: InputError if a text has none."""
        masks = batch["input_ids"] == self._tokenizer.mask_token_id
        if not bool(masks.any(1).all()):
            row = int(masks.any(1).logical_not().nonzero()[0])
            raise InputError(
                f"the text '{str(inputs[row])[:60]}' has no {self._tokenizer.mask_token}, which a masked "
                "language model is to fill"
            )
        places = masks.int().argmax(1)
        tokens = logits[torch.arange(len(logits)), places].argmax(-1)
        return [self._tokenizer.decode(token).strip() for token in tokens]


class QuestionAnswering(TextModel):
    """`hf-question-answering`: AutoModelForQuestionAnswering on pairs of a question and a context."""

    kind: OutputKind = "spans"
    truncation = "only_second"

    def model(self, config: Mapping[str, Any], extras: Mapping[str, TensorInfo]) -> nn.Module:
        """Returns the model that marks the start and the end of an answer."""
        return self.untrained("AutoModelForQuestionAnswering", config, extras)

    def batch(self, inputs: Inputs) -> Batch:
        """Returns token tensors; the context is cut. Raises: InputError if an example has no context."""
        for each in inputs:
            if not isinstance(each, Pair):
                raise InputError(
                    f"the question '{str(each)[:60]}' has no context; give it as the field 'text_pair'"
                )
        return super().batch(inputs)

    def _logits(self, model: nn.Module, batch: Batch) -> Tensor:
        found = model(**batch)
        return torch.stack([found.start_logits, found.end_logits], -1)  # (sample, token, 2)

    def answers(self, logits: Tensor, batch: Batch, inputs: Inputs) -> list[str]:
        """Returns the part of each context with the largest sum of its start's and its end's logits."""
        places = self.encoded(inputs, return_offsets_mapping=True)
        found = []
        contexts = [each.second for each in inputs if isinstance(each, Pair)]
        for row, context in enumerate(contexts):
            own = [token for token, part in enumerate(places.sequence_ids(row)) if part == 1]
            start, end = _best_span(logits[row, own].float().cpu())
            offsets = places["offset_mapping"][row]
            found.append(context[offsets[own[start]][0] : offsets[own[end]][1]] if own else "")
        return found


def _word_starts(text: str) -> list[int]:
    starts, place = [], 0
    for word in text.split():
        place = text.index(word, place)
        starts.append(place)
        place += len(word)
    return starts


def _best_span(logits: Tensor) -> tuple[int, int]:
    """Returns the first and the last token of the best span; logits: (token, 2)."""
    if not len(logits):
        return 0, 0
    sums = logits[:, None, 0] + logits[None, :, 1]  # (start, end)
    allowed = (
        torch.ones_like(sums, dtype=torch.bool).triu() & torch.ones_like(sums).tril(_LONGEST_SPAN - 1).bool()
    )
    best = int(sums.masked_fill(~allowed, -torch.inf).argmax())
    return best // len(logits), best % len(logits)
