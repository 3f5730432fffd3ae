"""The adapters of language models, which answer each token of a text with the next one.

The batch of conversations has a "loss_mask" (sample, token) too, nonzero for the tokens before an answer's
tokens: only their logits count. Of plain texts all logits count, but those of padding.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from flexswitch.codecs.errors import InputError
from flexswitch.merging.checkpoints.checkpoint import Checkpoint, TensorInfo
from flexswitch.merging.models.conversations import Completion, Pair, Text, last_answer
from flexswitch.merging.models.examples import Batch, Inputs
from flexswitch.merging.models.outputs import OutputKind
from flexswitch.merging.models.rendering import Rendered, rendered, rendered_prompt
from flexswitch.merging.models.scored_tokens import LOSS_MASK, next_tokens, scored_tokens
from flexswitch.merging.models.text_adapters import TextModel


class LanguageModel(TextModel):
    """A model whose logits are those of the next token, padded on the right."""

    kind: OutputKind | None = "tokens"

    def __init__(self, base: Checkpoint) -> None:
        super().__init__(base)
        self.config = {**self.config, "use_cache": False}  # a text's logits are computed at once

    @property
    def words(self) -> int:
        """The number of tokens that logits are over."""
        found = self.config.get("vocab_size")
        return found if type(found) is int and found > 0 else len(self._tokenizer)

    def _make_padding(self, tokenizer: Any) -> None:
        tokenizer.padding_side = "right"
        if tokenizer.pad_token is None and tokenizer.eos_token is None:
            raise InputError(
                f"{self.base.source}: its tokenizer has neither a pad_token nor an eos_token; "
                "set one in its tokenizer_config.json"
            )
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token

    def prompts(self, inputs: Inputs) -> Batch:
        """Returns the batch of what the model answers: of conversations all before their last answer."""
        texts = self.texts(inputs)
        if all(isinstance(text, str) for text in texts):
            return self._plain(texts)
        with self._tokenizer_errors("its tokenizer fails on the texts"):
            return self._padded([self._prompt(text) for text in texts])

    def answers(self, logits: Tensor, batch: Batch, inputs: Inputs) -> list[tuple[float, int]]:
        """Returns the sum of the losses of each text's scored tokens in nats, and their number."""
        scored, (following, follows) = scored_tokens(batch), next_tokens(batch)
        scored[scored.clone()] = follows
        losses = torch.zeros(scored.shape, device=logits.device)
        losses[scored] = cross_entropy(logits[scored].float(), following[follows], reduction="none")
        return list(zip(losses.double().sum(1).tolist(), scored.sum(1).tolist(), strict=True))

    def generated(self, generate: Callable[..., Tensor], inputs: Inputs, device: str) -> list[str]:
        """Returns the answers to prompts, whose every token is the likeliest one.

        generate: as that of transformers' models. An answer ends one token after the longest expected one.
        """
        batch = {name: tensor.to(device) for name, tensor in self._generation_batch(inputs).items()}
        answers = [last_answer(text) or "" for text in self.texts(inputs)]
        longest = max(len(tokens) for tokens in self._tokenizer(answers)["input_ids"]) + 1
        room = min(longest, self.max_length - self._answer_start(batch))
        if room < 1:
            return [""] * len(answers)
        tokens = generate(
            **batch, max_new_tokens=room, do_sample=False, num_beams=1, use_cache=True,
            eos_token_id=self._tokenizer.eos_token_id, pad_token_id=self._tokenizer.pad_token_id,
        )  # fmt: skip
        found: list[str] = self._tokenizer.batch_decode(
            tokens[:, self._answer_start(batch) :], skip_special_tokens=True
        )
        return found

    def _generation_batch(self, inputs: Inputs) -> Batch:
        """Returns the batch that an answer is generated after: the prompts, padded on the left."""
        batch = self.prompts(inputs)
        places = batch["attention_mask"].argsort(dim=1, stable=True)
        return {name: tensor.gather(1, places) for name, tensor in batch.items()}

    def _answer_start(self, batch: Batch) -> int:
        """Returns the place of the first generated token in what `generate` returns."""
        return batch["input_ids"].shape[1]

    def _prompt(self, text: Text) -> list[int]:
        if isinstance(text, str | Pair):
            return list(self._tokenizer(str(text), truncation=True, max_length=self.max_length)["input_ids"])
        return rendered_prompt(self._tokenizer, text, self.max_length, self.base.source)

    def _plain(self, texts: Inputs) -> Batch:
        """Returns input_ids and attention_mask, (sample, token), of at least one token, perhaps padding."""
        found = super().batch(texts)
        ids, mask = found["input_ids"], found["attention_mask"]
        if not ids.shape[1]:  # some tokenizers add no tokens to an empty text
            return self._padded([[] for _ in texts])
        return {"input_ids": ids.long(), "attention_mask": mask.long()}

    def _padded(self, rows: Sequence[Sequence[int]]) -> Batch:
        """Returns rows of tokens as input_ids and attention_mask, (sample, token)."""
        lengths = torch.tensor([len(row) for row in rows])
        longest = max(1, int(lengths.max()))
        ids = _right_padded(rows, self._tokenizer.pad_token_id, longest)
        self._check_tokens(ids)
        return {"input_ids": ids, "attention_mask": (torch.arange(longest) < lengths[:, None]).long()}


class CausalLanguageModel(LanguageModel):
    """`hf-causal-lm`: AutoModelForCausalLM on texts, chats, or prompts with their completions.

    A token does not attend to later tokens, so padding on the right does not change a text's logits. If the
    tokenizer has no padding token, the end-of-text token is used; the attention mask marks the padding.
    """

    def model(self, config: Mapping[str, Any], extras: Mapping[str, TensorInfo]) -> nn.Module:
        """Returns the language model."""
        return self.untrained("AutoModelForCausalLM", config, extras)

    def batch(self, inputs: Inputs) -> Batch:
        """Returns input_ids, attention_mask, and of conversations loss_mask, all (sample, token)."""
        texts = self.texts(inputs)
        if all(isinstance(text, str) for text in texts):
            return self._plain(texts)
        with self._tokenizer_errors("its tokenizer fails on the texts"):
            rows = [self._rendered(text) for text in texts]
        found = self._padded([row.tokens for row in rows])
        scored = [[*row.answers[1:], False] for row in rows]
        return {**found, LOSS_MASK: _right_padded(scored, 0, found["input_ids"].shape[1])}

    def _rendered(self, text: Text) -> Rendered:
        if isinstance(text, str | Pair):
            tokens = self._prompt(text)
            return Rendered(tokens, [True] * len(tokens))
        return rendered(self._tokenizer, text, self.max_length, self.base.source)


class SequenceToSequence(LanguageModel):
    """`hf-seq2seq-lm`: AutoModelForSeq2SeqLM on source texts with their targets.

    The decoder is given the start token and the target; the logits of the target's last token do not count.
    """

    def model(self, config: Mapping[str, Any], extras: Mapping[str, TensorInfo]) -> nn.Module:
        """Returns the encoder-decoder."""
        return self.untrained("AutoModelForSeq2SeqLM", config, extras)

    def batch(self, inputs: Inputs) -> Batch:
        """Returns the tokens and masks of sources and of targets, whose names start with "decoder_".

        Also returns loss_mask (sample, target token). A text without a target has the start token alone.
        """
        texts = self.texts(inputs)
        found = self.prompts(texts)
        with self._tokenizer_errors("its tokenizer fails on the texts"):
            rows = [[self._start(), *self._target(text)] for text in texts]
        targets = self._padded(rows)
        marks = targets["attention_mask"].clone()
        for row, tokens in enumerate(rows):
            marks[row, len(tokens) - 1] = len(tokens) == 1
        return {**found, **{f"decoder_{name}": each for name, each in targets.items()}, LOSS_MASK: marks}

    def _prompt(self, text: Text) -> list[int]:
        """Returns the tokens of a source, with the end that its encoder expects."""
        return super()._prompt(text.question if isinstance(text, Completion) else text)

    def _generation_batch(self, inputs: Inputs) -> Batch:
        return self.prompts(inputs)

    def _answer_start(self, batch: Batch) -> int:
        return 1  # after the start token

    def _target(self, text: Text) -> list[int]:
        answer = last_answer(text)
        if answer is None:
            return []
        options = {"truncation": True, "max_length": self.max_length - 1}
        return list(self._tokenizer(text_target=answer, **options)["input_ids"])

    def _start(self) -> int:
        for name in ("decoder_start_token_id", "bos_token_id", "pad_token_id"):
            if type(found := self.config.get(name)) is int:
                return found
        raise InputError(
            f"{self.base.source}: its config.json has no decoder_start_token_id; add the token that its "
            "decoder starts with"
        )


def _right_padded(rows: Sequence[Sequence[int]], value: int, length: int) -> Tensor:
    """Returns rows of numbers as one tensor, (row, length) int64."""
    tensors = [torch.tensor(row, dtype=torch.long) for row in (*rows, [0] * length)]
    return pad_sequence(tensors, batch_first=True, padding_value=value)[:-1]
